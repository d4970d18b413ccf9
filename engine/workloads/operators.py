"""Operators that adapters bind, with sizes by name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class OperatorWorkload:
    """linear: rows x inputs by outputs x inputs. rms_norm, softmax, swiglu: rows x inputs. attention: `rows` queries over
    `inputs` keys, with `heads` heads of `outputs` channels."""

    name: str
    operator: str
    rows: int
    inputs: int
    outputs: int = 0
    heads: int = 1


UNIT = (
    OperatorWorkload("linear-one-row", "linear", 1, 96, 130),
    OperatorWorkload("linear-odd", "linear", 17, 256, 77),
    OperatorWorkload("rms-norm-odd", "rms_norm", 7, 97),
    OperatorWorkload("rms-norm-wide", "rms_norm", 3, 4096),
    OperatorWorkload("softmax-odd", "softmax", 9, 101),
    OperatorWorkload("softmax-vocabulary", "softmax", 2, 32000),
    OperatorWorkload("swiglu-odd", "swiglu", 5, 2 * 61),
    OperatorWorkload("attention-prefill", "attention", 33, 33, 64, 3),
    OperatorWorkload("attention-decode", "attention", 1, 77, 64, 2),
    OperatorWorkload("attention-chunk", "attention", 12, 40, 32, 2),
)
CPU = (
    OperatorWorkload("linear-64x1024x1024", "linear", 64, 1024, 1024),
    OperatorWorkload("rms-norm-512x1024", "rms_norm", 512, 1024),
    OperatorWorkload("softmax-64x8192", "softmax", 64, 8192),
    OperatorWorkload("swiglu-256x2816", "swiglu", 256, 2 * 2816),
    OperatorWorkload("attention-prefill-256-h8-d64", "attention", 256, 256, 64, 8),
)
CUDA = (
    OperatorWorkload("linear-2048x4096x14336", "linear", 2048, 4096, 14336),
    OperatorWorkload("rms-norm-64kx4096", "rms_norm", 65536, 4096),
    OperatorWorkload("softmax-4096x128k", "softmax", 4096, 131072),
    OperatorWorkload("swiglu-16kx14336", "swiglu", 16384, 2 * 14336),
    OperatorWorkload("attention-prefill-4096-h32-d128", "attention", 4096, 4096, 128, 32),
)
