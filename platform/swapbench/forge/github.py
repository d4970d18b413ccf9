"""GitHub as forge: an App that reads pull requests, writes check runs and one comment, and moves the branch.

The App needs these permissions: contents write, pull requests write, checks write, metadata read.
"""

import base64
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import requests
from github import Auth, Github, GithubException, GithubIntegration, UnknownObjectException
from github.PullRequest import PullRequest as GithubPullRequest
from github.Repository import Repository

from swapbench.forge.contract import (
    ForgeError,
    NoSuchPullRequest,
    NotFastForward,
    PublishedReport,
    PullRequestInfo,
    ReportText,
)
from swapbench.forge.mirror import GitError, git, mirror

P = ParamSpec("P")
R = TypeVar("R")

HOST = "https://github.com"
API = "https://api.github.com"
CHECK_NAME = "swapbench"
MARK = "<!-- swapbench -->"
"""Begins the sticky comment, so that it is found again where its id was lost."""
MAX_TEXT = 60_000
"""GitHub takes at most 65,535 characters in a comment or a check run's summary."""
REPOSITORY = re.compile(r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+")
WRITERS = ("admin", "maintain", "write")
GHOST = "ghost"
"""By this login GitHub itself shows what a deleted account wrote."""
TRUSTED = ("OWNER", "MEMBER", "COLLABORATOR", "CONTRIBUTOR")


def _asked(ask: Callable[P, R]) -> Callable[P, R]:
    """Turns what PyGithub and the network raise into ForgeError."""

    @functools.wraps(ask)
    def asking(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return ask(*args, **kwargs)
        except GithubException as error:
            said = error.data.get("message") if isinstance(error.data, dict) else error.data
            raise ForgeError(f"GitHub answered {error.status}: {said or 'nothing more'}.") from None
        except (requests.RequestException, AssertionError, ValueError) as error:
            raise ForgeError(f"GitHub could not be asked: {type(error).__name__}: {error}") from None

    return asking


class GitHubForge:
    """See `forge.contract.Forge`. `client` may be given in place of one that signs in as the App."""

    def __init__(
        self,
        repository: str,
        app_id: str,
        installation_id: str,
        private_key: str,
        webhook_secret: str,
        host: str = HOST,
        api: str = API,
        client: Github | None = None,
    ) -> None:
        self.name = f"github:{repository}"
        self._repository_name = repository
        self._app_id = app_id
        self._installation_id = installation_id
        self._private_key = private_key
        self._webhook_secret = webhook_secret
        self._host = host.rstrip("/")
        self._api = api.rstrip("/")
        self._client = client

    @functools.cached_property
    def _github(self) -> Github:
        if self._client is not None:
            return self._client
        if missing := self._missing():
            raise ForgeError(missing[0])
        return Github(base_url=self._api, auth=self._auth, timeout=20, retry=2)

    @functools.cached_property
    def _auth(self) -> Any:
        app = Auth.AppAuth(self._app_id, self._private_key)
        if self._installation_id:
            return app.get_installation_auth(int(self._installation_id))
        owner, _, name = self._repository_name.partition("/")
        installation = GithubIntegration(base_url=self._api, auth=app).get_repo_installation(owner, name)
        return app.get_installation_auth(installation.id)

    def _installation_token(self) -> str:
        if missing := self._missing():
            raise ForgeError(missing[0])
        return str(self._auth.token)

    @functools.cached_property
    def _repository(self) -> Repository:
        return self._github.get_repo(self._repository_name)

    def repository(self) -> str:
        return f"{self._host}/{self._repository_name}.git"

    @_asked
    def fetch_environment(self) -> Mapping[str, str]:
        # Through the environment, not the address: a process list shows addresses.
        basic = base64.b64encode(f"x-access-token:{self._installation_token()}".encode()).decode()
        return {
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": f"http.{self._host}/.extraheader",
            "GIT_CONFIG_VALUE_0": f"Authorization: Basic {basic}",
        }

    @_asked
    def open_pull_requests(self) -> list[PullRequestInfo]:
        pulls = self._repository.get_pulls(state="open", sort="created", direction="asc")
        return sorted((_info(pull) for pull in pulls), key=lambda pull: pull.number)

    @_asked
    def pull_request(self, number: int) -> PullRequestInfo:
        try:
            return _info(self._repository.get_pull(number))
        except UnknownObjectException:
            raise NoSuchPullRequest(f"{self._repository_name} has no pull request {number}.") from None

    @_asked
    def may_maintain(self, login: str) -> bool:
        try:
            return self._repository.get_collaborator_permission(login) in WRITERS
        except UnknownObjectException:
            return False

    @_asked
    def branch_tip(self, branch: str) -> str:
        return self._repository.get_git_ref(f"heads/{branch}").object.sha

    def keep(self, ref: str, sha: str, mirror_path: Path) -> None:
        self._push(mirror_path, f"{sha}:{ref}")

    def drop(self, ref: str) -> None:
        # The REST API knows branches and tags only; git knows any ref.
        self._push(mirror().path, f":{ref}")

    def _push(self, mirror_path: Path, what: str) -> None:
        try:
            git(mirror_path, "push", "--quiet", "--no-verify", self.repository(), what, extra=self.fetch_environment())
        except GitError as error:
            raise ForgeError(str(error)) from None

    @_asked
    def fast_forward(self, branch: str, old_sha: str, new_sha: str) -> None:
        # GitHub's own compare-and-set: without force it moves a ref only to a descendant, so that nothing that is pushed in
        # between is lost. It does not see the branch being set back in between; the look before leaves that a moment only.
        tip = self.branch_tip(branch)
        if tip != old_sha:
            raise NotFastForward(f"{branch} is at {tip[:12]}, not at {old_sha[:12]}.")
        try:
            self._repository.get_git_ref(f"heads/{branch}").edit(new_sha, force=False)
        except GithubException as error:
            if error.status == 422 and self.branch_tip(branch) != old_sha:
                raise NotFastForward(f"{branch} has moved.") from None
            raise

    @_asked
    def publish(self, number: int, report: ReportText, earlier: PublishedReport, with_comment: bool) -> PublishedReport:
        check_run = self._check_run(report, earlier.check_run)
        comment = self._comment(number, report, earlier.comment) if with_comment else earlier.comment
        return PublishedReport(check_run, comment)

    def _check_run(self, report: ReportText, earlier: str) -> str:
        said: dict[str, Any] = {
            "details_url": report.details_url,
            "output": {"title": report.title[:250], "summary": _short(report.markdown)},
        }
        if report.conclusion:
            said |= {"status": "completed", "conclusion": report.conclusion}
        else:
            said["status"] = "in_progress"
        if earlier := earlier or self._known_check_run(report.head_sha):
            self._repository.get_check_run(int(earlier)).edit(**said)
            return earlier
        return str(self._repository.create_check_run(name=CHECK_NAME, head_sha=report.head_sha, **said).id)

    def _known_check_run(self, sha: str) -> str:
        """The check run of this App on a commit, whose id was lost by a process that was killed; "" where there is none."""
        for run in self._repository.get_commit(sha).get_check_runs(check_name=CHECK_NAME):
            if str(run.app.id) == self._app_id:
                return str(run.id)
        return ""

    def _comment(self, number: int, report: ReportText, earlier: str) -> str:
        body = f"{MARK}\n{_short(report.markdown)}"
        issue = self._repository.get_issue(number)
        if earlier:
            try:
                issue.get_comment(int(earlier)).edit(body)
                return earlier
            except UnknownObjectException:
                pass  # Somebody deleted it; a new one takes its place.
        else:
            for comment in issue.get_comments():
                if comment.body.startswith(MARK) and comment.user is not None and comment.user.type == "Bot":
                    comment.edit(body)
                    return str(comment.id)
        return str(issue.create_comment(body).id)

    def _missing(self) -> list[str]:
        problems = []
        if not REPOSITORY.fullmatch(self._repository_name):
            problems.append("SWAPBENCH_GITHUB_REPOSITORY must be owner/name.")
        if not self._app_id.isdecimal():
            problems.append("SWAPBENCH_GITHUB_APP_ID must be the App's number.")
        if "PRIVATE KEY" not in self._private_key:
            problems.append("SWAPBENCH_GITHUB_PRIVATE_KEY_FILE must name the App's private key (PEM).")
        return problems

    def problems(self) -> list[str]:
        problems = self._missing()
        if not self._webhook_secret:
            problems.append("SWAPBENCH_GITHUB_WEBHOOK_SECRET is not set: no deliveries are taken, only the poll works.")
        if not problems:
            try:
                _asked(lambda: self._repository.full_name)()
            except ForgeError as error:
                problems.append(f"{error} Check the App's number, its key, and that it is installed on the repository.")
        return problems


def _short(markdown: str) -> str:
    if len(markdown) <= MAX_TEXT:
        return markdown
    return markdown[:MAX_TEXT] + "\n\n(The rest is on the page of the submission.)"


def _info(pull: GithubPullRequest) -> PullRequestInfo:
    user = pull.user  # PyGithub's types do not say so, but a deleted account is null.
    return PullRequestInfo(
        number=pull.number,
        title=pull.title,
        author=user.login if user is not None else GHOST,
        # Logins are unique and checked by GitHub; an e-mail address in a commit is anybody's claim.
        author_email="",
        trusted_author=pull.author_association in TRUSTED,
        head_sha=pull.head.sha,
        head_ref=f"refs/pull/{pull.number}/head",
        base_ref=pull.base.ref,
        draft=bool(pull.draft),
        state="merged" if pull.merged_at is not None else ("open" if pull.state == "open" else "closed"),
        url=pull.html_url,
        labels=tuple(label.name for label in pull.labels),
    )
