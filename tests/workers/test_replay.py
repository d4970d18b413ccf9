"""The verdict is a function of the outcome file, and every input comes out again from the published seed."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.slots.kind import kind_named
from engine.slots.registry import implementations
from tests.workers.repository import NORM, ROOT, Repository, header
from workers.attempt import main, make_attempt
from workers.judge.inputs import artifact
from workers.judge.speed import RULE_ARTIFACT, interval
from workers.protocol import (
    CaseSpeed,
    ImplementationOutcome,
    Interval,
    Job,
    Outcome,
    PairRecord,
    Performance,
    Policy,
    Reason,
    Speed,
    encode,
)
from workers.replay import CannotReplay, decided, replayed
from workers.statistics import Decision, LogRatios, Rule
from workers.statistics.simulation import ACCELERATOR, BUSY_CORES, Noise

PATH = "engine/normalization/tried.py"
WRONG = NORM.replace("* weight.float()", "* weight.float() * (1.0 if len(x) < 2 else 1.01)")
TIME = {"checkout": 30.0, "unit": 600.0}


@pytest.fixture(scope="module")
def judged(repository: Repository, mirror: Path) -> Outcome:
    """A real attempt on the defaults of three kinds, and on a normalization that is wrong."""
    files: dict[str, bytes | str] = {PATH: header() + WRONG}
    for kind in ("attention", "quantization", "activation"):
        path = implementations(ROOT / "engine", kind)[kind_named(kind).default]
        files[str(path.relative_to(ROOT))] = path.read_text() + "# Nothing else differs.\n"
    head = repository.pull(files)
    return make_attempt(repository.job(head, *files, stage_seconds=TIME), lambda _: None, mirror)


def test_inputs_of_every_kind_come_out_again(judged: Outcome) -> None:
    done = replayed(judged)
    assert not done.differences
    for item in judged.implementations:
        names = [name.split()[1] for name in done.digests if name.startswith(f"{item.path} ")]
        assert len([name for name in names if name.endswith("/call")]) >= 2
        assert len([name for name in names if name.endswith("/held")]) >= 2
    assert len(set(done.digests.values())) > len(done.digests) / 2


def test_another_seed_gives_other_inputs(judged: Outcome) -> None:
    done = replayed(msgspec.structs.replace(judged, seed="00" * 32))
    assert len(done.differences) > 10
    assert all("inputs" in difference for difference in done.differences)


def test_the_same_seed_judges_the_same_inputs_again(judged: Outcome, repository: Repository, mirror: Path) -> None:
    assert judged.job is not None
    job = repository.job(judged.job.head_sha, PATH, stage_seconds=TIME)
    again = make_attempt(job, lambda _: None, mirror, seed=bytes.fromhex(judged.seed))
    name = artifact(PATH, "inputs.json")
    assert json.loads(again.artifacts[name]) == json.loads(judged.artifacts[name])
    before = next(item for item in judged.implementations if item.path == PATH)
    (after,) = again.implementations
    assert [(r.case, r.index, r.expected, r.got) for r in after.reasons] == [
        (r.case, r.index, r.expected, r.got) for r in before.reasons
    ]


def test_what_was_not_passed_can_be_done_again_at_home(judged: Outcome) -> None:
    (failed,) = [item for item in judged.implementations if item.status != "passed"]
    assert failed.path == PATH
    wrong = [reason for reason in failed.reasons if reason.code == "wrong_output"]
    assert wrong
    for reason in wrong:
        assert reason.case
        assert reason.index
        assert reason.expected is not None
        assert reason.got is not None
        assert "float32" in reason.recipe
        assert f"as unit/{reason.case}/call" in reason.recipe
        assert reason.reproduce.endswith(f"--suite unit --only {PATH} --seed {judged.seed}")


@pytest.mark.parametrize(
    "change",
    [
        {"status": "failed"},
        {"quality_class": "Q4", "status": "tampered"},
        {"reasons": [Reason("tampered", "It did.", "unit")]},
    ],
)
def test_a_changed_verdict_is_noticed(judged: Outcome, change: dict[str, object]) -> None:
    first = next(item for item in judged.implementations if item.status == "passed")
    items = [msgspec.structs.replace(i, **change) if i is first else i for i in judged.implementations]
    assert any(
        "status" in found for found in replayed(msgspec.structs.replace(judged, implementations=items)).differences
    )


def test_the_command_says_the_same_of_a_file(
    judged: Outcome, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "outcome.json"
    path.write_text(encode(judged))
    assert main(["--replay", str(path)]) == 0
    assert "Inputs and verdict are the same." in capsys.readouterr().out
    path.write_text(encode(msgspec.structs.replace(judged, seed="00" * 32)))
    assert main(["--replay", str(path)]) == 1
    path.write_text("{}")
    assert main(["--replay", str(path)]) == 2
    assert "This is no Outcome" in capsys.readouterr().out


# -- speed ------------------------------------------------------------------------------------------------------------


def simulated(rule: Rule, noise: Noise, gain: float, pairs: int) -> tuple[list[PairRecord], Decision]:
    """Pairs as a judge would have measured them under the rule, at most `pairs` of them, and what it decided then."""
    (logs,) = noise.attempts(np.random.default_rng(3), 1, 40, 4, gain)
    records = [_record(logs, number, "stop") for number in range(40)]
    stop: list[PairRecord] = []
    decision = rule.decide(stop)
    while decision.kind == "continue":
        if len(stop) == pairs:
            return stop, rule.give_up(stop)
        stop.append(records[len(stop)])
        decision = rule.decide(stop)
    if decision.kind != "faster":
        return stop, decision
    fresh = [msgspec.structs.replace(r, phase="confirm") for r in records[len(stop) : min(pairs, len(stop) + 8)]]
    return stop + fresh, rule.confirm(stop, fresh)


def _record(logs: LogRatios, number: int, phase: str) -> PairRecord:
    head = {case: float(np.exp(-value)) for case, value in zip(logs.cases, logs.values[number], strict=True)}
    return PairRecord(number, "AB", phase, dict.fromkeys(logs.cases, 1.0), head)  # type: ignore[arg-type]


def outcome_of(rule: Rule, records: list[PairRecord], decision: Decision) -> Outcome:
    cases = [
        CaseSpeed(case.case, 1.0, 1.0, interval(case.estimate) or Interval(0, 0, 0), case.p) for case in decision.cases
    ]
    kinds: dict[str, Speed] = {"faster": "faster", "slower": "slower", "no_difference": "no_difference"}
    performance = Performance(kinds.get(decision.kind, "inconclusive"), decision.why, records, cases=cases)
    slower = decision.kind == "slower"
    item = ImplementationOutcome(
        PATH,
        "normalization",
        "tried",
        "E",
        "failed" if slower else "passed",
        reasons=[Reason("slower", "It is.", "performance")] if slower else [],
        speed=performance.decision,
        performance=performance,
    )
    return Outcome(
        "a",
        item.status,
        [item],
        [],
        seed="00" * 32,
        artifacts={artifact(PATH, RULE_ARTIFACT): msgspec.json.encode(rule).decode()},
        job=Job("a", "0" * 64, "r", "0" * 40, "1" * 40, "HEAD", (), "cpu-x86"),
    )


@pytest.mark.parametrize(
    ("noise", "gain", "pairs", "kind"),
    [
        (ACCELERATOR, 0.05, 40, "faster"),
        (ACCELERATOR, 0.05, 15, "inconclusive"),
        (ACCELERATOR, -0.05, 40, "slower"),
        (ACCELERATOR, 0.0, 40, "no_difference"),
        (BUSY_CORES, 0.0, 10, "inconclusive"),
    ],
)
def test_the_decision_comes_out_again(noise: Noise, gain: float, pairs: int, kind: str) -> None:
    rule = Rule(floors={"case-1": 0.02}, equivalence=0.02)
    records, decision = simulated(rule, noise, gain, pairs)
    assert decision.kind == kind
    outcome = outcome_of(rule, records, decision)
    # Through the file, as it travels.
    outcome = msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)
    performance = outcome.implementations[0].performance
    assert performance is not None
    assert decided(rule, performance) == decision
    assert not replayed(outcome).differences


def test_an_embellished_figure_is_noticed() -> None:
    rule = Rule()
    records, decision = simulated(rule, ACCELERATOR, 0.05, 40)
    outcome = outcome_of(rule, records, decision)
    (item,) = outcome.implementations
    assert item.performance is not None
    case = item.performance.cases[0]
    better = msgspec.structs.replace(case, speedup=msgspec.structs.replace(case.speedup, estimate=0.5))
    performance = msgspec.structs.replace(item.performance, cases=[better, *item.performance.cases[1:]])
    changed = msgspec.structs.replace(item, performance=performance)
    (difference,) = replayed(msgspec.structs.replace(outcome, implementations=[changed])).differences
    assert "speed-up of case-1" in difference


def test_pairs_without_their_rule_cannot_be_decided_again() -> None:
    records, decision = simulated(Rule(), ACCELERATOR, 0.0, 40)
    outcome = msgspec.structs.replace(outcome_of(Rule(), records, decision), artifacts={})
    with pytest.raises(CannotReplay, match="lacks the rule"):
        replayed(outcome)


def test_the_policy_is_in_the_rule() -> None:
    records, decision = simulated(Rule(alpha=Policy().alpha), ACCELERATOR, 0.05, 40)
    strict = outcome_of(Rule(alpha=1e-6), records, decision)
    assert replayed(strict).differences
