"""What is happening now."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from swapbench.web import queries
from swapbench.web.fresh import live


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/now.html", {"section": "now", **queries.now()})


@live(queries.now_version)
def part(request: HttpRequest) -> HttpResponse:
    return render(request, "parts/now.html", queries.now())
