"""Attention steps that matter, by name: heads, head size, page size and the sequences of the step.

`sequences` is text such as "1/256*32 40/40": 32 sequences with 1 new token of 256 in all, and one with 40 of 40.
`layers` repeats the step over as many caches with one plan, as a model does, each with the signs of what the one before gave, where one layer takes too
little time to be measured.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class AttentionWorkload:
    """One step. `window` is that of sliding-window attention, 0 for none."""

    name: str
    q_heads: int
    kv_heads: int
    head_dim: int
    block_size: int
    sequences: str
    window: int = 0
    layers: int = 1


# Small steps that differ in everything that an implementation may depend on: phase, odd lengths, lengths around page
# boundaries, page sizes, head ratios, head sizes, windows shorter and longer than the sequences.
UNIT = (
    AttentionWorkload("single-token", 4, 4, 64, 16, "1/1"),
    AttentionWorkload("prefill-odd", 8, 2, 64, 16, "37/37"),
    AttentionWorkload("prefill-varlen", 8, 1, 64, 16, "1/1 33/33 64/64 7/7"),
    AttentionWorkload("prefill-pages", 4, 2, 128, 16, "16/16 15/15 17/17 32/32"),
    AttentionWorkload("prefill-257", 4, 1, 32, 32, "257/257"),
    AttentionWorkload("decode-pages", 8, 2, 64, 16, "1/1 1/15 1/16 1/17 1/129 1/64"),
    AttentionWorkload("decode-long", 4, 1, 128, 16, "1/1025 1/777"),
    AttentionWorkload("decode-group-3", 6, 2, 64, 8, "1/45 1/8 1/9"),
    AttentionWorkload("decode-mha", 4, 4, 32, 16, "1/100 1/31 1/32"),
    AttentionWorkload("chunked-prefill", 8, 2, 64, 16, "16/48 5/21 32/33"),
    AttentionWorkload("chunked-small-pages", 4, 2, 64, 4, "9/50 3/4 17/17"),
    AttentionWorkload("mixed", 8, 4, 64, 16, "1/100 40/40 1/33 8/72 1/1"),
    AttentionWorkload("mixed-layers", 4, 2, 32, 16, "1/20 11/11 1/64", layers=2),
    AttentionWorkload("window-prefill", 4, 2, 64, 16, "70/70 10/10", window=24),
    AttentionWorkload("window-decode", 8, 2, 64, 16, "1/100 1/24 1/25 1/5", window=24),
    AttentionWorkload("window-chunk", 4, 1, 64, 16, "12/60 1/33", window=17),
)

# 2 to 10 ms a call on one core: decode of a full batch, prompts of many lengths, and both together.
CPU = (
    AttentionWorkload("decode-b16-kv256-gqa8", 16, 2, 64, 16, "1/256*16"),
    AttentionWorkload("decode-b24-kv128-gqa4", 8, 2, 64, 16, "1/128*24"),
    AttentionWorkload("prefill-varlen-448-gqa4", 8, 2, 64, 16, "24/24*7 48/48*4 88/88"),
    AttentionWorkload("mixed-chunk-decode16-gqa4", 8, 2, 64, 16, "1/192*16 48/144 24/24"),
)

# 5 to 12 ms a call on an H100 but for the longest prompt. All caches together are 17 GB, which the judge has once and the host once; with what a
# comparison takes that needs a card of 80 GB.
CUDA = (
    AttentionWorkload("prefill-512x64-gqa4-d128", 32, 8, 128, 16, "512/512*64", layers=4),
    AttentionWorkload("prefill-8k-gqa4-d128", 32, 8, 128, 16, "8192/8192", layers=4),
    AttentionWorkload("prefill-32k-gqa8-d128", 64, 8, 128, 16, "32768/32768"),
    AttentionWorkload("prefill-varlen-8k-gqa4-d64", 32, 8, 64, 16, "256/256*8 1024/1024*2 4096/4096", layers=12),
    AttentionWorkload("decode-b1-kv128k-gqa4-d128", 32, 8, 128, 16, "1/131072", layers=8),
    AttentionWorkload("decode-b16-kv8k-gqa8-d128", 64, 8, 128, 16, "1/8192*16", layers=6),
    AttentionWorkload("decode-b128-kv512-gqa4-d128", 32, 8, 128, 16, "1/512*128", layers=12),
    AttentionWorkload("decode-b64-kv2k-gqa4-d64", 32, 8, 64, 16, "1/2048*64", layers=12),
    AttentionWorkload("mixed-chunk2k-decode63-gqa4-d128", 32, 8, 128, 16, "1/2048*63 2048/8192", layers=4),
)


def parse_sequences(text: str) -> list[tuple[int, int]]:
    """The (new, total) token counts that `text` stands for."""
    found: list[tuple[int, int]] = []
    for part in text.split():
        lengths, _, count = part.partition("*")
        new, total = lengths.split("/")
        found += [(int(new), int(total))] * int(count or 1)
    return found


def format_sequences(sequences: list[tuple[int, int]]) -> str:
    """The inverse of `parse_sequences`, one entry for each sequence."""
    return " ".join(f"{new}/{total}" for new, total in sequences)
