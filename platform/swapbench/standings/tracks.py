"""Tracks and their standings: who is where, by significance, and who is on the Pareto front."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.db.models import F, QuerySet

from swapbench.submissions.models import PullRequest, Submission, Verdict
from swapbench.submissions.verdicts import MEMORY_RATIO
from workers.protocol import Interval
from workers.statistics import Estimate, Tier, better_than, tiers

BITS_PER_WEIGHT = "bits per weight"
BASELINE_BITS = 16
"""Bits per weight of the quantization track's baseline: bfloat16."""


@dataclass(frozen=True, order=True)
class Track:
    """What is compared with each other: one kind of slot, one quality class, one machine class."""

    kind: str
    quality_class: str
    machine_class: str


@dataclass(frozen=True)
class Standing:
    """An implementation's place on a track."""

    verdict: Verdict
    tier: Tier
    """Its rank, 1 + the number of entries that are significantly better; entries of one rank are not told apart."""
    speedup: Interval
    """Over the track's baseline, as fractions."""
    on_front: bool
    """Whether no other entry is as good in speed, quality and memory, and better in one."""


@dataclass(frozen=True)
class Point:
    """What the Pareto front compares: `speedup` is better the more, `loss` (of quality) and `memory` the less."""

    speedup: float
    loss: float
    memory: float


def tracks() -> list[Track]:
    """Every track that somebody has a place on, in order."""
    rows = _placed().order_by().values_list("kind", "quality_class", "machine_class").distinct()
    return sorted(Track(*row) for row in rows)


def standings(track: Track) -> list[Standing]:
    """The entries of a track, best rank first, equals by their estimate.

    Of several suite versions' verdicts on one file of a submission, the newest counts.
    """
    rows = _placed().filter(kind=track.kind, quality_class=track.quality_class, machine_class=track.machine_class)
    newest: dict[tuple[int, str], Verdict] = {}
    for row in rows.select_related("submission__pull_request").defer("cases", "tests").order_by("id"):
        newest[row.submission_id, row.path] = row
    verdicts = {str(row.pk): row for row in newest.values()}
    speedups = {key: _speedup(row) for key, row in verdicts.items()}
    order = sorted(verdicts, key=lambda key: -speedups[key].estimate)
    ranks = ranked({key: speedups[key] for key in order})
    front = pareto_front({key: _point(verdicts[key], speedups[key]) for key in order})
    return [Standing(verdicts[key], ranks[key], speedups[key], key in front) for key in ranks]


def ranked(speedups: Mapping[str, Interval]) -> dict[str, Tier]:
    """The tier of each entry, best first, by Holm over all pairs.

    A speed-up of -100 % or less has no logarithm: such an entry is not told apart from any.
    """
    comparable = {
        name: Estimate(one.estimate, one.low, one.high, one.level, 0)
        for name, one in speedups.items()
        if one.low > -1 and 0 < one.level < 1
    }
    return tiers(list(speedups), better_than(comparable))


def pareto_front(points: Mapping[str, Point]) -> set[str]:
    """Names of the points that no other dominates: as fast, as good and as small, and better in at least one."""
    return {name for name, own in points.items() if not any(_dominates(other, own) for other in points.values())}


def memory_ratio(verdict: Verdict) -> float | None:
    """Memory over the baseline's: as measured, or from the bits per weight over the baseline's 16."""
    figures = verdict.figures
    if MEMORY_RATIO in figures:
        return float(figures[MEMORY_RATIO])
    if BITS_PER_WEIGHT in figures:
        return float(figures[BITS_PER_WEIGHT]) / BASELINE_BITS
    return None


def _dominates(one: Point, other: Point) -> bool:
    no_worse = one.speedup >= other.speedup and one.loss <= other.loss and one.memory <= other.memory
    return no_worse and one != other


def _point(verdict: Verdict, speedup: Interval) -> Point:
    """A mean KL below twice the noise floor counts as none: a smaller one is no better (as for class E)."""
    noise = float(verdict.quality.get("noise_floor_kl", 0.0))
    loss = max(0.0, float(verdict.quality.get("mean_kl", 0.0)) - 2 * noise)
    memory = memory_ratio(verdict)
    return Point(speedup.estimate, loss, 1.0 if memory is None else memory)


def _placed() -> QuerySet[Verdict]:
    """Verdicts that give a place: passed, measured, of the newest head of a pull request that was not turned down."""
    return Verdict.objects.filter(
        current=True,
        status=Verdict.Status.PASSED,
        track_speedup__isnull=False,
        submission__state=Submission.State.JUDGED,
        submission__head_sha=F("submission__pull_request__head_sha"),
    ).exclude(submission__pull_request__state=PullRequest.State.CLOSED)


def _speedup(verdict: Verdict) -> Interval:
    middle, low, high = verdict.track_speedup, verdict.track_speedup_low, verdict.track_speedup_high
    assert middle is not None
    return Interval(middle, middle if low is None else low, middle if high is None else high, verdict.speedup_level)
