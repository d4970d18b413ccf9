"""What the demo shows on the terminal while it runs, and the table and JSON of what came of it. Reads the database only."""

from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from swapbench.demo.samples import Sample
from swapbench.mergequeue.models import Build, QueueEntry
from swapbench.submissions.models import Attempt, PullRequest, Submission, Verdict

STAGES = ("checkout", "unit", "integration", "performance")
COLOURS = {"passed": "green", "failed": "red", "tampered": "bold red", "impossible": "bold red", "waiting": "yellow"}


@dataclass(frozen=True)
class View:
    """One sample and what the database says of it now."""

    sample: Sample
    submission: Submission | None
    attempt: Attempt | None
    verdicts: list[Verdict]
    entry: QueueEntry | None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen to it by itself."""
        if self.submission is None or self.submission.state == Submission.State.JUDGING:
            return False
        if self.attempt is not None and self.attempt.live:
            return False
        return self.entry is None or self.entry.ended_at is not None

    @property
    def status(self) -> str:
        """The verdict, or what it is before there is one."""
        if self.verdicts:
            return self.verdicts[0].status
        if self.submission is None:
            return "not taken in"
        return str(self.submission.state)

    @property
    def speed(self) -> str:
        return self.verdicts[0].speed if self.verdicts else ""

    @property
    def queued(self) -> bool:
        return self.entry is not None

    @property
    def merged(self) -> bool:
        return self.entry is not None and self.entry.state == QueueEntry.State.MERGED

    @property
    def why(self) -> str:
        """The sentence that explains the verdict."""
        if self.verdicts and self.verdicts[0].summary:
            return self.verdicts[0].summary
        reasons = (self.verdicts[0].reasons if self.verdicts else None) or (
            self.submission.reasons if self.submission else []
        )
        return reasons[0]["sentence"] if reasons else ""

    @property
    def as_expected(self) -> bool:
        """Whether status, speed and place in the queue are the sample's expected ones; lists name alternatives."""
        expected = self.sample.expected
        return all(
            name not in expected or value in (expected[name] if isinstance(expected[name], list) else [expected[name]])
            for name, value in (("status", self.status), ("speed", self.speed), ("queued", self.queued))
        )


def views(pulls: list[Sample]) -> list[View]:
    """The samples as the database knows them now."""
    numbers = [sample.number for sample in pulls]
    rows = {
        pull.number: pull
        for pull in PullRequest.objects.filter(forge="local", number__in=numbers).prefetch_related("submissions")
    }
    found = []
    for sample in pulls:
        pull = rows.get(sample.number)
        submission = pull.submissions.order_by("-id").first() if pull else None
        attempt = submission.attempts.order_by("-id").first() if submission else None
        verdicts = list(submission.verdicts.filter(current=True).order_by("id")) if submission else []
        entry = QueueEntry.objects.filter(submission=submission).first() if submission else None
        found.append(View(sample, submission, attempt, verdicts, entry))
    return found


def settled(found: list[View]) -> bool:
    """Whether every sample has ended and no build is under way."""
    return all(view.ended for view in found) and not Build.objects.filter(state__in=["testing", "passed"]).exists()


def live(found: list[View], address: str, seconds: float) -> RenderableType:
    """Bars for every attempt and stage."""
    table = Table.grid(padding=(0, 1))
    for view in found:
        table.add_row(
            Text(f"#{view.sample.number}", style="dim"),
            Text(view.sample.title, no_wrap=True, overflow="ellipsis"),
            _stages(view.attempt),
            _state(view),
        )
    done = sum(view.ended for view in found)
    head = Text.assemble((f"{done} of {len(found)} ended", "bold"), f" · {seconds:.0f} s · ", (address, "underline"))
    return Group(head, table)


def _stages(attempt: Attempt | None) -> RenderableType:
    if attempt is None:
        return Text("")
    names = [entry["stage"] for entry in attempt.stages]
    grid = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = []
    for stage in STAGES[1:]:
        over = attempt.state == Attempt.State.FINISHED or (stage in names and stage != attempt.stage)
        if stage == attempt.stage and not over:
            bar = ProgressBar(total=attempt.total or None, completed=attempt.done, width=10, pulse=not attempt.total)
        else:
            bar = ProgressBar(total=1, completed=1 if stage in names else 0, width=10)
        cells.append(bar)
    grid.add_row(*cells)
    return grid


def _state(view: View) -> Text:
    if view.attempt is not None and view.attempt.live:
        return Text(view.attempt.sentence[:60] or view.attempt.get_state_display(), style="cyan", no_wrap=True)
    text = Text(view.status.replace("_", " "), style=COLOURS.get(view.status, "yellow"))
    if view.speed and view.speed != "not_measured":
        text.append(f", {view.speed.replace('_', ' ')}", style="default")
    if view.entry is not None:
        text.append(f", {view.entry.get_state_display()}", style="magenta")
    return text


def verdict_table(found: list[View]) -> Table:
    """The table of verdicts at the end."""
    table = Table(title="Verdicts", title_justify="left", expand=False)
    for column in ("#", "pull request", "author", "verdict", "speed-up", "queue", "why"):
        table.add_column(column, overflow="fold")
    for view in found:
        verdict = view.verdicts[0] if view.verdicts else None
        speed = ""
        if verdict is not None and verdict.speedup is not None:
            speed = f"{verdict.speedup:+.1%} [{verdict.speedup_low:+.1%}, {verdict.speedup_high:+.1%}]"
        queue = view.entry.get_state_display() if view.entry else "–"
        status = Text(view.status.replace("_", " "), style=COLOURS.get(view.status, "yellow"))
        if not view.as_expected:
            status.append(" (not as expected)", style="bold red")
        table.add_row(
            str(view.sample.number), view.sample.title, view.sample.author_name, status, speed, queue, view.why
        )
    return table


def report(found: list[View], seconds: float, first_verdict: float | None) -> dict[str, Any]:
    """What `--json` writes: verdicts, stage times in seconds, reasons."""
    return {
        "seconds": round(seconds, 1),
        "first_verdict_seconds": None if first_verdict is None else round(first_verdict, 1),
        "as_expected": all(view.as_expected for view in found),
        "pulls": [
            {
                "number": view.sample.number,
                "title": view.sample.title,
                "author": view.sample.author_name,
                "expected": view.sample.expected,
                "as_expected": view.as_expected,
                "verdict": view.status,
                "speed": view.speed,
                "speedup": [v.speedup, v.speedup_low, v.speedup_high]
                if (v := next(iter(view.verdicts), None))
                else None,
                "queued": view.queued,
                "merged": view.merged,
                "why": view.why,
                "reasons": (view.verdicts[0].reasons if view.verdicts else None)
                or (view.submission.reasons if view.submission else []),
                "stages": _stage_seconds(view.attempt),
            }
            for view in found
        ],
    }


def _stage_seconds(attempt: Attempt | None) -> dict[str, float]:
    from workers.protocol import ProtocolError, decode_outcome

    if attempt is None or not attempt.outcome:
        return {}
    try:
        return {stage.stage: stage.seconds for stage in decode_outcome(attempt.outcome).stages}
    except ProtocolError:
        return {}
