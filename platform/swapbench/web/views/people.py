"""What one person contributed."""

from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from swapbench.web import people


@require_safe
def page(request: HttpRequest, name: str) -> HttpResponse:
    person = people.person(name)
    if person is None:
        raise Http404(_("Nobody called “%(name)s” has opened a pull request here.") % {"name": name})
    return render(request, "pages/person.html", {"section": "", "person": person})
