"""From a Job to two engine trees on disk: base, and base with head's slot files laid over it. Nothing else of head is taken.

Git is only asked for objects by exact SHA; no working tree is ever checked out, so that no hook, filter or attribute of a
pull request can run.
"""

import os
import secrets
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.slots.header import MAX_SOURCE_BYTES, kind_of_path
from workers.protocol import Job

MAX_FILE_BYTES = 4 * 1024 * 1024
MAX_FILES = 5_000
# Weights belong to the judge; a host gets what it needs call by call.
LEFT_OUT = ("engine/checkpoints/",)


class CheckoutError(Exception):
    """The trees could not be made, for a reason on our side; `str(error)` is a sentence."""


class RefusedFile(Exception):
    """A file of the submission cannot be taken; `path` and `str(error)` are for its author."""

    def __init__(self, path: str, sentence: str) -> None:
        super().__init__(sentence)
        self.path = path


@dataclass(frozen=True)
class Trees:
    """Folders that each hold an `engine/`: at base, and with head's slot files laid over it."""

    base: Path
    head: Path


_GIT = (
    "git",
    "-c",
    "core.hooksPath=/dev/null",
    "-c",
    "core.fsmonitor=false",
    "-c",
    "protocol.version=2",
    "-c",
    "protocol.ext.allow=never",
    "-c",
    "gc.auto=0",
    "-c",
    "safe.directory=*",
)


def _environment() -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    return kept | {"GIT_CONFIG_NOSYSTEM": "1", "GIT_TERMINAL_PROMPT": "0", "GIT_LFS_SKIP_SMUDGE": "1", "LC_ALL": "C"}


def _git(mirror: Path, *arguments: str, timeout: float, stdin: bytes | None = None) -> bytes:
    try:
        done = subprocess.run(
            [*_GIT, "--git-dir", str(mirror), *arguments],
            input=stdin,
            capture_output=True,
            timeout=timeout,
            env=_environment(),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise CheckoutError(f"git {arguments[0]} did not end within {timeout:.0f} s.") from None
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip()[-500:]
        raise CheckoutError(f"git {arguments[0]} failed: {said or f'exit status {done.returncode}'}")
    return done.stdout


def fetch(mirror: Path, job: Job, timeout: float = 30.0) -> None:
    """Brings the job's two commits into the bare repository `mirror`, which is made where it does not exist."""
    if not (mirror / "HEAD").exists():
        mirror.parent.mkdir(parents=True, exist_ok=True)
        _git(mirror, "init", "--quiet", "--bare", timeout=timeout)
    missing = [sha for sha in (job.base_sha, job.head_sha) if not _has_commit(mirror, sha)]
    if missing:
        _git(
            mirror,
            "fetch",
            "--quiet",
            "--no-tags",
            "--no-write-fetch-head",
            "--recurse-submodules=no",
            "--end-of-options",
            job.repository,
            *missing,
            timeout=timeout,
        )
    for sha in missing:
        if not _has_commit(mirror, sha):
            raise CheckoutError(f"Commit {sha} could not be fetched.")
        # Keeps the object from being pruned while this mirror lives.
        _git(mirror, "update-ref", f"refs/swapbench/{sha}", sha, timeout=timeout)


def _has_commit(mirror: Path, sha: str) -> bool:
    try:
        return _git(mirror, "cat-file", "-t", sha, timeout=10).strip() == b"commit"
    except CheckoutError:
        return False


@dataclass(frozen=True)
class _Entry:
    mode: str
    kind: str
    sha: str
    size: int
    path: str


def _listing(mirror: Path, sha: str, paths: Iterable[str]) -> list[_Entry]:
    raw = _git(mirror, "ls-tree", "-r", "-z", "--long", "--full-tree", sha, "--", *paths, timeout=20)
    entries = []
    for record in raw.split(b"\0"):
        if not record:
            continue
        left, path = record.split(b"\t", 1)
        mode, kind, object_sha, size = left.split()
        entries.append(
            _Entry(
                mode.decode(),
                kind.decode(),
                object_sha.decode(),
                0 if size == b"-" else int(size),
                path.decode("utf-8", "surrogateescape"),
            )
        )
    return entries


def _blobs(mirror: Path, shas: list[str]) -> list[bytes]:
    raw = _git(mirror, "cat-file", "--batch", timeout=30, stdin="".join(f"{sha}\n" for sha in shas).encode())
    blobs = []
    at = 0
    for _ in shas:
        end = raw.index(b"\n", at)
        size = int(raw[at:end].split()[2])
        blobs.append(raw[end + 1 : end + 1 + size])
        at = end + 1 + size + 1
    return blobs


def lay_out(mirror: Path, job: Job, folder: Path) -> Trees:
    """Writes both trees below `folder`. Raises CheckoutError for base's faults, RefusedFile for those of head's files."""
    # A host can read in /proc/self/mountinfo where its files lie outside: the folder must not tell it which side it is.
    trees = Trees(folder / secrets.token_hex(8), folder / secrets.token_hex(8))
    entries = [e for e in _listing(mirror, job.base_sha, ["engine"]) if not e.path.startswith(LEFT_OUT)]
    if not entries:
        raise CheckoutError(f"Commit {job.base_sha} has no folder engine/.")
    if len(entries) > MAX_FILES or any(e.size > MAX_FILE_BYTES for e in entries):
        raise CheckoutError(f"The engine at {job.base_sha} has too many or too large files.")
    if any(e.mode not in ("100644", "100755") for e in entries):
        raise CheckoutError(f"The engine at {job.base_sha} holds a symlink or submodule.")
    for entry, data in zip(entries, _blobs(mirror, [e.sha for e in entries]), strict=True):
        _write(trees.base / entry.path, data)
    shutil.copytree(trees.base, trees.head)
    for file in job.files:
        if kind_of_path(file.path) is None:
            raise RefusedFile(file.path, f"{file.path!r} is no slot file.")
        found = _listing(mirror, job.head_sha, [f":(literal){file.path}"])
        if len(found) != 1 or found[0].path != file.path:
            raise RefusedFile(file.path, f"{file.path} does not exist in commit {job.head_sha[:12]}.")
        if found[0].mode not in ("100644", "100755"):
            raise RefusedFile(file.path, f"{file.path} is not a regular file; symlinks and submodules are not taken.")
        if found[0].size > MAX_SOURCE_BYTES:
            raise RefusedFile(
                file.path,
                f"{file.path} has {found[0].size:,} bytes; a slot file may have at most {MAX_SOURCE_BYTES:,}.",
            )
        _write(trees.head / file.path, _blobs(mirror, [found[0].sha])[0])
    return trees


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
