"""Keeps what the forge shows in step with the database. The Report row is the outbox: what was not told is told later."""

import hashlib
import logging
from datetime import timedelta

from django.conf import settings
from django.db.models import F, Q
from django.utils import timezone

from swapbench.forge.contract import Forge, ForgeError, PublishedReport
from swapbench.mergequeue.models import QueueEntry
from swapbench.reports.models import Report
from swapbench.reports.write import report
from swapbench.submissions.models import Submission

log = logging.getLogger(__name__)

OVERLAP = timedelta(minutes=1)
"""An event is seen only when its transaction ends, which is later than the moment that it is dated."""
CLAIMED_FOR = timedelta(minutes=2)
"""How long a process that set out to tell the forge is left to it, before another takes it to have been killed."""
LONGEST_WAIT = timedelta(hours=1)


def publish(forge: Forge, limit: int = 50) -> int:
    """Writes the reports anew, and tells the forge of those that changed; returns how many it was told."""
    since = timezone.now() - OVERLAP
    changing = (
        Q(report__isnull=True)
        | Q(state=Submission.State.JUDGING)
        | Q(audit_events__at__gte=F("report__checked_at"))
        | Q(queue_entry__state__in=[QueueEntry.State.WAITING, QueueEntry.State.BUILDING])
        | Q(queue_entry__ended_at__gte=F("report__checked_at"))
    )
    found = Submission.objects.filter(changing, pull_request__forge=forge.name).distinct()
    changed = list(found.select_related("pull_request")[:500])
    for submission in changed:
        _write(submission)
    Report.objects.filter(submission__in=changed).update(checked_at=since)
    pending = Report.objects.filter(submission__pull_request__forge=forge.name).exclude(digest=F("published_digest"))
    rows = pending.select_related("submission__pull_request").defer("text").order_by("changed_at")
    return sum(_tell(forge, row) for row in [row for row in rows if _is_due(row)][:limit])


def _is_due(row: Report) -> bool:
    """Whether the forge is to be told now: nobody is at it, and the wait after a failure, twice the last one, is over."""
    wait = CLAIMED_FOR if not row.failures else min(timedelta(seconds=5) * 2 ** min(row.failures, 10), LONGEST_WAIT)
    return row.tried_at is None or row.tried_at <= timezone.now() - wait


def _write(submission: Submission) -> None:
    said = report(submission, settings.SWAPBENCH_ORIGIN)
    digest = hashlib.sha256(f"{said.title}\0{said.conclusion}\0{said.markdown}".encode()).hexdigest()
    fields = {
        "title": said.title,
        "conclusion": said.conclusion,
        "text": said.markdown,
        "digest": digest,
        "failures": 0,
    }
    row, made = Report.objects.get_or_create(submission=submission, defaults=fields)
    if not made and row.digest != digest:
        Report.objects.filter(pk=row.pk).update(**fields, changed_at=timezone.now())


def _tell(forge: Forge, row: Report) -> int:
    claimed = Report.objects.filter(
        pk=row.pk, tried_at=row.tried_at, failures=row.failures, published_digest=row.published_digest
    ).update(tried_at=timezone.now())
    if not claimed:
        return 0  # Another process tells it.
    submission = row.submission
    said = report(submission, settings.SWAPBENCH_ORIGIN)
    newest = submission.pull_request.head_sha == submission.head_sha
    # One sticky comment per pull request: it belongs to the newest head, and older ones leave it alone.
    comment = (
        Report.objects.filter(submission__pull_request=submission.pull_request)
        .exclude(comment="")
        .values_list("comment", flat=True)
        .first()
    ) or ""
    try:
        told = forge.publish(
            submission.pull_request.number, said, PublishedReport(row.check_run, comment), with_comment=newest
        )
    except ForgeError as error:
        Report.objects.filter(pk=row.pk).update(failures=F("failures") + 1, note=str(error))
        log.warning("The report of %s is published later: %s", submission, error)
        return 0
    return Report.objects.filter(pk=row.pk).update(
        published_digest=row.digest, check_run=told.check_run, comment=told.comment, note="", failures=0, tried_at=None
    )
