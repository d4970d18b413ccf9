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

from engine.slots import fragments, tiles
from engine.slots.launch import overlapping
from engine.slots.quantization import Packed
from engine.slots.registry import register

try:
    import triton
    import triton.language as tl

    from engine.slots.fragments import product, store_fragments
    from engine.slots.tiles import store_part
except ImportError:  # torch for the CPU comes without it; nothing below is then called on a CUDA tensor
    triton = None

GROUP = 64

MAX_TOKENS = 128
"""Up to so many tokens a GPU multiplies packed weights; beyond, unpacking the weight once costs less."""

ROW_BLOCK = 64
"""PyTorch's CPU kernel stores whole blocks of so many rows one after the other."""


@register("quantization", "int4wo")
class Int4WeightOnly:
    """(q - 8) * scale with q from 0 to 15. The weight of the largest magnitude in a group becomes -8, whatever its sign."""

    def pack(self, weight: Tensor) -> Packed:
        """On the GPU: words int64[out, 8 * pairs of groups] and scale [out, in / 64] in the dtype of the weight.

        On the CPU: blocks uint8[out, in / 2] and scale bfloat16[in / 64, out, 2] as its kernel wants them, the rows filled
        up to a multiple of 16; outputs int64[1], how many of them are real; like [0] in the dtype of the weight.
        """
        outputs, inputs = weight.shape
        if inputs % GROUP:
            raise ValueError(f"int4wo needs an input size that is a multiple of {GROUP}; this weight has {inputs}.")
        if weight.is_cuda:
            q, scale = rounded(weight)
            # A few rows at a time: a word takes 16 times the room of its weights while it is put together.
            words = torch.cat([interleaved(part) for part in q.split(max(1, (1 << 24) // inputs))])
            return {"words": words, "scale": scale.to(weight.dtype)}
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
            return cuda_rows(packed["words"], packed["scale"], ids, packed["scale"].dtype)
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
    """q uint8[out, in] as int64[out, 8 * pairs of groups]: the order in which tensor cores want it.

    Four threads share a row, and each reads 16 bytes: 16 neighbouring columns of one group and the same 16 of the next.
    Of the four columns that a thread brings to a product, two lie 16 bits apart, so that one mask takes both out.
    """
    q = functional.pad(q, (0, -q.shape[1] % (2 * GROUP)))
    # [out, pair, group of the pair, thread, word, nibble pair, column of the pair]
    columns = q.view(len(q), -1, 2, 4, 2, 4, 2).to(torch.int64)
    words = (columns << shifts(q.device)).sum((-3, -2, -1))
    return words.transpose(2, 3).flatten(1)


def unpacked(words: Tensor, scale: Tensor) -> Tensor:
    """The weight float32[rows, in] that words int64[rows, 8 * pairs] and scale [rows, in / 64] stand for."""
    pairs = words.view(len(words), -1, 4, 2).transpose(2, 3)
    q = (pairs[..., None, None, None] >> shifts(words.device)) & 15
    groups = q.flatten(1).view(len(words), -1, GROUP)[:, : scale.shape[1]]
    return ((groups - 8).float() * scale.float()[..., None]).flatten(1)


def shifts(device: torch.device) -> Tensor:
    """int64[2, 4, 2]: where in an int64 a column stands, by its word, its pair in the word, and its place in the pair."""
    word, pair, column = (torch.arange(n, device=device) for n in (2, 4, 2))
    return 32 * word[:, None, None] + 4 * pair[:, None] + 16 * column


def cpu_rows(packed: Packed, first: int, last: int) -> Tensor:
    """Rows [first, last) as bfloat16[rows, in]: what the kernel multiplies with, by letting it multiply the identity."""
    blocks, scale = packed["blocks"][first:last], packed["scale"][:, first:last].contiguous()
    identity = torch.eye(2 * blocks.shape[1], dtype=torch.bfloat16)
    return torch._weight_int4pack_mm_for_cpu(identity, blocks, GROUP, scale).t().contiguous()


def cuda_linear(x: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """x [T, in] times the unpacked weight transposed, on the GPU: [T, out]."""
    tokens = len(x)
    outputs, groups = scale.shape
    if not fragments.serves(x, MAX_TOKENS):
        return functional.linear(x, cuda_rows(words, scale, None, x.dtype))
    if tokens > fragments.MAX_TOKENS:
        return multiply_tiles(x, words, scale)
    y = torch.empty((tokens, outputs), dtype=x.dtype, device=x.device)
    # Few rows are shared out among many warps: too few of them cannot keep the memory busy.
    warps = 4 if outputs > 8192 else 8 if outputs > 4096 else 16
    # With one register more than 64 only one program of 16 warps fits into a multiprocessor instead of two.
    limit = {"maxnreg": 64} if tokens <= 8 and not torch.compiler.is_compiling() else {}
    product_kernel[(triton.cdiv(outputs, fragments.ROWS),)](
        x.contiguous().view(torch.int64),
        words,
        scale,
        y,
        tokens,
        outputs,
        groups,
        TILES=fragments.eights(tokens),
        WARPS=warps,
        WIDEN=WIDEN[x.dtype],
        PRODUCT=fragments.PRODUCT[x.dtype],
        num_warps=warps,
        **overlapping(x),
        **limit,
    )
    return y


def multiply_tiles(x: Tensor, words: Tensor, scale: Tensor) -> Tensor:
    """`cuda_linear` of tens of tokens, up to MAX_TOKENS (see engine.slots.tiles)."""
    tokens = len(x)
    outputs, groups = scale.shape
    width = tiles.tile(tokens)
    warps = 4 if width <= 64 else 8
    parts = tiles.empty_parts(x, outputs, 8 // warps)
    tiles_kernel[(triton.cdiv(outputs, tiles.ROWS), len(parts))](
        tiles.by_place(x, 4),
        words.view(torch.int16),
        scale,
        parts,
        tokens,
        outputs,
        groups,
        triton.cdiv((groups + 1) // 2, len(parts)),
        ROWS=tiles.ROWS,
        TOKENS=width,
        PLACES=PLACES[x.dtype],
        num_warps=warps,
        **overlapping(x),
    )
    return tiles.added(parts, x)


def cuda_rows(words: Tensor, scale: Tensor, ids: Tensor | None, dtype: torch.dtype) -> Tensor:
    """The rows `ids` of the weight, or all, on the GPU: [rows, in] in `dtype`."""
    groups, count = scale.shape[1], 2 * words.shape[1]
    rows = len(words) if ids is None else len(ids)
    weight = torch.empty((rows, groups * GROUP), dtype=dtype, device=words.device)
    unpack_kernel[(rows, triton.cdiv(count, 256))](
        words.view(torch.int32),
        scale,
        words if ids is None else ids,
        weight,
        count,
        groups,
        CHOSEN=ids is not None,
        BLOCK=256,
        num_warps=4,
    )
    return weight


def widening(magic: int, offset: int, kind: str) -> str:
    """The PTX that makes eight pairs of numbers of an int64's nibbles, two 16-bit floats in a register each.

    No conversion is needed: put into the lowest bits of `magic`, twice 128 or 1024, a nibble makes it that plus q, from
    which adding `offset` leaves q - 8.
    """
    lines = [".reg .b32 part<2>, t, offset;", "mov.b64 {part0, part1}, $8;", f"mov.b32 offset, {offset:#x};"]
    for pair in range(8):
        lines.append(f"shr.u32 t, part{pair // 4}, {4 * (pair % 4)};")
        lines.append(f"lop3.b32 t, t, 0x000f000f, {magic:#x}, 0xea;")  # t & mask | magic
        lines.append(f"add.rn.{kind} ${pair}, t, offset;")
    return "{" + " ".join(lines) + "}"


def widening_place(place: int, magic: int, offset: int, kind: str) -> str:
    """The PTX that makes $0, a pair of numbers as in `widening`, of nibble `place` of two int16, $1."""
    lines = [".reg .b32 t, offset;", f"mov.b32 offset, {offset:#x}; shr.u32 t, $1, {4 * place};"]
    lines.append(f"lop3.b32 t, t, 0x000f000f, {magic:#x}, 0xea;")  # t & mask | magic
    lines.append(f"add.rn.{kind} $0, t, offset;")
    return "{" + " ".join(lines) + "}"


FLOATS = {torch.bfloat16: (0x43004300, 0xC308C308, "bf16x2"), torch.float16: (0x64006400, 0xE408E408, "f16x2")}
WIDEN = {dtype: widening(*floats) for dtype, floats in FLOATS.items()}
PLACES = {dtype: tuple(widening_place(n, *floats) for n in range(4)) for dtype, floats in FLOATS.items()}


if triton is not None:

    @triton.jit
    def product_kernel(
        x,
        words,
        scale,
        y,
        tokens,
        outputs,
        groups,
        TILES: tl.constexpr,
        WARPS: tl.constexpr,
        WIDEN: tl.constexpr,
        PRODUCT: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """16 outputs of up to 8 * TILES tokens; each warp takes another pair of groups, in turn (see engine.slots.fragments).

        The first weights are on their way before the kernel's turn has come.
        """
        thread = tl.arange(0, 32 * WARPS)
        warp = thread // 32
        i = thread % 32 // 4
        j = thread % 4
        half = tl.arange(0, 2)[None, :]
        pairs = (groups + 1) // 2
        row = tl.program_id(0) * 16 + i
        low = tl.minimum(row, outputs - 1).to(tl.int64)[:, None]
        high = tl.minimum(row + 8, outputs - 1).to(tl.int64)[:, None]
        at = (
            words + low * pairs * 8 + j[:, None] * 2 + half,
            words + high * pairs * 8 + j[:, None] * 2 + half,
            scale + low * groups + half,
            scale + high * groups + half,
        )
        near = stretch(at, warp[:, None], pairs, groups)
        far = stretch(at, warp[:, None] + WARPS, pairs, groups)
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        totals = ()
        for _ in tl.static_range(4 * TILES):
            totals += (tl.zeros((32 * WARPS,), dtype=tl.float32),)
        for start in range(0, pairs, WARPS):
            pair = (start + warp)[:, None]
            w_low = tl.split(near[0])
            w_high = tl.split(near[1])
            s_low = tl.split(near[2])
            s_high = tl.split(near[3])
            near = far
            far = stretch(at, pair + 2 * WARPS, pairs, groups)
            for h in tl.static_range(2):
                a_low = widened(w_low[h], WIDEN)
                a_high = widened(w_high[h], WIDEN)
                group = pair * 2 + h
                more = ()
                for tile in tl.static_range(TILES):
                    token = tl.minimum(8 * tile + i, tokens - 1)
                    at_x = x + (token * groups * 16)[:, None] + group * 16 + j[:, None] * 4 + half
                    b0, b1 = tl.split(tl.load(at_x, mask=group < groups, other=0))
                    b2, b3 = tl.split(tl.load(at_x + 2, mask=group < groups, other=0))
                    zero = tl.zeros((32 * WARPS,), dtype=tl.float32)
                    d = (zero, zero, zero, zero)
                    d = product(a_low[0], a_high[0], a_low[1], a_high[1], b0, d, PRODUCT)
                    d = product(a_low[2], a_high[2], a_low[3], a_high[3], b1, d, PRODUCT)
                    d = product(a_low[4], a_high[4], a_low[5], a_high[5], b2, d, PRODUCT)
                    d = product(a_low[6], a_high[6], a_low[7], a_high[7], b3, d, PRODUCT)
                    more += (
                        totals[4 * tile] + d[0] * s_low[h].to(tl.float32),
                        totals[4 * tile + 1] + d[1] * s_low[h].to(tl.float32),
                        totals[4 * tile + 2] + d[2] * s_high[h].to(tl.float32),
                        totals[4 * tile + 3] + d[3] * s_high[h].to(tl.float32),
                    )
                totals = more
        store_fragments(y, totals, tokens, outputs, TILES, WARPS)

    @triton.jit
    def stretch(at, pair, pairs, groups):
        """Of a pair of groups, what a thread has of its rows: (low words, high words, low scales, high scales)."""
        inside = pair < pairs
        known = pair * 2 + tl.arange(0, 2)[None, :] < groups
        return (
            tl.load(at[0] + pair * 8, mask=inside, other=0, eviction_policy="evict_first"),
            tl.load(at[1] + pair * 8, mask=inside, other=0, eviction_policy="evict_first"),
            tl.load(at[2] + pair * 2, mask=known, other=0.0),
            tl.load(at[3] + pair * 2, mask=known, other=0.0),
        )

    @triton.jit
    def widened(words, ASM: tl.constexpr):
        """Eight pairs of weights q - 8 in 16 bits each, as int32, from the 16 nibbles of an int64 (see `widening`)."""
        kinds: tl.constexpr = (tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32, tl.int32)
        return tl.inline_asm_elementwise(ASM, "=r,=r,=r,=r,=r,=r,=r,=r,l", [words], dtype=kinds, is_pure=True, pack=1)

    @triton.jit(do_not_specialize=["tokens", "steps"])
    def tiles_kernel(
        x,
        words,
        scale,
        parts,
        tokens,
        outputs,
        groups,
        steps,
        ROWS: tl.constexpr,
        TOKENS: tl.constexpr,
        PLACES: tl.constexpr,
        OVERLAP: tl.constexpr,
    ):
        """ROWS outputs of up to TOKENS tokens, over one share of a row's pairs of groups: `steps` of them.

        Scales are on their way while the groups before are multiplied.
        """
        if OVERLAP:
            tl.extra.cuda.gdc_launch_dependents()
            tl.extra.cuda.gdc_wait()
        pairs = (groups + 1) // 2
        top = tl.program_id(0) * ROWS
        row = tl.minimum(tl.arange(0, ROWS), outputs - 1 - top)
        token = tl.arange(0, TOKENS)
        k = tl.arange(0, 16)  # of a group's int16, which lie by four beside four of the other group
        at_w = words + top.to(tl.int64) * pairs * 32 + row[:, None] * (pairs * 32) + (k // 4 * 8 + k % 4)[None, :]
        at_s = scale + top.to(tl.int64) * groups + row * groups
        at_x = x + token[None, :] * (groups * 16) + k[:, None]
        total = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
        first = tl.program_id(1) * steps
        s_even = tl.load(at_s + first * 2, mask=first * 2 < groups, other=0.0)
        s_odd = tl.load(at_s + first * 2 + 1, mask=first * 2 + 1 < groups, other=0.0)
        for pair in tl.range(first, tl.minimum(first + steps, pairs), num_stages=3):
            s = (s_even, s_odd)
            s_even = tl.load(at_s + pair * 2 + 2, mask=pair * 2 + 2 < groups, other=0.0)
            s_odd = tl.load(at_s + pair * 2 + 3, mask=pair * 2 + 3 < groups, other=0.0)
            for h in tl.static_range(2):
                group = pair * 2 + h
                inside = (token < tokens)[None, :] & (group < groups)
                w = tl.load(at_w + pair * 32 + h * 4)
                part = tl.zeros((ROWS, TOKENS), dtype=tl.float32)
                for place in tl.static_range(4):
                    b = tl.load(at_x + (place * tokens * groups + group) * 16, mask=inside, other=0.0)
                    a = tl.inline_asm_elementwise(
                        PLACES[place], "=r,r", [w], dtype=x.dtype.element_ty, is_pure=True, pack=2
                    )
                    part = tl.dot(a, b, part)
                total += part * s[h].to(tl.float32)[:, None]
        store_part(parts, total, top, tokens, outputs, ROWS, TOKENS)

    @triton.jit
    def unpack_kernel(words, scale, ids, weight, count, groups, CHOSEN: tl.constexpr, BLOCK: tl.constexpr):
        """BLOCK of the `count` int32 of one row of the weight, of the one that `ids` names where it is CHOSEN."""
        row = tl.program_id(0).to(tl.int64)
        to = weight + row * groups * 64
        if CHOSEN:
            row = tl.load(ids + row)
        at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        group = at // 16 * 2 + at // 2 % 2
        known = (at < count) & (group < groups)
        word = tl.load(words + row * count + at, mask=known, other=0)
        s = tl.load(scale + row * groups + group, mask=known, other=0.0).to(tl.float32)
        n = tl.arange(0, 8)  # An int32 has eight neighbouring columns.
        q = (word[:, None] >> (4 * (n // 2) + 16 * (n % 2))[None, :]) & 15
        column = group * 64 + at % 16 // 4 * 16 + at % 2 * 8
        w = (q - 8).to(tl.float32) * s[:, None]
        tl.store(to + column[:, None] + n[None, :], w.to(weight.dtype.element_ty), mask=known[:, None])
