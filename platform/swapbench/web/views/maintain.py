"""What maintainers do: approvals, retries, holds. Each form names one action, whose refusal is said as its sentence."""

from collections.abc import Callable

from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.core.exceptions import BadRequest, PermissionDenied
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from swapbench.mergequeue.hold import hold, put_back, release, take_out
from swapbench.mergequeue.models import BranchState, QueueEntry
from swapbench.submissions.approve import approve_judging, approve_merging
from swapbench.submissions.models import Submission
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.retry import retry
from swapbench.submissions.supersede import cancel
from swapbench.web import filters, queries
from swapbench.web.views.submissions import found

LONGEST_REASON = 500


def _maintainer(request: HttpRequest) -> str:
    """The name of the maintainer who asks; PermissionDenied for anybody else."""
    if not request.user.is_authenticated or not request.user.is_staff:
        raise PermissionDenied(_("This is for maintainers; your account is not one."))
    return request.user.get_username()


@require_safe
@login_required
def page(request: HttpRequest) -> HttpResponse:
    _maintainer(request)
    chosen = filters.number(request.GET, "submission", 0)
    number = filters.number(request.GET, "page", 1)
    context = {"section": "maintain", "chosen": found(chosen) if chosen else None, **queries.maintain_page(number)}
    return render(request, "pages/maintain.html", context)


def _text(request: HttpRequest, name: str, most: int) -> str:
    value = request.POST.get(name, "").strip()
    if not value:
        raise BadRequest(_("“%(name)s” is empty; it has to be filled in.") % {"name": name})
    if len(value) > most or any(ord(character) < 32 for character in value):
        raise BadRequest(
            _("“%(name)s” must be one line of at most %(most)d characters.") % {"name": name, "most": most}
        )
    return value


def _approve_judging(request: HttpRequest, by: str) -> str:
    submission = found(filters.number(request.POST, "submission", 0))
    approve_judging(submission, by, _text(request, "head_sha", 40))
    return _("Submission %(number)d will be judged.") % {"number": submission.pk}


def _approve_merging(request: HttpRequest, by: str) -> str:
    submission = found(filters.number(request.POST, "submission", 0))
    approve_merging(submission, by, _text(request, "head_sha", 40))
    return _("Submission %(number)d may be merged.") % {"number": submission.pk}


def _retry(request: HttpRequest, by: str) -> str:
    submission = found(filters.number(request.POST, "submission", 0))
    retry(submission, by, may_maintain=True)
    if submission.state == Submission.State.WAITING:
        return _("Submission %(number)d waits for approval again.") % {"number": submission.pk}
    return _("Submission %(number)d is judged once more.") % {"number": submission.pk}


def _cancel(request: HttpRequest, by: str) -> str:
    submission = found(filters.number(request.POST, "submission", 0))
    if not cancel(submission, by, _text(request, "reason", LONGEST_REASON)):
        raise NotPossible(_("It has ended already, so there is nothing to cancel."))
    return _("Submission %(number)d was cancelled.") % {"number": submission.pk}


def _branch() -> BranchState:
    branch = queries.branch()
    if branch is None:
        raise NotPossible(_("The queue has not looked at its branch yet."))
    return branch


def _hold(request: HttpRequest, by: str) -> str:
    hold(_branch(), by, _text(request, "reason", LONGEST_REASON))
    return _("The queue is held; nothing is merged until the hold is lifted.")


def _release(request: HttpRequest, by: str) -> str:
    release(_branch(), by)
    return _("The queue goes on.")


def _entry(request: HttpRequest) -> QueueEntry:
    submission = found(filters.number(request.POST, "submission", 0))
    entry = (
        QueueEntry.objects.filter(submission=submission).select_related("branch", "submission__pull_request").first()
    )
    if entry is None:
        raise NotPossible(_("Submission %(number)d is not in the queue.") % {"number": submission.pk})
    return entry


def _put_back(request: HttpRequest, by: str) -> str:
    put_back(_entry(request), by)
    return _("It waits in the queue again.")


def _take_out(request: HttpRequest, by: str) -> str:
    take_out(_entry(request), by, _text(request, "reason", LONGEST_REASON))
    return _("It was taken out of the queue.")


ACTIONS: dict[str, Callable[[HttpRequest, str], str]] = {
    "approve-judging": _approve_judging,
    "approve-merging": _approve_merging,
    "retry": _retry,
    "cancel": _cancel,
    "hold": _hold,
    "release": _release,
    "put-back": _put_back,
    "take-out": _take_out,
}


@require_POST
@login_required
def act(request: HttpRequest) -> HttpResponse:
    """Does what the form asks for and goes back to the page, with what came of it as a message."""
    by = _maintainer(request)
    action = ACTIONS.get(request.POST.get("action", ""))
    if action is None:
        raise BadRequest(_("The form names no action that is known here."))
    try:
        messages.success(request, action(request, by))
    except NotPossible as refusal:
        messages.error(request, str(refusal))
    return redirect("maintain")
