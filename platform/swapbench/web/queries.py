"""What the pages read from the database: read-only, a bounded number of queries each, plain values out."""

import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from statistics import median
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.paginator import Page, Paginator
from django.db.models import Max, Prefetch, Q, QuerySet
from django.utils import timezone

from swapbench.forge.chosen import forge
from swapbench.mergequeue.models import BranchState, Build, QueueEntry, QueueEvent
from swapbench.submissions.models import Attempt, AuditEvent, Submission, Verdict, Worker
from swapbench.submissions.verdicts import OURS
from swapbench.web.filters import PAGE_SIZE, SubmissionFilter
from swapbench.web.progress import StageShown, stages_of_outcome, stages_of_running
from workers.protocol import (
    HEARTBEAT_SECONDS,
    ImplementationOutcome,
    Interval,
    Outcome,
    ProtocolError,
    decode_outcome,
)

SILENT_AFTER = timedelta(seconds=6 * HEARTBEAT_SECONDS)
FORGOTTEN_AFTER = timedelta(days=2)


@dataclass(frozen=True)
class RunShown:
    """An attempt that is under way, with the bars of its stages. `submission` is None for a build of the queue.

    `ahead` is how many attempts on the same machine class were there before it and have not ended.
    """

    attempt: Attempt
    submission: Submission | None
    stages: list[StageShown]
    ahead: int = 0

    @property
    def files(self) -> list[dict[str, Any]]:
        return list(self.submission.files) if self.submission else []


@dataclass(frozen=True)
class WorkerShown:
    row: Worker
    alive: bool


@dataclass(frozen=True)
class VerdictShown:
    """A verdict with its speed-up as an interval, where it was measured."""

    verdict: Verdict
    speedup: Interval | None


def speedup_of(verdict: Verdict) -> Interval | None:
    """The verdict's speed-up over what it was measured against."""
    if verdict.speedup is None or verdict.speedup_low is None or verdict.speedup_high is None:
        return None
    return Interval(verdict.speedup, verdict.speedup_low, verdict.speedup_high, verdict.speedup_level)


def shown(verdicts: Iterable[Verdict]) -> list[VerdictShown]:
    return [VerdictShown(verdict, speedup_of(verdict)) for verdict in verdicts]


def measured(rows: Sequence[VerdictShown]) -> list[Interval]:
    return [row.speedup for row in rows if row.speedup is not None]


def live_attempts() -> list[RunShown]:
    """Attempts that run or wait for a worker, the running ones first, oldest first."""
    attempts = Attempt.objects.filter(state__in=Attempt.LIVE)
    attempts = attempts.select_related("submission__pull_request").defer("outcome").order_by("id")
    before: Counter[str] = Counter()
    runs = []
    for attempt in attempts[:100]:
        runs.append(run_shown(attempt, before[attempt.machine_class]))
        before[attempt.machine_class] += 1
    return sorted(runs, key=lambda run: run.attempt.state != Attempt.State.RUNNING)


def run_shown(attempt: Attempt, ahead: int = 0) -> RunShown:
    stages = stages_of_running(attempt.stage, attempt.done, attempt.total, attempt.stages)
    return RunShown(attempt, attempt.submission, stages, ahead)


def ahead_of(attempt: Attempt) -> int:
    """How many attempts on the same machine class were there before this one and have not ended; 0 once it runs."""
    if attempt.state != Attempt.State.QUEUED:
        return 0
    live = Attempt.objects.filter(state__in=Attempt.LIVE)
    return live.filter(machine_class=attempt.machine_class, pk__lt=attempt.pk).count()


def workers() -> list[WorkerShown]:
    """Workers seen in the last two days; alive where the latest sign of life is fresh."""
    now = timezone.now()
    rows = Worker.objects.filter(seen_at__gte=now - FORGOTTEN_AFTER)
    return [WorkerShown(row, row.seen_at >= now - SILENT_AFTER) for row in rows]


def branch() -> BranchState | None:
    """The branch that the queue moves; None before the queue has looked at it for the first time."""
    return BranchState.objects.filter(name=settings.SWAPBENCH_BRANCH).first()


def queue_entries() -> list[QueueEntry]:
    """Who is in the queue, in the order in which they go."""
    entries = QueueEntry.objects.filter(state__in=[QueueEntry.State.WAITING, QueueEntry.State.BUILDING])
    return list(entries.select_related("submission__pull_request")[:200])


def latest_verdicts(count: int) -> list[VerdictShown]:
    verdicts = Verdict.objects.filter(current=True).select_related("submission__pull_request")
    return shown(verdicts.defer("cases", "tests", "quality", "figures")[:count])


def now() -> dict[str, Any]:
    """All that the page of what is happening now shows."""
    runs = live_attempts()
    seen = workers()
    verdicts = latest_verdicts(12)
    day_ago = timezone.now() - timedelta(days=1)
    finished = Attempt.objects.filter(
        state=Attempt.State.FINISHED, submission__isnull=False, started_at__isnull=False, finished_at__gte=day_ago
    ).values_list("started_at", "finished_at")[:500]
    seconds = [(end - start).total_seconds() for start, end in finished if end is not None and start is not None]
    waiting = [run for run in runs if run.attempt.state == Attempt.State.QUEUED]
    return {
        "running": [run for run in runs if run.attempt.state == Attempt.State.RUNNING],
        "waiting": waiting,
        "queue": queue_entries(),
        "branch": branch(),
        "workers": seen,
        "workers_alive": sum(worker.alive for worker in seen),
        "verdicts": verdicts,
        "intervals": measured(verdicts),
        "judged_today": Submission.objects.filter(judged_at__gte=day_ago).count(),
        "merged_today": QueueEntry.objects.filter(state=QueueEntry.State.MERGED, ended_at__gte=day_ago).count(),
        "median_seconds": median(seconds) if seconds else None,
        "every": 2 if runs else 5,
    }


def now_version() -> str:
    """Changes whenever something that the page of now shows has changed, by its cheap traces alone."""
    traces = (
        Attempt.objects.aggregate(Max("id"), Max("progress_at"), Max("finished_at"), Max("started_at")),
        Attempt.objects.filter(state__in=Attempt.LIVE).count(),
        Verdict.objects.aggregate(Max("id")),
        QueueEvent.objects.aggregate(Max("id")),
        AuditEvent.objects.aggregate(Max("id")),
        [(worker.row.name, worker.row.state, worker.alive) for worker in workers()],
    )
    return repr(traces)


def submissions(wanted: SubmissionFilter) -> Page[Submission]:
    """A page of submissions, latest first, each with its current verdicts."""
    found: QuerySet[Submission] = Submission.objects.select_related("pull_request")
    if wanted.state:
        found = found.filter(state=wanted.state)
    if wanted.author:
        found = found.filter(pull_request__author__iexact=wanted.author)
    verdict = Q(verdicts__current=True)
    narrowed = False
    for name, value in (("kind", wanted.kind), ("quality_class", wanted.quality_class), ("status", wanted.status)):
        if value:
            verdict &= Q(**{f"verdicts__{name}": value})
            narrowed = True
    if narrowed:
        found = found.filter(verdict).distinct()
    current = Verdict.objects.filter(current=True).defer("cases", "tests", "quality", "figures").order_by("path")
    found = found.prefetch_related(Prefetch("verdicts", queryset=current, to_attr="current_verdicts"))
    return Paginator(found.order_by("-id"), PAGE_SIZE).get_page(wanted.page)


@dataclass(frozen=True)
class ImplementationShown:
    """One implementation of a submission on one machine class: its verdict, and what the outcome holds beyond it."""

    verdict: Verdict
    speedup: Interval | None
    judged: ImplementationOutcome | None = None
    """None where the verdict was reused or the outcome is gone."""

    @property
    def reasons(self) -> list[dict[str, Any]]:
        """The verdict's reasons; a command that an earlier reason gave already is not given again."""
        given: set[str] = set()
        shown = []
        for reason in self.verdict.reasons:
            command = reason.get("reproduce") or ""
            shown.append({**reason, "reproduce": "" if command in given else command})
            given.add(command)
        return shown

    @property
    def next_steps(self) -> list[str]:
        """The verdict's next steps that its reasons do not say already."""
        said = {reason.get("next_step") for reason in self.verdict.reasons}
        return [step for step in self.verdict.next_steps if step not in said]


def _repository() -> str:
    """Where the code can be fetched from; a clone's own origin where the forge is not set up in this process."""
    try:
        return forge().repository()
    except ImproperlyConfigured:
        return "origin"


@dataclass(frozen=True)
class RunPage:
    """All that the page of a submission shows. `attempt` is the one that facts and stages are shown of."""

    submission: Submission
    attempts: list[Attempt]
    attempt: Attempt | None
    outcome: Outcome | None
    unreadable: str
    stages: list[StageShown]
    running: list[RunShown]
    implementations: list[ImplementationShown]
    entry: QueueEntry | None
    newer: Submission | None
    audit: list[AuditEvent] = field(default_factory=list)

    @property
    def reproduce(self) -> str:
        """The commands that judge the same code at home, in a clone in which `make setup` has run: beside it, so that it stays as it is."""
        head, base, pull = self.submission.head_sha, self.submission.base_sha, self.submission.pull_request
        beside = f"../pull-{pull.number}"
        return (
            f"git fetch {shlex.quote(_repository())} {pull.head_ref} {pull.base_ref}\n"
            f"git worktree add --detach {beside} {head[:12]} && cd {beside}\n"
            f'"$OLDPWD"/.venv/bin/swapbench check --base {base[:12]}'
        )

    @property
    def live(self) -> bool:
        """Whether the page will still change by itself."""
        if self.running or self.submission.state in (Submission.State.WAITING, Submission.State.JUDGING):
            return True
        return self.entry is not None and self.entry.state in (QueueEntry.State.WAITING, QueueEntry.State.BUILDING)


def run_page(submission: Submission, attempt_id: int | None = None) -> RunPage | None:
    """The page of a submission, by its latest attempt or the one asked for; None where that is not its attempt."""
    attempts = list(submission.attempts.defer("outcome").order_by("-id")[:50])
    chosen = next((one for one in attempts if attempt_id is None or one.pk == attempt_id), None)
    if chosen is None and attempt_id is not None:
        return None
    if attempt_id is None:
        verdicts = list(
            submission.verdicts.filter(current=True).select_related("reused_from").order_by("path", "machine_class")
        )
        running = [run_shown(attempt, ahead_of(attempt)) for attempt in attempts if attempt.live]
    else:
        verdicts = list(submission.verdicts.filter(attempt=chosen).select_related("reused_from").order_by("path"))
        running = [run_shown(chosen, ahead_of(chosen))] if chosen is not None and chosen.live else []
    outcomes = _outcomes({verdict.attempt_id for verdict in verdicts} | ({chosen.pk} if chosen else set()))
    outcome, unreadable = outcomes.get(chosen.pk, (None, "")) if chosen else (None, "")
    newer = (
        Submission.objects.filter(pull_request=submission.pull_request, pk__gt=submission.pk).order_by("-pk").first()
    )
    return RunPage(
        submission,
        attempts,
        chosen,
        outcome,
        unreadable,
        stages_of_outcome(outcome) if outcome is not None else [],
        running,
        [_implementation(verdict, outcomes) for verdict in verdicts],
        QueueEntry.objects.filter(submission=submission).select_related("branch").first(),
        newer,
        list(submission.audit_events.all()[:20]),
    )


Outcomes = dict[int, tuple[Outcome | None, str]]


def _implementation(verdict: Verdict, outcomes: Outcomes) -> ImplementationShown:
    outcome, _unreadable = outcomes.get(verdict.attempt_id, (None, ""))
    own = outcome.implementations if outcome is not None and verdict.reused_from_id is None else []
    judged = next((one for one in own if one.path == verdict.path), None)
    return ImplementationShown(verdict, speedup_of(verdict), judged)


def _outcomes(attempts: set[int]) -> Outcomes:
    """By attempt: the outcome, or why it cannot be read."""
    read: Outcomes = {}
    for pk, text in Attempt.objects.filter(pk__in=attempts).exclude(outcome="").values_list("pk", "outcome"):
        try:
            read[pk] = decode_outcome(text), ""
        except ProtocolError as error:
            read[pk] = None, str(error)
    return read


def outcome_text(attempt: Attempt | None) -> str:
    """The outcome as it was signed; "" where there is none."""
    if attempt is None:
        return ""
    return Attempt.objects.values_list("outcome", flat=True).get(pk=attempt.pk)


def latest_outcome_text(submission: Submission) -> str:
    """The outcome of the submission's latest attempt that has one; "" where none has."""
    attempts = submission.attempts.exclude(outcome="").order_by("-id")
    return attempts.values_list("outcome", flat=True).first() or ""


def submission_version(submission: Submission) -> str:
    """Changes whenever the page of the submission has changed."""
    attempts = submission.attempts.values_list("id", "state", "progress_at", "progress_seconds", "stage", "worker")
    entry = QueueEntry.objects.filter(submission=submission).values_list("state", "sentence").first()
    queued = submission.attempts.filter(state=Attempt.State.QUEUED)
    return repr(
        (
            submission.state,
            [ahead_of(attempt) for attempt in queued],
            list(attempts),
            entry,
            submission.verdicts.aggregate(Max("id")),
            submission.audit_events.aggregate(Max("id")),
        )
    )


@dataclass(frozen=True)
class PlaceShown:
    """An entry's place in the queue; `wait` is the seconds until it is merged if every build passes, None where unknown."""

    entry: QueueEntry
    position: int
    wait: float | None


def places(entries: Sequence[QueueEntry], held: bool) -> list[PlaceShown]:
    """The entries with how long they will wait: a median build of late for each that goes before, and one for itself."""
    late = Build.objects.filter(state=Build.State.MERGED, ended_at__isnull=False).values_list("created_at", "ended_at")[
        :20
    ]
    seconds = [(end - start).total_seconds() for start, end in late if end is not None]
    build = median(seconds) if seconds and not held else None
    return [
        PlaceShown(entry, position, build * position if build is not None else None)
        for position, entry in enumerate(entries, start=1)
    ]


def queue_page() -> dict[str, Any]:
    """All that the page of the queue shows."""
    entries = queue_entries()
    state = branch()
    builds = Build.objects.prefetch_related(
        Prefetch("entries", queryset=QueueEntry.objects.select_related("submission__pull_request"))
    )
    gone = QueueEntry.objects.filter(state__in=[QueueEntry.State.MERGED, QueueEntry.State.LEFT])
    running = Attempt.objects.filter(build__isnull=False, state__in=Attempt.LIVE)
    return {
        "queue": places(entries, held=state.held if state else False),
        "branch": state,
        "builds": list(builds[:10]),
        "running": [run_shown(attempt, ahead_of(attempt)) for attempt in running.defer("outcome")[:10]],
        "gone": list(gone.select_related("submission__pull_request").order_by("-ended_at", "-id")[:15]),
        "events": list(QueueEvent.objects.all()[:30]),
        "workers": workers(),
        "every": 3 if entries else 8,
    }


def queue_version() -> str:
    """Changes whenever the page of the queue has changed."""
    entries = QueueEntry.objects.exclude(state__in=[QueueEntry.State.MERGED, QueueEntry.State.LEFT])
    return repr(
        (
            list(entries.values_list("id", "state", "sentence")),
            QueueEvent.objects.aggregate(Max("id")),
            Build.objects.aggregate(Max("id"), Max("ended_at")),
            list(BranchState.objects.values_list("tip_sha", "held", "hold_reason")),
            list(
                Attempt.objects.filter(build__isnull=False, state__in=Attempt.LIVE).values_list(
                    "id", "state", "progress_at"
                )
            ),
            [(worker.row.name, worker.row.state, worker.alive) for worker in workers()],
        )
    )


def submission_named(name: str) -> Submission | None:
    """The submission with this number, or the latest whose head SHA begins with these (at least 7) digits."""
    found = Submission.objects.select_related("pull_request")
    if name.isdigit() and len(name) <= 9:
        by_number = found.filter(pk=int(name)).first()
        if by_number is not None:
            return by_number
    return found.filter(head_sha__startswith=name).order_by("-pk").first() if len(name) >= 7 else None


def measured_verdict(submission: Submission) -> Verdict | None:
    """The submission's current verdict that holds measured cases."""
    return next(
        (verdict for verdict in submission.verdicts.filter(current=True).order_by("path") if verdict.cases), None
    )


def maintain_page(number: int) -> dict[str, Any]:
    """What waits for a maintainer, and a page of the audit log."""
    waiting = Submission.objects.filter(state=Submission.State.WAITING).select_related("pull_request").order_by("id")
    live = Submission.objects.filter(state=Submission.State.JUDGING).select_related("pull_request").order_by("id")
    undecided = [*OURS, Verdict.Status.INCONCLUSIVE]
    stuck = Submission.objects.filter(
        state=Submission.State.JUDGED, verdicts__current=True, verdicts__status__in=undecided
    ).select_related("pull_request")
    merging = [entry for entry in queue_entries() if entry.state == QueueEntry.State.WAITING]
    return {
        "waiting": list(waiting[:100]),
        "live": list(live[:100]),
        "undecided": list(stuck.distinct().order_by("-id")[:50]),
        "merging": merging,
        "left": list(
            QueueEntry.objects.filter(state=QueueEntry.State.LEFT, submission__pull_request__state="open")
            .select_related("submission__pull_request")
            .order_by("-ended_at")[:20]
        ),
        "branch": branch(),
        "page": Paginator(AuditEvent.objects.select_related("submission__pull_request"), PAGE_SIZE).get_page(number),
    }
