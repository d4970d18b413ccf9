"""Addresses of the pages."""

from django.contrib.auth.views import LoginView, LogoutView
from django.urls import path, register_converter
from django.views.i18n import set_language

from swapbench.web.views import compare, history, maintain, now, people, queue, site, submissions, tracks


class Number:
    """A row's number that every database can hold."""

    regex = "[0-9]{1,9}"

    def to_python(self, value: str) -> int:
        return int(value)

    def to_url(self, value: int) -> str:
        return str(value)


class Name:
    """A name of a person or a file: no slash, no control characters."""

    regex = r"[^/\x00-\x1f\x7f]{1,120}"

    def to_python(self, value: str) -> str:
        return value

    def to_url(self, value: str) -> str:
        return value


register_converter(Number, "number")
register_converter(Name, "name")

urlpatterns = [
    path("", now.page, name="now"),
    path("now/live", now.part, name="now-live"),
    path("submissions/", submissions.index, name="submissions"),
    path("submissions/<number:pk>", submissions.page, name="submission"),
    path("submissions/<number:pk>/live", submissions.part, name="submission-live"),
    path("submissions/<number:pk>/outcome.json", submissions.outcome, name="submission-outcome"),
    path("submissions/<number:pk>/artifacts/<name:name>", submissions.artifact, name="submission-artifact"),
    path("tracks/", tracks.index, name="tracks"),
    path("tracks/<name:kind>/<name:quality_class>/<name:machine_class>/", tracks.page, name="track"),
    path("tracks/<name:kind>/<name:quality_class>/<name:machine_class>/front.json", tracks.front, name="track-front"),
    path("queue", queue.page, name="queue"),
    path("queue/live", queue.part, name="queue-live"),
    path("people/<name:name>", people.page, name="person"),
    path("history", history.page, name="history"),
    path("compare", compare.page, name="compare"),
    path("maintain", maintain.page, name="maintain"),
    path("maintain/act", maintain.act, name="maintain-act"),
    path("about/", site.about, name="about"),
    path("error-rates", site.error_rates, name="error-rates"),
    path("healthz", site.healthz, name="healthz"),
    path("assets/<name:name>", site.plotly, name="plotly"),
    path("language", set_language, name="language"),
    path("login", LoginView.as_view(template_name="pages/login.html"), name="login"),
    path("logout", LogoutView.as_view(next_page="/"), name="logout"),
]
