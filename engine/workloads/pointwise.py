"""Sizes of normalization and activation: tokens and width, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PointwiseWorkload:
    """`width` is the model's for normalization, the feed-forward width F (half of the input) for activation."""

    name: str
    tokens: int
    width: int
    residual: bool = True
    repeat: int = 1
    """Calls in a row, as consecutive layers make them, each of which takes up what the one before gave: one alone is too short to be measured."""
    decode: bool = False
    """Whether the tokens are one of each sequence: then an accelerator replays what was recorded, as the engine does."""


NORMALIZATION_UNIT = (
    PointwiseWorkload("one-token", 1, 64, decode=True),
    PointwiseWorkload("one-token-first", 1, 256, residual=False),
    PointwiseWorkload("odd-width", 7, 97),
    PointwiseWorkload("head-norm", 120, 32, residual=False),
    PointwiseWorkload("head-norm-128", 33, 128, residual=False),
    PointwiseWorkload("decode", 5, 2048, decode=True),
    PointwiseWorkload("prefill", 65, 512),
    PointwiseWorkload("wide", 3, 8192),
    # What one gave outlives the next: a model normalizes queries, then keys.
    PointwiseWorkload("three-in-a-row", 5, 192, repeat=3),
)
NORMALIZATION_CPU = (
    PointwiseWorkload("prefill-512-d1024", 512, 1024),
    PointwiseWorkload("prefill-256-d2048", 256, 2048),
    PointwiseWorkload("head-norm-8k-d64", 8192, 64, residual=False),
    PointwiseWorkload("decode-b128-d4096", 128, 4096, decode=True),
)
# 8 to 15 ms a call on an H100: two changes of process cost 0.2 ms besides, and differ by a tenth of that from one process to another. Prompts
# are batches of many; of a single row nothing keeps a module from going through all steps in one kernel.
NORMALIZATION_CUDA = (
    PointwiseWorkload("prefill-12x8k-d4096", 12 * 8192, 4096),
    PointwiseWorkload("prefill-64k-d8192", 65536, 8192),
    PointwiseWorkload("head-norm-96k-h32-d128", 12 * 8192 * 32, 128, residual=False),
    PointwiseWorkload("decode-b64-d4096", 64, 4096, repeat=384, decode=True),
    PointwiseWorkload("decode-b16-d8192", 16, 8192, repeat=512, decode=True),
)

ACTIVATION_UNIT = (
    PointwiseWorkload("one-token", 1, 64, decode=True),
    PointwiseWorkload("odd-width", 5, 61),
    PointwiseWorkload("one-channel", 9, 1),
    PointwiseWorkload("decode", 3, 1408, decode=True),
    PointwiseWorkload("prefill", 65, 344),
    PointwiseWorkload("wide", 2, 8192),
    PointwiseWorkload("three-in-a-row", 5, 160, repeat=3),
)
ACTIVATION_CPU = (
    PointwiseWorkload("prefill-512-f1408", 512, 1408),
    PointwiseWorkload("prefill-256-f2816", 256, 2816),
    PointwiseWorkload("decode-b96-f8192", 96, 8192, decode=True),
)
ACTIVATION_CUDA = (
    PointwiseWorkload("prefill-8x8k-f14336", 8 * 8192, 14336),
    PointwiseWorkload("prefill-12x8k-f8192", 12 * 8192, 8192),
    PointwiseWorkload("prefill-8x4k-f28672", 8 * 4096, 28672),
    PointwiseWorkload("decode-b64-f14336", 64, 14336, repeat=512, decode=True),
)
