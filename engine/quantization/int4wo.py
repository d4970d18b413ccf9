# /// swapbench
# kind = "quantization"
# name = "int4wo"
# class = "Q4"
# devices = ["cpu", "cuda"]
# dtypes = ["float32", "float16", "bfloat16"]
# embedding = true
# deterministic = true
# multiple_of = 64
# summary = "4-bit integers with one scale for 64 weights; activations stay as they are."
# ///
"""Weight-only int4: a quarter of the bytes of bfloat16. Sixteen levels need a scale for each small group of weights."""

import torch
from torch import Tensor
from torch.nn import functional

from engine.slots.launch import overlapping
from engine.slots.quantization import Packed
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for the CPU comes without it; nothing below is then called on a CUDA tensor
    triton = None

GROUP = 64
WORDS = GROUP // 8
"""A group is eight int32. Nibble i of word j holds column 8 * i + j, so that eight neighbouring threads, each with one
word, read eight neighbouring activations for every nibble."""

GEMM_TOKENS = 64
"""Up to so many tokens the weight is unpacked inside the product; beyond, unpacking it once costs little beside it."""

ROW_BLOCK = 64
"""PyTorch's CPU kernel stores whole blocks of so many rows one after the other."""


@register("quantization", "int4wo")
class Int4WeightOnly:
    """(q - 8) * scale with q from 0 to 15. The weight of the largest magnitude in a group becomes -8, whatever its sign."""

    def pack(self, weight: Tensor) -> Packed:
        """On the GPU: words int32[out, in / 8] and scale [out, in / 64] in the dtype of the weight.

        On the CPU: blocks uint8[out, in / 2] and scale bfloat16[in / 64, out, 2] as its kernel wants them, the rows filled
        up to a multiple of 16; outputs int64[1], how many of them are real; like [0] in the dtype of the weight.
        """
        outputs, inputs = weight.shape
        if inputs % GROUP:
            raise ValueError(f"int4wo needs an input size that is a multiple of {GROUP}; this weight has {inputs}.")
        if weight.is_cuda:
            q, scale = rounded(weight)
            return {"words": interleaved(q), "scale": scale.to(weight.dtype)}
        q, scale = rounded(functional.pad(weight, (0, 0, 0, -outputs % 16)))
        scale = scale.to(torch.bfloat16).t()
        return {
            "blocks": torch._convert_weight_to_int4pack_for_cpu(q.to(torch.int32), 1),
            "scale": torch.stack((scale, torch.zeros_like(scale)), -1).contiguous(),
            "outputs": torch.tensor([outputs]),
            "like": torch.zeros(1, dtype=weight.dtype),
        }

    def linear(self, x: Tensor, packed: Packed) -> Tensor:
        """x [T, in] -> [T, out]. On the CPU the activations are rounded to bfloat16."""
        if x.is_cuda:
            return cuda_linear(x, packed["words"], packed["scale"])
        outputs = int(packed["outputs"])
        y = torch._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16), packed["blocks"], GROUP, packed["scale"])
        return y[:, :outputs].to(x.dtype).contiguous()

    def embedding(self, ids: Tensor, packed: Packed) -> Tensor:
        """ids int64[T] -> rows [T, in]."""
        if "words" in packed:
            return unpacked(packed["words"][ids], packed["scale"][ids]).to(packed["scale"].dtype)
        blocks, where = torch.unique(ids // ROW_BLOCK, return_inverse=True)
        parts = [cpu_rows(packed, int(block) * ROW_BLOCK, (int(block) + 1) * ROW_BLOCK) for block in blocks]
        rows = torch.cat([functional.pad(part, (0, 0, 0, ROW_BLOCK - len(part))) for part in parts])
        return rows[where * ROW_BLOCK + ids % ROW_BLOCK].to(packed["like"].dtype)

    def dequant(self, packed: Packed) -> Tensor:
        """(q - 8) * scale in float32."""
        if "words" in packed:
            return unpacked(packed["words"], packed["scale"])
        return cpu_rows(packed, 0, len(packed["blocks"]))[: int(packed["outputs"])].float()


def rounded(weight: Tensor) -> tuple[Tensor, Tensor]:
    """q uint8[out, in] from 0 to 15 and scale float32[out, in / 64].

    Clipping a group's largest weights a little makes all others finer; of a few clippings the one with the least squared
    error is kept.
    """
    # A few rows at a time: the trials then stay in a CPU's cache, and take little memory beside the weight on a GPU.
    rows = max(1, (1 << 24 if weight.is_cuda else 1 << 17) // weight.shape[1])
    parts = [rounded_rows(part) for part in weight.split(rows)]
    return torch.cat([q for q, _ in parts]), torch.cat([scale for _, scale in parts])


def rounded_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """`rounded` of a few rows."""
    groups = weight.float().view(weight.shape[0], -1, GROUP)
    peak = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    best_q = torch.full_like(groups, 8.0)
    best_scale = torch.zeros_like(peak)
    best_error = groups.square().sum(-1, keepdim=True)
    for share in (1.0, 0.95, 0.9, 0.85, 0.8):
        # The scale is one that bfloat16 holds: it may be stored so.
        scale = (peak * (-share / 8)).to(torch.bfloat16).float()
        q = (groups / torch.where(scale == 0, 1.0, scale)).round_().add_(8).clamp_(0, 15)
        error = ((q - 8) * scale - groups).square_().sum(-1, keepdim=True)
        better = error < best_error
        best_q = torch.where(better, q, best_q)
        best_scale = torch.where(better, scale, best_scale)
        best_error = torch.where(better, error, best_error)
    return best_q.view(weight.shape).to(torch.uint8), best_scale[..., 0]


def interleaved(q: Tensor) -> Tensor:
    """q uint8[out, in] as int32[out, in / 8] in the order that WORDS describes."""
    nibbles = q.view(q.shape[0], -1, 8, WORDS).to(torch.int64)
    shifts = torch.arange(0, 32, 4, device=q.device)[:, None]
    words = (nibbles << shifts).sum(2)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32).flatten(1)


def unpacked(words: Tensor, scale: Tensor) -> Tensor:
    """The weight float32[rows, in] that words int32[rows, in / 8] and scale [rows, in / 64] stand for."""
    shifts = torch.arange(0, 32, 4, device=words.device, dtype=torch.int32)[:, None]
    q = (words.view(len(words), -1, 1, WORDS) >> shifts) & 15
    return ((q.flatten(2) - 8).float() * scale.float()[..., None]).flatten(1)


def cpu_rows(packed: Packed, first: int, last: int) -> Tensor:
    """Rows [first, last) as bfloat16[rows, in]: what the kernel multiplies with, by letting it multiply the identity."""
    blocks, scale = packed["blocks"][first:last], packed["scale"][:, first:last].contiguous()
    identity = torch.eye(2 * blocks.shape[1], dtype=torch.bfloat16)
    return torch._weight_int4pack_mm_for_cpu(identity, blocks, GROUP, scale).t().contiguous()


def cuda_linear(x: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """x [T, in] times the unpacked weight transposed, on the GPU: [T, out]."""
    tokens, inputs = x.shape
    outputs = words.shape[0]
    if tokens > GEMM_TOKENS:
        weight = torch.empty((outputs, inputs), dtype=x.dtype, device=x.device)
        unpack_kernel[(outputs, triton.cdiv(inputs // 8, 512))](
            words, scale, weight, inputs // 8, BLOCK=512, num_warps=4
        )
        return functional.linear(x, weight)
    y = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    x = x.contiguous()
    if tokens == 1:
        count = inputs // 8
        block = 256 if count % 256 == 0 else 128
        gemv_kernel[(triton.cdiv(outputs, 4),)](
            x,
            words,
            scale,
            y,
            outputs,
            count,
            ROWS=4,
            BLOCK=block,
            EVEN=count % block == 0,
            num_warps=2,
            **overlapping(x),
        )
        return y
    columns = 64 if outputs >= 16384 else 32 if outputs >= 8192 else 16
    height = max(16, triton.next_power_of_2(tokens))
    gemm_kernel[(triton.cdiv(outputs, columns),)](
        x,
        words,
        scale,
        y,
        tokens,
        outputs,
        inputs,
        HEIGHT=height,
        COLUMNS=columns,
        BLOCK=16,
        num_warps=4,
        num_stages=4,
        **overlapping(x),
    )
    return y


if triton is not None:

    @triton.jit
    def gemv_kernel(
        x,
        words,
        scale,
        y,
        outputs,
        count,
        ROWS: tl.constexpr,
        BLOCK: tl.constexpr,
        EVEN: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS outputs of one token; a thread holds whole words, and sums over their nibbles before it scales.

        A nibble becomes a float without a conversion: put into the upper bits of the mantissa of 1.0 it is 1 + q / 16. With
        S the sum of (1 + q / 16) * x over a word, the sum of (q - 8) * x is 16 * S - 24 * (sum of x).
        The first stretch of weights is on its way before the kernel's turn has come.
        """
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        inside = (row < outputs)[:, None]
        column = tl.arange(0, BLOCK)
        at_word = words + row.to(tl.int64)[:, None] * count + column[None, :]
        at_scale = scale + row.to(tl.int64)[:, None] * (count // 8) + (column // 8)[None, :]
        at_x = x + (column // 8) * 64 + column % 8
        ahead = tl.load(at_word, mask=inside & (column < count)[None, :], other=0, eviction_policy="evict_first")
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        total = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for at in range(0, count, BLOCK):
            packed = ahead
            following = at + BLOCK + column
            ahead = tl.load(
                at_word + at + BLOCK,
                mask=inside & (following < count)[None, :],
                other=0,
                eviction_policy="evict_first",
            )
            known = at + column < count
            if EVEN:
                s = tl.load(at_scale + at // 8, mask=inside, other=0.0).to(tl.float32)
            else:
                s = tl.load(at_scale + at // 8, mask=inside & known[None, :], other=0.0).to(tl.float32)
            sums = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
            plain = tl.zeros((BLOCK,), dtype=tl.float32)
            for nibble in tl.static_range(8):
                if EVEN:
                    a = tl.load(at_x + at * 8 + nibble * 8).to(tl.float32)
                else:
                    a = tl.load(at_x + at * 8 + nibble * 8, mask=known, other=0.0).to(tl.float32)
                if nibble < 5:
                    bits = packed << (19 - 4 * nibble)
                else:
                    bits = packed >> (4 * nibble - 19)
                unit = ((bits & 0x780000) | 0x3F800000).to(tl.float32, bitcast=True)
                sums += unit * a[None, :]
                plain += a
            total += (16.0 * sums - 24.0 * plain[None, :]) * s
        tl.store(y + row, tl.sum(total, 1).to(y.dtype.element_ty), mask=row < outputs)

    @triton.jit
    def gemm_kernel(
        x,
        words,
        scale,
        y,
        tokens,
        outputs,
        inputs,
        HEIGHT: tl.constexpr,
        COLUMNS: tl.constexpr,
        BLOCK: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """COLUMNS outputs of up to HEIGHT tokens; one product for each nibble of BLOCK words."""
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        token = tl.arange(0, HEIGHT)
        row = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
        inside = row < outputs
        count = inputs // 8
        start = row.to(tl.int64)[None, :]
        total = tl.zeros((HEIGHT, COLUMNS), dtype=tl.float32)
        for at in range(0, count, BLOCK):
            word = at + tl.arange(0, BLOCK)
            known = inside[None, :] & (word < count)[:, None]
            packed = tl.load(words + start * count + word[:, None], mask=known, other=0, eviction_policy="evict_first")
            s = tl.load(scale + start * (count // 8) + (word // 8)[:, None], mask=known, other=0.0).to(tl.float32)
            column = (word // 8) * 64 + word % 8
            for nibble in tl.static_range(8):
                a = tl.load(
                    x + token[:, None] * inputs + column[None, :] + nibble * 8,
                    mask=(token < tokens)[:, None] & (word < count)[None, :],
                    other=0.0,
                )
                w = (((packed >> (4 * nibble)) & 15) - 8).to(tl.float32) * s
                total = tl.dot(a, w.to(a.dtype), total, input_precision="ieee")
        tl.store(
            y + token[:, None] * outputs + row[None, :],
            total.to(y.dtype.element_ty),
            mask=(token < tokens)[:, None] & inside[None, :],
        )

    @triton.jit
    def unpack_kernel(words, scale, weight, count, BLOCK: tl.constexpr):
        """One stretch of one row of the weight."""
        row = tl.program_id(0).to(tl.int64)
        word = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        known = word < count
        packed = tl.load(words + row * count + word, mask=known, other=0)
        s = tl.load(scale + row * (count // 8) + word // 8, mask=known, other=0.0).to(tl.float32)
        column = (word // 8) * 64 + word % 8
        for nibble in tl.static_range(8):
            w = (((packed >> (4 * nibble)) & 15) - 8).to(tl.float32) * s
            tl.store(weight + row * count * 8 + column + nibble * 8, w.to(weight.dtype.element_ty), mask=known)
