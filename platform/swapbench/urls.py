"""Addresses: the forge's webhook, and the rooms of pages and API where they are there."""

from importlib.util import find_spec

from django.urls import include, path

from swapbench.intake.webhook import github_webhook

urlpatterns = [path("hooks/github", github_webhook, name="github-webhook")]

for prefix, room in (("api/", "swapbench.api.urls"), ("", "swapbench.web.urls")):
    try:
        present = find_spec(room) is not None
    except ModuleNotFoundError:
        present = False
    if present:
        urlpatterns.append(path(prefix, include(room)))

handler400 = "swapbench.web.views.site.bad_request"
handler403 = "swapbench.web.views.site.forbidden"
handler404 = "swapbench.web.views.site.not_found"
handler500 = "swapbench.web.views.site.broken"
