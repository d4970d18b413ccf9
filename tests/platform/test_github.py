"""GitHub as forge: the real client against a server that answers in GitHub's form."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from swapbench.forge.contract import ForgeError, NoSuchPullRequest, NotFastForward, PublishedReport, ReportText
from swapbench.forge.github import MARK, GitHubForge
from swapbench.forge.mirror import Mirror, git
from tests.platform.cast import Repository
from tests.platform.githubserver import NAME, FakeGitHub, forge_of, serving

SHA = "a" * 40
REPO = f"/repos/{NAME}"


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with serving() as fake:
        yield fake


def test_a_pull_request_is_what_github_says_now(github: FakeGitHub) -> None:
    github.answer("GET", f"{REPO}/pulls/7", github.pull(7, SHA))
    github.answer(
        "GET",
        f"{REPO}/pulls/8",
        github.pull(8, SHA, state="closed", merged_at="2026-01-02T03:04:05Z", author_association="MEMBER"),
    )
    forge = forge_of(github)
    info = forge.pull_request(7)
    assert (info.number, info.author, info.head_sha, info.state) == (7, "alice", SHA, "open")
    assert (info.head_ref, info.base_ref, info.labels) == ("refs/pull/7/head", "main", ("attention",))
    assert (info.trusted_author, info.author_email) == (False, "")
    assert forge.pull_request(8).state == "merged"
    assert forge.pull_request(8).trusted_author
    with pytest.raises(NoSuchPullRequest):
        forge.pull_request(9)


def test_open_pull_requests_come_in_order(github: FakeGitHub) -> None:
    github.answer("GET", f"{REPO}/pulls", [github.pull(9, SHA), github.pull(7, SHA)])
    assert [info.number for info in forge_of(github).open_pull_requests()] == [7, 9]


def test_who_may_write_maintains(github: FakeGitHub) -> None:
    for login, permission in (("dora", "admin"), ("bob", "write"), ("alice", "read")):
        github.answer("GET", f"{REPO}/collaborators/{login}/permission", {"permission": permission})
    forge = forge_of(github)
    assert [forge.may_maintain(login) for login in ("dora", "bob", "alice", "nobody")] == [True, True, False, False]


def test_errors_of_github_are_sentences(github: FakeGitHub) -> None:
    github.answer("GET", f"{REPO}/pulls", {"message": "Server Error"}, 502)
    with pytest.raises(ForgeError, match="502"):
        forge_of(github).open_pull_requests()
    away = FakeGitHub(address="http://127.0.0.1:9")
    with pytest.raises(ForgeError, match="could not be asked"):
        forge_of(away).open_pull_requests()


def knows_check_runs(github: FakeGitHub, *runs: dict[str, object]) -> None:
    at = f"{github.address}{REPO}/commits/{SHA}"
    github.answer("GET", f"{REPO}/commits/{SHA}", {"sha": SHA, "url": at})
    github.answer("GET", f"{REPO}/commits/{SHA}/check-runs", {"total_count": len(runs), "check_runs": list(runs)})


def test_a_report_is_made_and_then_kept_up_to_date(github: FakeGitHub) -> None:
    at = github.address + REPO
    knows_check_runs(github)
    github.answer("POST", f"{REPO}/check-runs", {"id": 11, "url": f"{at}/check-runs/11"}, 201)
    github.answer("GET", f"{REPO}/check-runs/11", {"id": 11, "url": f"{at}/check-runs/11"})
    github.answer("PATCH", f"{REPO}/check-runs/11", {"id": 11})
    github.answer("GET", f"{REPO}/issues/7", {"number": 7, "url": f"{at}/issues/7"})
    github.answer("GET", f"{REPO}/issues/7/comments", [])
    github.answer("POST", f"{REPO}/issues/7/comments", {"id": 22, "url": f"{at}/issues/comments/22"}, 201)
    github.answer("GET", f"{REPO}/issues/comments/22", {"id": 22, "url": f"{at}/issues/comments/22"})
    github.answer("PATCH", f"{REPO}/issues/comments/22", {"id": 22})
    forge = forge_of(github)
    first = forge.publish(7, ReportText(SHA, "Being judged", "", "Wait.", "http://x/1"), PublishedReport(), True)
    assert first == PublishedReport("11", "22")
    said = ReportText(SHA, "Passed", "success", "It is 12 % faster." + "x" * 100_000, "http://x/1")
    assert forge.publish(7, said, first, True) == first
    (made,) = github.said_to("POST", f"{REPO}/check-runs")
    assert (made["status"], made["head_sha"], "conclusion" in made) == ("in_progress", SHA, False)
    (changed,) = github.said_to("PATCH", f"{REPO}/check-runs/11")
    assert (changed["status"], changed["conclusion"]) == ("completed", "success")
    (comment,) = github.said_to("PATCH", f"{REPO}/issues/comments/22")
    assert comment["body"].startswith(MARK)
    assert len(comment["body"]) < 65_535


def test_a_check_run_whose_id_was_lost_is_found_again(github: FakeGitHub) -> None:
    at = f"{github.address}{REPO}/check-runs"
    knows_check_runs(
        github,
        {"id": 10, "url": f"{at}/10", "app": {"id": 99}},
        {"id": 11, "url": f"{at}/11", "app": {"id": 1}},
    )
    github.answer("GET", f"{REPO}/check-runs/11", {"id": 11, "url": f"{at}/11"})
    github.answer("PATCH", f"{REPO}/check-runs/11", {"id": 11})
    told = forge_of(github).publish(7, ReportText(SHA, "Passed", "success", "New.", "u"), PublishedReport(), False)
    assert told.check_run == "11"
    assert not github.said_to("POST", f"{REPO}/check-runs")


def test_an_account_that_was_deleted_holds_up_nothing(github: FakeGitHub) -> None:
    github.answer("GET", f"{REPO}/pulls", [github.pull(7, SHA, user=None), github.pull(8, SHA)])
    assert [info.author for info in forge_of(github).open_pull_requests()] == ["ghost", "alice"]


def test_a_comment_whose_id_was_lost_is_found_again(github: FakeGitHub) -> None:
    at = github.address + REPO
    knows_check_runs(github)
    github.answer("POST", f"{REPO}/check-runs", {"id": 11, "url": f"{at}/check-runs/11"}, 201)
    github.answer("GET", f"{REPO}/issues/7", {"number": 7, "url": f"{at}/issues/7"})
    comments = [
        {
            "id": 1,
            "body": f"{MARK} I am not it",
            "user": {"login": "mallory", "type": "User"},
            "url": f"{at}/issues/comments/1",
        },
        {
            "id": 2,
            "body": f"{MARK}\nOld.",
            "user": {"login": "swapbench[bot]", "type": "Bot"},
            "url": f"{at}/issues/comments/2",
        },
    ]
    github.answer("GET", f"{REPO}/issues/7/comments", comments)
    github.answer("PATCH", f"{REPO}/issues/comments/2", {"id": 2})
    told = forge_of(github).publish(7, ReportText(SHA, "Passed", "success", "New.", "u"), PublishedReport(), True)
    assert told.comment == "2"


def test_the_branch_moves_only_from_where_it_was_expected(github: FakeGitHub) -> None:
    ref = {
        "ref": "refs/heads/main",
        "url": f"{github.address}{REPO}/git/refs/heads/main",
        "object": {"sha": SHA, "type": "commit", "url": ""},
    }
    github.answer("GET", f"{REPO}/git/ref/heads/main", ref)
    github.answer(
        "PATCH", f"{REPO}/git/refs/heads/main", {**ref, "object": {"sha": "c" * 40, "type": "commit", "url": ""}}
    )
    forge = forge_of(github)
    forge.fast_forward("main", SHA, "c" * 40)
    assert github.said_to("PATCH", f"{REPO}/git/refs/heads/main") == [{"sha": "c" * 40, "force": False}]
    with pytest.raises(NotFastForward):
        forge.fast_forward("main", "d" * 40, "c" * 40)
    assert len(github.said_to("PATCH", f"{REPO}/git/refs/heads/main")) == 1


def test_a_merge_result_is_pushed_where_workers_fetch_it(
    github: FakeGitHub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = tmp_path / "host"
    (host / NAME).parent.mkdir(parents=True)
    git(host / f"{NAME}.git", "init", "--quiet", "--bare")
    forge = forge_of(github, host=f"file://{host}")
    monkeypatch.setattr(GitHubForge, "fetch_environment", lambda self: {})
    mirror = Mirror(tmp_path / "mirror.git")
    (tip,) = mirror.fetch(str(repository.path), ["refs/heads/main"])
    ref = f"refs/swapbench/builds/{tip}"
    forge.keep(ref, tip, mirror.path)
    assert git(host / f"{NAME}.git", "rev-parse", ref)[1].decode().strip() == tip
    forge.drop(ref)
    assert git(host / f"{NAME}.git", "for-each-ref")[1] == b""


def test_what_is_missing_is_named() -> None:
    problems = GitHubForge("nonsense", "", "", "", "").problems()
    for name in ("REPOSITORY", "APP_ID", "PRIVATE_KEY_FILE", "WEBHOOK_SECRET"):
        assert any(name in problem for problem in problems)
    with pytest.raises(ForgeError, match="REPOSITORY"):
        GitHubForge("nonsense", "", "", "", "").open_pull_requests()
