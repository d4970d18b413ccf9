"""A git repository that holds this checkout's engine, and pull requests against it, for tests that make real attempts."""

import os
import secrets
import shutil
import subprocess
from pathlib import Path

from engine.slots.header import kind_of_path
from workers.protocol import Job, Policy, SlotFile, SuiteName

ROOT = Path(__file__).resolve().parent.parent.parent
PERSON = {
    f"GIT_{who}_{what}": value
    for who in ("AUTHOR", "COMMITTER")
    for what, value in (("NAME", "alice"), ("EMAIL", "alice@example.org"))
}


class Repository:
    """A repository in `folder` with one commit: the engine as it lies in this checkout, without its checkpoints."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(
            ROOT / "engine", folder / "engine", ignore=shutil.ignore_patterns("__pycache__", "checkpoints", "*.partial")
        )
        self.git("init", "--quiet", "--initial-branch=main")
        self.base_sha = self.commit("The engine")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(
            ["git", "-C", str(self.folder), *arguments],
            capture_output=True,
            text=True,
            check=True,
            env=os.environ | PERSON | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": "/dev/null"},
        )
        return done.stdout.strip()

    def commit(self, message: str) -> str:
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def pull(self, files: dict[str, bytes | str], message: str = "A change") -> str:
        """The SHA of a commit on top of base with these files; the working tree is back at base afterwards."""
        for path, content in files.items():
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content if isinstance(content, bytes) else content.encode())
        head = self.commit(message)
        self.git("reset", "--quiet", "--hard", self.base_sha)
        return head

    def job(self, head_sha: str, *paths: str, suites: tuple[SuiteName, ...] = ("unit",), **fields: object) -> Job:
        """A job that judges `paths` of the commit."""
        files = tuple(
            SlotFile(path, kind_of_path(path) or "attention", "modified" if self.at_base(path) else "added")  # type: ignore[arg-type]
            for path in paths
        )
        values: dict[str, object] = {
            "attempt": f"test-{secrets.token_hex(4)}",
            "token": secrets.token_hex(32),
            "repository": str(self.folder),
            "base_sha": self.base_sha,
            "head_sha": head_sha,
            "head_ref": "HEAD",
            "files": files,
            "machine_class": "cpu-x86",
            "suites": suites,
            "policy": Policy(),
        }
        return Job(**(values | fields))  # type: ignore[arg-type]

    def at_base(self, path: str) -> bool:
        return (self.folder / path).exists()


def header(
    kind: str = "normalization", name: str = "tried", quality_class: str = "E", dtypes: str = '["float32"]'
) -> str:
    """A slot file's header and the imports that follow it."""
    return f"""# /// swapbench
# kind = "{kind}"
# name = "{name}"
# class = "{quality_class}"
# devices = ["cpu"]
# dtypes = {dtypes}
# summary = "For a test."
# ///
import torch
from engine.slots.registry import register
"""


NORM = """

@register("normalization", "tried")
class Tried:
    def __init__(self, eps):
        self.eps = eps

    def forward(self, x, residual, weight):
        hidden = x if residual is None else x + residual
        wide = hidden.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps) * weight.float()).to(x.dtype), hidden
"""
