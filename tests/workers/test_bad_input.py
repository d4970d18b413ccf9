"""Slot files that nobody should have sent: each gets a verdict with a sentence, in time, and the worker goes on."""

from pathlib import Path

import pytest

from tests.workers.repository import NORM, Repository, header
from workers.attempt import make_attempt
from workers.protocol import Outcome, Progress

PATH = "engine/normalization/tried.py"


def judge(
    repository: Repository, mirror: Path, files: dict[str, bytes | str], path: str = PATH, **fields: object
) -> Outcome:
    head = repository.pull(files)
    told: list[Progress] = []
    outcome = make_attempt(repository.job(head, path, **fields), told.append, mirror)  # type: ignore[arg-type]
    assert told
    return outcome


CASES = {
    "syntax error": (header() + "def f(:\n", "failed", "SyntaxError in line 11"),
    "import error": (header() + "import no_such_module\n", "failed", "No module named 'no_such_module'"),
    "no header": ("import torch\n", "failed", "has no swapbench header"),
    "header is not TOML": (
        header().replace('kind = "', "kind = ").replace('n"\n', "n\n", 1) + NORM,
        "failed",
        "not valid TOML: Invalid value (line 2)",
    ),
    "header of another kind": (header(kind="attention") + NORM, "failed", "lies in engine/normalization/"),
    "header names another class": (header(name="other") + NORM, "failed", "registers normalization 'tried'"),
    "name is taken": (header(name="plain") + NORM.replace("tried", "plain"), "failed", "The name 'plain' is taken"),
    "registers nothing": (header(), "failed", "registers nothing"),
    "lacks a method": (header() + NORM.replace("def forward", "def backward"), "failed", "lacks forward"),
    "not UTF-8": (header().encode() + b"\n# \xff\xfe\n", "failed", "not UTF-8"),
    "exits": (header() + "import os\nos._exit(7)\n", "failed", "exit status 7"),
    "kills itself": (header() + "import os\nos.kill(os.getpid(), 11)\n", "failed", "host ended"),
    "too much output": (header() + "while True: print('x' * 100000)\n", "failed", "stdout and stderr"),
    "too many processes": (
        header() + "import os, time\nfor _ in range(10000):\n    if os.fork() == 0: time.sleep(60)\n" + NORM,
        "failed",
        "BlockingIOError",
    ),
    "wrong dtype": (
        header() + NORM.replace(".to(x.dtype), hidden", ".double(), hidden"),
        "failed",
        "dtype torch.float64",
    ),
    "wrong shape": (
        header() + NORM.replace(".to(x.dtype), hidden", ".to(x.dtype)[:-1], hidden"),
        "failed",
        "has shape",
    ),
    "returns no tensor": (
        header() + NORM.replace("return (", "return 1, (").replace(", hidden\n", "\n"),
        "failed",
        "tensor",
    ),
    "writes to its input": (
        header() + NORM.replace("wide =", "x.zero_(); wide ="),
        "failed",
        "wrote to a read-only input",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_faulty_file_fails_with_a_sentence(name: str, repository: Repository, mirror: Path) -> None:
    source, status, sentence = CASES[name]
    outcome = judge(repository, mirror, {PATH: source})
    assert outcome.status == status
    (found,) = outcome.implementations
    assert found.status == status
    assert any(sentence in reason.sentence for reason in found.reasons), [r.sentence for r in found.reasons]
    # What the author did not write is no part of a traceback that is theirs to read.
    assert not any("workers/host" in reason.next_step for reason in found.reasons)


def test_an_endless_import_is_timed_out_as_the_codes_fault(repository: Repository, mirror: Path) -> None:
    outcome = judge(
        repository, mirror, {PATH: header() + "while True: pass\n"}, stage_seconds={"checkout": 30.0, "unit": 3.0}
    )
    assert outcome.status == "timed_out_code"
    assert "did not end within" in outcome.implementations[0].reasons[0].sentence


def test_ten_gigabytes_end_the_host_and_not_the_machine(repository: Repository, mirror: Path) -> None:
    source = header() + "held = [bytearray(b'x') * (64 << 20) for _ in range(160)]\n" + NORM
    outcome = judge(repository, mirror, {PATH: source})
    assert outcome.status == "failed"
    assert "memory" in outcome.implementations[0].reasons[0].sentence.lower()


def test_a_symlink_is_not_taken(repository: Repository, mirror: Path) -> None:
    link = repository.folder / PATH
    link.symlink_to("/etc/passwd")
    head = repository.commit("A link")
    repository.git("reset", "--quiet", "--hard", repository.base_sha)
    outcome = make_attempt(repository.job(head, PATH), lambda _: None, mirror)
    assert outcome.status == "failed"
    assert "symlinks" in outcome.reasons[0].sentence


def test_a_large_file_is_not_taken(repository: Repository, mirror: Path) -> None:
    outcome = judge(repository, mirror, {PATH: header() + "#" * (600 * 1024)})
    assert outcome.status == "failed"
    assert "at most 524,288" in outcome.reasons[0].sentence


def test_a_missing_commit_is_our_fault(repository: Repository, mirror: Path) -> None:
    outcome = make_attempt(repository.job("1" * 40, PATH), lambda _: None, mirror)
    assert outcome.status == "invalid_environment"


def test_an_honest_file_passes_after_all_that(repository: Repository, mirror: Path) -> None:
    outcome = judge(repository, mirror, {PATH: header() + NORM})
    assert outcome.status == "passed", outcome
    assert outcome.isolation in ("full", "rlimits", "user")
    assert outcome.job is not None
    assert outcome.job.token == "0" * 64
