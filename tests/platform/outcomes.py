"""Outcomes as a judge would give them; needs no Django, because workers of the tests use it too."""

from workers.protocol import (
    ImplementationOutcome,
    Interval,
    PairRecord,
    Performance,
    Reason,
    Speed,
    Status,
)


def implementation(
    path: str = "engine/attention/swift.py",
    status: Status = "passed",
    speed: Speed = "faster",
    name: str = "swift",
    reasons: list[Reason] | None = None,
    figures: dict[str, float] | None = None,
) -> ImplementationOutcome:
    """What the judge says of one file; its pairs are two, which is enough to be stored."""
    gains = {"faster": 0.2, "no_difference": 0.0, "slower": -0.2, "inconclusive": 0.01}
    performance = None
    if speed != "not_measured":
        gain = gains[speed]
        interval = Interval(gain, gain - 0.02, gain + 0.02)
        pairs = [
            PairRecord(index, order, "stop", {"prefill": 2e-3, "decode": 1e-3}, {"prefill": 1.7e-3, "decode": 0.8e-3})
            for index, order in enumerate(("AB", "BA"))
        ]
        performance = Performance(
            speed, "By the pairs.", pairs, 0.001, interval, [], "plain", baseline_speedup=interval
        )
    return ImplementationOutcome(
        path=path,
        kind="attention",
        name=name,
        quality_class="E",
        status=status,
        reasons=reasons or [],
        speed=speed,
        performance=performance,
        figures=figures or {},
    )
