"""What the two row-wise kinds, normalization and activation, have in common."""

from collections.abc import Sequence

from engine.slots.caps import dtypes_for
from engine.slots.drawing import DISTRIBUTIONS
from engine.slots.header import Header
from engine.slots.kind import Case, Environment, Suite
from engine.slots.source import Source
from engine.slots.steps import follows
from engine.workloads.pointwise import PointwiseWorkload


def pointwise_cases(
    suite: Suite, header: Header, environment: Environment, workloads: Sequence[PointwiseWorkload]
) -> list[Case]:
    """Unit: every workload in every dtype. Performance: in the first dtype that both sides know."""
    dtypes = dtypes_for(header, environment)
    if suite == "performance":
        preferred = "bfloat16" if environment.device == "cuda" else "float32"
        dtypes = [preferred] if preferred in dtypes else dtypes[:1]
    return [
        Case(
            f"{workload.name}-{dtype}" if suite == "unit" else workload.name,
            dtype,
            {
                "tokens": workload.tokens,
                "width": workload.width,
                "residual": workload.residual,
                "repeat": workload.repeat,
                "recorded": workload.decode and environment.device == "cuda",
                "values": "normal",
                "suite": suite,
                "device": environment.device,
            },
        )
        for workload in workloads
        for dtype in dtypes
    ]


def vary_pointwise(case: Case, source: Source) -> Case:
    """Another distribution, and in the unit suite another number of tokens."""
    tokens = int(case["tokens"])
    if case["suite"] == "unit":
        tokens = max(1, tokens + source.integer(-1, 1))
        values = source.choice(DISTRIBUTIONS)
    else:
        tokens += source.integer(-(tokens // 50), tokens // 50)
        values = source.choice(("normal", "long-tailed"))
    if follows(case, "repeat"):
        # With an even number of rows, what steps take from each other can fall into parts: see `signed_by_many`.
        tokens |= 1
    return Case(case.name, case.dtype, {**case.params, "tokens": tokens, "values": values})
