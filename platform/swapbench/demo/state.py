"""How far the samples are, and what became of them, read from the database."""

from dataclasses import dataclass
from typing import Any

from swapbench.demo.samples import Sample
from swapbench.mergequeue.models import Build, QueueEntry
from swapbench.submissions.models import Attempt, Submission, Verdict
from swapbench.submissions.verdicts import worst
from workers.protocol import ProtocolError, decode_outcome

FORGE = "local"
STAGES = ("checkout", "unit", "integration", "performance", "report")


@dataclass(frozen=True)
class Pull:
    """A sample, the submission of its head, and that one's newest attempt, as far as there are any."""

    sample: Sample
    submission: Submission | None
    attempt: Attempt | None
    entry: QueueEntry | None
    verdicts: list[Verdict]

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it by itself."""
        if self.submission is None or self.submission.state == Submission.State.JUDGING:
            return False
        if self.entry is not None:
            return self.entry.state in (QueueEntry.State.MERGED, QueueEntry.State.LEFT)
        return True

    @property
    def status(self) -> str:
        """The verdict's status; of what was not judged, the submission's state."""
        if self.submission is None:
            return "not taken in"
        if self.submission.state != Submission.State.JUDGED:
            return self.submission.state
        return worst(verdict.status for verdict in self.verdicts)

    @property
    def shown_status(self) -> str:
        """The same for people."""
        if self.submission is None:
            return "not taken in yet"
        if self.submission.state != Submission.State.JUDGED or not self.verdicts:
            return str(self.submission.get_state_display())
        return str(Verdict.Status(self.status).label)

    @property
    def sentences(self) -> list[str]:
        """Why it is so."""
        said = [reason["sentence"] for verdict in self.verdicts for reason in verdict.reasons]
        if self.submission is not None and not said:
            said = [reason["sentence"] for reason in self.submission.reasons]
        return said or [verdict.summary for verdict in self.verdicts if verdict.summary]

    def unexpected(self) -> list[str]:
        """In which ways it came out otherwise than the sample expects; empty where it did not."""
        expected = self.sample.expected
        found = {
            "status": self.status,
            "speed": self.verdicts[0].speed if self.verdicts else "not_measured",
            "queued": self.entry is not None,
            "stage": self.stage_that_failed,
        }
        wrong = []
        for key, value in found.items():
            wanted = expected.get(key, value)
            if value not in (wanted if isinstance(wanted, list) else [wanted]):
                wrong.append(f"{key} is {value!r}, expected {wanted!r}")
        says = expected.get("says")
        everything = " ".join(self.sentences)
        if says and str(says).lower() not in everything.lower():
            wrong.append(f"no reason says {says!r}")
        return wrong

    @property
    def stage_that_failed(self) -> str:
        stages = [reason.get("stage") for verdict in self.verdicts for reason in verdict.reasons]
        return next((stage for stage in stages if stage), "")

    def as_json(self) -> dict[str, Any]:
        """What `--json` writes of it."""
        first = self.verdicts[0] if self.verdicts else None
        interval = [first.speedup_low, first.speedup_high] if first and first.speedup is not None else None
        return {
            "number": self.sample.number,
            "title": self.sample.title,
            "author": self.sample.author_name,
            "expected": self.sample.expected,
            "verdict": self.status,
            "speed": first.speed if first else "not_measured",
            "speedup": first.speedup if first else None,
            "speedup_interval": interval,
            "quality": first.quality if first else {},
            "figures": first.figures if first else {},
            "meets": first.meets if first else [],
            "why": self.sentences,
            "stages": self._stage_seconds(),
            "seconds": self.seconds,
            "attempts": self.submission.attempts.count() if self.submission else 0,
            "queue": self.entry.state if self.entry else "",
            "queue_why": self.entry.sentence if self.entry else "",
            "merge_sha": self.entry.merge_sha if self.entry else "",
            "unexpected": self.unexpected(),
        }

    @property
    def seconds(self) -> float | None:
        """From the start of the newest attempt to its end."""
        if self.attempt is None or self.attempt.started_at is None or self.attempt.finished_at is None:
            return None
        return (self.attempt.finished_at - self.attempt.started_at).total_seconds()

    def _stage_seconds(self) -> dict[str, float]:
        if self.attempt is None or not self.attempt.outcome:
            return {}
        try:
            outcome = decode_outcome(self.attempt.outcome)
        except ProtocolError:
            return {}
        return {report.stage: round(report.seconds, 2) for report in outcome.stages}


def pulls(samples: list[Sample], with_outcomes: bool = False) -> list[Pull]:
    """Where each sample is now."""
    found: dict[int, Submission] = {}
    for row in Submission.objects.filter(pull_request__forge=FORGE).select_related("pull_request").order_by("id"):
        if row.head_sha == row.pull_request.head_sha:
            found[row.pull_request.number] = row
    return [_pull(sample, found.get(sample.number), with_outcomes) for sample in samples]


def _pull(sample: Sample, submission: Submission | None, with_outcomes: bool) -> Pull:
    if submission is None:
        return Pull(sample, None, None, None, [])
    attempts = submission.attempts.order_by("-id")
    attempt = (attempts if with_outcomes else attempts.defer("outcome")).first()
    entry = QueueEntry.objects.filter(submission=submission).first()
    verdicts = list(submission.verdicts.filter(current=True).order_by("path", "machine_class"))
    return Pull(sample, submission, attempt, entry, verdicts)


def may_enter_still(pulls: list[Pull]) -> bool:
    """Whether one that was judged and qualifies has not entered the queue yet, which takes a turn of the control loop."""
    return any(
        pull.entry is None
        and pull.submission is not None
        and pull.submission.state == Submission.State.JUDGED
        and bool(pull.verdicts)
        and all(verdict.qualifies for verdict in pull.verdicts)
        for pull in pulls
    )


def live_build() -> Build | None:
    """The merge result that is being tested."""
    return Build.objects.filter(state__in=[Build.State.TESTING, Build.State.PASSED]).first()
