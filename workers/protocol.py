"""The messages between the control plane and the workers: Job out, Progress and Outcome back.

Torch-free and Django-free; both sides import it. Messages are JSON of versioned msgspec Structs with a fixed schema. An
outcome is signed with its attempt's token, so that only the worker that was given the attempt can report on it.
"""

import hashlib
import hmac
import math
import pathlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import msgspec

T = TypeVar("T", bound=msgspec.Struct)

VERSION = 1

# Celery names. The control plane owns the tasks CONTROL_*; workers own JUDGE_TASK. Everything travels as JSON text.
CONTROL_QUEUE = "control"
JUDGE_TASK = "swapbench.judge"
"""(job_json)"""
STARTED_TASK = "swapbench.attempt_started"
"""(attempt, token, worker)"""
HEARTBEAT_TASK = "swapbench.attempt_heartbeat"
"""(attempt, token, worker)"""
PROGRESS_TASK = "swapbench.attempt_progress"
"""(attempt, token, progress_json)"""
FINISHED_TASK = "swapbench.attempt_finished"
"""(attempt, outcome_text, signature); outcome_text is `encode(outcome)`"""
WORKER_TASK = "swapbench.worker_seen"
"""(worker_json of WorkerSeen): that a worker is alive, idle or busy"""

MAX_OUTCOME_BYTES = 8 * 1024 * 1024
LEFT_OUT = "left-out.txt"
"""The artifact that says what an outcome was too large for."""
LEFT_OUT_BYTES = 4096
HEARTBEAT_SECONDS = 5.0
LEASE_SECONDS = 30.0


def judge_queue(machine_class: str) -> str:
    """The Celery queue that workers of a machine class consume."""
    return f"judge.{machine_class}"


Sha = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{40}$")]
Path = Annotated[str, msgspec.Meta(min_length=1, max_length=300)]
MAX_LINE = 4000
SHORT_LINE = 400
Line = Annotated[str, msgspec.Meta(max_length=MAX_LINE)]
Fraction = Annotated[float, msgspec.Meta(ge=0.0, le=1.0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]
SuiteName = Literal["unit", "integration", "performance"]
SUITES: tuple[SuiteName, ...] = ("unit", "integration", "performance")
Stage = Literal["checkout", "unit", "integration", "performance", "report"]
KindName = Literal["attention", "quantization", "normalization", "activation", "adapter"]
QualityClass = Literal["E", "Q8", "Q4", "S"]

Status = Literal[
    "passed",
    "failed",
    "timed_out_code",
    "timed_out_infrastructure",
    "invalid_environment",
    "inconclusive",
    "impossible",
    "tampered",
]
"""DESIGN section 5. The contributor's: failed, timed_out_code, impossible, tampered. Ours, retried for free:
timed_out_infrastructure, invalid_environment."""

Speed = Literal["faster", "no_difference", "slower", "inconclusive", "not_measured"]


class SlotFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A slot file that head adds or changes. `path` is relative to the repository's root."""

    path: Path
    kind: KindName
    status: Literal["added", "modified"]


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the control plane decides about judging. `alpha` is what is left for this author on this track."""

    alpha: Annotated[float, msgspec.Meta(gt=0, le=0.5)] = 0.05
    relevance: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.005
    isolation_levels: tuple[str, ...] = ("full", "rlimits", "user")
    max_pairs: Annotated[int, msgspec.Meta(ge=8, le=48)] = 24
    sentinels: Annotated[int, msgspec.Meta(ge=0, le=8)] = 0
    """Pairs of base with itself after the decision: what the machine makes of identical code, for its record."""


class Job(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One attempt to be made. `repository` is what `git fetch` takes; `head_ref` a ref there from which head can be reached.

    `stage_seconds` are the deadlines of the stages; `deadline_seconds` the one of the whole attempt, from its start.
    """

    attempt: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-zA-Z_-]{1,64}$")]
    token: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
    repository: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]
    base_sha: Sha
    head_sha: Sha
    head_ref: Annotated[str, msgspec.Meta(max_length=300)]
    files: tuple[SlotFile, ...]
    machine_class: Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,39}$")]
    suite_version: Annotated[str, msgspec.Meta(max_length=64)] = ""
    suites: tuple[SuiteName, ...] = ("unit", "integration", "performance")
    policy: Policy = Policy()
    deadline_seconds: Seconds = 900.0
    stage_seconds: dict[Stage, Seconds] = msgspec.field(
        default_factory=lambda: {
            "checkout": 30.0,
            "unit": 90.0,
            "integration": 210.0,
            "performance": 480.0,
            "report": 30.0,
        }
    )
    version: int = VERSION


class Progress(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where an attempt is. `done` of `total` in `unit` (tests, texts, pairs); `sentence` is for a person."""

    attempt: str
    stage: Stage
    sentence: Line
    done: int = 0
    total: int = 0
    unit: str = ""
    at: float = 0.0
    """Seconds since the epoch, by the worker's clock."""


class Reason(msgspec.Struct, frozen=True):
    """Why an outcome is what it is: a stable code, a sentence, and where known the case and the first wrong element."""

    code: str
    sentence: Line
    stage: Stage | None = None
    case: str = ""
    index: tuple[int, ...] = ()
    expected: float | None = None
    got: float | None = None
    next_step: Line = ""
    reproduce: Line = ""
    recipe: Line = ""
    """What the inputs were: the case's dtype and numbers as this attempt varied them, and where in the seed's stream they lie."""


class TestReport(msgspec.Struct, frozen=True):
    """One test of the unit or integration suite."""

    suite: SuiteName
    name: str
    outcome: Literal["passed", "failed", "skipped"]
    seconds: float
    sentence: Line = ""


class Interval(msgspec.Struct, frozen=True):
    """An estimate with its interval. Speed-ups are fractions: 0.123 means 12.3 % faster."""

    estimate: float
    low: float
    high: float
    level: Fraction = 0.95


class CaseSpeed(msgspec.Struct, frozen=True):
    """Speed of one case: medians over processes in seconds per call, and the speed-up with its interval."""

    case: str
    base_seconds: float
    head_seconds: float
    speedup: Interval
    p: float | None = None


class PairRecord(msgspec.Struct, frozen=True):
    """One AB/BA pair: per case the median seconds per call of each side. `phase` is "stop" or "confirm", or "same" where both sides are base."""

    index: int
    order: Literal["AB", "BA"]
    phase: Literal["stop", "confirm", "same"]
    base: dict[str, float]
    head: dict[str, float]
    base_samples: dict[str, list[float]] = {}
    head_samples: dict[str, list[float]] = {}
    repeated: tuple[Line, ...] = ()
    """Why earlier tries of this pair were thrown away."""


class WholeStep(msgspec.Struct, frozen=True):
    """What a step of a whole model has of the gain in the cases of its phase (see workers.steps)."""

    step: Line
    share: Fraction
    """Of the step's time that the slot takes with what head was measured against in it, as it was measured on such a machine."""
    speedup: Interval


class Performance(msgspec.Struct, frozen=True):
    """The performance suite's result: every pair, the decision and what is published."""

    decision: Speed
    why: Line
    pairs: list[PairRecord]
    p: float | None = None
    speedup: Interval | None = None
    """Of head over what it is measured against (the file at base, or the slot's default), over all cases."""
    cases: list[CaseSpeed] = []
    against: str = ""
    """Name of what head was measured against."""
    baseline_speedup: Interval | None = None
    """Over the track's baseline, which places it on the track; equals `speedup` where that is what was measured."""
    sentinels: list[PairRecord] = []
    """Pairs of base with itself, measured after the decision, which knows nothing of them."""
    sentinels_note: Line = ""
    """Why there are fewer than the policy asked for."""
    unfinished: Line = ""
    """Why tries of a last pair were thrown away that the budget ended."""
    workload: Line = ""
    """Digest of the published cases."""
    steps: list[WholeStep] = []
    """What whole models have of it, by Amdahl's law; none where nobody measured what this slot takes on such a machine."""


class ImplementationOutcome(msgspec.Struct, frozen=True):
    """The verdict on one implementation of the submission."""

    path: str
    kind: KindName | None
    name: str
    quality_class: QualityClass | None
    status: Status
    reasons: list[Reason] = []
    tests: list[TestReport] = []
    speed: Speed = "not_measured"
    performance: Performance | None = None
    quality: dict[str, float] = {}
    """Measured quality by metric: "delta_ppl", "mean_kl", "top1", "needle"; fractions, not per cent."""
    meets: tuple[QualityClass, ...] = ()
    figures: dict[str, float] = {}
    """Other figures by name with unit: "bits per weight", "compile seconds", "memory ratio"."""
    summary: Line = ""


class StageReport(msgspec.Struct, frozen=True):
    stage: Stage
    seconds: float
    note: Line = ""


class Outcome(msgspec.Struct, frozen=True):
    """What came of an attempt. The status is the worst of the implementations' or what stopped the attempt itself."""

    attempt: str
    status: Status
    implementations: list[ImplementationOutcome]
    stages: list[StageReport]
    reasons: list[Reason] = []
    environment: dict[str, str | float] = {}
    isolation: str = ""
    seed: str = ""
    """The attempt's secret seed in hex, published with the outcome: every input can be drawn again from it."""
    artifacts: dict[str, str] = {}
    """Text artifacts by file name (the JSON of pytest-benchmark)."""
    job: Job | None = None
    """The job without its token, so that the outcome file alone can be replayed."""
    version: int = VERSION


class WorkerSeen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A worker's sign of life."""

    worker: Annotated[str, msgspec.Meta(min_length=1, max_length=120)]
    machine_class: str
    state: Literal["idle", "busy", "stopping"]
    isolation: str
    description: Line = ""
    """What the machine is, for a person: processor or accelerator, driver, versions."""
    attempt: str = ""


class ProtocolError(ValueError):
    """A message does not have the form that was agreed; `str(error)` says what is wrong."""


def encode(message: msgspec.Struct) -> str:
    """The JSON text of a message."""
    return msgspec.json.encode(message).decode()


def decode_job(text: str | bytes) -> Job:
    """The Job in `text`. Raises ProtocolError."""
    job = _decode(text, Job)
    if job.version != VERSION:
        raise ProtocolError(f"The job has protocol version {job.version}; this worker speaks {VERSION}.")
    return job


def decode_progress(text: str | bytes) -> Progress:
    """The Progress in `text`. Raises ProtocolError."""
    return _decode(text, Progress)


def encode_outcome(outcome: Outcome) -> str:
    """The outcome as `decode_outcome` takes it: what is said is cut where it is too long, figures that are no finite numbers are left out, and of an
    outcome that is too large the largest artifacts, then the samples.

    Much of an outcome follows from what a contributor wrote: however long that is, there is a verdict.
    """
    outcome = _cut(outcome, MAX_LINE)
    text = encode(outcome)
    dropped: list[str] = []
    while len(text.encode()) > MAX_OUTCOME_BYTES - LEFT_OUT_BYTES and outcome.artifacts:
        dropped.append(max(outcome.artifacts, key=lambda name: len(outcome.artifacts[name])))
        kept = {name: artifact for name, artifact in outcome.artifacts.items() if name != dropped[-1]}
        outcome = msgspec.structs.replace(outcome, artifacts=kept)
        text = encode(outcome)
    if len(text.encode()) > MAX_OUTCOME_BYTES - LEFT_OUT_BYTES:
        dropped.append("samples, and the ends of sentences")
        bare = [_without_samples(found) for found in outcome.implementations]
        outcome = _cut(msgspec.structs.replace(outcome, implementations=bare), SHORT_LINE)
    if dropped:
        note = {LEFT_OUT: f"The outcome was too large; left out: {', '.join(dropped)}"[: LEFT_OUT_BYTES // 2]}
        text = encode(msgspec.structs.replace(outcome, artifacts=outcome.artifacts | note))
    return text


def _cut(value: Any, most: int) -> Any:
    """A message with each `Line` in it of at most `most` characters, and without figures that are no finite numbers, which JSON does not have."""
    if isinstance(value, msgspec.Struct):
        changes = {}
        for field in msgspec.structs.fields(value):
            old = getattr(value, field.name)
            new = _cut_line(old, most) if field.type in (Line, tuple[Line, ...]) else _cut(old, most)
            if new is not old:
                changes[field.name] = new
        return msgspec.structs.replace(value, **changes) if changes else value
    if isinstance(value, list):
        items = [_cut(item, most) for item in value]
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    if isinstance(value, dict) and any(isinstance(item, float) and not math.isfinite(item) for item in value.values()):
        return {name: item for name, item in value.items() if not isinstance(item, float) or math.isfinite(item)}
    return value


def _cut_line(value: Any, most: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_cut_line(line, most) for line in value)
    return value if len(value) <= most else f"{value[: most - 2]} …"


def _without_samples(found: ImplementationOutcome) -> ImplementationOutcome:
    if found.performance is None:
        return found

    def bare(pairs: list[PairRecord]) -> list[PairRecord]:
        return [msgspec.structs.replace(pair, base_samples={}, head_samples={}) for pair in pairs]

    measured = found.performance
    return msgspec.structs.replace(
        found,
        performance=msgspec.structs.replace(measured, pairs=bare(measured.pairs), sentinels=bare(measured.sentinels)),
    )


def decode_outcome(text: str | bytes) -> Outcome:
    """The Outcome in `text`. Raises ProtocolError."""
    if len(text) > MAX_OUTCOME_BYTES:
        raise ProtocolError(f"The outcome has {len(text):,} bytes; at most {MAX_OUTCOME_BYTES:,} are taken.")
    return _decode(text, Outcome)


def decode_worker_seen(text: str | bytes) -> WorkerSeen:
    """The WorkerSeen in `text`. Raises ProtocolError."""
    return _decode(text, WorkerSeen)


def _decode(text: str | bytes, form: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=form)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"This is no {form.__name__}: {error}.") from None


def sign(token: str, outcome_text: str) -> str:
    """HMAC-SHA-256 of an outcome under the attempt's token, in hex."""
    return hmac.new(bytes.fromhex(token), outcome_text.encode(), hashlib.sha256).hexdigest()


def signature_holds(token: str, outcome_text: str, signature: str) -> bool:
    """Whether `signature` is what `sign` gives, compared in constant time."""
    return hmac.compare_digest(sign(token, outcome_text), signature)


def celery_settings(environ: Mapping[str, str], root: pathlib.Path) -> dict[str, object]:
    """The Celery settings that control plane and workers share, from SWAPBENCH_BROKER_URL and SWAPBENCH_VAR.

    The default broker is a folder (`var/broker` below `root`): nothing to install, at the price that it keeps no order
    and loses what a killed consumer had taken. Nothing depends on it: the database is the truth.
    """
    url = environ.get("SWAPBENCH_BROKER_URL") or "filesystem://"
    settings: dict[str, object] = {
        "broker_url": url,
        "broker_connection_retry_on_startup": True,
        "task_acks_late": True,
        "task_reject_on_worker_lost": True,
        "worker_prefetch_multiplier": 1,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "worker_hijack_root_logger": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
    }
    if url.startswith("filesystem"):
        var = pathlib.Path(environ.get("SWAPBENCH_VAR") or root / "var").resolve()
        folders = {name: var / "broker" / name for name in ("messages", "control")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        settings["broker_transport_options"] = {
            "data_folder_in": str(folders["messages"]),
            "data_folder_out": str(folders["messages"]),
            "control_folder": str(folders["control"]),
            "store_processed": False,
            "polling_interval": 0.05,
        }
    else:
        # Redis gives a message again that was not acknowledged for so long: beyond the longest attempt.
        settings["broker_transport_options"] = {"visibility_timeout": 3600}
    return settings
