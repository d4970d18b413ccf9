"""The history of main."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from swapbench.standings import history
from swapbench.web import filters, wording


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    kind = filters.choice(request.GET, "kind", list(wording.KINDS))
    machine = filters.text(request.GET, "machine")
    merges = history.merges()
    context = {
        "section": "history",
        "merges": list(reversed(merges)),
        "cases": history.cases(merges, kind, machine),
        "machines": sorted({verdict.machine_class for merge in merges for verdict in merge.verdicts}),
        "kind": kind,
        "machine": machine,
        "kinds": wording.KINDS,
    }
    return render(request, "pages/history.html", context)
