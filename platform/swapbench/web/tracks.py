"""Tracks and their leaderboards as the pages show them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from django.db.models import F, QuerySet

from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import PullRequest, Submission, Verdict
from swapbench.web import quantities, wording
from swapbench.web.figures.pareto import FrontPoint
from workers.protocol import Interval
from workers.statistics import Estimate, Tier, better_than, tiers


@dataclass(frozen=True)
class Entry:
    """An implementation on a track. `rank` is as written: "1", "2="."""

    rank: str
    tier_start: bool
    verdict: Verdict
    speedup: Interval
    on_front: bool
    merged: bool
    queued: bool

    @property
    def kl(self) -> float | None:
        return self.verdict.quality.get("mean_kl")

    @property
    def top1(self) -> float | None:
        return self.verdict.quality.get("top1")

    @property
    def memory(self) -> float | None:
        return memory_ratio(self.verdict)

    @property
    def memory_text(self) -> str:
        """The memory figure that the verdict holds, with its unit."""
        for name in ("memory ratio", "bits per weight"):
            if name in self.verdict.figures:
                return quantities.figure(name, float(self.verdict.figures[name]))
        return ""


@dataclass(frozen=True)
class TrackShown:
    """A track in a list of tracks: how many entries, and who leads."""

    kind: str
    quality_class: str
    machine_class: str
    entries: int
    leaders: list[Entry]

    @property
    def address(self) -> str:
        return address(self.kind, self.quality_class, self.machine_class)

    @property
    def best(self) -> Interval | None:
        return self.leaders[0].speedup if self.leaders else None


@dataclass(frozen=True)
class Group:
    """The tracks of one slot kind."""

    kind: str
    tracks: list[TrackShown]

    @property
    def intervals(self) -> list[Interval]:
        return [track.best for track in self.tracks if track.best is not None]


@dataclass(frozen=True)
class Board:
    """A leaderboard."""

    kind: str
    quality_class: str
    machine_class: str
    entries: list[Entry]
    others: list[TrackShown]

    @property
    def address(self) -> str:
        return address(self.kind, self.quality_class, self.machine_class)

    @property
    def intervals(self) -> list[Interval]:
        return [entry.speedup for entry in self.entries]

    @property
    def has_quality(self) -> bool:
        return any(entry.kl is not None or entry.top1 is not None for entry in self.entries)

    @property
    def has_memory(self) -> bool:
        return any(entry.memory_text for entry in self.entries)


def address(kind: str, quality_class: str, machine_class: str) -> str:
    return f"/tracks/{kind}/{quality_class}/{machine_class}/"


def memory_ratio(verdict: Verdict) -> float | None:
    """Memory over the baseline's: as measured, or from the bits per weight over bfloat16's 16."""
    if "memory ratio" in verdict.figures:
        return float(verdict.figures["memory ratio"])
    if "bits per weight" in verdict.figures:
        return float(verdict.figures["bits per weight"]) / 16
    return None


def groups() -> list[Group]:
    """Every kind, with its tracks that somebody has a place on."""
    shown = [track_shown(*key) for key in _keys()]
    return [Group(kind, [track for track in shown if track.kind == kind]) for kind in wording.KINDS]


def board(kind: str, quality_class: str, machine_class: str) -> Board:
    """The leaderboard of a track; empty where nobody has a place."""
    others = [track_shown(*key) for key in _keys() if key[0] == kind]
    return Board(kind, quality_class, machine_class, entries(kind, quality_class, machine_class), others)


def track_shown(kind: str, quality_class: str, machine_class: str) -> TrackShown:
    own = entries(kind, quality_class, machine_class)
    leaders = [entry for entry in own if entry.rank.rstrip("=") == "1"]
    return TrackShown(kind, quality_class, machine_class, len(own), leaders)


def front_points(shown: Board) -> list[FrontPoint]:
    return [
        FrontPoint(
            entry.verdict.name, entry.verdict.submission.author, entry.speedup, entry.kl, entry.memory, entry.on_front
        )
        for entry in shown.entries
    ]


def _placed() -> QuerySet[Verdict]:
    """Verdicts that give a place: passed, measured, of the newest head of a pull request that was not turned down."""
    return Verdict.objects.filter(
        current=True,
        status=Verdict.Status.PASSED,
        track_speedup__isnull=False,
        submission__state=Submission.State.JUDGED,
        submission__head_sha=F("submission__pull_request__head_sha"),
    ).exclude(submission__pull_request__state=PullRequest.State.CLOSED)


def _keys() -> list[tuple[str, str, str]]:
    keys = _placed().order_by().values_list("kind", "quality_class", "machine_class").distinct()
    kinds, classes = list(wording.KINDS), list(wording.CLASSES)
    known = [key for key in keys if key[0] in kinds and key[1] in classes]
    return sorted(known, key=lambda key: (kinds.index(key[0]), classes.index(key[1]), key[2]))


def _speedup(verdict: Verdict) -> Interval:
    middle, low, high = verdict.track_speedup, verdict.track_speedup_low, verdict.track_speedup_high
    assert middle is not None
    return Interval(middle, middle if low is None else low, middle if high is None else high, verdict.speedup_level)


def entries(kind: str, quality_class: str, machine_class: str) -> list[Entry]:
    """The entries of a track in order of rank, equals by their estimate.

    Of several suite versions' verdicts on one file, the newest counts.
    """
    found = _placed().filter(kind=kind, quality_class=quality_class, machine_class=machine_class)
    newest = {
        (verdict.submission_id, verdict.path): verdict
        for verdict in found.select_related("submission__pull_request").defer("cases", "tests").order_by("id")
    }
    speedups = {verdict.pk: _speedup(verdict) for verdict in newest.values()}
    verdicts = sorted(newest.values(), key=lambda verdict: -speedups[verdict.pk].estimate)
    ranks = ranked({str(verdict.pk): speedups[verdict.pk] for verdict in verdicts})
    verdicts.sort(key=lambda verdict: (ranks[str(verdict.pk)].rank, -speedups[verdict.pk].estimate))
    front = _front(verdicts, speedups)
    queued = QueueEntry.objects.filter(submission__in=[verdict.submission_id for verdict in verdicts])
    states = dict(queued.values_list("submission_id", "state"))
    shown: list[Entry] = []
    for verdict in verdicts:
        rank = ranks[str(verdict.pk)].label
        state = states.get(verdict.submission_id)
        shown.append(
            Entry(
                rank,
                bool(shown) and shown[-1].rank != rank,
                verdict,
                speedups[verdict.pk],
                verdict.pk in front,
                state == QueueEntry.State.MERGED,
                state in (QueueEntry.State.WAITING, QueueEntry.State.BUILDING),
            )
        )
    return shown


def ranked(speedups: Mapping[str, Interval]) -> dict[str, Tier]:
    """The rank of each entry: 1 + the number of entries that are significantly better, by Holm over all pairs.

    A speed-up of -100 % or less has no logarithm and cannot be compared: such an entry is not told apart from any.
    """
    comparable = {
        name: Estimate(one.estimate, one.low, one.high, one.level, 0)
        for name, one in speedups.items()
        if one.low > -1 and 0 < one.level < 1
    }
    return tiers(list(speedups), better_than(comparable))


def _front(verdicts: Sequence[Verdict], speedups: dict[int, Interval]) -> set[int]:
    def costs(verdict: Verdict) -> tuple[float, float, float]:
        return (
            -speedups[verdict.pk].estimate,
            float(verdict.quality.get("mean_kl", 0.0)),
            memory_ratio(verdict) or 1.0,
        )

    everyone = {verdict.pk: costs(verdict) for verdict in verdicts}
    return {
        pk
        for pk, own in everyone.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in everyone.values())
    }
