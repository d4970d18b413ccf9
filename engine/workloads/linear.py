"""Linear layers and embeddings that matter: rows of x, output and input size, by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LinearWorkload:
    """x [tokens, inputs] times a weight [outputs, inputs]; `lookup`: rows of the weight for token ids instead.

    `weights` such layers are called in a row, each with a weight of its own, as a model's layers are, and the row `rounds` times, each round with what
    the one before gave: one weight alone would stay in the last-level cache, and a call must be long enough to be timed.
    """

    name: str
    tokens: int
    outputs: int
    inputs: int
    weights: int = 1
    rounds: int = 1
    lookup: bool = False
    decode: bool = False
    """Whether the tokens are one of each sequence: then an accelerator replays what was recorded, as the engine does."""


UNIT = (
    LinearWorkload("one-token", 1, 128, 256, decode=True),
    LinearWorkload("few-tokens", 5, 256, 128, decode=True),
    LinearWorkload("odd-outputs", 3, 1000, 128),
    LinearWorkload("odd-tokens", 33, 192, 320),
    LinearWorkload("decode-batch", 16, 512, 512, decode=True),
    LinearWorkload("wide-input", 2, 64, 2048),
    LinearWorkload("prefill", 130, 256, 256),
    LinearWorkload("embedding", 41, 500, 128, lookup=True),
)
# The whole set packs, holds and draws within the start of a process: weights of half a million to 4 million elements. The prompt is long enough that
# unpacking a weight costs 1 % of it: a shorter one would refuse every weight that is not stored as it is used.
CPU = (
    LinearWorkload("gemv-2048x2048", 1, 2048, 2048, 2, decode=True),
    LinearWorkload("gemv-down-1024x2816", 1, 1024, 2816, 2, decode=True),
    LinearWorkload("decode-b8-2816x1024", 8, 2816, 1024, decode=True),
    LinearWorkload("prefill-512-768x768", 512, 768, 768),
)
# In 4 bits the weights of a case take 100 MB, twice an H100's second-level cache, and all cases together in float32 no more than an
# accelerator's memory holds beside them. In 16 bits a call takes 4 to 8 ms; in more rounds, values of long-tailed
# weights fade.
CUDA = (
    LinearWorkload("gemv-8b-gate-up-28672x4096", 1, 28672, 4096, 2, 24, decode=True),
    LinearWorkload("gemv-8b-down-4096x14336", 1, 4096, 14336, 4, 24, decode=True),
    LinearWorkload("gemv-8b-qkv-6144x4096", 1, 6144, 4096, 8, 24, decode=True),
    LinearWorkload("gemv-70b-down-8192x28672", 1, 8192, 28672, 1, 24, decode=True),
    LinearWorkload("decode-b16-8b-gate-up-28672x4096", 16, 28672, 4096, 2, 24, decode=True),
    LinearWorkload("decode-b64-1b-gate-up-16384x2048", 64, 16384, 2048, 6, 24, decode=True),
    # Many weights, so that room for unpacking one of them is room for few.
    LinearWorkload("prefill-2048-8b-qkv-6144x4096", 2048, 6144, 4096, 24, 2),
)
