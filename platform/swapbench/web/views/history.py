"""The history of main."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from swapbench.web import filters, wording
from swapbench.web.history import history


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    kind = filters.choice(request.GET, "kind", list(wording.KINDS))
    machine = filters.text(request.GET, "machine")
    context = {
        "section": "history",
        "history": history(kind, machine),
        "kind": kind,
        "machine": machine,
        "kinds": wording.KINDS,
    }
    return render(request, "pages/history.html", context)
