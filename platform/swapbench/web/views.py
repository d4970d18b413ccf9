"""The pages. A view parses the request and answers it; what is shown comes from `queries`, what is done from actions."""

import hashlib
from typing import Any

from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.utils.translation import get_language
from django.utils.translation import gettext as _
from django.views.decorators.cache import cache_control
from django.views.decorators.http import condition, require_safe

from swapbench.submissions.models import Submission
from swapbench.web import filters, queries, wording


def _tag(version: str) -> str:
    """An ETag of what is shown, in the language in which it is shown."""
    return f'"{hashlib.sha256(f"{get_language()} {version}".encode()).hexdigest()[:32]}"'


def _submission(pk: int) -> Submission:
    try:
        return Submission.objects.select_related("pull_request").get(pk=pk)
    except Submission.DoesNotExist:
        raise Http404(_("There is no submission %(number)d.") % {"number": pk}) from None


@require_safe
def now(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/now.html", {"section": "now", **queries.now()})


@require_safe
@cache_control(no_cache=True)
@condition(etag_func=lambda request: _tag(queries.now_version()))
def now_live(request: HttpRequest) -> HttpResponse:
    return render(request, "parts/now.html", queries.now())


@require_safe
def submissions(request: HttpRequest) -> HttpResponse:
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


def _run_context(request: HttpRequest, pk: int) -> dict[str, Any]:
    attempt = filters.number(request.GET, "attempt", 0)
    page = queries.run_page(_submission(pk), attempt or None)
    if page is None:
        raise BadRequest(_("Attempt %(attempt)d is not one of submission %(number)d.") % {"attempt": attempt, "number": pk})
    return {"section": "submissions", "run": page, "chosen": attempt}


@require_safe
def submission(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "pages/submission.html", _run_context(request, pk))


@require_safe
@cache_control(no_cache=True)
@condition(etag_func=lambda request, pk: _tag(queries.submission_version(_submission(pk))))
def submission_live(request: HttpRequest, pk: int) -> HttpResponse:
    return render(request, "parts/run.html", _run_context(request, pk))


@require_safe
def queue(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/queue.html", {"section": "queue", **queries.queue_page()})


@require_safe
@cache_control(no_cache=True)
@condition(etag_func=lambda request: _tag(queries.queue_version()))
def queue_live(request: HttpRequest) -> HttpResponse:
    return render(request, "parts/queue.html", queries.queue_page())
