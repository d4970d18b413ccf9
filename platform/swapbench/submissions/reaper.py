"""Takes attempts from workers that fell silent, and replaces them."""

from datetime import timedelta

from django.db import transaction
from django.db.models import Q
from django.utils import timezone

from swapbench.submissions import attempts, audit
from swapbench.submissions.models import Attempt
from swapbench.submissions.record import give_up

DEADLINE_SLACK = timedelta(seconds=30)
"""After the deadline, in which the attempt's worker ends it and reports."""


def reap() -> int:
    """Ends every running attempt whose lease or deadline has passed; returns how many.

    Each is replaced for free as often as policy allows; then its submission timed out through our fault.
    """
    now = timezone.now()
    silent = Q(lease_until__lt=now)
    overdue = Q(deadline_at__lt=now - DEADLINE_SLACK)
    reaped = 0
    for row in Attempt.objects.filter(silent | overdue, state=Attempt.State.RUNNING).select_related("submission"):
        late = row.deadline_at is not None and row.deadline_at < now - DEADLINE_SLACK
        kind = Attempt.Failure.DEADLINE if late else Attempt.Failure.LEASE
        with transaction.atomic():
            attempts.hold_submission(row)
            taken = (
                Attempt.objects.filter(pk=row.pk, state=Attempt.State.RUNNING)
                .filter(silent | overdue)
                .update(state=Attempt.State.LOST, failure_kind=kind, failure=_sentence(row, late), finished_at=now)
            )
            if not taken:
                continue  # It came back in time, or another process reaped it.
            reaped += 1
            audit.note(audit.PLATFORM, "reaped", _sentence(row, late), row.submission, attempt=row.pk)
            if attempts.replace(row) is None:
                give_up(row, f"{_sentence(row, late)} That was try {row.n} of {row.n}.")
    return reaped


def _sentence(row: Attempt, late: bool) -> str:
    if late:
        return f"Attempt {row.pk} on {row.worker} did not end by its deadline."
    return f"Worker {row.worker} gave no sign of life for attempt {row.pk} until its lease ended."
