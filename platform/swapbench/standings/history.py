"""What the branch can do, case by case, merge by merge."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import msgspec

from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import Verdict
from workers.protocol import CaseSpeed, Interval


@dataclass(frozen=True)
class Merge:
    """A merge with the verdicts that it was merged for."""

    entry: QueueEntry
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Measurement:
    """What a merge measured on a case: the speed-up over the slot's default or the file that it replaced.

    `better` where its interval lies above the best that the branch held before: a change point.
    """

    merge: Merge
    speedup: Interval
    better: bool


@dataclass
class CaseHistory:
    """One case of a slot kind on a machine class, oldest merge first; `best` is the best that the branch holds."""

    kind: str
    machine_class: str
    case: str
    measurements: list[Measurement] = field(default_factory=list)
    best: Interval | None = None


def merges() -> list[Merge]:
    """Every merge of the queue, oldest first."""
    entries = list(
        QueueEntry.objects.filter(state=QueueEntry.State.MERGED)
        .select_related("submission__pull_request")
        .order_by("ended_at", "id")
    )
    verdicts: dict[int, list[Verdict]] = {}
    found = Verdict.objects.filter(current=True, submission__in=[entry.submission_id for entry in entries])
    for verdict in found.order_by("path"):
        verdicts.setdefault(verdict.submission_id, []).append(verdict)
    return [Merge(entry, verdicts.get(entry.submission_id, [])) for entry in entries]


def cases(merged: Iterable[Merge], kind: str = "", machine_class: str = "") -> list[CaseHistory]:
    """The history of every case that the merges measured, narrowed to a kind or machine class where asked. Pure."""
    found: dict[tuple[str, str, str], CaseHistory] = {}
    for merge in merged:
        for verdict in merge.verdicts:
            if (kind and verdict.kind != kind) or (machine_class and verdict.machine_class != machine_class):
                continue
            for case in msgspec.convert(verdict.cases, list[CaseSpeed], strict=False):
                key = (verdict.kind, verdict.machine_class, case.case)
                _add(found.setdefault(key, CaseHistory(*key)), merge, case.speedup)
    return sorted(found.values(), key=lambda one: (one.kind, one.machine_class))


def _add(history: CaseHistory, merge: Merge, speedup: Interval) -> None:
    before = history.best.high if history.best is not None else 0.0
    history.measurements.append(Measurement(merge, speedup, speedup.low > before))
    if history.best is None or speedup.estimate > history.best.estimate:
        history.best = speedup
