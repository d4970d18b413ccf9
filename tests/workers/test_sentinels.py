"""After a decision base is measured against itself, and the decision knows nothing of it."""

import json
import math
import statistics
from pathlib import Path

import msgspec
import pytest

from engine.slots.kind import kind_named
from engine.slots.registry import implementations
from tests.workers.repository import ROOT, Repository
from workers.attempt import make_attempt
from workers.protocol import Outcome, Policy
from workers.replay import replayed

PLAIN = implementations(ROOT / "engine", "activation")[kind_named("activation").default].relative_to(ROOT).as_posix()
# In the first call of a process it is as slow as it likes: what is timed comes later.
SLOW = """
from engine.slots.registry import register


@register("activation", "slower")
class Slower:
    def forward(self, gate_up):
        gate, up = gate_up.chunk(2, dim=-1)
        return ((gate.double() * gate.double().sigmoid()) * up.double()).to(gate_up.dtype)
"""


@pytest.mark.slow  # eleven pairs of real processes
def test_base_meets_itself_after_the_decision(
    repository: Repository, mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is so much slower is seen in one part of a pair.
    monkeypatch.setattr(type(kind_named("activation")), "parts_of_a_pair", 1)
    path = "engine/activation/slower.py"
    header = (ROOT / PLAIN).read_text().partition("# ///\n")[0].replace('name = "plain"', 'name = "slower"')
    head = repository.pull({path: header + "# ///\n" + SLOW})
    job = repository.job(head, path, suites=("performance",), policy=Policy(sentinels=2, max_pairs=8))
    outcome = make_attempt(job, lambda _: None, mirror)
    (item,) = outcome.implementations
    performance = item.performance
    assert performance is not None, outcome
    assert performance.decision == "slower", "a head that is slower has no part in what follows"
    assert [pair.index for pair in performance.pairs] == list(range(8))
    assert [(pair.index, pair.phase) for pair in performance.sentinels] == [(16, "same"), (17, "same")]
    for pair in performance.sentinels:
        assert set(pair.base) == set(pair.head) == set(performance.pairs[0].base)
        assert not pair.base_samples
    # Double precision takes more than half again as long: were head one of the sides, or both, it would show in the seconds.
    for case in performance.cases:
        between = math.sqrt(case.base_seconds * case.head_seconds)
        same = [seconds[case.case] for pair in performance.sentinels for seconds in (pair.base, pair.head)]
        assert statistics.median(same) < between
    again = msgspec.json.decode(msgspec.json.encode(outcome), type=Outcome)
    assert not replayed(again).differences
    benchmarks = json.loads(next(text for name, text in outcome.artifacts.items() if name.endswith("benchmark.json")))
    assert not any("pair16" in each["name"] for each in benchmarks["benchmarks"])
