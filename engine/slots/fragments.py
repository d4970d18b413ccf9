"""Products of few tokens with packed weights on NVIDIA's tensor cores: what weight-only quantizations share on a GPU.

A product of few tokens waits for the weight to be read. What it does besides must be little: a weight is made a 16-bit
float by a few instructions for two at a time, tensor cores do the rest, and nothing passes through shared memory.

Every tensor in these kernels has one element for each thread, which is how the fragments of the operands of
`mma.m16n8k16` lie (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Thread 4 * i + j of a warp has the weight's rows i and
i + 8 and token i, of each a run of columns that depends on j, and receives rows i and i + 8 of tokens 2 * j and 2 * j + 1.
Which columns are multiplied in which order is free as long as weights and activations agree: runs are 16 bytes of weight.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,assignment"
# The kernels below are in Triton's dialect, which knows no types of Python's.

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear

from engine.slots import tiles
from engine.slots.launch import overlapping

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called
    triton = None

MAX_TOKENS = 16
"""Up to so many tokens these kernels serve; with more, they would read the activations too often."""

MAX_TOKENS_OF_BYTES = 8
"""Up to so many tokens `bytes_kernel` is faster than the one of `engine.slots.tiles`."""

ROWS = 16
"""Rows of the weight that a warp takes."""

BLOCK = 2048
"""Columns of a row that are multiplied at a time where there is one token: 16 for each of 128 threads."""


class Bytes(NamedTuple):
    """How weights of one byte become 16-bit floats in registers: PTX by the dtype of the activations."""

    run: dict[torch.dtype, str]
    """Turns $4, an int64 of eight bytes, into $0 to $3, each two of them in order as floats."""

    places: dict[torch.dtype, tuple[str, str]]
    """See `tiles.multiply_bytes`."""


def serves(x: Tensor, most: int) -> bool:
    """Whether kernels for tensor cores multiply `x` [T, in]: on CUDA, in 16 bits, of `most` tokens at most."""
    return x.is_cuda and len(x) <= most and x.dtype in PRODUCT


def eights(tokens: int) -> int:
    """Products of eight tokens that hold `tokens`, a power of two."""
    return 1 << ((tokens + 7) // 8 - 1).bit_length()


def multiply_bytes(x: Tensor, q: Tensor, scale: Tensor, kind: Bytes) -> Tensor:
    """x [T, in] times (q * scale)^T for q [out, in] of int8 or float8_e4m3fn and scale [out], on a GPU: [T, out].

    `kind` is INT8 or E4M3. One token needs no tensor cores: for bytes, plain arithmetic keeps up with the memory. For
    more tokens than tiles serve, and where no kernel does, the weight is unpacked before it is used.
    """
    outputs, inputs = q.shape
    tokens = len(x)
    if tokens == 1:
        y = torch.empty((1, outputs), dtype=x.dtype, device=x.device)
        even = inputs % BLOCK == 0
        row_kernel[(outputs,)](
            x.contiguous(), q, scale, y, inputs, BLOCK=BLOCK, EVEN=even, num_warps=4, **overlapping(x)
        )
        return y
    if serves(x, tiles.MAX_TOKENS) and tokens > MAX_TOKENS_OF_BYTES and inputs % 32 == 0:
        return tiles.multiply_bytes(x, q, scale, kind.places[x.dtype])
    if not serves(x, MAX_TOKENS) or inputs % 16:
        return multiply_unpacked(x, q, scale)
    y = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    # Few rows are shared out among many warps: too few of them cannot keep the memory busy.
    warps = 16 if outputs < 8192 else 8
    bytes_kernel[(triton.cdiv(outputs, ROWS),)](
        x.contiguous().view(torch.int64),
        q.view(torch.int64),
        scale,
        y,
        tokens,
        outputs,
        inputs // 16,
        TILES=eights(tokens),
        WARPS=warps,
        WIDEN=kind.run[x.dtype],
        PRODUCT=PRODUCT[x.dtype],
        num_warps=warps,
        **overlapping(x),
    )
    return y


def multiply_unpacked(x: Tensor, q: Tensor, scale: Tensor) -> Tensor:
    """x [T, in] times (q * scale)^T, the product by PyTorch: [T, out].

    Scaled afterwards, q being exact in any dtype; in float16, whose largest number is 65504, before: a sum of unscaled
    products is easily larger.
    """
    if x.dtype == torch.float16:
        return linear(x, tiles.unpack_bytes(q, scale, x.dtype))
    return linear(x, tiles.unpack_bytes(q, None, x.dtype)) * scale.to(x.dtype)


def multiplication(kind: str) -> str:
    """The PTX of a product: d += a * b, 16 rows by 16 columns by 8 tokens; b is an int64 of four activations."""
    shape = f"mma.sync.aligned.m16n8k16.row.col.f32.{kind}.{kind}.f32"
    operands = "{$0, $1, $2, $3}, {$4, $5, $6, $7}, {b0, b1}, {$9, $10, $11, $12};"
    return f"{{ .reg .b32 b<2>; mov.b64 {{b0, b1}}, $8; {shape} {operands} }}"


def from_int8(kind: str) -> str:
    """The PTX that makes four pairs of floats of eight int8.

    No conversion of integers is needed: as the lowest byte of 2^23 in float32, a byte makes it 2^23 plus itself.
    """
    lines = [".reg .b32 part<2>, t, u;", "mov.b64 {part0, part1}, $4;"]
    for half in range(2):
        lines.append(f"xor.b32 part{half}, part{half}, 0x80808080;")  # q + 128, without a sign
        for low in (0, 2):
            lines.append(f"prmt.b32 t, part{half}, 0x4b000000, {0x7440 + low:#x};")
            lines.append(f"prmt.b32 u, part{half}, 0x4b000000, {0x7441 + low:#x};")
            lines.append("sub.f32 t, t, 0f4B000080; sub.f32 u, u, 0f4B000080;")  # 2^23 + 128
            lines.append(f"cvt.rn.{kind}.f32 ${2 * half + low // 2}, u, t;")
    return "{" + " ".join(lines) + "}"


def bfloat16_from_e4m3() -> str:
    """The PTX that makes four pairs of bfloat16 of eight e4m3.

    Sign, exponent and mantissa moved to their places in bfloat16 are the same number but for the bias of the exponent,
    7 against 127, subnormal numbers included.
    """
    lines = [".reg .b32 part<2>, t, u, larger;", "mov.b64 {part0, part1}, $4;", "mov.b32 larger, 0x7b807b80;"]
    for pair in range(4):
        lines.append(f"prmt.b32 t, part{pair // 2}, 0, {(0x1404, 0x3424)[pair % 2]:#x};")  # the upper bytes of 16 bits
        lines.append("shr.u32 u, t, 4; and.b32 u, u, 0x07f007f0;")
        lines.append("lop3.b32 t, t, 0x80008000, u, 0xea;")  # t & mask | u
        lines.append(f"mul.rn.bf16x2 ${pair}, t, larger;")  # 2^120
    return "{" + " ".join(lines) + "}"


def float16_from_e4m3() -> str:
    """The PTX that makes four pairs of float16 of eight e4m3, which there is an instruction for."""
    lines = [".reg .b16 part<4>;", "mov.b64 {part0, part1, part2, part3}, $4;"]
    lines += [f"cvt.rn.f16x2.e4m3x2 ${pair}, part{pair};" for pair in range(4)]
    return "{" + " ".join(lines) + "}"


PRODUCT = {torch.bfloat16: multiplication("bf16"), torch.float16: multiplication("f16")}
"""The PTX of a product by the dtype of its operands."""

INT8 = Bytes({torch.bfloat16: from_int8("bf16x2"), torch.float16: from_int8("f16x2")}, tiles.INT8)
E4M3 = Bytes({torch.bfloat16: bfloat16_from_e4m3(), torch.float16: float16_from_e4m3()}, tiles.E4M3)
"""What `multiply_bytes` takes for bytes of these kinds."""


if triton is not None:

    @triton.jit
    def row_kernel(x, q, scale, y, inputs, BLOCK: tl.constexpr, EVEN: tl.constexpr, OVERLAP: tl.constexpr):
        """One output of one token. Partial sums stay in each thread's registers until the end.

        The first weights are on their way before the kernel's turn has come.
        """
        row = tl.program_id(0)
        column = tl.arange(0, BLOCK)
        known = column < inputs
        at_weight = q + row.to(tl.int64) * inputs + column
        first = tl.load(at_weight, mask=known, eviction_policy="evict_first")
        s = tl.load(scale + row).to(tl.float32)
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        a = tl.load(x + column, mask=known, other=0.0).to(tl.float32)
        # What was not loaded may be anything, NaN too, which no zero beside it makes harmless.
        total = tl.where(known, first.to(tl.float32), 0.0) * a
        for at in range(BLOCK, inputs, BLOCK):
            if EVEN:
                a = tl.load(x + at + column).to(tl.float32)
                w = tl.load(at_weight + at, eviction_policy="evict_first").to(tl.float32)
            else:
                known = at + column < inputs
                a = tl.load(x + at + column, mask=known, other=0.0).to(tl.float32)
                w = tl.load(at_weight + at, mask=known, eviction_policy="evict_first")
                w = tl.where(known, w.to(tl.float32), 0.0)
            total += w * a
        tl.store(y + row, (tl.sum(total, 0) * s).to(y.dtype.element_ty))

    @triton.jit
    def product(a0, a1, a2, a3, b, c, ASM: tl.constexpr):
        """c and the product of four columns a thread: (low, low, high, high) rows, each of both tokens."""
        kinds: tl.constexpr = (tl.float32, tl.float32, tl.float32, tl.float32)
        operands = [a0, a1, a2, a3, b, c[0], c[1], c[2], c[3]]
        return tl.inline_asm_elementwise(
            ASM, "=f,=f,=f,=f,r,r,r,r,l,f,f,f,f", operands, dtype=kinds, is_pure=True, pack=1
        )

    @triton.jit
    def store_fragments(y, totals, tokens, outputs, TILES: tl.constexpr, WARPS: tl.constexpr):
        """The sums over all warps of a program's totals, four for each tile, where they belong in y [tokens, outputs]."""
        lane = tl.arange(0, 32)
        for part in tl.static_range(4 * TILES):
            total = tl.sum(tl.reshape(totals[part], (WARPS, 32)), 0)
            token = 8 * (part // 4) + lane % 4 * 2 + part % 2
            row = tl.program_id(0) * 16 + lane // 4 + 8 * (part % 4 // 2)
            inside = (token < tokens) & (row < outputs)
            tl.store(y + token * outputs + row, total.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def widened_bytes(packed, ASM: tl.constexpr):
        """Four pairs of floats in an int32 each, from the eight bytes of an int64."""
        kinds: tl.constexpr = (tl.int32, tl.int32, tl.int32, tl.int32)
        return tl.inline_asm_elementwise(ASM, "=r,=r,=r,=r,l", [packed], dtype=kinds, is_pure=True, pack=1)

    @triton.jit
    def bytes_kernel(
        x,
        q,
        scale,
        y,
        tokens,
        outputs,
        runs,
        TILES: tl.constexpr,
        WARPS: tl.constexpr,
        WIDEN: tl.constexpr,
        PRODUCT: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """16 outputs of up to 8 * TILES tokens; each warp takes another four of a row's runs of 16 columns, in turn.

        The first weights are on their way before the kernel's turn has come.
        """
        thread = tl.arange(0, 32 * WARPS)
        i = thread % 32 // 4
        first = thread // 32 * 4 + thread % 4
        half = tl.arange(0, 2)
        row = tl.program_id(0) * 16 + i
        low = tl.minimum(row, outputs - 1)
        high = tl.minimum(row + 8, outputs - 1)
        at_low = q + (low.to(tl.int64) * runs * 2)[:, None] + half[None, :]
        at_high = q + (high.to(tl.int64) * runs * 2)[:, None] + half[None, :]
        inside = (first < runs)[:, None]
        next_low = tl.load(at_low + first[:, None] * 2, mask=inside, other=0, eviction_policy="evict_first")
        next_high = tl.load(at_high + first[:, None] * 2, mask=inside, other=0, eviction_policy="evict_first")
        scale_low = tl.load(scale + low).to(tl.float32)
        scale_high = tl.load(scale + high).to(tl.float32)
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        totals = ()
        for _ in tl.static_range(4 * TILES):
            totals += (tl.zeros((32 * WARPS,), dtype=tl.float32),)
        for at in range(0, runs, 4 * WARPS):
            run = (at + first)[:, None]
            w_low = tl.split(next_low)
            w_high = tl.split(next_high)
            later = run + 4 * WARPS
            next_low = tl.load(at_low + later * 2, mask=later < runs, other=0, eviction_policy="evict_first")
            next_high = tl.load(at_high + later * 2, mask=later < runs, other=0, eviction_policy="evict_first")
            for h in tl.static_range(2):
                a_low = widened_bytes(w_low[h], WIDEN)
                a_high = widened_bytes(w_high[h], WIDEN)
                more = ()
                for tile in tl.static_range(TILES):
                    token = tl.minimum(8 * tile + i, tokens - 1)
                    at_x = x + (token * runs * 4)[:, None] + run * 4 + 2 * h + half[None, :]
                    b0, b1 = tl.split(tl.load(at_x, mask=run < runs, other=0))
                    d = (totals[4 * tile], totals[4 * tile + 1], totals[4 * tile + 2], totals[4 * tile + 3])
                    d = product(a_low[0], a_high[0], a_low[1], a_high[1], b0, d, PRODUCT)
                    d = product(a_low[2], a_high[2], a_low[3], a_high[3], b1, d, PRODUCT)
                    more += (d[0], d[1], d[2], d[3])
                totals = more
        scaled = ()
        for part in tl.static_range(4 * TILES):
            scaled += (totals[part] * (scale_low if part % 4 < 2 else scale_high),)
        store_fragments(y, scaled, tokens, outputs, TILES, WARPS)
