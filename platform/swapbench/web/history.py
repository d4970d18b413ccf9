"""What main can do, case by case, merge by merge."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import Verdict
from swapbench.web import evidence, wording
from swapbench.web.figures.series import SeriesPoint
from workers.protocol import Interval


@dataclass
class CaseHistory:
    """One case of a slot kind on a machine class; `best` is the best that main holds, over the track's baseline."""

    kind: str
    machine_class: str
    case: str
    points: list[SeriesPoint] = field(default_factory=list)
    best: Interval | None = None


@dataclass(frozen=True)
class Merge:
    """A merge with what it brought."""

    entry: QueueEntry
    verdicts: list[Verdict]


@dataclass(frozen=True)
class History:
    cases: list[CaseHistory]
    merges: list[Merge]
    machines: list[str]


def history(kind: str = "", machine_class: str = "") -> History:
    """The merges of the branch in order, and the cases that they measured; narrowed where asked."""
    entries = list(
        QueueEntry.objects.filter(state=QueueEntry.State.MERGED)
        .select_related("submission__pull_request")
        .order_by("ended_at", "id")
    )
    by_submission: dict[int, list[Verdict]] = {}
    for verdict in Verdict.objects.filter(
        current=True, submission__in=[entry.submission_id for entry in entries]
    ).order_by("path"):
        by_submission.setdefault(verdict.submission_id, []).append(verdict)
    merges = [Merge(entry, by_submission.get(entry.submission_id, [])) for entry in entries]
    machines = sorted({verdict.machine_class for merge in merges for verdict in merge.verdicts})
    wanted = [
        (merge, verdict)
        for merge in merges
        for verdict in merge.verdicts
        if (not kind or verdict.kind == kind) and (not machine_class or verdict.machine_class == machine_class)
    ]
    return History(_cases(wanted), list(reversed(merges)), machines)


def _cases(measured: Iterable[tuple[Merge, Verdict]]) -> list[CaseHistory]:
    found: dict[tuple[str, str, str], CaseHistory] = {}
    for merge, verdict in measured:
        for case in evidence.case_table(verdict.cases).rows:
            key = (verdict.kind, verdict.machine_class, case.case)
            one = found.setdefault(key, CaseHistory(*key))
            before = one.best.high if one.best is not None else 0.0
            one.points.append(
                SeriesPoint(f"#{merge.entry.submission.pull_request.number}", case.speedup, case.speedup.low > before)
            )
            if one.best is None or case.speedup.estimate > one.best.estimate:
                one.best = case.speedup
    order = {kind: index for index, kind in enumerate(wording.KINDS)}
    return sorted(found.values(), key=lambda one: (order.get(one.kind, len(order)), one.machine_class))
