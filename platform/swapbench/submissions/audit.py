"""Writes down who did what."""

from typing import Any

from swapbench.submissions.models import AuditEvent, Submission

PLATFORM = "swapbench"


def note(actor: str, action: str, sentence: str, submission: Submission | None = None, **detail: Any) -> None:
    """Adds an AuditEvent; inside the caller's transaction, so that no decision goes without its record."""
    AuditEvent.objects.create(
        actor=actor[:120], action=action[:40], sentence=sentence, submission=submission, detail=detail
    )
