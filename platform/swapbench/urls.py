"""Addresses: the forge's webhook, the API and the pages."""

from django.urls import include, path

from swapbench.intake.webhook import github_webhook

urlpatterns = [
    path("hooks/github", github_webhook, name="github-webhook"),
    path("api/", include("swapbench.api.urls")),
    path("", include("swapbench.web.urls")),
]

handler400 = "swapbench.web.views.site.bad_request"
handler403 = "swapbench.web.views.site.forbidden"
handler404 = "swapbench.web.views.site.not_found"
handler500 = "swapbench.web.views.site.broken"
