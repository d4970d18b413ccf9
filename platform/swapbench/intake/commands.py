"""Commands in comments on a pull request: `/swapbench retry`, `/swapbench cancel`, `/swapbench approve SHA`."""

import re
from dataclasses import dataclass

from swapbench.submissions import audit
from swapbench.submissions.approve import approve_judging, approve_merging
from swapbench.submissions.models import Submission
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.retry import retry
from swapbench.submissions.supersede import cancel

COMMAND = re.compile(r"^/swapbench[ \t]+([a-z]+)(?:[ \t]+([0-9a-f]{7,40}))?[ \t]*$", re.MULTILINE)
KNOWN = ("retry", "cancel", "approve")


@dataclass(frozen=True)
class Command:
    """What a comment asks for; `sha` is the commit that it names, or ""."""

    verb: str
    sha: str


def read(text: str) -> Command | None:
    """The first command in a comment; None where it holds none."""
    match = COMMAND.search(text.replace("\r\n", "\n"))
    return Command(match[1], match[2] or "") if match else None


def obey(forge: str, number: int, login: str, maintains: bool, command: Command) -> str:
    """Does what a command on a pull request of the forge asks for, as far as `login` may; returns what came of it.

    Called inside a transaction: it asks nobody but the database.
    """
    if command.verb not in KNOWN:
        return f"There is no command {command.verb!r}; there are {', '.join(KNOWN)}."
    submission = (
        Submission.objects.filter(pull_request__forge=forge, pull_request__number=number)
        .select_related("pull_request")
        .first()
    )
    if submission is None:
        return f"Pull request {number} has not been taken in yet."
    if not maintains and (command.verb == "approve" or login != submission.author):
        audit.note(login, "refused", f"{login} may not {command.verb} pull request {number}.", submission)
        return f"{login} may not {command.verb} pull request {number}."
    try:
        _do(command, submission, login, maintains)
    except NotPossible as error:
        return str(error)
    return f"{login}: {command.verb} of {submission.head_sha[:12]}."


def _do(command: Command, submission: Submission, login: str, maintains: bool) -> None:
    if command.verb == "retry":
        retry(submission, login, maintains)
    elif command.verb == "cancel":
        if not cancel(submission, login, f"{login} cancelled it."):
            raise NotPossible(f"It has ended already: it is {submission.get_state_display()}.")
    elif command.sha != submission.head_sha:
        # Of a shorter one an author can make two commits, and a push may come between reading and the comment.
        said = f"{command.sha} is not" if command.sha else "An approval must name"
        raise NotPossible(f"{said} the whole SHA of the head, {submission.head_sha}; look at that, and approve it.")
    elif submission.state == Submission.State.WAITING:
        approve_judging(submission, login, command.sha)
    else:
        approve_merging(submission, login, command.sha)
