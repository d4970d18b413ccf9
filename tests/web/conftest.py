"""Pages are tested on an empty platform and on a full day of samples; browser tests drive a real Chromium."""

from collections.abc import Iterator
from datetime import datetime
from itertools import chain
from typing import Any

import pytest
from django.core import serializers
from django.core.management.color import no_style
from django.db import connection, models
from django.test import Client
from django.utils import timezone, translation

from swapbench.mergequeue.models import BranchState, Build, QueueEntry, QueueEvent
from swapbench.submissions.models import Attempt, AuditEvent, PullRequest, Result, Submission, Verdict, Worker
from tests.web import sample

# In the order in which they refer to each other. Of results, pages read only those of identical code.
SHOWN = (PullRequest, Submission, BranchState, QueueEntry, Build, Attempt, Verdict, QueueEvent, AuditEvent, Worker)


class Day:
    """The rows of a filled platform. Making them takes a second, so later tests get copies, moved to their own now."""

    def __init__(self) -> None:
        sample.fill()
        self.at = timezone.now()
        self.rows: list[dict[str, Any]] = serializers.serialize(
            "python", chain(*(m.objects.all() for m in SHOWN), Result.objects.filter(phase="same"))
        )

    def restore(self) -> None:
        passed = timezone.now() - self.at
        for item in serializers.deserialize("python", self.rows):
            for field in item.object._meta.concrete_fields:
                moment = getattr(item.object, field.attname)
                if isinstance(field, models.DateTimeField) and isinstance(moment, datetime):
                    setattr(item.object, field.attname, moment + passed)
            item.save(force_insert=True)
        with connection.cursor() as cursor:
            for statement in connection.ops.sequence_reset_sql(no_style(), (*SHOWN, Result)):
                cursor.execute(statement)


_days: list[Day] = []


@pytest.fixture
def full(db: None) -> dict[int, Submission]:
    """A platform in the middle of its day; submissions by the number of their pull request."""
    if _days:
        _days[0].restore()
    else:
        _days.append(Day())
    return {one.pull_request.number: one for one in Submission.objects.select_related("pull_request").order_by("pk")}


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
