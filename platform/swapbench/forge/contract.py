"""What a forge is to the control plane."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol


class ForgeError(Exception):
    """The forge could not be asked or would not do it; `str(error)` says what happened. Worth another try later."""


class NoSuchPullRequest(ForgeError):
    """The forge has no pull request of that number (any more)."""


class NotFastForward(ForgeError):
    """The branch is not where it was expected to be; nothing was changed."""


@dataclass(frozen=True)
class PullRequestInfo:
    """A pull request as the forge describes it now."""

    number: int
    title: str
    author: str
    author_email: str
    trusted_author: bool
    head_sha: str
    head_ref: str
    """A ref of `Forge.repository()` from which `head_sha` can be fetched."""
    base_ref: str
    draft: bool
    state: Literal["open", "merged", "closed"]
    url: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True)
class ReportText:
    """What is to be said about one head SHA: the check run, and the comment that is kept up to date."""

    head_sha: str
    title: str
    conclusion: Literal["", "success", "failure", "neutral", "action_required"]
    """"" while the submission is still being judged."""
    markdown: str
    details_url: str


@dataclass(frozen=True)
class PublishedReport:
    """Identifiers by which the next report replaces this one."""

    check_run: str = ""
    comment: str = ""


class Forge(Protocol):
    """Where pull requests come from. Every method may raise ForgeError, after which nothing has been changed."""

    name: str
    """"local", or "github:owner/repository"; part of a PullRequest's identity."""

    def repository(self) -> str:
        """What `git fetch` of a worker takes: a path or an address, without credentials."""

    def fetch_environment(self) -> Mapping[str, str]:
        """Variables that `git fetch` of the control plane's mirror needs; they hold credentials and reach no job."""

    def open_pull_requests(self) -> list[PullRequestInfo]:
        """Every open pull request, oldest number first."""

    def pull_request(self, number: int) -> PullRequestInfo:
        """One pull request, open or not."""

    def may_maintain(self, login: str) -> bool:
        """Whether `login` may approve, retry and merge: has write permission on the repository."""

    def branch_tip(self, branch: str) -> str:
        """The commit that a branch is at now."""

    def keep(self, ref: str, sha: str, mirror_path: Path) -> None:
        """Makes `sha`, which `ref` of the git repository at `mirror_path` is at, reachable by the same ref here."""

    def drop(self, ref: str) -> None:
        """Removes such a ref; that there is none is no error."""

    def fast_forward(self, branch: str, old_sha: str, new_sha: str) -> None:
        """Moves `branch` from `old_sha` to `new_sha`, which was kept before.

        Raises NotFastForward where the branch is no longer at `old_sha`.
        """

    def publish(self, number: int, report: ReportText, earlier: PublishedReport, with_comment: bool) -> PublishedReport:
        """Publishes a report in place of an earlier one: the check run, and the sticky comment if `with_comment`."""

    def problems(self) -> list[str]:
        """What keeps the forge from working, each a sentence with what to do; for `manage.py doctor`."""
