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
    """Calls in a row on fresh rows, as consecutive layers make them: one alone can be too short to be measured."""
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
)
NORMALIZATION_CPU = (
    PointwiseWorkload("prefill-512-d1024", 512, 1024),
    PointwiseWorkload("prefill-256-d2048", 256, 2048),
    PointwiseWorkload("head-norm-8k-d64", 8192, 64, residual=False),
    PointwiseWorkload("decode-b32-d4096", 32, 4096, repeat=4, decode=True),
)
# 8 to 15 ms a call on an H100: two changes of process cost 0.2 ms besides, and differ by a tenth of that from one process to another.
NORMALIZATION_CUDA = (
    PointwiseWorkload("prefill-8k-d4096", 8192, 4096, repeat=12),
    PointwiseWorkload("prefill-32k-d8192", 32768, 8192, repeat=2),
    PointwiseWorkload("head-norm-8k-h32-d128", 8192 * 32, 128, residual=False, repeat=12),
    PointwiseWorkload("decode-b64-d4096", 64, 4096, repeat=384, decode=True),
    PointwiseWorkload("decode-b1-d8192", 1, 8192, repeat=640, decode=True),
)

ACTIVATION_UNIT = (
    PointwiseWorkload("one-token", 1, 64, decode=True),
    PointwiseWorkload("odd-width", 5, 61),
    PointwiseWorkload("one-channel", 9, 1),
    PointwiseWorkload("decode", 3, 1408, decode=True),
    PointwiseWorkload("prefill", 65, 344),
    PointwiseWorkload("wide", 2, 8192),
)
ACTIVATION_CPU = (
    PointwiseWorkload("prefill-512-f1408", 512, 1408),
    PointwiseWorkload("prefill-256-f2816", 256, 2816),
    PointwiseWorkload("decode-b32-f8192", 32, 8192, repeat=3, decode=True),
)
ACTIVATION_CUDA = (
    PointwiseWorkload("prefill-8k-f14336", 8192, 14336, repeat=8),
    PointwiseWorkload("prefill-8k-f8192", 8192, 8192, repeat=12),
    PointwiseWorkload("prefill-4k-f28672", 4096, 28672, repeat=8),
    PointwiseWorkload("decode-b64-f14336", 64, 14336, repeat=640, decode=True),
)
