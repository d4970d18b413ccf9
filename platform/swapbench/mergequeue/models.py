"""BranchState, QueueEntry, Build, QueueEvent. Rows change state only in this room's action modules."""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from swapbench.submissions.models import Submission


def build_ref(merge_sha: str) -> str:
    """The ref that keeps a merge result reachable while it is tested."""
    return f"refs/swapbench/builds/{merge_sha}"


class BranchState(models.Model):
    """A branch that the queue moves, and whether a maintainer holds it. Its row is the lock of `tick`."""

    forge = models.CharField(max_length=120)
    name = models.CharField(max_length=300)
    tip_sha = models.CharField(max_length=40, blank=True, default="")
    """The branch's commit when the queue last looked."""
    held = models.BooleanField(default=False)
    hold_reason = models.CharField(max_length=500, blank=True, default="")
    held_by = models.CharField(max_length=120, blank=True, default="")
    ticked_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["forge", "name"], name="one_row_per_branch")]

    def __str__(self) -> str:
        return f"{self.name} at {self.tip_sha[:12]}"


class QueueEntry(models.Model):
    """A submission's place in the queue of a branch."""

    class State(models.TextChoices):
        WAITING = "waiting", _("waiting")
        BUILDING = "building", _("merge result is being tested")
        MERGED = "merged", _("merged")
        LEFT = "left", _("left the queue")

    branch = models.ForeignKey(BranchState, on_delete=models.CASCADE, related_name="entries")
    submission = models.OneToOneField(Submission, on_delete=models.CASCADE, related_name="queue_entry")
    head_sha = models.CharField(max_length=40)
    """The SHA that qualified; nothing else is merged under this entry."""
    priority = models.IntegerField(default=0)
    """Higher goes first: adapters have 10, the rest 0."""
    alone = models.BooleanField(default=False)
    """Set by bisection: built without others next time."""
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    sentence = models.TextField(blank=True, default="")
    """Why it waits, or why it left."""
    entered_at = models.DateTimeField(default=timezone.now)
    ended_at = models.DateTimeField(null=True, blank=True)
    merge_sha = models.CharField(max_length=40, blank=True, default="")

    class Meta:
        ordering = ["-priority", "entered_at", "id"]
        verbose_name_plural = "queue entries"

    def __str__(self) -> str:
        return f"{self.submission} in the queue ({self.state})"


class Build(models.Model):
    """The exact merge result of one or more entries on a branch's tip, and what its functional suites said."""

    class State(models.TextChoices):
        TESTING = "testing", _("being tested")
        PASSED = "passed", _("passed")
        FAILED = "failed", _("failed")
        MERGED = "merged", _("merged")
        ABANDONED = "abandoned", _("abandoned")

    branch = models.ForeignKey(BranchState, on_delete=models.CASCADE, related_name="builds")
    entries = models.ManyToManyField(QueueEntry, related_name="builds")
    base_sha = models.CharField(max_length=40)
    merge_sha = models.CharField(max_length=40)
    """The commit that the branch is fast-forwarded to."""
    state = models.CharField(max_length=10, choices=State, default=State.TESTING)
    sentence = models.TextField(blank=True, default="")
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["branch"], condition=Q(state__in=["testing", "passed"]), name="one_live_build_per_branch"
            )
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"build {self.pk} of {self.merge_sha[:12]} ({self.state})"

    @property
    def live(self) -> bool:
        return self.state in (self.State.TESTING, self.State.PASSED)

    @property
    def ref(self) -> str:
        """By which workers reach the merge result while it is tested."""
        return build_ref(self.merge_sha)


class QueueEvent(models.Model):
    """What happened in the queue, for people; never changed after it was written."""

    branch = models.ForeignKey(BranchState, on_delete=models.CASCADE, related_name="events")
    entry = models.ForeignKey(QueueEntry, on_delete=models.CASCADE, null=True, blank=True, related_name="events")
    build = models.ForeignKey(Build, on_delete=models.CASCADE, null=True, blank=True, related_name="events")
    kind = models.CharField(max_length=20)
    sentence = models.TextField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return self.sentence
