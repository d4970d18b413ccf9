"""Report: what was last said about a submission on its forge, so that the same is not said twice."""

from django.db import models
from django.utils import timezone

from swapbench.submissions.models import Submission


class Report(models.Model):
    """The check run and the sticky comment of a submission, as last published."""

    submission = models.OneToOneField(Submission, on_delete=models.CASCADE, related_name="report")
    title = models.CharField(max_length=300)
    conclusion = models.CharField(max_length=20, blank=True, default="")
    """"" while judging; "success", "failure", "neutral", "action_required"."""
    text = models.TextField()
    """Markdown."""
    digest = models.CharField(max_length=64)
    """Of what is to be said now."""
    published_digest = models.CharField(max_length=64, blank=True, default="")
    """Of what the forge was last told; where the two differ, the report is still to be published."""
    check_run = models.CharField(max_length=40, blank=True, default="")
    comment = models.CharField(max_length=40, blank=True, default="")
    failures = models.PositiveIntegerField(default=0)
    """How often the forge could not be told of it in a row."""
    tried_at = models.DateTimeField(null=True, blank=True)
    """When a process last set out to tell the forge; null once it was told."""
    note = models.TextField(blank=True, default="")
    checked_at = models.DateTimeField(default=timezone.now)
    """What happened to the submission before this is in the text."""
    changed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return self.title
