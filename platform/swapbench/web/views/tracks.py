"""Tracks: one leaderboard per slot kind, quality class and machine class."""

from csp.decorators import csp_update
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from swapbench.web import tracks, wording
from swapbench.web.figures.pareto import pareto_figure
from swapbench.web.views.site import PLOTLY


@require_safe
def index(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/tracks.html", {"section": "tracks", "groups": tracks.groups()})


def found_board(kind: str, quality_class: str, machine_class: str) -> tracks.Board:
    """The leaderboard, or 404 with a sentence where no such track can be."""
    if kind not in wording.KINDS:
        raise Http404(_("There is no slot kind “%(kind)s”.") % {"kind": kind})
    if quality_class not in wording.CLASSES:
        raise Http404(
            _("There is no quality class “%(name)s”. The classes are E, Q8, Q4 and S.") % {"name": quality_class}
        )
    return tracks.board(kind, quality_class, machine_class)


@require_safe
@csp_update({"style-src-attr": ["'unsafe-inline'"]})
def page(request: HttpRequest, kind: str, quality_class: str, machine_class: str) -> HttpResponse:
    """The leaderboard. Plotly writes style attributes on what it draws, so they (not style sheets) are allowed here."""
    board = found_board(kind, quality_class, machine_class)
    return render(request, "pages/track.html", {"section": "tracks", "board": board, "plotly": PLOTLY})


@require_safe
def front(request: HttpRequest, kind: str, quality_class: str, machine_class: str) -> HttpResponse:
    """The Pareto figure as Plotly's JSON."""
    return JsonResponse(pareto_figure(tracks.front_points(found_board(kind, quality_class, machine_class))))
