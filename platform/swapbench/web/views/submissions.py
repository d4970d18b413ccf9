"""The list of submissions, the live page of one, and what can be downloaded from it."""

from typing import Any

from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from swapbench.submissions.models import Submission
from swapbench.web import filters, queries, wording
from swapbench.web.fresh import live


def found(pk: int) -> Submission:
    """The submission, or 404 with a sentence."""
    submission = Submission.objects.select_related("pull_request").filter(pk=pk).first()
    if submission is None:
        raise Http404(_("There is no submission %(number)d.") % {"number": pk})
    return submission


def _context(request: HttpRequest, pk: int) -> dict[str, Any]:
    attempt = filters.number(request.GET, "attempt", 0)
    run = queries.run_page(found(pk), attempt or None)
    if run is None:
        raise BadRequest(
            _("Attempt %(attempt)d is not one of submission %(number)d.") % {"attempt": attempt, "number": pk}
        )
    return {"section": "submissions", "run": run, "chosen": attempt}


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    wanted = filters.submission_filter(request.GET, Submission.State.values)
    return render(
        request,
        "pages/submissions.html",
        {
            "section": "submissions",
            "wanted": wanted,
            "page": queries.submissions(wanted),
            "kinds": wording.KINDS,
            "classes": wording.CLASSES,
            "states": Submission.State.choices,
            "statuses": {code: word.label for code, word in wording.STATUSES.items()},
        },
    )


@require_safe
def page(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "pages/submission.html", _context(request, pk))


@live(lambda pk: queries.submission_version(found(pk)))
def part(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "parts/run.html", _context(request, pk))


def _download(text: str, name: str, content_type: str) -> HttpResponse:
    return HttpResponse(
        text, content_type=content_type, headers={"Content-Disposition": f'attachment; filename="{name}"'}
    )


@require_safe
def outcome(request: HttpRequest, pk: int) -> HttpResponse:
    """The outcome as the worker signed it."""
    run = _context(request, pk)["run"]
    text = queries.outcome_text(run.attempt)
    if not text:
        raise Http404(_("Submission %(number)d has no outcome yet.") % {"number": pk})
    return _download(text, f"submission-{pk}-outcome.json", "application/json")


@require_safe
def artifact(request: HttpRequest, pk: int, name: str) -> HttpResponse:
    """A text that the worker kept. Sent as an attachment of plain text: it may hold what contributor code printed."""
    run = _context(request, pk)["run"]
    if run.outcome is None or name not in run.outcome.artifacts:
        raise Http404(_("The attempt has no artifact of this name."))
    plain = "".join(character if character.isalnum() or character in "._-" else "_" for character in name)
    return _download(run.outcome.artifacts[name], plain, "text/plain; charset=utf-8")
