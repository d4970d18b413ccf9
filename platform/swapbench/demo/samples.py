"""The sample pull requests, and the local forge that they are opened on."""

import os
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from django.conf import settings

PULLS = settings.ROOT / "demo" / "pulls"
# Fixed, so that the same sample is the same commit on every machine and in every run.
WHEN = "2026-01-01T00:00:00+00:00"


class DemoError(Exception):
    """The demo cannot begin; `str(error)` says why and what to do."""


@dataclass(frozen=True)
class Sample:
    """One sample pull request: a folder of demo/pulls, with what should come of it."""

    number: int
    folder: Path
    title: str
    author_name: str
    author_email: str
    expected: dict[str, Any]
    note: str


def samples(folder: Path = PULLS) -> list[Sample]:
    """The samples in the order of their folders' names, numbered from 1."""
    found = []
    for number, file in enumerate(sorted(folder.glob("*/pull.toml")), start=1):
        values = tomllib.loads(file.read_text(encoding="utf-8"))
        found.append(
            Sample(
                number,
                file.parent,
                values["title"],
                values["author_name"],
                values["author_email"],
                values["expected"],
                values.get("note", ""),
            )
        )
    if not found:
        raise DemoError(f"There are no sample pull requests in {folder}.")
    return found


def open_forge(forge: Path, pulls: list[Sample]) -> None:
    """Makes the local forge where there is none: main is this checkout, refs/pull/N/head are the samples.

    A forge that exists is kept as it is, merges included. Raises DemoError where this checkout's slot contracts have changed
    since it was made: workers would refuse its base.
    """
    if (forge / "refs").exists():
        before = _git(forge, "rev-parse", "--verify", "--quiet", "refs/heads/main:engine/slots")
        if before != _tree_of_contracts(forge):
            raise DemoError(
                "The engine's slot contracts have changed since this demo began. Start over: make demo ARGS=--fresh"
            )
    else:
        forge.parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "init", "--quiet", "--bare", "--initial-branch=main", str(forge)], check=True)
        # Workers ask for exact commits, which no branch needs to name.
        _git(forge, "config", "uploadpack.allowAnySHA1InWant", "true")
        main = _commit(forge, _tree_of_checkout(forge), "Start from the checkout", "Swapbench", "demo@example.org")
        _git(forge, "update-ref", "refs/heads/main", main)
    root = _git(forge, "rev-list", "--max-parents=0", "refs/heads/main")
    for sample in pulls:
        ref = f"refs/pull/{sample.number}/head"
        if not _git(forge, "rev-parse", "--verify", "--quiet", ref, check=False):
            _git(forge, "update-ref", ref, _pull(forge, root, sample))


def _pull(forge: Path, parent: str, sample: Sample) -> str:
    index = forge / f"index.pull-{sample.number}"
    environment = {"GIT_INDEX_FILE": str(index)}
    try:
        _git(forge, "read-tree", parent, environment=environment)
        files = sample.folder / "files"
        for path in sorted(path for path in files.rglob("*") if path.is_file()):
            blob = _git(forge, "hash-object", "-w", "--no-filters", "--", str(path))
            inside = path.relative_to(files).as_posix()
            _git(forge, "update-index", "--add", "--cacheinfo", f"100644,{blob},{inside}", environment=environment)
        tree = _git(forge, "write-tree", environment=environment)
    finally:
        index.unlink(missing_ok=True)
    return _commit(forge, tree, sample.title, sample.author_name, sample.author_email, parent)


def _tree_of_checkout(forge: Path) -> str:
    """A tree of this checkout's files, ignored ones left out, whether or not it is a git repository."""
    index = forge / "index.checkout"
    environment = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(settings.ROOT)}
    try:
        _git(forge, "add", "--all", ".", environment=environment, folder=settings.ROOT)
        return _git(forge, "write-tree", environment=environment)
    finally:
        index.unlink(missing_ok=True)


def _tree_of_contracts(forge: Path) -> str:
    """The SHA that git gives to this checkout's engine/slots."""
    index = forge / "index.contracts"
    environment = {"GIT_INDEX_FILE": str(index), "GIT_WORK_TREE": str(settings.ROOT)}
    try:
        _git(forge, "add", "--all", "engine/slots", environment=environment, folder=settings.ROOT)
        return _git(forge, "rev-parse", f"{_git(forge, 'write-tree', environment=environment)}:engine/slots")
    finally:
        index.unlink(missing_ok=True)


def _commit(forge: Path, tree: str, message: str, name: str, email: str, parent: str | None = None) -> str:
    person = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", name), ("EMAIL", email), ("DATE", WHEN))
    }
    parents = ["-p", parent] if parent else []
    return _git(forge, "commit-tree", tree, *parents, "-m", message, environment=person)


def _git(
    forge: Path,
    *arguments: str,
    environment: dict[str, str] | None = None,
    folder: Path | None = None,
    check: bool = True,
) -> str:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    done = subprocess.run(
        ["git", "--git-dir", str(forge), *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=kept | (environment or {}),
        check=False,
    )
    if done.returncode != 0 and check:
        raise DemoError(f"git {arguments[0]} failed: {done.stderr.strip()}")
    return done.stdout.strip() if done.returncode == 0 else ""
