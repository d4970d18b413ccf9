"""Commands in comments on a pull request: `/swapbench retry`, `cancel`, `approve`."""

import re

from swapbench.forge.contract import Forge
from swapbench.submissions import audit
from swapbench.submissions.approve import approve_judging, approve_merging
from swapbench.submissions.models import Submission
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.retry import retry
from swapbench.submissions.supersede import cancel

COMMAND = re.compile(r"^/swapbench[ \t]+([a-z]+)(?:[ \t]+([0-9a-f]{7,40}))?[ \t]*$", re.MULTILINE)
KNOWN = ("retry", "cancel", "approve")


def obey(forge: Forge, number: int, login: str, text: str) -> str:
    """Does what the first command in `text` asks for, as far as `login` may; returns what came of it, "" without command.

    `approve` may name the SHA that was read; without it, it is for the head as it is when the command is read.
    """
    match = COMMAND.search(text.replace("\r\n", "\n"))
    if match is None:
        return ""
    command, sha = match[1], match[2] or ""
    if command not in KNOWN:
        return f"There is no command {command!r}; there are {', '.join(KNOWN)}."
    submission = (
        Submission.objects.filter(pull_request__forge=forge.name, pull_request__number=number)
        .select_related("pull_request")
        .first()
    )
    if submission is None:
        return f"Pull request {number} has not been taken in yet."
    maintains = forge.may_maintain(login)
    if not maintains and (command == "approve" or login != submission.author):
        audit.note(login, "refused", f"{login} may not {command} pull request {number}.", submission)
        return f"{login} may not {command} pull request {number}."
    try:
        _do(command, submission, login, sha, maintains)
    except NotPossible as error:
        return str(error)
    return f"{login}: {command} of {submission.head_sha[:12]}."


def _do(command: str, submission: Submission, login: str, sha: str, maintains: bool) -> None:
    if command == "retry":
        retry(submission, login, maintains)
    elif command == "cancel":
        if not cancel(submission, login, f"{login} cancelled it."):
            raise NotPossible(f"It has ended already: it is {submission.get_state_display()}.")
    else:
        if sha and not submission.head_sha.startswith(sha):
            raise NotPossible(f"The head is {submission.head_sha[:12]}, not {sha}; look at that, and approve it.")
        if submission.state == Submission.State.WAITING:
            approve_judging(submission, login, submission.head_sha)
        else:
            approve_merging(submission, login, submission.head_sha)
