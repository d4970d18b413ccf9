"""Tracks and their leaderboards as the pages show them."""

from dataclasses import dataclass

from swapbench.mergequeue.models import QueueEntry
from swapbench.standings.tracks import BITS_PER_WEIGHT, Track, memory_ratio, standings
from swapbench.standings.tracks import tracks as all_tracks
from swapbench.submissions.models import Verdict
from swapbench.submissions.verdicts import MEMORY_RATIO
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
        for name in (MEMORY_RATIO, BITS_PER_WEIGHT):
            if name in self.verdict.figures:
                return quantities.figure(name, float(self.verdict.figures[name]))
        return ""


@dataclass(frozen=True)
class TrackShown:
    """A track in a list of tracks, with its entries."""

    kind: str
    quality_class: str
    machine_class: str
    entries: list[Entry]

    @property
    def address(self) -> str:
        return address(self.kind, self.quality_class, self.machine_class)

    @property
    def leaders(self) -> list[Entry]:
        """Those of the first rank."""
        return [entry for entry in self.entries if entry.rank == self.entries[0].rank]

    @property
    def best(self) -> Interval | None:
        return self.entries[0].speedup if self.entries else None


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


def groups() -> list[Group]:
    """Every kind, with its tracks that somebody has a place on."""
    shown = [track_shown(track) for track in _tracks()]
    return [Group(kind, [track for track in shown if track.kind == kind]) for kind in wording.KINDS]


def board(kind: str, quality_class: str, machine_class: str) -> Board:
    """The leaderboard of a track; empty where nobody has a place."""
    known = [track for track in _tracks() if track.kind == kind]
    own = next((one for one in known if (one.quality_class, one.machine_class) == (quality_class, machine_class)), None)
    found = entries(own) if own is not None else []
    return Board(kind, quality_class, machine_class, found, [track_shown(track) for track in known])


def track_shown(track: Track) -> TrackShown:
    return TrackShown(track.kind, track.quality_class, track.machine_class, entries(track))


def front_points(shown: Board) -> list[FrontPoint]:
    return [
        FrontPoint(
            entry.verdict.name, entry.verdict.submission.author, entry.speedup, entry.kl, entry.memory, entry.on_front
        )
        for entry in shown.entries
    ]


def _tracks() -> list[Track]:
    """The tracks that somebody has a place on, in the order of kinds and classes."""
    kinds, classes = list(wording.KINDS), list(wording.CLASSES)
    known = [track for track in all_tracks() if track.kind in kinds and track.quality_class in classes]
    return sorted(
        known, key=lambda track: (kinds.index(track.kind), classes.index(track.quality_class), track.machine_class)
    )


def entries(track: Track) -> list[Entry]:
    """The entries of a track in order of rank."""
    places = standings(track)
    queued = QueueEntry.objects.filter(submission__in=[place.verdict.submission_id for place in places])
    states = dict(queued.values_list("submission_id", "state"))
    shown: list[Entry] = []
    for place in places:
        rank = place.tier.label
        state = states.get(place.verdict.submission_id)
        shown.append(
            Entry(
                rank,
                bool(shown) and shown[-1].rank != rank,
                place.verdict,
                place.speedup,
                place.on_front,
                state == QueueEntry.State.MERGED,
                state in (QueueEntry.State.WAITING, QueueEntry.State.BUILDING),
            )
        )
    return shown
