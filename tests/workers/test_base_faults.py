"""What base does wrong before anything is timed is no fault of head's."""

import os
import time

import pytest

from engine.slots.source import Source
from workers.calibrate import workspace
from workers.checkout import Trees
from workers.judge import machine
from workers.judge.hosts import Hosts
from workers.judge.speed import judge_speed
from workers.judge.trial import Trial, subject
from workers.protocol import Policy, SlotFile
from workers.sandbox import best_level

RETURN = "        return torch.mul(functional.silu(gate), up, out=out)"


@pytest.mark.filterwarnings("ignore::pytest_benchmark.logger.PytestBenchmarkWarning")
@pytest.mark.parametrize(
    ("wrong", "status", "sentence"),
    [
        ("base", "invalid_environment", "The base's own module failed while it was set up: "),
        ("head", "failed", "ValueError: it is broken"),
    ],
)
def test_whose_module_is_broken_decides_whose_fault_it_is(wrong: str, status: str, sentence: str) -> None:
    where = machine.environment()
    with workspace() as made:
        path = made.default("activation")
        source = (made.repository / path).read_text()
        assert RETURN in source
        broken = source.replace(RETURN, '        raise ValueError("it is broken")')
        base, head = (made.tree(path, broken if side == wrong else source) for side in ("base", "head"))
        judged = subject(SlotFile(path, "activation", "modified"), Trees(base, head))
        hosts = Hosts(best_level(), where.threads, device=where.device)
        trial = Trial(judged, hosts, Source(os.urandom(32)), where, lambda *_: None)
        trial.deadline = time.monotonic() + 100
        found = judge_speed(trial, Policy())
    assert found.result.statuses == [status]
    assert sentence in found.result.reasons[0].sentence
