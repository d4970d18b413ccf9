"""Addresses of the API, below /api/."""

from django.urls import path
from django.views.generic import RedirectView

from swapbench.api import docs
from swapbench.api.endpoints import api

urlpatterns = [
    path("", RedirectView.as_view(url="/api/docs")),
    path("docs", docs.page, name="api-docs"),
    path("", api.urls),
]
