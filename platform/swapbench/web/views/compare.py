"""Two submissions side by side."""

from typing import Any

from django.core.exceptions import BadRequest
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from swapbench.submissions.models import Submission
from swapbench.web import comparison, evidence, filters, queries


@require_safe
def page(request: HttpRequest) -> HttpResponse:
    """`base` and `head` are numbers of submissions or the first digits of their head SHA; without both, only the form."""
    wanted = {name: filters.text(request.GET, name) for name in ("base", "head")}
    context: dict[str, Any] = {"section": "history", "wanted": wanted}
    if wanted["base"] and wanted["head"]:
        digits = {name: _digits(name, value) for name, value in wanted.items()}
        base, head = (_found(name, value) for name, value in digits.items())
        context |= _comparison(base, head)
    return render(request, "pages/compare.html", context)


def _digits(name: str, value: str) -> str:
    digits = value.lower()
    if not (digits.isascii() and digits.isalnum() and len(digits) <= 40) or set(digits) - set("0123456789abcdef"):
        raise BadRequest(
            _("“%(name)s” must be the number of a submission or at least 7 digits of a head SHA, not “%(value)s”.")
            % {"name": name, "value": value[:40]}
        )
    return digits


def _found(name: str, value: str) -> Submission:
    submission = queries.submission_named(value)
    if submission is None:
        raise BadRequest(_("“%(name)s”: there is no submission “%(value)s”.") % {"name": name, "value": value})
    return submission


def _comparison(base: Submission, head: Submission) -> dict[str, Any]:
    left, right = queries.measured_verdict(base), queries.measured_verdict(head)
    context: dict[str, Any] = {"base": base, "head": head, "left": left, "right": right}
    if left is None or right is None:
        return context | {"why_not": _("One of the two has no measured verdict, so there is nothing to compare.")}
    if left.kind != right.kind:
        return context | {
            "why_not": _("They are implementations of different slot kinds, which have no case in common.")
        }
    if left.against != right.against or left.machine_class != right.machine_class:
        return context | {
            "why_not": _(
                "They were measured against different code or on different machine classes; their speed-ups cannot be compared."
            )
        }
    rows = comparison.compared(evidence.case_table(left.cases).rows, evidence.case_table(right.cases).rows)
    one, other = queries.speedup_of(left), queries.speedup_of(right)
    return context | {
        "rows": rows,
        "ratios": [row.ratio for row in rows if row.ratio is not None],
        "overall": comparison.ratio_of(one, other) if one is not None and other is not None else None,
    }
