"""What is said about a submission on its forge. Pure but for reading rows: the same rows give the same text."""

from collections.abc import Sequence

from swapbench.forge.contract import ReportText
from swapbench.mergequeue.models import QueueEntry
from swapbench.submissions.models import Attempt, Submission, Verdict

MARKDOWN = str.maketrans({char: f"\\{char}" for char in "\\`*_[]<>|#@~"})
CONCLUSIONS = {
    Submission.State.REFUSED: "failure",
    Submission.State.WAITING: "action_required",
    Submission.State.SUPERSEDED: "neutral",
    Submission.State.CANCELLED: "neutral",
}


def plain(text: str) -> str:
    """Others' text as Markdown that shows it and does nothing else: one line, no links, mentions or tables."""
    return " ".join(text.split()).translate(MARKDOWN)


def report(submission: Submission, origin: str) -> ReportText:
    """The report as of now; `origin` is the site's address."""
    verdicts = list(submission.verdicts.filter(current=True).order_by("path", "machine_class"))
    entry = QueueEntry.objects.filter(submission=submission).first()
    address = f"{origin}/submissions/{submission.pk}"
    title, conclusion = _title(submission, verdicts)
    lines = [f"### {plain(title)}", ""]
    for reason in submission.reasons:
        lines += [f"- {plain(reason['sentence'])}", f"  *What to do:* {plain(reason['next_step'])}"]
    if submission.state == Submission.State.WAITING and submission.files:
        lines += ["", f"A maintainer who has read it lets it be judged by `/swapbench approve {submission.head_sha}`."]
    if submission.state == Submission.State.JUDGING:
        lines += _under_way(submission)
    if verdicts:
        lines += _table(verdicts)
        for verdict in verdicts:
            lines += _why(verdict)
    if entry is not None:
        lines += ["", f"**Merge queue:** {entry.get_state_display()}. {plain(entry.sentence)}"]
        if entry.state == QueueEntry.State.WAITING:
            lines.append(f"Maintainers approve the merge by `/swapbench approve {submission.head_sha}`.")
    lines += ["", f"[All figures, and how to reproduce them]({address})", "", f"<sub>Head {submission.head_sha}</sub>"]
    return ReportText(submission.head_sha, title[:300], conclusion, "\n".join(lines), address)  # type: ignore[arg-type]


def _title(submission: Submission, verdicts: Sequence[Verdict]) -> tuple[str, str]:
    if submission.state == Submission.State.JUDGING:
        return "Being judged", ""
    if submission.state != Submission.State.JUDGED or not verdicts:
        return submission.get_state_display().capitalize(), CONCLUSIONS.get(submission.state, "neutral")
    if all(verdict.status == Verdict.Status.PASSED for verdict in verdicts):
        said = ", ".join(dict.fromkeys(f"{row.name}: {_speed(row)}" for row in verdicts))
        return f"Passed. {said}", "success"
    bad = next(verdict for verdict in verdicts if verdict.status != Verdict.Status.PASSED)
    ours = bad.status in (Verdict.Status.TIMED_OUT_INFRASTRUCTURE, Verdict.Status.INVALID_ENVIRONMENT)
    undecided = ours or bad.status == Verdict.Status.INCONCLUSIVE
    return f"{bad.name}: {bad.get_status_display()}", "neutral" if undecided else "failure"


def _speed(verdict: Verdict) -> str:
    if verdict.speedup is None or verdict.speedup_low is None or verdict.speedup_high is None:
        return str(verdict.get_speed_display())
    low, high = verdict.speedup_low, verdict.speedup_high
    return f"{verdict.get_speed_display()}, {verdict.speedup:+.1%} [{low:+.1%}, {high:+.1%}]"


def _under_way(submission: Submission) -> list[str]:
    lines = []
    for attempt in submission.attempts.filter(state__in=Attempt.LIVE):
        where = f"stage {attempt.stage}" if attempt.stage else attempt.get_state_display()
        lines.append(f"- {attempt.machine_class}: {plain(where)}")
    return lines


def _table(verdicts: Sequence[Verdict]) -> list[str]:
    lines = ["", "| implementation | class | machine | verdict | speed |", "| --- | --- | --- | --- | --- |"]
    for row in verdicts:
        cells = (row.name, row.quality_class, row.machine_class, str(row.get_status_display()), _speed(row))
        lines.append("| " + " | ".join(plain(cell) for cell in cells) + " |")
    return lines


def _why(verdict: Verdict) -> list[str]:
    lines = [f"- {plain(reason['sentence'])}" for reason in verdict.reasons[:5]]
    if len(verdict.reasons) > 5:
        lines.append(f"- and {len(verdict.reasons) - 5} more")
    lines += [f"- *What to do:* {plain(step)}" for step in verdict.next_steps]
    return ["", f"**{plain(verdict.name)}**", "", *lines] if lines else []
