"""Pages are tested on an empty platform and on a full day of samples; browser tests drive a real Chromium."""

from collections.abc import Iterator

import pytest
from django.test import Client
from django.utils import translation

from swapbench.submissions.models import Submission
from tests.web import sample


@pytest.fixture
def full(db: None) -> dict[int, Submission]:
    """A platform in the middle of its day; submissions by the number of their pull request."""
    return sample.fill()


@pytest.fixture
def site(client: Client) -> Client:
    """A client that asks in English, whatever the machine's language."""
    client.defaults["HTTP_ACCEPT_LANGUAGE"] = "en"
    return client


@pytest.fixture(autouse=True)
def _english() -> Iterator[None]:
    """A request leaves its language behind in the thread; each test begins in English."""
    with translation.override("en"):
        yield
