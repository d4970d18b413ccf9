"""The hostile slot files below files/, and the place where they are judged: a small repository, a job, and the real worker path."""

import os
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.slots.header import FOLDERS, Header, parse_header
from workers.attempt import make_attempt
from workers.judge.machine import machine_class
from workers.protocol import Job, Outcome, Policy, Progress
from workers.sandbox.confinement import FIRST_UID, SLOTS
from workers.workingtree import WorkingTree, read_working_tree

HERE = Path(__file__).resolve().parent
ENGINE = HERE.parent.parent / "engine"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CANARY = "SWAPBENCH_CANARY"
SLOT = 11
"""Number of the unprivileged user of these tests' hosts: one that no worker and no other test takes."""


@dataclass(frozen=True)
class Attack:
    """A hostile slot file, and what is expected of it, which its `# /// attack` block declares in TOML.

    expect: statuses that are acceptable. says: alternatives, separated by |, of which one must stand in a reason. quick: belongs to the
    quick share of the corpus. suites: those that it is run through. at_least_ms: what each of its calls takes in truth. stage_seconds: time for
    each stage. unstopped: why it succeeds for now, which docs/threat-model.md says, too. covers_all: its score must be over all published cases, not only over those that it chose.
    """

    path: Path
    expect: tuple[str, ...]
    says: str = ""
    quick: bool = False
    suites: tuple[str, ...] = ("unit",)
    at_least_ms: float = 0.0
    stage_seconds: float = 0.0
    covers_all: bool = False
    unstopped: str = ""

    @property
    def name(self) -> str:
        """FAMILY/IDEA."""
        return f"{self.path.parent.name}/{self.path.stem}"

    @property
    def header(self) -> Header:
        """What the file declares as an implementation."""
        return parse_header(self.path.read_text())

    @property
    def target(self) -> str:
        """Where the file would lie in a pull request."""
        return f"engine/{FOLDERS[self.header.kind]}/{self.path.stem}.py"


def parse(path: Path) -> Attack:
    """The attack in `path`. Raises ValueError where its block is missing."""
    before, start, rest = path.read_text().partition("# /// attack\n")
    block, end, _ = rest.partition("# ///\n")
    if before or not start or not end:
        raise ValueError(f"{path} does not begin with an '# /// attack' block.")
    values = tomllib.loads("\n".join(line.removeprefix("# ") for line in block.splitlines()))
    values["expect"] = tuple(values["expect"])
    values["suites"] = tuple(values.get("suites", ["unit"]))
    return Attack(path=path, **values)


def attacks() -> list[Attack]:
    """Every attack for this machine's device."""
    found = [parse(path) for path in sorted((HERE / "files").rglob("*.py"))]
    return [attack for attack in found if DEVICE in attack.header.devices]


class Range:
    """A repository that holds the engine, where one attack at a time is committed and judged as a worker would."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "repository"
        self.workspaces = folder / "workspaces"
        self.workspaces.mkdir()
        ignored = shutil.ignore_patterns("__pycache__", "checkpoints")
        shutil.copytree(ENGINE, self.repository / "engine", ignore=ignored)
        person = ["-c", "user.name=Sample", "-c", "user.email=sample@example.org"]
        for arguments in (["init", "-q"], ["add", "engine"], [*person, "commit", "-q", "-m", "Engine"]):
            subprocess.run(["git", "-C", str(self.repository), *arguments], check=True, capture_output=True)

    def commit(self, attack: Attack) -> WorkingTree:
        """The repository with the attack's file as head."""
        target = self.repository / attack.target
        shutil.copy(attack.path, target)
        try:
            return read_working_tree(self.repository, "HEAD", [attack.target])
        finally:
            target.unlink()

    def judge(self, attack: Attack) -> Outcome:
        """The outcome of one attempt on the attack."""
        tree = self.commit(attack)
        job = Job(
            attempt="attack",
            token="0" * 63 + "1",
            repository=str(tree.git_dir),
            base_sha=tree.base_sha,
            head_sha=tree.head_sha,
            head_ref="HEAD",
            files=tree.files,
            machine_class=machine_class(),
            suites=attack.suites,  # type: ignore[arg-type]
            policy=Policy(max_pairs=8),
        )
        if attack.stage_seconds:
            for stage in ("unit", "integration", "performance"):
                job.stage_seconds[stage] = attack.stage_seconds  # type: ignore[index]
        said: list[Progress] = []
        return make_attempt(job, said.append, tree.git_dir, slot=SLOT, temporary=self.workspaces)

    def left_behind(self) -> list[str]:
        """What an attempt should have taken away with it: workspaces, and processes of its hosts."""
        found = [str(path) for path in self.workspaces.iterdir()]
        return found + [f"process {pid}" for pid in hosts_alive()]


def hosts_alive() -> Iterator[int]:
    """Processes that a host of these tests started or is: those of its user, or where hosts have none of their own, this process's children."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if status["State"].split()[0] in "ZX":
            continue
        users = [FIRST_UID + SLOT + number * (SLOTS // 4) for number in range(4)]
        own = os.geteuid() == 0 and int(status["Uid"].split()[0]) in users
        child = os.geteuid() != 0 and int(status["PPid"]) == os.getpid()
        if own or child:
            yield int(entry.name)
