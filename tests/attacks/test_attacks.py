"""Every hostile slot file, through checkout, sandbox, host, judge and suites as a worker runs them."""

import dataclasses
import gc
import hashlib
import os
import secrets
import sys
from pathlib import Path

import pytest
import torch

from engine.slots.header import Header
from engine.slots.kind import kind_named
from tests.attacks.corpus import CANARY, DEVICE, HERE, Attack, Range, attacks, parse
from workers.judge.machine import environment
from workers.protocol import Outcome, decode_outcome, encode

# The judge's own pytest runs inside this one and inherits its filters; a pair that is stopped before its first sample has nothing to save.
pytestmark = pytest.mark.filterwarnings("ignore:Not saving anything")


def fingerprint(ground: Range) -> str:
    """A hash over the repository that jobs are taken from, its objects and its engine, apart from what the attack's own commit adds."""
    digest = hashlib.sha256()
    for path in sorted((ground.repository / "engine").rglob("*.py")):
        digest.update(str(path).encode() + path.read_bytes())
    digest.update((ground.repository / ".git" / "config").read_bytes())
    return digest.hexdigest()


@pytest.fixture(scope="session")
def shooting_range(tmp_path_factory: pytest.TempPathFactory) -> Range:
    """The repository that attacks are committed to."""
    folder = tmp_path_factory.mktemp("attacks")
    # Hosts run as another user, who must be able to enter what is bound for them.
    for parent in (folder, *folder.parents):
        if parent.is_relative_to(Path("/tmp")) and parent != Path("/tmp"):
            parent.chmod(0o755)
    if torch.cuda.is_available():
        # The context's own descriptors, which nobody counts as kept by the judge.
        torch.zeros(1, device="cuda")
    return Range(folder)


@pytest.fixture
def canary(monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret in the environment of the judge."""
    secret = secrets.token_hex(16)
    monkeypatch.setenv(CANARY, secret)
    return secret


def cases(quick: bool) -> list[object]:
    """The attacks of one of the two tests; of those that take long, with SWAPBENCH_ATTACKS_SHARE="1/4" in the environment, each fourth from the second on."""
    share, _, shares = os.environ.get("SWAPBENCH_ATTACKS_SHARE", "0/1").partition("/")
    chosen = [attack for attack in attacks() if attack.quick is quick]
    return [
        pytest.param(
            attack,
            id=attack.name,
            marks=[pytest.mark.xfail(reason=attack.unstopped, strict=False)] if attack.unstopped else [],
        )
        for attack in (chosen if quick else chosen[int(share) :: int(shares)])
    ]


def check(attack: Attack, ground: Range, canary: str) -> None:
    """Judges the attack, and looks at the verdict, at what it learned and at what it left."""
    before = fingerprint(ground)
    descriptors = len(os.listdir("/proc/self/fd"))
    outcome = ground.judge(attack)
    text = encode(outcome)
    found = decode_outcome(text).implementations
    sentences = [f"{reason.sentence} {reason.next_step}" for item in found for reason in item.reasons]
    shown = f"{attack.name} was {outcome.status}: {' / '.join(s[:600] for s in sentences)}"
    assert canary not in text, f"{attack.name} read the judge's environment."
    assert "LEAK" not in text, shown
    assert not ground.left_behind(), f"{attack.name} left {ground.left_behind()}."
    assert fingerprint(ground) == before, f"{attack.name} changed the repository."
    # pytest keeps the last failure, and with it the frames in which calls were made.
    sys.last_value = sys.last_traceback = sys.last_exc = None
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors + 4, f"{attack.name} made the judge keep descriptors."
    assert outcome.status in attack.expect, shown
    if outcome.status != "passed":
        assert sentences, f"{attack.name} was not told why."
        assert not attack.says or any(part in s for part in attack.says.split("|") for s in sentences), shown
    assert_no_better(attack, outcome)


def whole(attack: Attack) -> Header:
    """The attack's header without its limits."""
    return dataclasses.replace(attack.header, limits={})


def assert_no_better(attack: Attack, outcome: Outcome) -> None:
    """An attack that passes is not found faster than what it was measured against, and its times are at least the true ones."""
    for item in outcome.implementations:
        assert item.status != "passed" or item.speed != "faster", f"{attack.name} passed as faster: {item.summary}"
        if attack.covers_all and item.performance is not None:
            published = [
                case.name for case in kind_named(item.kind or "").cases("performance", whole(attack), environment())
            ]
            for pair in item.performance.pairs:
                assert sorted(pair.head) == sorted(published), f"{attack.name} chose what it is compared on."
        if attack.at_least_ms:
            assert item.performance is not None
            assert item.performance.pairs
            for pair in item.performance.pairs:
                assert min(pair.head.values()) * 1e3 >= attack.at_least_ms, f"{attack.name} stopped the judge's clock."


@pytest.mark.parametrize("attack", cases(quick=True))
def test_attack(attack: Attack, shooting_range: Range, canary: str) -> None:
    """It does not pass where an honest module would not, scores no better, reads nothing and harms nothing."""
    check(attack, shooting_range, canary)


@pytest.mark.slow  # pairs of fresh processes, or limits that have to run out
@pytest.mark.timeout(600)
@pytest.mark.parametrize("attack", cases(quick=False))
def test_slow_attack(attack: Attack, shooting_range: Range, canary: str) -> None:
    """It does not pass where an honest module would not, scores no better, reads nothing and harms nothing."""
    check(attack, shooting_range, canary)


def test_every_attack_says_what_it_tries() -> None:
    """Each file has a block, a docstring, and a device; each family has a member."""
    found = [parse(path) for path in sorted((HERE / "files").rglob("*.py"))]
    assert len({attack.path.stem for attack in found}) == len(found)
    for attack in found:
        source = attack.path.read_text()
        assert '"""' in source.split("\n\n")[0], f"{attack.name} does not say what it tries."
        assert attack.header.name == attack.path.stem.replace("_", "-")
    assert any(DEVICE in attack.header.devices for attack in found)
