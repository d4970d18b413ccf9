"""Gives queued attempts to the broker. The rows are the outbox: what a broker loses is sent again from them.

No more is sent to a machine class than it has workers free, because a worker that is given an attempt twice makes it twice.
A message expires when it would be sent again, so that one which a broker gives out late starts nothing.
"""

import logging
from collections.abc import Callable
from datetime import timedelta

from django.db.models import F, Q
from django.utils import timezone

from engine.slots.header import kind_of_path
from swapbench.forge.chosen import forge
from swapbench.submissions.attempts import seconds
from swapbench.submissions.models import Attempt, Submission, Worker
from swapbench.submissions.policy import policy
from workers.protocol import HEARTBEAT_SECONDS, Job, KindName, Policy, SlotFile, encode

log = logging.getLogger(__name__)

Send = Callable[[str, str, float], None]
"""(machine class, job as JSON, seconds until it expires)"""


def dispatch(send: Send) -> int:
    """Sends what is due; returns how many messages were given to the broker."""
    now = timezone.now()
    resend = timedelta(seconds=policy().resend_seconds)
    due = Q(sent_at__isnull=True) | Q(sent_at__lte=now - resend)
    sent = 0
    classes = Attempt.objects.filter(state=Attempt.State.QUEUED).order_by().values_list("machine_class", flat=True)
    for machine_class in classes.distinct():
        of_class = Attempt.objects.filter(machine_class=machine_class)
        under_way = of_class.filter(
            Q(state=Attempt.State.RUNNING) | Q(state=Attempt.State.QUEUED, sent_at__gt=now - resend)
        ).count()
        free = max(1, workers_alive(machine_class)) - under_way
        if free <= 0:
            continue
        # A build goes first: it holds up everybody behind it in the queue.
        queued = of_class.filter(due, state=Attempt.State.QUEUED).order_by(F("build").asc(nulls_last=True), "id")
        for attempt in queued.select_related("submission__pull_request", "build")[:free]:
            claimed = Attempt.objects.filter(
                pk=attempt.pk, state=Attempt.State.QUEUED, sent_at=attempt.sent_at, sent=attempt.sent
            ).update(sent_at=now, sent=F("sent") + 1)
            if not claimed:
                continue  # Another process got there first.
            try:
                send(machine_class, encode(job_of(attempt)), resend.total_seconds())
            except Exception:
                # Whatever a broker raises, the row stays and is sent again.
                log.exception("Attempt %s could not be given to the broker; it is sent again later.", attempt.pk)
                continue
            sent += 1
    return sent


def workers_alive(machine_class: str) -> int:
    """Workers of a machine class that gave a sign of life lately."""
    fresh = timezone.now() - timedelta(seconds=4 * HEARTBEAT_SECONDS)
    return (
        Worker.objects.filter(machine_class=machine_class, seen_at__gte=fresh)
        .exclude(state=Worker.State.STOPPING)
        .count()
    )


def job_of(attempt: Attempt) -> Job:
    """The job that a worker is given for an attempt. It holds no credentials but the attempt's own token."""
    rules = policy()
    if attempt.submission is not None:
        base, head = attempt.submission.base_sha, attempt.submission.head_sha
        ref, files = attempt.submission.pull_request.head_ref, attempt.submission.files
    else:
        assert attempt.build is not None
        # The merge result stands on itself, so that files outside the slots are as they would be on the branch.
        base = head = attempt.build.merge_sha
        ref = attempt.build.ref
        entries = attempt.build.entries.select_related("submission")
        files = [file for entry in entries for file in (*entry.submission.files, *_others_files(entry.submission))]
    return Job(
        attempt=str(attempt.pk),
        token=attempt.token,
        repository=forge().repository(),
        base_sha=base,
        head_sha=head,
        head_ref=ref,
        files=tuple(_slot_file(file["path"], file["kind"], file["status"]) for file in files),
        machine_class=attempt.machine_class,
        suite_version=attempt.suite_version,
        suites=tuple(attempt.suites),
        policy=Policy(
            alpha=attempt.alpha,
            relevance=rules.relevance,
            isolation_levels=rules.isolation_levels,
            max_pairs=rules.max_pairs,
            sentinels=rules.sentinels,
        ),
        deadline_seconds=seconds(attempt),
    )


def _others_files(submission: Submission) -> list[dict[str, str]]:
    """Slot files of others that a submission changes with a maintainer's approval, which nothing has tested yet."""
    kept = [file for file in submission.outside if file["status"] != "deleted"]
    found = [(file, kind_of_path(file["path"])) for file in kept]
    return [{"path": file["path"], "kind": kind, "status": file["status"]} for file, kind in found if kind is not None]


def _slot_file(path: str, kind: KindName, status: str) -> SlotFile:
    return SlotFile(path, kind, "modified" if status == "modified" else "added")
