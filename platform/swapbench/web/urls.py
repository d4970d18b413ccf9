"""Addresses of the pages."""

from django.urls import path, register_converter

from swapbench.web import views


class Number:
    """A row's number that every database can hold."""

    regex = "[0-9]{1,9}"

    def to_python(self, value: str) -> int:
        return int(value)

    def to_url(self, value: int) -> str:
        return str(value)


register_converter(Number, "number")

urlpatterns = [
    path("", views.now, name="now"),
    path("now/live", views.now_live, name="now-live"),
    path("submissions/", views.submissions, name="submissions"),
    path("submissions/<number:pk>", views.submission, name="submission"),
    path("submissions/<number:pk>/live", views.submission_live, name="submission-live"),
    path("queue", views.queue, name="queue"),
    path("queue/live", views.queue_live, name="queue-live"),
]
