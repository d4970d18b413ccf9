"""What is being judged, and how a suite reaches it: the subject, its hosts, the secret seed, the deadline."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from torch import Tensor

from engine.slots.header import FOLDERS, Header, HeaderError
from engine.slots.kind import (
    Call,
    CallFailed,
    Case,
    Environment,
    Finding,
    Held,
    HeldSet,
    Preparation,
    SlotKind,
    digest_of,
    kind_named,
)
from engine.slots.registry import declared, implementations, read_header
from engine.slots.source import Source
from workers.checkout import Trees
from workers.judge.client import CallTimedOut, ContributedError, HostClient, HostDied, HostStarved, Tampered
from workers.judge.hosts import Hosts, Side
from workers.judge.inputs import digest
from workers.protocol import Reason, SlotFile, Stage, Status
from workers.sandbox import SandboxError

T = TypeVar("T")

MAX_RESTARTS = 3


class Wrong(Exception):
    """An output or a property is wrong; carries the finding."""

    def __init__(self, finding: Finding, case: str = "", code: str = "wrong_output", recipe: str = "") -> None:
        super().__init__(finding.sentence)
        self.finding = finding
        self.case = case
        self.code = code
        self.recipe = recipe


class Impossible(CallFailed):
    """A time below what any machine of this kind needs."""


class StageTimedOut(Exception):
    """The stage's deadline has passed while the judge itself was at work."""


@dataclass(frozen=True)
class Subject:
    """One implementation of a submission, and what it is measured against."""

    file: SlotFile
    header: Header
    kind: SlotKind
    head: Side
    base: Side
    baseline: Side
    """The slot's default at base, which the track's scores refer to."""


def subject(file: SlotFile, trees: Trees) -> Subject:
    """The subject of a slot file. Raises HeaderError for the file's own header, LookupError where base lacks its default."""
    header = read_header(trees.head / file.path)
    if header.kind != file.kind:
        raise HeaderError(
            f"The header declares the kind {header.kind}, but the file lies in engine/{FOLDERS[file.kind]}/. Move it or mend the header."
        )
    kind = kind_named(header.kind)
    at_base = implementations(trees.base / "engine", header.kind)
    if kind.default not in at_base:
        raise LookupError(f"The base commit lacks the default {header.kind} {kind.default!r}.")
    baseline = Side(trees.base, str(at_base[kind.default].relative_to(trees.base)), kind.default)
    taken = {
        path.relative_to(root)
        for root in (trees.base, trees.head)
        for path, other in declared(root / "engine", header.kind)
        if other.name == header.name
    }
    if others := sorted(taken - {Path(file.path)}):
        raise HeaderError(
            f"The name {header.name!r} is taken by {others[0]}. Choose another one in the header and @register."
        )
    base = baseline
    if (trees.base / file.path).exists():
        base = Side(trees.base, file.path, read_header(trees.base / file.path).name)
    return Subject(file, header, kind, Side(trees.head, file.path, header.name), base, baseline)


def published(subject: Subject, where: Environment) -> str:
    """The digest of the slot's cases as its default is given them: of a subject that leaves some out, they are others by its own choice."""
    default = replace(read_header(Path(subject.baseline.tree, subject.baseline.path)), limits={})
    return digest_of(subject.kind.cases("performance", default, where))


@dataclass
class Trial:
    """One subject on its way through the suites."""

    subject: Subject
    hosts: Hosts
    source: Source
    environment: Environment
    say: Callable[[Stage, str, int, int, str], None]
    """Reports progress: stage, sentence, done, total, unit."""
    deadline: float = float("inf")
    """On time.monotonic(); the deadline of the current stage."""
    restarts: int = field(default=0, init=False)
    digests: dict[str, str] = field(default_factory=dict, init=False)
    """Of what was drawn, by name (see workers.judge.inputs)."""
    model_figures: dict[str, float] = field(default_factory=dict, init=False)
    """What the integration suite found out about the subject in the model; the timed weights must be no worse."""
    _allowed: float = field(default=float("inf"), init=False)
    _waited_before: float = field(default=0.0, init=False)

    def begin(self, seconds: float) -> None:
        """Begins a stage that may take `seconds`."""
        self.deadline = time.monotonic() + seconds
        self._allowed = seconds
        self._waited_before = self.hosts.waited_seconds()

    def remaining(self) -> float:
        """Seconds left in the stage. Where there are none, raises CallTimedOut if the module used them up, else StageTimedOut."""
        left = self.deadline - time.monotonic()
        if left > 0:
            return left
        waited = self.hosts.waited_seconds() - self._waited_before
        if waited > self._allowed / 2 and not self.hosts.starved():
            raise CallTimedOut(
                f"The module's calls took {waited:.0f} s of the {self._allowed:.0f} s that the stage has."
            )
        raise StageTimedOut("The stage's time is up.")

    def note(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps the digest of what was drawn under a name, the first time."""
        if name not in self.digests:
            self.digests[name] = digest(tensors)

    def open(self, side: Side) -> HostClient:
        """A fresh host for `side`, with calls that end within what is left of the stage."""
        self.hosts.call_timeout = min(30.0, self.remaining())
        return self.hosts.open(side)


class SteadyHost:
    """A Runner that keeps one host for many calls and opens another when it died, up to `MAX_RESTARTS` times in a trial."""

    def __init__(self, trial: Trial, side: Side) -> None:
        self.trial = trial
        self.side = side
        self._client: HostClient | None = None
        self._cannot_load: ContributedError | None = None

    def client(self) -> HostClient:
        """The living host."""
        if self._cannot_load is not None:
            # Importing the file again would fail again, and may take its time to do so.
            raise self._cannot_load
        if self._client is None:
            if self.trial.restarts > MAX_RESTARTS:
                raise HostDied(f"The module host ended {MAX_RESTARTS + 1} times; no further one is started.")
            try:
                self._client = self.trial.open(self.side)
                if self.trial.hosts.roomy:
                    self.trial.hosts.start_ahead(self.side)
            except ContributedError as error:
                self._cannot_load = error
                raise
        self._client.call_timeout = min(30.0, self.trial.remaining())
        return self._client

    def discard(self) -> None:
        """Ends the host, so that the next call opens a fresh one."""
        if self._client is not None:
            self._client.close()
            self._client = None

    def hold(self, held: HeldSet) -> dict[str, Tensor]:
        return self._guarded(lambda client: client.hold(held))

    def prepare(self, preparation: Preparation) -> dict[str, Tensor]:
        return self._guarded(lambda client: client.prepare(preparation))

    def run(self, call: Call) -> dict[str, Tensor]:
        return self._guarded(lambda client: client.run(call))

    def _guarded(self, use: Callable[[HostClient], T]) -> T:
        try:
            return use(self.client())
        except (HostDied, HostStarved, CallTimedOut, Tampered):
            self.trial.restarts += 1
            self.discard()
            raise


def prepared(
    trial: Trial, host: SteadyHost, cases: list[Case], label: str
) -> tuple[dict[str, HeldSet | CallFailed], dict[str, HeldSet]]:
    """The held tensors of each case, with what the implementation of `host` prepares; and those of SlotKind.other, where there are any.

    A case whose preparation fails maps to the failure. A host that has prepared anything is ended before this returns, so that
    whoever is timed or checked afterwards gets only the prepared tensors.
    """
    kind = trial.subject.kind
    found: dict[str, HeldSet | CallFailed] = {}
    others: dict[str, HeldSet] = {}
    used = False

    def with_prepared(case: Case, held: HeldSet) -> HeldSet:
        nonlocal used
        preparation = kind.preparation(case, held)
        if preparation is None:
            return held
        first, used = not used, True
        given = host.prepare(preparation)
        if first:
            # A fresh host follows this one, and nothing is timed meanwhile.
            trial.hosts.start_ahead(host.side)
        if clash := sorted(given.keys() & held.keys()):
            # The judge's own tensors are found by name, the original weight among them.
            raise Tampered(f"The module gave back a tensor under the judge's own name {clash[0]!r}.")
        return held | {name: Held(tensor, preparation.access) for name, tensor in given.items()}

    try:
        for case in cases:
            source = trial.source.child(label, case.name, "held")
            held = kind.held(case, source)
            trial.note(f"{label}/{case.name}/held", {name: item.tensor for name, item in held.items()})
            other = kind.other(case, held, source.child("other"))
            try:
                found[case.name] = with_prepared(case, held)
                if other is not None:
                    others[case.name] = with_prepared(case, other)
            except CallFailed as failure:
                found[case.name] = failure
    finally:
        if used:
            host.discard()
    return found, others


def settled(trial: Trial, host: SteadyHost, case: Case, held: HeldSet) -> HeldSet:
    """Has a host hold what was prepared for a case of the performance suite, and the kind check it. Raises Wrong, CallFailed."""
    host.hold(held)
    more, finding = trial.subject.kind.settle(case, trial.subject.header, held, host)
    if finding is not None:
        raise Wrong(finding, case.name, recipe=recipe_of(case, "performance", case.name, "held"))
    return held | more


def recipe_of(case: Case, *labels: str | int) -> str:
    """What a case's inputs are made of, for a person who wants them again: dtype, numbers, and their place in the seed's stream."""
    numbers = ", ".join(f"{name} = {str(value)[:200]}" for name, value in case.params.items())
    place = f"; drawn from the attempt's seed as {'/'.join(str(label) for label in labels)}" if labels else ""
    return f"{case.name}: {case.dtype}, {numbers[:2500]}{place}"


def status_of(error: BaseException) -> Status:
    """Whose fault an exception of a suite is, as the status of an outcome."""
    if isinstance(error, Tampered):
        return "tampered"
    if isinstance(error, Impossible):
        return "impossible"
    if isinstance(error, CallTimedOut):
        return "timed_out_code"
    if isinstance(error, StageTimedOut | HostStarved):
        return "timed_out_infrastructure"
    if isinstance(error, Wrong | CallFailed | HeaderError):
        return "failed"
    return "invalid_environment"


def reason_of(error: BaseException, stage: Stage, case: str = "") -> Reason:
    """The reason that a person reads for an exception of a suite."""
    if isinstance(error, Wrong):
        finding = error.finding
        return Reason(
            code=error.code,
            sentence=finding.sentence,
            stage=stage,
            case=error.case or case,
            index=finding.index,
            expected=finding.expected,
            got=finding.got,
            recipe=error.recipe,
        )
    if isinstance(error, ContributedError):
        sentence = error.args[0]
        trace = error.traceback.strip()
        return Reason(
            "raised", sentence, stage, case, next_step=f"The traceback ends:\n{trace[-2500:]}" if trace else ""
        )
    if isinstance(error, HostDied) and error.tail:
        return Reason("host_died", str(error), stage, case, next_step=f"What it wrote ends:\n{error.tail}")
    codes: list[tuple[type[BaseException], str]] = [
        (Tampered, "tampered"),
        (Impossible, "impossible"),
        (CallTimedOut, "timed_out"),
        (HostStarved, "starved"),
        (HostDied, "host_died"),
        (CallFailed, "refused"),
        (HeaderError, "header"),
        (StageTimedOut, "stage_timed_out"),
        (SandboxError, "sandbox"),
    ]
    code = next((name for form, name in codes if isinstance(error, form)), "internal_error")
    sentence = str(error)
    if code == "internal_error":
        sentence = f"The judge failed ({type(error).__name__}: {str(error)[:500]}). This is our fault, not yours."
    return Reason(code, sentence, stage, case)
