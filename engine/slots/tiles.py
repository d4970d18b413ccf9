"""Products of tens of tokens with packed weights on NVIDIA's tensor cores, and unpacked weights for more of them.

A program multiplies ROWS rows of the weight with all tokens. Weights and activations are brought to shared memory some
steps ahead, so that the weight is read once, as it is stored. It is taken from there as int16, which lie where tensor cores
take 16-bit floats, and what a few instructions make of them in registers is an operand as it is.

An int16 holds two or four weights. One of them is taken out at a time: a product with those in the lowest places, another
with those in the next, and so on. Activations are therefore sorted by place first (`by_place`).
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
# The kernels below are in Triton's dialect, which knows no types of Python's.

import torch
from torch import Tensor

from engine.slots.launch import overlapping

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called
    triton = None

MAX_TOKENS = 256
"""Up to so many tokens `multiply_bytes` serves; beyond, unpacking the weight once costs less than the slower product."""

ROWS = 128
"""Rows of the weight that a program takes."""

MAX_SHARES = 8
"""Among so many programs at most the columns of a row are shared out."""


def multiply_bytes(x: Tensor, q: Tensor, scale: Tensor, widen: tuple[str, str]) -> Tensor:
    """x [T, in] times (q * scale)^T for q [out, in] of bytes and scale [out], on a GPU, T up to MAX_TOKENS: [T, out].

    x is of 16 bits, `in` a multiple of 32. `widen` is the PTX that makes $0, two floats of the dtype of x, of the lower
    bytes of two int16, $1, and the one that makes them of the upper bytes.
    """
    tokens, inputs = x.shape
    width = tile(tokens)
    columns = 32 if width > 128 else 64
    parts = empty_parts(x, len(q), 1)
    bytes_kernel[(triton.cdiv(len(q), ROWS), len(parts))](
        by_place(x, 2),
        q.view(torch.int16),
        scale,
        parts,
        tokens,
        len(q),
        inputs // 2,
        triton.cdiv(triton.cdiv(inputs // 2, columns), len(parts)),
        ROWS=ROWS,
        TOKENS=width,
        COLUMNS=columns,
        STAGES=4 if width <= 32 else 3,
        LOWER=widen[0],
        UPPER=widen[1],
        num_warps=8,
        **overlapping(x),
    )
    return added(parts, x)


def tile(tokens: int) -> int:
    """The number of tokens that a program multiplies with, a power of two, so that `tokens` fit."""
    return max(32, 1 << (tokens - 1).bit_length())


def by_place(x: Tensor, places: int) -> Tensor:
    """x [T, in] as [places, T, in / places], for int16 that hold `places` weights.

    Two weights: the even columns, then the odd ones. Four: of each eight columns the first two, then the next two, and so
    on, since an int64 of packed weights has neighbouring columns 16 bits apart.
    """
    together = places // 2
    return x.reshape(len(x), -1, places, together).permute(2, 0, 1, 3).contiguous()


def empty_parts(x: Tensor, outputs: int, programs: int) -> Tensor:
    """Room for sums over shares of the columns [shares, T, out]: as many as give each multiprocessor `programs` programs.

    In float32 where there are several, else in the dtype of x [T, in].
    """
    there = torch.cuda.get_device_properties(x.device).multi_processor_count * programs
    shares = min(MAX_SHARES, max(1, there // triton.cdiv(outputs, ROWS)))
    dtype = x.dtype if shares == 1 else torch.float32
    return torch.empty((shares, len(x), outputs), dtype=dtype, device=x.device)


def added(parts: Tensor, x: Tensor) -> Tensor:
    """The sum over the shares of parts [shares, T, out] in the dtype of x: [T, out]. In the same order each time."""
    if len(parts) == 1:
        return parts[0]
    y = torch.empty(parts.shape[1:], dtype=x.dtype, device=x.device)
    add_kernel[(triton.cdiv(y.numel(), 1024),)](parts, y, y.numel(), len(parts), BLOCK=1024, **overlapping(x))
    return y


def unpack_bytes(q: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
    """q [out, in] of int8 or float8_e4m3fn on a GPU, times scale [out] where there is one, in `dtype`: [out, in].

    The numbers are those of q.to(dtype) * scale.to(dtype)[:, None]; PyTorch takes more than twice as long for the first.
    """
    outputs, inputs = q.shape
    weight = torch.empty(q.shape, dtype=dtype, device=q.device)
    unpack_kernel[(outputs, triton.cdiv(inputs, 2048))](
        q, q if scale is None else scale, weight, inputs, SCALED=scale is not None, BLOCK=2048, num_warps=4
    )
    return weight


def from_int8(kind: str) -> tuple[str, str]:
    """The PTX for int8, as `multiply_bytes` wants it.

    No conversion of integers is needed: as the lowest byte of 2^23 in float32, a byte makes it 2^23 plus itself.
    """
    both = []
    for place in range(2):
        lines = [".reg .b32 q, t, u;", "xor.b32 q, $1, 0x80808080;"]  # q + 128, without a sign
        lines.append(f"prmt.b32 t, q, 0x4b000000, {0x7440 + place:#x};")
        lines.append(f"prmt.b32 u, q, 0x4b000000, {0x7442 + place:#x};")
        lines.append("sub.f32 t, t, 0f4B000080; sub.f32 u, u, 0f4B000080;")  # 2^23 + 128
        lines.append(f"cvt.rn.{kind}.f32 $0, u, t;")
        both.append("{" + " ".join(lines) + "}")
    return both[0], both[1]


def bfloat16_from_e4m3() -> tuple[str, str]:
    """The PTX for e4m3 and bfloat16, as `multiply_bytes` wants it.

    Sign, exponent and mantissa moved to their places in bfloat16 are the same number but for the bias of the exponent,
    7 against 127, subnormal numbers included.
    """
    both = []
    for move in ("shl.b32 t, $1, 8;", "mov.b32 t, $1;"):  # into the upper bytes of 16 bits
        lines = [".reg .b32 t, u, larger;", "mov.b32 larger, 0x7b807b80;", move]
        lines.append("shr.u32 u, t, 4; and.b32 u, u, 0x07f007f0;")
        lines.append("lop3.b32 t, t, 0x80008000, u, 0xea;")  # t & mask | u
        lines.append("mul.rn.bf16x2 $0, t, larger;")  # 2^120
        both.append("{" + " ".join(lines) + "}")
    return both[0], both[1]


def float16_from_e4m3() -> tuple[str, str]:
    """The PTX for e4m3 and float16, which there is an instruction for, as `multiply_bytes` wants it."""
    both = []
    for place in range(2):
        lines = [".reg .b32 t; .reg .b16 pair, rest;", f"prmt.b32 t, $1, 0, {0x4420 + 0x11 * place:#x};"]
        lines.append("mov.b32 {pair, rest}, t; cvt.rn.f16x2.e4m3x2 $0, pair;")
        both.append("{" + " ".join(lines) + "}")
    return both[0], both[1]


INT8 = {torch.bfloat16: from_int8("bf16x2"), torch.float16: from_int8("f16x2")}
E4M3 = {torch.bfloat16: bfloat16_from_e4m3(), torch.float16: float16_from_e4m3()}
"""What `multiply_bytes` takes for bytes of these kinds, by the dtype of the activations."""


if triton is not None:

    @triton.jit(do_not_specialize=["tokens", "steps"])
    def bytes_kernel(
        x,
        q,
        scale,
        parts,
        tokens,
        outputs,
        count,
        steps,
        ROWS: tl.constexpr,
        TOKENS: tl.constexpr,
        COLUMNS: tl.constexpr,
        STAGES: tl.constexpr,
        LOWER: tl.constexpr,
        UPPER: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS outputs of up to TOKENS tokens, over one share of a row's `count` int16: `steps` times COLUMNS of them."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        top = tl.program_id(0) * ROWS
        row = tl.minimum(tl.arange(0, ROWS), outputs - 1 - top)
        token = tl.arange(0, TOKENS)
        column = tl.arange(0, COLUMNS)
        at_q = q + top.to(tl.int64) * count + row[:, None] * count + column[None, :]
        at_x = x + token[None, :] * count + column[:, None]
        total = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        first = tl.program_id(1) * steps * COLUMNS
        for at in tl.range(first, tl.minimum(first + steps * COLUMNS, count), COLUMNS, num_stages=STAGES):
            known = at + column < count
            w = tl.load(at_q + at, mask=known[None, :], other=0)
            inside = known[:, None] & (token < tokens)[None, :]
            lower = tl.load(at_x + at, mask=inside, other=0.0)
            upper = tl.load(at_x + tokens * count + at, mask=inside, other=0.0)
            a = tl.inline_asm_elementwise(LOWER, "=r,r", [w], dtype=x.dtype.element_ty, is_pure=True, pack=2)
            total = tl.dot(a, lower, total)
            a = tl.inline_asm_elementwise(UPPER, "=r,r", [w], dtype=x.dtype.element_ty, is_pure=True, pack=2)
            total = tl.dot(a, upper, total)
        total *= tl.load(scale + top + row).to(tl.float32)[:, None]
        store_part(parts, total, top, tokens, outputs, ROWS, TOKENS)

    @triton.jit
    def store_part(parts, total, top, tokens, outputs, ROWS: tl.constexpr, TOKENS: tl.constexpr):
        """total [ROWS, TOKENS] of the rows from `top` on, where it belongs in parts [shares, tokens, outputs]."""
        row = top + tl.arange(0, ROWS)
        token = tl.arange(0, TOKENS)
        to = parts + tl.program_id(1).to(tl.int64) * tokens * outputs + token[None, :] * outputs + row[:, None]
        inside = (row < outputs)[:, None] & (token < tokens)[None, :]
        tl.store(to, total.to(parts.dtype.element_ty), mask=inside)

    @triton.jit(do_not_specialize=["shares"])
    def add_kernel(parts, y, size, shares, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
        """BLOCK of the `size` sums over the shares."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        total = tl.zeros((BLOCK,), dtype=tl.float32)
        for share in range(shares):
            total += tl.load(parts + share * size + at, mask=at < size, other=0.0)
        tl.store(y + at, total.to(y.dtype.element_ty), mask=at < size)

    @triton.jit
    def unpack_kernel(q, scale, weight, inputs, SCALED: tl.constexpr, BLOCK: tl.constexpr):
        """BLOCK columns of one row."""
        row = tl.program_id(0).to(tl.int64)
        column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        known = column < inputs
        w = tl.load(q + row * inputs + column, mask=known, eviction_policy="evict_first").to(tl.float32)
        if SCALED:
            w *= tl.load(scale + row).to(weight.dtype.element_ty).to(tl.float32)
        tl.store(weight + row * inputs + column, w.to(weight.dtype.element_ty), mask=known)
