"""What the API answers with. Speed-ups are fractions: 0.123 means 12.3 % faster; times are seconds."""

from datetime import datetime
from typing import Any

from ninja import Field, Schema


class Interval(Schema):
    """An estimate with its interval."""

    estimate: float
    low: float
    high: float
    level: float = 0.95


class SlotFile(Schema):
    """A slot file that the submission adds or changes."""

    path: str
    kind: str = ""
    name: str = ""
    quality_class: str = ""


class VerdictBrief(Schema):
    """The verdict on one implementation."""

    path: str
    kind: str
    name: str
    quality_class: str
    machine_class: str
    suite_version: str
    status: str
    speed: str
    speedup: Interval | None = Field(None, description="Of head over what it was measured against.")
    against: str
    qualifies: bool
    summary: str


class Submission(Schema):
    """One head SHA of a pull request."""

    id: int
    pull_request: int
    title: str
    author: str
    head_sha: str
    base_sha: str
    state: str
    created_at: datetime
    judged_at: datetime | None
    files: list[SlotFile]
    verdicts: list[VerdictBrief]
    page: str


class Submissions(Schema):
    """A page of submissions, latest first."""

    items: list[Submission]
    page: int
    pages: int
    count: int


class Verdict(VerdictBrief):
    """A verdict with its evidence."""

    isolation: str
    reasons: list[dict[str, Any]]
    next_steps: list[str]
    cases: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    quality: dict[str, float]
    meets: list[str]
    figures: dict[str, float]


class Attempt(Schema):
    """One try to judge the submission."""

    id: int
    state: str
    machine_class: str
    suite_version: str
    worker: str
    status: str
    stage: str
    done: int
    total: int
    unit: str
    sentence: str
    failure: str
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class SubmissionInFull(Submission):
    """A submission with evidence and attempts."""

    verdicts: list[Verdict]  # type: ignore[assignment]
    attempts: list[Attempt]
    reasons: list[dict[str, Any]]


class Track(Schema):
    """A track that somebody has a place on."""

    kind: str
    quality_class: str
    machine_class: str
    entries: int
    best: Interval | None
    page: str


class Entry(Schema):
    """A place on a track."""

    rank: str = Field(description="1, 2=, 2=, 4: entries that cannot be told apart share a rank.")
    name: str
    author: str
    submission: int
    speedup: Interval = Field(description="Over the track's baseline, geometric mean over its cases.")
    quality: dict[str, float]
    memory_ratio: float | None
    on_front: bool
    merged: bool
    judged_at: datetime


class Leaderboard(Schema):
    kind: str
    quality_class: str
    machine_class: str
    entries: list[Entry]


class QueueEntry(Schema):
    position: int
    submission: int
    pull_request: int
    title: str
    author: str
    head_sha: str
    state: str
    sentence: str
    entered_at: datetime


class Queue(Schema):
    """The merge queue of a branch."""

    branch: str
    tip_sha: str
    held: bool
    hold_reason: str
    entries: list[QueueEntry]


class Worker(Schema):
    name: str
    machine_class: str
    state: str
    alive: bool
    isolation: str
    description: str
    seen_at: datetime


class Problem(Schema):
    """Why a request was refused."""

    error: str
