"""A bare git repository as forge: pull requests are refs/pull/N/head, and title and author are the head commit's."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from swapbench.forge.contract import (
    ForgeError,
    NoSuchPullRequest,
    NotFastForward,
    PublishedReport,
    PullRequestInfo,
    ReportText,
)
from swapbench.forge.mirror import GitError, git
from swapbench.submissions.policy import policy
from swapbench.submissions.text import clean

PULL_REF = re.compile(r"refs/pull/([1-9][0-9]{0,8})/head")


@dataclass(frozen=True)
class _Pull:
    number: int
    sha: str
    author: str
    email: str
    subject: str


class LocalForge:
    """See `forge.contract.Forge`. Every branch of a pull request goes to the branch SWAPBENCH_BRANCH."""

    name = "local"

    def __init__(self, path: Path) -> None:
        self.path = path

    def _git(self, *arguments: str, stdin: bytes | None = None) -> bytes:
        if not (self.path / "HEAD").exists():
            raise ForgeError(f"The local forge {self.path} does not exist. `manage.py demo` makes one.")
        try:
            return git(self.path, *arguments, stdin=stdin)[1]
        except GitError as error:
            raise ForgeError(str(error)) from None

    def repository(self) -> str:
        return str(self.path)

    def fetch_environment(self) -> Mapping[str, str]:
        return {}

    def open_pull_requests(self) -> list[PullRequestInfo]:
        merged = self._merged()
        return [self._info(pull, False) for pull in self._pulls() if pull.sha not in merged]

    def pull_request(self, number: int) -> PullRequestInfo:
        for pull in self._pulls():
            if pull.number == number:
                return self._info(pull, pull.sha in self._merged())
        raise NoSuchPullRequest(f"There is no pull request {number} in {self.path}.")

    def _pulls(self) -> list["_Pull"]:
        # All in one process: the poll runs beside attempts that measure time.
        form = "%(objecttype)%00%(objectname)%00%(refname)%00%(authorname)%00%(authoremail:trim)%00%(subject)"
        said = self._git("for-each-ref", f"--format={form}", "refs/pull/").decode("utf-8", "replace")
        found = []
        for line in said.split("\n"):
            kind, *rest = [*line.split("\0"), *[""] * 5][:6]
            match = PULL_REF.fullmatch(rest[1])
            if match and kind == "commit":
                found.append(_Pull(int(match[1]), rest[0], rest[2], rest[3], rest[4]))
        return sorted(found, key=lambda pull: pull.number)

    def _merged(self) -> set[str]:
        """Heads that the branch took in by a merge. A head that is merely an ancestor brings nothing, and stays open."""
        branch = f"refs/heads/{settings.SWAPBENCH_BRANCH}"
        said = self._git("rev-list", "--merges", "--first-parent", "--parents", branch)
        merges = [line.split()[2:] for line in said.decode().splitlines()]
        # A build of several entries merges them one after the other on the first-parent line too.
        return {head for heads in merges for head in heads}

    def _info(self, pull: "_Pull", merged: bool) -> PullRequestInfo:
        return PullRequestInfo(
            number=pull.number,
            title=clean(pull.subject)[:300] or f"Pull request {pull.number}",
            author=clean(pull.author)[:120] or "unknown",
            author_email=clean(pull.email)[:254],
            trusted_author=pull.author in policy().maintainers,
            head_sha=pull.sha,
            head_ref=f"refs/pull/{pull.number}/head",
            base_ref=settings.SWAPBENCH_BRANCH,
            draft=False,
            state="merged" if merged else "open",
            url="",
        )

    def may_maintain(self, login: str) -> bool:
        return login in policy().maintainers

    def branch_tip(self, branch: str) -> str:
        return self._git("rev-parse", "--verify", f"refs/heads/{branch}^{{commit}}").decode().strip()

    def keep(self, ref: str, sha: str, mirror_path: Path) -> None:
        self._git("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", str(mirror_path), f"+{ref}:{ref}")
        if self._git("rev-parse", "--verify", ref).decode().strip() != sha:
            raise ForgeError(f"{ref} of {mirror_path} is not at {sha}.")

    def drop(self, ref: str) -> None:
        self._git("update-ref", "-d", ref)

    def fast_forward(self, branch: str, old_sha: str, new_sha: str) -> None:
        try:
            self._git("update-ref", "-m", "swapbench: merged", f"refs/heads/{branch}", new_sha, old_sha)
        except ForgeError as error:
            if self.branch_tip(branch) != old_sha:
                raise NotFastForward(f"{branch} has moved: {error}") from None
            raise

    def publish(self, number: int, report: ReportText, earlier: PublishedReport, with_comment: bool) -> PublishedReport:
        # The Report row is the local forge's comment: pages show it from there.
        name = hashlib.sha256(f"{number} {report.head_sha}".encode()).hexdigest()[:12]
        return PublishedReport(check_run=f"local-{name}", comment=f"local-{number}" if with_comment else "")

    def problems(self) -> list[str]:
        try:
            self.branch_tip(settings.SWAPBENCH_BRANCH)
        except ForgeError as error:
            return [f"{error} Set SWAPBENCH_LOCAL_FORGE to a bare repository, or run `manage.py demo` once."]
        return []
