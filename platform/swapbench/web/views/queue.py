"""The merge queue: who is in it, what is being built, what happened."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from swapbench.web import queries
from swapbench.web.fresh import live


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    return render(request, "pages/queue.html", {"section": "queue", **queries.queue_page()})


@live(queries.queue_version)
def part(request: HttpRequest) -> HttpResponse:
    return render(request, "parts/queue.html", queries.queue_page())
