"""All that the control plane does with git: objects by exact SHA, in a bare repository; no tree is ever checked out.

So no hook, filter, attribute or submodule of a pull request can run or be followed, and names may hold any byte.
"""

import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

TIMEOUT = 60.0
COMMITTER = {
    "GIT_AUTHOR_NAME": "Swapbench",
    "GIT_AUTHOR_EMAIL": "swapbench@localhost",
    "GIT_COMMITTER_NAME": "Swapbench",
    "GIT_COMMITTER_EMAIL": "swapbench@localhost",
}
_GIT = (
    "git",
    *("-c", "core.hooksPath=/dev/null"),
    *("-c", "core.fsmonitor=false"),
    *("-c", "protocol.allow=never"),
    *("-c", "protocol.file.allow=always"),
    *("-c", "protocol.https.allow=always"),
    *("-c", "fetch.recurseSubmodules=false"),
    *("-c", "gc.auto=0"),
    *("-c", "maintenance.auto=false"),
    *("-c", "safe.directory=*"),
    *("-c", "commit.gpgSign=false"),
    *("-c", "merge.renames=false"),
)


class GitError(Exception):
    """git did not do as asked; `str(error)` says what it said."""


@dataclass(frozen=True)
class Change:
    """One path that differs between two trees. `status` is git's: A, D, M, T (type changed)."""

    path: bytes
    status: str
    mode: str
    """Of the new side: "100644", "100755", "120000" (symlink), "160000" (submodule), "000000" (deleted)."""
    blob: str

    @property
    def shown(self) -> str:
        """The path for people: undecodable bytes and control characters escaped."""
        return show_path(self.path)


@dataclass(frozen=True)
class Entry:
    """An entry of a tree."""

    path: bytes
    mode: str
    blob: str
    size: int


def show_path(path: bytes) -> str:
    """A path for people, at most 200 characters: undecodable bytes and control characters escaped."""
    text = path.decode("utf-8", "backslashreplace")
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return text if len(text) <= 200 else text[:199] + "…"


def environment(extra: Mapping[str, str] = {}) -> dict[str, str]:
    """What git gets to see: nothing that could make it run or read something else than it was told."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    fixed = {
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_LFS_SKIP_SMUDGE": "1",
        "LC_ALL": "C",
    }
    return kept | fixed | dict(extra)


def git(
    repository: Path,
    *arguments: str,
    stdin: bytes | None = None,
    extra: Mapping[str, str] = {},
    ok: tuple[int, ...] = (0,),
    cwd: Path | None = None,
) -> tuple[int, bytes]:
    """Runs git on a bare repository: (exit status, stdout). Raises GitError for a status that is not in `ok`."""
    try:
        done = subprocess.run(
            [*_GIT, "--git-dir", str(repository), *arguments],
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            cwd=cwd,
            env=environment(extra),
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise GitError(f"git {arguments[0]} did not end within {TIMEOUT:.0f} s.") from None
    except FileNotFoundError:
        raise GitError("git is not installed; install it (apt install git).") from None
    if done.returncode not in ok:
        said = done.stderr.decode("utf-8", "replace").strip()[-500:]
        raise GitError(f"git {arguments[0]} failed: {said or f'exit status {done.returncode}'}")
    return done.returncode, done.stdout


class Mirror:
    """The control plane's bare repository, into which pull requests are fetched."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not (path / "HEAD").exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            git(path, "init", "--quiet", "--bare", "--initial-branch=main")

    def _git(
        self, *arguments: str, stdin: bytes | None = None, extra: Mapping[str, str] = {}, ok: tuple[int, ...] = (0,)
    ) -> bytes:
        return git(self.path, *arguments, stdin=stdin, extra=extra, ok=ok)[1]

    def fetch(self, repository: str, refs: Iterable[str], extra: Mapping[str, str] = {}) -> list[str]:
        """Fetches refs into refs/swapbench/mirror/... and returns the commits that they are at, in order."""
        wanted = list(refs)
        kept = [f"refs/swapbench/mirror/{ref.removeprefix('refs/')}" for ref in wanted]
        pairs = [f"+{ref}:{into}" for ref, into in zip(wanted, kept, strict=True)]
        self._git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", repository, *pairs, extra=extra)
        return [self._git("rev-parse", "--verify", f"{ref}^{{commit}}").decode().strip() for ref in kept]

    def has_commit(self, sha: str) -> bool:
        """Whether the commit is here."""
        return git(self.path, "cat-file", "-e", f"{sha}^{{commit}}", ok=(0, 1, 128))[0] == 0

    def is_ancestor(self, older: str, newer: str) -> bool:
        """Whether `older` can be reached from `newer`."""
        return git(self.path, "merge-base", "--is-ancestor", older, newer, ok=(0, 1))[0] == 0

    def merge_base(self, one: str, other: str) -> str | None:
        """The best common ancestor; None where the histories share no commit."""
        found = self._git("merge-base", one, other, ok=(0, 1)).decode().split()
        return found[0] if found else None

    def changes(self, old: str, new: str) -> list[Change]:
        """What differs between two trees; a rename is a deletion and an addition."""
        fields = self._git("diff-tree", "-r", "-z", "--raw", "--no-renames", "--no-abbrev", old, new).split(b"\0")
        changes = []
        for meta, path in zip(fields[0::2], fields[1::2], strict=False):
            _, mode, _, blob, status = meta.decode().split(" ")
            changes.append(Change(path, status[0], mode, blob))
        return changes

    def entries(self, commit: str, folder: str) -> list[Entry]:
        """The files directly in `folder` (with a trailing slash) of a commit."""
        found = []
        for line in self._git("ls-tree", "-z", "-l", commit, "--", folder).split(b"\0"):
            if line:
                meta, path = line.split(b"\t", 1)
                mode, _, blob, size = meta.decode().split()
                found.append(Entry(path, mode, blob, int(size) if size != "-" else 0))
        return found

    def blob_at(self, commit: str, path: str) -> str:
        """The blob at a path of a commit; "" where there is none."""
        line = self._git("ls-tree", "-z", commit, "--", f":(literal){path}")
        return line.split(b"\t", 1)[0].decode().split()[2] if line else ""

    def sizes(self, blobs: Iterable[str]) -> dict[str, int]:
        """Sizes in bytes of blobs, read from their headers alone; a blob that is not here is left out."""
        wanted = list(dict.fromkeys(blobs))
        said = self._git("cat-file", "--batch-check", stdin="".join(f"{blob}\n" for blob in wanted).encode())
        sizes = {}
        for line in said.decode().splitlines():
            words = line.split()
            if len(words) == 3 and words[1] == "blob":
                sizes[words[0]] = int(words[2])
        return sizes

    def read_blob(self, blob: str) -> bytes:
        """The bytes of a blob; ask `sizes` first."""
        return self._git("cat-file", "blob", blob)

    def first_author(self, commit: str, path: str) -> tuple[str, str]:
        """Name and e-mail of who added the file first; ("", "") where history does not tell."""
        log = self._git(
            "log", "--diff-filter=A", "--no-renames", "--format=%an%x00%ae", commit, "--", f":(literal){path}"
        )
        lines = log.decode("utf-8", "replace").splitlines()
        name, _, email = lines[-1].partition("\0") if lines else ("", "", "")
        return name, email

    def merge_tree(self, ours: str, theirs: str) -> tuple[str, list[str]]:
        """The tree that merging two commits gives, and the paths that conflict (then the tree is of no use).

        Raises GitError where the histories share no commit.
        """
        status, said = git(
            self.path, "merge-tree", "--write-tree", "-z", "--name-only", "--no-messages", ours, theirs, ok=(0, 1)
        )
        tree, *conflicts = said.split(b"\0")
        return tree.decode().strip(), [show_path(path) for path in conflicts if path] if status else []

    def commit_tree(self, tree: str, parents: Iterable[str], message: str) -> str:
        """A new commit of `tree`, made by the platform; its SHA."""
        arguments = [argument for parent in parents for argument in ("-p", parent)]
        return self._git("commit-tree", tree, *arguments, stdin=message.encode(), extra=COMMITTER).decode().strip()

    def keep(self, ref: str, sha: str) -> None:
        """Points a ref at a commit, so that it is not pruned."""
        self._git("update-ref", ref, sha)


def mirror() -> Mirror:
    """The mirror of this instance, made where it is not there yet."""
    return Mirror(settings.VAR / "mirror.git")
