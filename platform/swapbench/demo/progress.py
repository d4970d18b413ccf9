"""The demo on the terminal: a bar per pull request while it runs, and a table of verdicts at the end."""

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from swapbench.demo.state import STAGES, Pull, live_build
from swapbench.submissions.models import Attempt, Submission
from swapbench.submissions.text import clean

STYLES = {"passed": "green", "waiting": "yellow", "inconclusive": "yellow", "judging": "cyan"}
SPAN = 1000


def plain(text: str) -> str:
    """Others' text on one line, without anything that a terminal would obey."""
    return "".join(char if char.isprintable() else " " for char in clean(text))


class Bars:
    """A bar per pull request, and one per merge result that is tested."""

    def __init__(self, console: Console) -> None:
        self.progress = Progress(
            TextColumn("{task.description}", markup=False, table_column=None),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[said]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            refresh_per_second=2,
            # Where there is no terminal, lines would pile up; `say` prints what changed instead.
            disable=not console.is_terminal,
        )
        self._console = console
        self._bars: dict[str, TaskID] = {}
        self._said: dict[str, str] = {}

    def show(self, pulls: list[Pull]) -> None:
        """Brings the bars up to date."""
        for pull in pulls:
            title = plain(pull.sample.title)[:44]
            self._bar(f"#{pull.sample.number} {title}", *_how_far(pull), ended=pull.ended)
        build = live_build()
        if build is not None:
            attempt = build.attempts.order_by("-id").defer("outcome").first()
            done, said = _attempt(attempt) if attempt else (0, "")
            names = ", ".join(f"#{entry.submission.pull_request.number}" for entry in build.entries.all())
            self._bar(f"merge of {names}", done, said, ended=False)
            self._now = f"merge of {names}"
        for key in [key for key in self._bars if key.startswith("merge of")]:
            if build is None or key != self._now:
                self._bar(key, SPAN, "tested", ended=True)

    _now = ""

    def _bar(self, key: str, done: int, said: str, ended: bool) -> None:
        if key not in self._bars:
            self._bars[key] = self.progress.add_task(key, total=SPAN, said="")
        task = self._bars[key]
        self.progress.update(task, completed=SPAN if ended else min(done, SPAN - 1), said=said)
        if ended:
            self.progress.stop_task(task)
        stage = said.split(" ·")[0]
        if not self._console.is_terminal and self._said.get(key) != stage:
            self._said[key] = stage
            self._console.print(f"{key}: {stage}", markup=False, highlight=False)


def _how_far(pull: Pull) -> tuple[int, str]:
    """Thousandths done, and where it is."""
    submission = pull.submission
    if submission is None:
        return 0, "waits to be taken in"
    if submission.state == Submission.State.JUDGING:
        return _attempt(pull.attempt) if pull.attempt else (0, "waits for a worker")
    if pull.entry is not None:
        return SPAN, f"{pull.shown_status}, {pull.entry.get_state_display()}"
    return SPAN, pull.shown_status


def _attempt(attempt: Attempt) -> tuple[int, str]:
    if attempt.state != Attempt.State.RUNNING:
        again = f" (try {attempt.n})" if attempt.n > 1 else ""
        return 0, f"{attempt.get_state_display()}{again}"
    stage = attempt.stage or "checkout"
    position = STAGES.index(stage) if stage in STAGES else 0
    share = min(1.0, attempt.done / attempt.total) if attempt.total else 0.0
    counted = (
        f" {attempt.done}/{attempt.total} {plain(attempt.unit)}"
        if attempt.total
        else f" {plain(attempt.sentence)[:60]}"
    )
    return int(SPAN * (position + share) / len(STAGES)), f"{stage} ·{counted}"


def table(pulls: list[Pull]) -> Table:
    """The verdicts."""
    shown = Table(title="Verdicts", title_justify="left", show_lines=True)
    for column in ("#", "pull request", "verdict", "speed-up", "queue", "why", "seconds"):
        shown.add_column(column, overflow="fold")
    for pull in pulls:
        first = pull.verdicts[0] if pull.verdicts else None
        speed = ""
        if first is not None and first.speedup is not None:
            speed = f"{first.get_speed_display()}\n{first.speedup:+.1%}"
            if first.speedup_low is not None and first.speedup_high is not None:
                speed += f"\n[{first.speedup_low:+.1%}, {first.speedup_high:+.1%}]"
        status = Text(pull.shown_status, style=STYLES.get(pull.status, "red"))
        why = Text(plain(pull.sentences[0])[:240] if pull.sentences else "")
        if wrong := pull.unexpected():
            why.append(f"\nOtherwise than expected: {'; '.join(wrong)}", style="bold red")
        shown.add_row(
            str(pull.sample.number),
            Text(f"{plain(pull.sample.title)}\n{plain(pull.sample.author_name)}"),
            status,
            Text(speed),
            Text(str(pull.entry.get_state_display()) if pull.entry else ""),
            why,
            f"{pull.seconds:.0f}" if pull.seconds is not None else "",
        )
    return shown
