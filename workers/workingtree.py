"""The slot files that a contributor has changed, as a commit that can be judged: what `swapbench check` makes of a working tree."""

import os
import subprocess
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from engine.slots.header import FOLDERS, kind_of_path
from workers.protocol import SlotFile


class WorkingTreeError(Exception):
    """The working tree cannot be judged; `str(error)` says why and what to do."""


@dataclass(frozen=True)
class WorkingTree:
    """A base commit, a head commit that holds the working tree's slot files on top of it, and which files differ."""

    git_dir: Path
    base_sha: str
    head_sha: str
    files: tuple[SlotFile, ...]


def read_working_tree(folder: Path, base: str, only: list[str] | None = None) -> WorkingTree:
    """Compares the working tree around `folder` with the commit that `base` names. Raises WorkingTreeError.

    The head commit is written to the repository's object store without touching branch, index or files.
    """
    top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    git_dir = Path(_git(top, "rev-parse", "--absolute-git-dir").strip())
    base_sha = _git(
        top, "rev-parse", "--verify", "--quiet", f"{base}^{{commit}}", what=f"There is no commit {base!r}"
    ).strip()
    folders = [f"engine/{name}" for name in FOLDERS.values()]
    files = []
    for path, state in _states(top, base_sha, *folders).items():
        kind = kind_of_path(path)
        if kind is None or (only and path not in only):
            continue
        if state == "D":
            raise WorkingTreeError(
                f"{path} is deleted. Deleting an implementation needs its owner or a maintainer; nothing is judged."
            )
        if (top / path).is_symlink():
            raise WorkingTreeError(f"{path} is a symlink; a slot file must be a regular file.")
        files.append(SlotFile(path, kind, "added" if state == "A" else "modified"))  # type: ignore[arg-type]
    if only and (missing := sorted(set(only) - {file.path for file in files})):
        raise WorkingTreeError(f"{missing[0]} does not differ from {base}, or is no slot file.")
    return WorkingTree(git_dir, base_sha, _commit(top, base_sha, files), tuple(files))


def misplaced(folder: Path, base: str) -> list[str]:
    """Files that differ from `base` and begin as slot files do, but lie or are called otherwise."""
    top = Path(_git(folder, "rev-parse", "--show-toplevel").strip())
    found = []
    for path, state in _states(top, base, "*.py").items():
        if state == "D" or kind_of_path(path) is not None:
            continue
        with suppress(OSError), (top / path).open("rb") as file:
            if file.readline().strip() == b"# /// swapbench":
                found.append(path)
    return found


def _states(top: Path, base: str, *paths: str) -> dict[str, str]:
    """What differs from `base` among `paths`, untracked files included, in order: git's letter by path."""
    changed = _git(top, "diff", "--name-status", "--no-renames", "-z", base, "--", *paths).split("\0")
    states = dict(zip(changed[1::2], changed[0::2], strict=False))
    untracked = _git(top, "ls-files", "--others", "--exclude-standard", "-z", "--", *paths).split("\0")
    return dict(sorted((states | {path: "A" for path in untracked if path}).items()))


def _commit(top: Path, base_sha: str, files: list[SlotFile]) -> str:
    with tempfile.TemporaryDirectory(prefix="swapbench-") as folder:
        index = {"GIT_INDEX_FILE": str(Path(folder, "index"))}
        _git(top, "read-tree", base_sha, environment=index)
        for file in files:
            blob = _git(top, "hash-object", "-w", "--no-filters", "--", file.path).strip()
            _git(top, "update-index", "--add", "--cacheinfo", f"100644,{blob},{file.path}", environment=index)
        tree = _git(top, "write-tree", environment=index).strip()
    person = {
        f"GIT_{who}_{what}": value
        for who in ("AUTHOR", "COMMITTER")
        for what, value in (("NAME", "swapbench check"), ("EMAIL", "check@localhost"))
    }
    return _git(top, "commit-tree", tree, "-p", base_sha, "-m", "Working tree", environment=person).strip()


def _git(folder: Path, *arguments: str, what: str = "", environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True,
            text=True,
            errors="surrogateescape",
            env=os.environ | (environment or {}),
            check=False,
            timeout=60,
        )
    except FileNotFoundError:
        raise WorkingTreeError("git is not installed.") from None
    if done.returncode != 0:
        said = done.stderr.strip()
        raise WorkingTreeError(f"{what or f'git {arguments[0]} failed'}{f': {said}' if said else '.'}")
    return done.stdout
