"""PullRequest, Submission, Attempt, Result, Verdict, and what surrounds them.

Rows change state only in the action modules beside this file, each by a compare-and-set `update()` whose row count is
checked. Nothing here acts.
"""

from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _


class PullRequest(models.Model):
    """A pull request as the forge last described it."""

    class State(models.TextChoices):
        OPEN = "open", _("open")
        MERGED = "merged", _("merged")
        CLOSED = "closed", _("closed")

    forge = models.CharField(max_length=120)
    """The forge's name: "local", or "github:owner/repository"."""
    number = models.PositiveIntegerField()
    title = models.CharField(max_length=300)
    author = models.CharField(max_length=120)
    """Login on the forge; of the local forge, the name of the head commit's author."""
    author_email = models.CharField(max_length=254, blank=True, default="")
    trusted_author = models.BooleanField(default=False)
    """Whether the forge says that the author contributed before (member, collaborator, contributor)."""
    head_sha = models.CharField(max_length=40)
    head_ref = models.CharField(max_length=300)
    """A ref of the forge's repository from which head can be fetched: refs/pull/N/head."""
    base_ref = models.CharField(max_length=300)
    """The branch that it wants to be merged into: main."""
    draft = models.BooleanField(default=False)
    state = models.CharField(max_length=10, choices=State, default=State.OPEN)
    url = models.CharField(max_length=500, blank=True, default="")
    labels = models.JSONField(default=list, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["forge", "number"], name="one_row_per_pull_request")]
        ordering = ["-number"]

    def __str__(self) -> str:
        return f"#{self.number} {self.title}"


class Submission(models.Model):
    """One head SHA of a pull request, taken in: judged, waiting, or refused with a sentence."""

    class State(models.TextChoices):
        REFUSED = "refused", _("refused")
        WAITING = "waiting", _("waiting for a maintainer")
        JUDGING = "judging", _("being judged")
        JUDGED = "judged", _("judged")
        SUPERSEDED = "superseded", _("superseded by a newer push")
        CANCELLED = "cancelled", _("cancelled")

    pull_request = models.ForeignKey(PullRequest, on_delete=models.CASCADE, related_name="submissions")
    head_sha = models.CharField(max_length=40)
    base_sha = models.CharField(max_length=40, blank=True, default="")
    """The branch's commit that head is compared with; "" where it was refused before that was known."""
    files = models.JSONField(default=list, blank=True)
    """Slot files added or modified: [{path, kind, status, name, quality_class, summary, blob, tree_hash}]."""
    outside = models.JSONField(default=list, blank=True)
    """Changed files that need a maintainer: [{path, status, why}]."""
    documents = models.JSONField(default=list, blank=True)
    """Paths of documents of its own that come along."""
    state = models.CharField(max_length=12, choices=State)
    reasons = models.JSONField(default=list, blank=True)
    """Why it was refused or waits: [{code, sentence, next_step, path}]."""
    approval_needed = models.BooleanField(default=False)
    """Whether a maintainer must approve this SHA before it is judged."""
    tries = models.PositiveIntegerField(default=1)
    """Which try of its author on its track this is; decides how much alpha it may spend."""
    arrived_at = models.DateTimeField(default=timezone.now)
    """When its push was first told of. From here to `created_at` is intake, which counts against the attempts' deadline."""
    created_at = models.DateTimeField(auto_now_add=True)
    judged_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["pull_request", "head_sha"], name="one_submission_per_head")]
        indexes = [models.Index(fields=["state"])]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.head_sha[:12]} of {self.pull_request}"

    @property
    def author(self) -> str:
        return self.pull_request.author

    @property
    def ended(self) -> bool:
        return self.state not in (self.State.WAITING, self.State.JUDGING)


class Approval(models.Model):
    """A maintainer's yes to one SHA: to be judged, or to be merged."""

    class Purpose(models.TextChoices):
        JUDGE = "judge", _("may be judged")
        MERGE = "merge", _("may be merged")

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="approvals")
    head_sha = models.CharField(max_length=40)
    purpose = models.CharField(max_length=10, choices=Purpose)
    by = models.CharField(max_length=120)
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["submission", "head_sha", "purpose", "by"], name="one_approval_per_person")
        ]

    def __str__(self) -> str:
        return f"{self.by}: {self.get_purpose_display()} {self.head_sha[:12]}"


class Attempt(models.Model):
    """One try to judge a submission, or to test a build of the merge queue, on one machine class.

    `token` fences: a worker that was given an attempt proves it by the token, and what it says counts only while the
    row is `running` and its lease has not been taken from it.
    """

    class State(models.TextChoices):
        QUEUED = "queued", _("waiting for a worker")
        RUNNING = "running", _("running")
        FINISHED = "finished", _("finished")
        LOST = "lost", _("lost")
        CANCELLED = "cancelled", _("cancelled")

    LIVE = (State.QUEUED, State.RUNNING)

    class Failure(models.TextChoices):
        NONE = "", ""
        LEASE = "lease", _("the worker fell silent")
        DEADLINE = "deadline", _("the deadline passed")
        ENVIRONMENT = "environment", _("the machine was not fit to judge")
        SUPERSEDED = "superseded", _("a newer push took its place")
        CANCELLED = "cancelled", _("cancelled by a person")

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="attempts", null=True, blank=True)
    build = models.ForeignKey(
        "mergequeue.Build", on_delete=models.CASCADE, related_name="attempts", null=True, blank=True
    )
    suite_version = models.CharField(max_length=64)
    machine_class = models.CharField(max_length=40)
    make = models.CharField(max_length=120, blank=True, default="")
    """The accelerator's or else the processor's name, once there is an outcome: machines of a class may be of several makes."""
    n = models.PositiveIntegerField(default=1)
    """1 for the first; each that replaces a lost one counts on."""
    round = models.PositiveIntegerField(default=1)
    """Each retry that a person asks for starts a new round, whose attempts count from 1."""
    suites = models.JSONField(default=list)
    alpha = models.FloatField(default=0.05)
    state = models.CharField(max_length=10, choices=State, default=State.QUEUED)
    token = models.CharField(max_length=64)
    worker = models.CharField(max_length=120, blank=True, default="")
    lease_until = models.DateTimeField(null=True, blank=True)
    heartbeat_at = models.DateTimeField(null=True, blank=True)
    deadline_at = models.DateTimeField(null=True, blank=True)
    """`attempts.seconds` after it started."""
    sent_at = models.DateTimeField(null=True, blank=True)
    """When its message was last given to the broker."""
    sent = models.PositiveIntegerField(default=0)
    failure_kind = models.CharField(max_length=12, choices=Failure, blank=True, default=Failure.NONE)
    failure = models.TextField(blank=True, default="")
    """What went wrong on our side, as a sentence."""
    status = models.CharField(max_length=24, blank=True, default="")
    """`workers.protocol.Status` of the outcome; "" until there is one."""
    outcome = models.TextField(blank=True, default="")
    """The outcome as the worker signed it (JSON of `workers.protocol.Outcome`)."""

    stage = models.CharField(max_length=12, blank=True, default="")
    stages = models.JSONField(default=list, blank=True)
    """Stages entered so far: [{stage, since}], `since` in seconds since the epoch by the control plane's clock."""
    sentence = models.CharField(max_length=4000, blank=True, default="")
    done = models.PositiveIntegerField(default=0)
    total = models.PositiveIntegerField(default=0)
    unit = models.CharField(max_length=60, blank=True, default="")
    progress_at = models.DateTimeField(null=True, blank=True)
    progress_seconds = models.FloatField(default=0)
    """The worker's clock at the latest progress: a progress that is older is late, and does not count."""

    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(submission__isnull=True) ^ Q(build__isnull=True), name="attempt_is_of_one_thing"
            ),
            models.UniqueConstraint(
                fields=["submission", "suite_version", "machine_class", "round", "n"],
                condition=Q(submission__isnull=False),
                name="one_attempt_per_try_of_submission",
            ),
            models.UniqueConstraint(
                fields=["build", "suite_version", "machine_class", "round", "n"],
                condition=Q(build__isnull=False),
                name="one_attempt_per_try_of_build",
            ),
            models.UniqueConstraint(
                fields=["submission", "suite_version", "machine_class"],
                condition=Q(submission__isnull=False, state__in=["queued", "running"]),
                name="one_live_attempt_of_submission",
            ),
        ]
        indexes = [models.Index(fields=["state", "lease_until"])]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"attempt {self.pk} ({self.state})"

    @property
    def live(self) -> bool:
        return self.state in self.LIVE


class Result(models.Model):
    """What one process measured of one case: a side of an AB/BA pair. In a pair of the phase "same" both sides are base."""

    class Side(models.TextChoices):
        BASE = "base", _("base")
        HEAD = "head", _("head")

    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="results")
    path = models.CharField(max_length=300)
    case = models.CharField(max_length=200)
    pair = models.PositiveIntegerField()
    phase = models.CharField(max_length=10)
    order = models.CharField(max_length=2)
    side = models.CharField(max_length=4, choices=Side)
    seconds = models.FloatField()
    """Median seconds per call in this process."""
    samples = models.JSONField(default=list, blank=True)
    """Seconds per call of each sample."""

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["attempt", "path", "case", "phase", "pair", "side"], name="one_result_per_process_and_case"
            )
        ]
        indexes = [
            # Few rows among many, which the page Error rates looks back over.
            models.Index(fields=["-attempt"], condition=Q(phase="same"), name="results_of_identical_code")
        ]
        ordering = ["pair", "case", "side"]

    def __str__(self) -> str:
        return f"{self.case} {self.side} of pair {self.pair}: {self.seconds:.3g} s"


class Verdict(models.Model):
    """The judgement on one implementation of a submission, by one suite version on one machine class."""

    class Status(models.TextChoices):
        PASSED = "passed", _("passed")
        FAILED = "failed", _("failed")
        TIMED_OUT_CODE = "timed_out_code", _("timed out (code)")
        TIMED_OUT_INFRASTRUCTURE = "timed_out_infrastructure", _("timed out (infrastructure)")
        INVALID_ENVIRONMENT = "invalid_environment", _("invalid environment")
        INCONCLUSIVE = "inconclusive", _("inconclusive")
        IMPOSSIBLE = "impossible", _("impossible")
        TAMPERED = "tampered", _("tampered")

    class Speed(models.TextChoices):
        FASTER = "faster", _("faster")
        NO_DIFFERENCE = "no_difference", _("no difference")
        SLOWER = "slower", _("slower")
        INCONCLUSIVE = "inconclusive", _("inconclusive")
        NOT_MEASURED = "not_measured", _("not measured")

    submission = models.ForeignKey(Submission, on_delete=models.CASCADE, related_name="verdicts")
    attempt = models.ForeignKey(Attempt, on_delete=models.CASCADE, related_name="verdicts")
    current = models.BooleanField(default=True)
    """False once a later attempt judged the same implementation again."""
    path = models.CharField(max_length=300)
    kind = models.CharField(max_length=20)
    name = models.CharField(max_length=60)
    quality_class = models.CharField(max_length=4, blank=True, default="")
    suite_version = models.CharField(max_length=64)
    machine_class = models.CharField(max_length=40)
    isolation = models.CharField(max_length=20, blank=True, default="")
    status = models.CharField(max_length=24, choices=Status)
    speed = models.CharField(max_length=16, choices=Speed, default=Speed.NOT_MEASURED)
    speedup = models.FloatField(null=True, blank=True)
    """Of head over what it was measured against; a fraction, 0.12 means 12 % faster. Low and high: its interval."""
    speedup_low = models.FloatField(null=True, blank=True)
    speedup_high = models.FloatField(null=True, blank=True)
    speedup_level = models.FloatField(default=0.95)
    against = models.CharField(max_length=120, blank=True, default="")
    track_speedup = models.FloatField(null=True, blank=True)
    """Over the track's baseline: its place on the track."""
    track_speedup_low = models.FloatField(null=True, blank=True)
    track_speedup_high = models.FloatField(null=True, blank=True)
    reasons = models.JSONField(default=list, blank=True)
    """[{code, sentence, stage, case, index, expected, got, next_step, reproduce}]."""
    next_steps = models.JSONField(default=list, blank=True)
    """Sentences."""
    cases = models.JSONField(default=list, blank=True)
    """[{case, base_seconds, head_seconds, speedup: {estimate, low, high, level}, p}]."""
    tests = models.JSONField(default=list, blank=True)
    """[{suite, name, outcome, seconds, sentence}]."""
    quality = models.JSONField(default=dict, blank=True)
    meets = models.JSONField(default=list, blank=True)
    figures = models.JSONField(default=dict, blank=True)
    summary = models.TextField(blank=True, default="")
    qualifies = models.BooleanField(default=False)
    """Whether the implementation is good enough to enter the merge queue."""
    tree_hash = models.CharField(max_length=64, blank=True, default="")
    """Hash of the normalised syntax tree: the same code does not get another draw."""
    reused_from = models.ForeignKey("self", on_delete=models.SET_NULL, null=True, blank=True, related_name="reuses")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["attempt", "path"], name="one_verdict_per_attempt_and_file"),
            models.UniqueConstraint(
                fields=["submission", "path", "suite_version", "machine_class"],
                condition=Q(current=True),
                name="one_current_verdict",
            ),
        ]
        indexes = [
            models.Index(fields=["kind", "quality_class", "machine_class", "current"]),
            models.Index(fields=["tree_hash"]),
        ]
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.name}: {self.status}, {self.speed}"


class FileOwner(models.Model):
    """Whose a merged slot file is; who may change it without a maintainer."""

    path = models.CharField(max_length=300, unique=True)
    author = models.CharField(max_length=120)
    author_email = models.CharField(max_length=254, blank=True, default="")
    since = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.path}: {self.author}"


class Worker(models.Model):
    """A worker's latest sign of life."""

    class State(models.TextChoices):
        IDLE = "idle", _("idle")
        BUSY = "busy", _("busy")
        STOPPING = "stopping", _("stopping")

    name = models.CharField(max_length=120, unique=True)
    machine_class = models.CharField(max_length=40)
    state = models.CharField(max_length=10, choices=State)
    isolation = models.CharField(max_length=20)
    description = models.CharField(max_length=4000, blank=True, default="")
    attempt = models.CharField(max_length=64, blank=True, default="")
    first_seen_at = models.DateTimeField(auto_now_add=True)
    seen_at = models.DateTimeField()

    class Meta:
        ordering = ["name"]

    def __str__(self) -> str:
        return f"{self.name} ({self.state})"


class AuditEvent(models.Model):
    """Who did what: a person's or the platform's decision, never changed after it was written."""

    at = models.DateTimeField(auto_now_add=True)
    actor = models.CharField(max_length=120)
    """A login, or "swapbench" for the platform itself."""
    action = models.CharField(max_length=40)
    sentence = models.TextField()
    submission = models.ForeignKey(
        Submission, on_delete=models.SET_NULL, null=True, blank=True, related_name="audit_events"
    )
    detail = models.JSONField(default=dict, blank=True)

    class Meta:
        ordering = ["-id"]

    def __str__(self) -> str:
        return f"{self.actor}: {self.sentence}"
