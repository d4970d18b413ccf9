"""Tracks and their leaderboards as the pages show them."""

from collections.abc import Sequence
from dataclasses import dataclass

from django.db.models import QuerySet

from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import Submission, Verdict
from swapbench.web import quantities, wording
from swapbench.web.figures.pareto import FrontPoint
from workers.protocol import Interval


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
        FrontPoint(entry.verdict.name, entry.verdict.submission.author, entry.speedup, entry.kl, entry.memory, entry.on_front)
        for entry in shown.entries
    ]


def _placed() -> QuerySet[Verdict]:
    return Verdict.objects.filter(
        current=True, status=Verdict.Status.PASSED, track_speedup__isnull=False, submission__state=Submission.State.JUDGED
    )


def _keys() -> list[tuple[str, str, str]]:
    keys = _placed().order_by().values_list("kind", "quality_class", "machine_class").distinct()
    order = {kind: index for index, kind in enumerate(wording.KINDS)}
    return sorted(keys, key=lambda key: (order.get(key[0], 99), list(wording.CLASSES).index(key[1]), key[2]))


def entries(kind: str, quality_class: str, machine_class: str) -> list[Entry]:
    """The entries of a track in order of rank."""
    found = _placed().filter(kind=kind, quality_class=quality_class, machine_class=machine_class)
    verdicts = list(found.select_related("submission__pull_request").defer("cases", "tests"))
    speedups = {verdict.pk: Interval(verdict.track_speedup, verdict.track_speedup_low, verdict.track_speedup_high) for verdict in verdicts}
    verdicts.sort(key=lambda verdict: -speedups[verdict.pk].estimate)
    ranks = [1 + sum(speedups[other.pk].low > speedups[verdict.pk].high for other in verdicts) for verdict in verdicts]
    front = _front(verdicts, speedups)
    states = dict(QueueEntry.objects.filter(submission__in=[verdict.submission_id for verdict in verdicts]).values_list("submission_id", "state"))
    shown = []
    for index, (verdict, rank) in enumerate(zip(verdicts, ranks, strict=True)):
        state = states.get(verdict.submission_id)
        shown.append(
            Entry(
                f"{rank}=" if ranks.count(rank) > 1 else str(rank),
                index > 0 and rank != ranks[index - 1],
                verdict,
                speedups[verdict.pk],
                verdict.pk in front,
                state == QueueEntry.State.MERGED,
                state in (QueueEntry.State.WAITING, QueueEntry.State.BUILDING),
            )
        )
    return shown


def _front(verdicts: Sequence[Verdict], speedups: dict[int, Interval]) -> set[int]:
    def costs(verdict: Verdict) -> tuple[float, float, float]:
        return (-speedups[verdict.pk].estimate, float(verdict.quality.get("mean_kl", 0.0)), memory_ratio(verdict) or 1.0)

    everyone = {verdict.pk: costs(verdict) for verdict in verdicts}
    return {
        pk
        for pk, own in everyone.items()
        if not any(other != own and all(a <= b for a, b in zip(other, own, strict=True)) for other in everyone.values())
    }
