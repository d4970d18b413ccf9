"""`swapbench attempt --replay outcome.json`: the inputs from the published seed, and the verdict from the samples, once more.

The verdict must be a function of the outcome file: nothing is measured, no contributed code is run, and no network is needed. Inputs come
out the same, bit by bit, where torch and the device are those of the attempt.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from engine import quality
from engine.corpus import evaluation_tokens
from engine.slots.header import Header
from engine.slots.kind import Environment, SlotKind, kind_named
from engine.slots.source import Source
from workers.judge.inputs import INPUTS_ARTIFACT, Drawn, artifact, digest
from workers.judge.speed import RULE_ARTIFACT
from workers.protocol import ImplementationOutcome, Outcome, Performance, ProtocolError, Status, decode_outcome
from workers.statistics import Decision, Rule
from workers.suites.integration.bench import tensors_of, text_lengths
from workers.suites.session import worst
from workers.suites.version import suite_version

SAME, DIFFERENT, CANNOT = 0, 1, 2
STATUS_OF_CODE: dict[str, Status] = {
    "tampered": "tampered",
    "impossible": "impossible",
    "timed_out": "timed_out_code",
    "stage_timed_out": "timed_out_infrastructure",
    "starved": "timed_out_infrastructure",
    "sandbox": "invalid_environment",
    "internal_error": "invalid_environment",
    "unfit_machine": "invalid_environment",
    "isolation": "invalid_environment",
    "checkout": "invalid_environment",
}
"""The status that a reason's code stands for; any other code is a failure of the code that was judged."""


class CannotReplay(Exception):
    """The file lacks what a replay needs, or this machine does; `str(error)` says what."""


@dataclass
class Replay:
    """What came out: digests of inputs by name, and each point in which this run and the file disagree."""

    digests: dict[str, str] = field(default_factory=dict)
    decided: list[str] = field(default_factory=list)
    differences: list[str] = field(default_factory=list)

    def compare(self, what: str, recorded: object, found: object) -> None:
        """Notes a difference where there is one."""
        if recorded != found:
            self.differences.append(f"{what}: the file says {recorded!r}, and it comes out as {found!r}")


def replayed(outcome: Outcome) -> Replay:
    """Draws and decides again. Raises CannotReplay."""
    if outcome.job is None or not outcome.seed:
        raise CannotReplay("The outcome holds no seed: nothing was drawn, so there is nothing to replay.")
    done = Replay()
    for item in outcome.implementations:
        text = outcome.artifacts.get(artifact(item.path, INPUTS_ARTIFACT))
        if text is not None:
            record = msgspec.json.decode(text, type=Drawn)
            found = inputs_again(record, bytes.fromhex(outcome.seed), item.path)
            for name, value in sorted(record.digests.items()):
                done.compare(f"{item.path}, inputs {name}", value, found.get(name))
            done.digests |= {f"{item.path} {name}": value for name, value in found.items()}
        _decide_again(outcome, item, done)
    if not outcome.reasons:
        done.compare("status", outcome.status, worst([item.status for item in outcome.implementations]))
    return done


# -- inputs -----------------------------------------------------------------------------------------------------------


def inputs_again(record: Drawn, seed: bytes, path: str) -> dict[str, str]:
    """The digests that `record` names, of what the seed gives now."""
    header = msgspec.convert(record.header, Header)
    environment = msgspec.convert(record.environment, Environment)
    if environment.device == "cuda" and not torch.cuda.is_available():
        raise CannotReplay("These inputs were drawn on an accelerator; replay them on a machine of the same class.")
    kind = kind_named(header.kind)
    source = Source(seed).child(path)
    found = dict(_of_suites(kind, header, environment, source, record.digests))
    if "integration/texts" in record.digests:
        texts = source.child("integration")
        tokens = [evaluation_tokens(texts.child("text", n).key, count).ids for n, count in enumerate(text_lengths())]
        found["integration/texts"] = digest(tensors_of([[int(token) for token in ids] for ids in tokens]))
    return found


def _of_suites(
    kind: SlotKind, header: Header, environment: Environment, source: Source, wanted: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    for suite in ("unit", "performance"):
        stream = source.child(suite)
        for published in kind.cases(suite, header, environment):
            case = kind.vary(published, stream.child(published.name, "vary"))
            label = f"{suite}/{case.name}"
            if f"{label}/held" not in wanted:
                continue
            held = kind.held(case, source.child(suite, case.name, "held"))
            yield f"{label}/held", digest({name: item.tensor for name, item in held.items()})
            if f"{label}/call" in wanted:
                labels = ("call",) if suite == "unit" else ("calibrate", 0)
                yield f"{label}/call", digest(kind.draw(case, held, stream.child(case.name, *labels)).inputs)


# -- the verdict ------------------------------------------------------------------------------------------------------


def decided(rule: Rule, performance: Performance) -> Decision:
    """What the rule says of the pairs in an outcome: the same function of them as in the attempt."""
    stop = [pair for pair in performance.pairs if pair.phase == "stop"]
    fresh = [pair for pair in performance.pairs if pair.phase == "confirm"]
    decision = rule.decide(stop)
    if decision.kind == "continue":
        return rule.give_up(stop)
    return rule.confirm(stop, fresh) if decision.kind == "faster" else decision


def status_of_reasons(item: ImplementationOutcome) -> Status:
    """The status that an implementation's reasons and tests amount to."""
    statuses: list[Status] = [STATUS_OF_CODE.get(reason.code, "failed") for reason in item.reasons]
    if "tampered" in statuses:
        return "tampered"
    if not statuses and any(test.outcome == "failed" for test in item.tests):
        return "failed"
    return worst(statuses)


def _decide_again(outcome: Outcome, item: ImplementationOutcome, done: Replay) -> None:
    name = item.name or item.path
    done.compare(f"{name}, status", item.status, status_of_reasons(item))
    done.decided.append(f"{name}: {item.status.replace('_', ' ')}")
    if item.performance is not None:
        text = outcome.artifacts.get(artifact(item.path, RULE_ARTIFACT))
        if text is None:
            raise CannotReplay(f"The outcome lacks the rule that {name} was judged by.")
        decision = decided(msgspec.json.decode(text, type=Rule), item.performance)
        done.compare(f"{name}, speed", item.performance.decision, decision.kind)
        done.compare(f"{name}, why", item.performance.why, decision.why)
        gains = {result.case: result.estimate.gain for result in decision.cases}
        for case in item.performance.cases:
            done.compare(f"{name}, speed-up of {case.case}", case.speedup.estimate, gains.get(case.case))
        if decision.kind == "slower":
            done.compare(f"{name}, a slower head fails", item.status, "failed")
        done.decided.append(f"{name}: {decision.why}")
    if "mean_kl" in item.quality:
        met = classes_of(item.quality)
        done.compare(f"{name}, classes met", tuple(item.meets), met)
        if item.status == "passed":
            done.compare(f"{name}, keeps its declared class", True, item.quality_class in met)
        done.decided.append(f"{name}: meets {', '.join(met) or 'no class'}")


def classes_of(measured: Mapping[str, float]) -> tuple[str, ...]:
    """The quality classes that measured figures keep."""

    def measure(name: str) -> quality.Measure:
        value = measured[name]
        return quality.Measure(value, measured.get(f"{name}_low", value), measured.get(f"{name}_high", value))

    whole = quality.Quality(
        measure("delta_ppl"), measure("mean_kl"), measure("top1"), measured["perplexity"], int(measured["tokens"])
    )
    return quality.classes_met(whole, measured["noise_floor_kl"], measured.get("needle"))


# -- the command ------------------------------------------------------------------------------------------------------


def replay(path: Path) -> int:
    """Replays the outcome in a file and prints what came out. Exit status 0: all the same; 1: something differs; 2: not possible."""
    console = Console()
    try:
        outcome = decode_outcome(path.read_bytes())
        recorded = outcome.environment.get("suite version")
        if recorded != suite_version():
            console.print(
                f"The outcome is of suite version {recorded}, this is {suite_version()}: the inputs may differ.",
                style="yellow",
            )
        done = replayed(outcome)
    except (OSError, ProtocolError, CannotReplay, msgspec.MsgspecError) as error:
        console.print(Text(f"swapbench attempt --replay: {error}", style="red"))
        return CANNOT
    table = Table(title=f"Attempt {outcome.attempt}, drawn again", title_justify="left")
    table.add_column("inputs")
    table.add_column("SHA-256")
    for name, value in done.digests.items():
        table.add_row(name, value)
    console.print(table)
    for sentence in done.decided:
        console.print(Text(sentence))
    for sentence in done.differences:
        console.print(Text(f"Different: {sentence}", style="red"))
    if not done.differences:
        console.print("Inputs and verdict are the same.", style="green")
    return DIFFERENT if done.differences else SAME
