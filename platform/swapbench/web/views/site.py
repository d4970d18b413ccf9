"""What belongs to the whole site: how judging works, health, plotly.js, and the pages of errors."""

import gzip
from functools import lru_cache
from importlib.metadata import version
from importlib.resources import files

from django.db import connection
from django.db.utils import Error
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.cache import cache_control
from django.views.decorators.http import require_safe

from swapbench.standings import error_rates as errors
from swapbench.web import wording

PLOTLY = f"plotly-{version('plotly')}.min.js"
"""The version is in the address, so that a browser may keep the file for ever."""


@require_safe
def about(request: HttpRequest) -> HttpResponse:
    return render(
        request,
        "pages/about.html",
        {"section": "about", "statuses": wording.STATUSES, "classes": wording.CLASSES, "metrics": wording.METRICS},
    )


@require_safe
def error_rates(request: HttpRequest) -> HttpResponse:
    """How often the judge is wrong, by machine class."""
    return render(request, "pages/error_rates.html", {"section": "about", "machines": errors.error_rates()})


@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """200 where the process answers and reaches its database, else 503."""
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except Error as error:
        return JsonResponse({"status": "no database", "detail": type(error).__name__}, status=503)
    return JsonResponse({"status": "ok"})


@lru_cache(maxsize=1)
def _plotly() -> bytes:
    return gzip.compress((files("plotly") / "package_data" / "plotly.min.js").read_bytes(), compresslevel=6)


@require_safe
@cache_control(public=True, max_age=365 * 24 * 3600, immutable=True)
def plotly(request: HttpRequest, name: str) -> HttpResponse:
    """plotly.js out of the installed Python package, so that the two always agree."""
    if name != PLOTLY:
        raise Http404(_("There is no such script."))
    return HttpResponse(_plotly(), content_type="text/javascript", headers={"Content-Encoding": "gzip"})


def _error(request: HttpRequest, status: int, title: str, sentence: str, advice: str) -> HttpResponse:
    context = {"status": status, "heading": title, "sentence": sentence, "advice": advice}
    return render(request, "error.html", context, status=status)


def _sentence(exception: Exception | None) -> str:
    """What our own code said; what Django's resolver says is for developers."""
    first = exception.args[0] if exception is not None and exception.args else ""
    return first if isinstance(first, str) else ""


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    sentence = _sentence(exception) or _("The server does not understand this request.")
    return _error(
        request,
        400,
        _("This request cannot be answered"),
        sentence,
        _("Correct the address or the form and send it again."),
    )


def forbidden(request: HttpRequest, exception: Exception) -> HttpResponse:
    sentence = _sentence(exception) or _("This is for maintainers.")
    return _error(request, 403, _("Not allowed"), sentence, _("Sign in with an account that may do this."))


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    sentence = _sentence(exception) or _("There is no page at this address.")
    return _error(request, 404, _("Not found"), sentence, _("Look for it among the submissions or the tracks."))


def forgery(request: HttpRequest, reason: str = "") -> HttpResponse:
    """The form's token is missing or old."""
    return _error(
        request,
        403,
        _("The form has expired"),
        _("The form came without a valid token, so nothing was changed."),
        _("Go back, load the page again and send the form once more. Cookies must be allowed for this site."),
    )


def broken(request: HttpRequest) -> HttpResponse:
    """Must not need the database or a template context: it is shown when those fail."""
    return render(request, "500.html", status=500)
