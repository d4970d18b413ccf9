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

RECENT = timedelta(hours=1)
"""Reports of submissions to which nothing happened for so long are as they should be."""
FAILURES_AT_MOST = 10


def publish(forge: Forge, limit: int = 50) -> int:
    """Writes the reports anew, and tells the forge of those that changed; returns how many it was told."""
    since = timezone.now() - RECENT
    changing = (
        Q(report__isnull=True)
        | Q(state=Submission.State.JUDGING)
        | Q(audit_events__at__gte=since)
        | Q(queue_entry__state__in=[QueueEntry.State.WAITING, QueueEntry.State.BUILDING])
        | Q(queue_entry__ended_at__gte=since)
    )
    recent = Submission.objects.filter(changing, pull_request__forge=forge.name).distinct()
    for submission in recent.select_related("pull_request")[:500]:
        _write(submission)
    pending = Report.objects.filter(submission__pull_request__forge=forge.name, failures__lt=FAILURES_AT_MOST)
    pending = pending.exclude(digest=F("published_digest")).select_related("submission__pull_request")
    return sum(_tell(forge, row) for row in pending.order_by("changed_at")[:limit])


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
        published_digest=row.digest, check_run=told.check_run, comment=told.comment, note=""
    )
