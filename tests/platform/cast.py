"""The cast and the stage of the platform's tests: alice, bob and charlie, a real git forge, and outcomes to record.

`Forge` writes commits into a bare repository as contributors would push them; nothing here replaces a part of the platform.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

from swapbench.forge.local import LocalForge
from swapbench.forge.mirror import COMMITTER, git
from swapbench.intake.take_in import take_in
from swapbench.submissions.models import Attempt, Submission
from tests.platform.outcomes import implementation
from workers.protocol import ImplementationOutcome, Outcome, StageReport, Status, encode, sign

PEOPLE = {name: f"{name}@example.org" for name in ("alice", "bob", "charlie", "dora")}
MAINTAINER = "dora"
MACHINE = "cpu-test"
DEFAULTS = {
    "engine/attention/plain.py": ("attention", "plain", "E"),
    "engine/normalization/plain.py": ("normalization", "plain", "E"),
}


def source(kind: str = "attention", name: str = "swift", quality_class: str = "E", body: str = "x = 1") -> str:
    """A slot file with a header that is in order."""
    return (
        f'# /// swapbench\n# kind = "{kind}"\n# name = "{name}"\n# class = "{quality_class}"\n'
        f'# devices = ["cpu"]\n# dtypes = ["float32"]\n# summary = "A sample."\n# ///\n{body}\n'
    )


@dataclass
class Repository:
    """The bare repository of the local forge, and what people push to it."""

    path: Path
    _count: int = field(default=0)

    def start(self) -> "Repository":
        git(self.path, "init", "--quiet", "--bare", "--initial-branch=main")
        git(self.path, "config", "uploadpack.allowAnySHA1InWant", "true")
        files = {path: source(*what) for path, what in DEFAULTS.items()} | {"README.md": "An engine.\n"}
        self.commit("refs/heads/main", "The engine", files, author=MAINTAINER)
        return self

    def commit(
        self,
        ref: str,
        title: str,
        files: dict[str, str | bytes | None],
        author: str = "alice",
        base: str | None = None,
        modes: dict[str, str] | None = None,
    ) -> str:
        """Commits files (None deletes) onto `base`, by default where `ref` is, and points `ref` there; its SHA."""
        parent = base or self.sha(ref)
        index = {"GIT_INDEX_FILE": str(self.path / f"index-{os.getpid()}-{self._count}")}
        self._count += 1
        if parent:
            git(self.path, "read-tree", parent, extra=index)
        for path, content in files.items():
            mode = (modes or {}).get(path, "100644")
            if content is None:
                line = f"0 {'0' * 40}\t{path}\0"
            else:
                data = content.encode() if isinstance(content, str) else content
                if mode == "160000":
                    blob = "1" * 40
                else:
                    blob = git(self.path, "hash-object", "-w", "--stdin", stdin=data)[1].decode().strip()
                line = f"{mode} {blob}\t{path}\0"
            git(self.path, "update-index", "-z", "--index-info", stdin=line.encode(), extra=index)
        tree = git(self.path, "write-tree", extra=index)[1].decode().strip()
        people = {
            "GIT_AUTHOR_NAME": author,
            "GIT_AUTHOR_EMAIL": PEOPLE.get(author, f"{author}@example.org"),
            "GIT_COMMITTER_NAME": author,
            "GIT_COMMITTER_EMAIL": PEOPLE.get(author, f"{author}@example.org"),
        }
        parents = ["-p", parent] if parent else []
        sha = git(self.path, "commit-tree", tree, *parents, stdin=title.encode(), extra=people)[1].decode().strip()
        git(self.path, "update-ref", ref, sha)
        Path(index["GIT_INDEX_FILE"]).unlink(missing_ok=True)
        return sha

    def pull(
        self,
        number: int,
        files: dict[str, str | bytes | None],
        author: str = "alice",
        title: str = "A swift module",
        base: str | None = None,
        modes: dict[str, str] | None = None,
    ) -> str:
        """Pushes to pull request `number`, which is opened where it is new; the head's SHA."""
        return self.commit(f"refs/pull/{number}/head", title, files, author, base or self.sha("refs/heads/main"), modes)

    def merge(self, ref: str, parents: list[str], tree: str, title: str = "Merged") -> str:
        """Points `ref` at a merge commit whose tree is that of the commit `tree`; its SHA."""
        arguments = [argument for parent in parents for argument in ("-p", parent)]
        made = git(self.path, "commit-tree", f"{tree}^{{tree}}", *arguments, stdin=title.encode(), extra=COMMITTER)
        sha = made[1].decode().strip()
        git(self.path, "update-ref", ref, sha)
        return sha

    def sha(self, ref: str) -> str:
        status, said = git(self.path, "rev-parse", "--verify", "--quiet", ref, ok=(0, 1, 128))
        return said.decode().strip() if status == 0 else ""

    def show(self, ref: str, path: str) -> str:
        return git(self.path, "show", f"{ref}:{path}")[1].decode()


def taken_in(forge: LocalForge, number: int) -> Submission:
    """The submission of a pull request's head, taken in as the poll does."""
    submission = take_in(forge, forge.pull_request(number))
    assert submission is not None
    return submission


def outcome_of(attempt: Attempt, *implementations: ImplementationOutcome, status: Status = "passed") -> str:
    """The outcome's text, as a worker sends it."""
    stages = [StageReport("unit", 1.0), StageReport("performance", 2.0)]
    return encode(Outcome(str(attempt.pk), status, list(implementations), stages, isolation="full", seed="00" * 32))


def signed(attempt: Attempt, text: str) -> tuple[str, str, str]:
    """The arguments of the finished message."""
    return str(attempt.pk), text, sign(attempt.token, text)


__all__ = ["MACHINE", "MAINTAINER", "Repository", "implementation", "outcome_of", "signed", "source", "taken_in"]
