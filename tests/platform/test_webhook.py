"""The webhook: what it takes, what it refuses, and what comes of deliveries."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from swapbench.forge.github import GitHubForge
from swapbench.intake.commands import obey
from swapbench.intake.deliveries import process
from swapbench.intake.models import Delivery
from swapbench.submissions.models import Attempt, AuditEvent, Submission
from tests.platform.cast import Repository, source
from tests.platform.deliveries import pull_request_delivery, signed_delivery
from tests.platform.githubserver import NAME, FakeGitHub, forge_of, serving

pytestmark = pytest.mark.django_db
SECRET = "s3cret"
SWIFT = "engine/attention/swift.py"
REPO = f"/repos/{NAME}"


@pytest.fixture(autouse=True)
def configured(settings: Any) -> None:
    settings.SWAPBENCH_GITHUB = {**settings.SWAPBENCH_GITHUB, "repository": NAME, "webhook_secret": SECRET}


def post(client: Client, body: bytes, headers: dict[str, str]) -> Any:
    return client.post("/hooks/github", body, content_type="application/json", headers=headers)


def deliver(client: Client, delivery: str = "d1", **fields: Any) -> Any:
    return post(client, *pull_request_delivery(SECRET, NAME, delivery, **fields))


def test_ten_same_deliveries_are_one(client: Client) -> None:
    answers = [deliver(client) for _ in range(10)]
    assert {answer.status_code for answer in answers} == {202}
    assert [answer.json()["new"] for answer in answers] == [True] + [False] * 9
    assert Delivery.objects.count() == 1


@pytest.mark.parametrize(
    ("status", "change"),
    [
        (403, {"X-Hub-Signature-256": "sha256=" + "0" * 64}),
        (403, {"X-Hub-Signature-256": ""}),
        (403, {"X-Hub-Signature-256": "sha256=\u00e9"}),
        (400, {"X-GitHub-Delivery": ""}),
        (400, {"X-GitHub-Delivery": "x" * 200}),
        (400, {"X-GitHub-Event": "Push; DROP"}),
        (413, {"Content-Length": str(30 * 1024 * 1024)}),
        (400, {"Content-Length": "many"}),
    ],
)
def test_what_is_not_in_order_is_refused_with_a_sentence(client: Client, status: int, change: dict[str, str]) -> None:
    body, headers = pull_request_delivery(SECRET, NAME, "d1")
    length = {"CONTENT_LENGTH": change["Content-Length"]} if "Content-Length" in change else {}
    answer = client.post("/hooks/github", body, content_type="application/json", headers=headers | change, **length)
    assert answer.status_code == status
    assert len(answer.json()["error"]) > 15
    assert not Delivery.objects.exists()


NESTED = b'{"a":' + b"[" * 900 + b"]" * 900 + b"}"


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not JSON", b"[1]", b"\xff\xfe", b"[" * 100_000, b'"\\ud800"', NESTED),
        *(b'{"a": NaN}', b'{"a": -Infinity}', b'{"a": 1e999}', b'{"a": ' + b"9" * 5000 + b"}"),
    ],
)
def test_a_body_that_is_no_json_object(client: Client, body: bytes) -> None:
    import hashlib
    import hmac

    _, headers = pull_request_delivery(SECRET, NAME, "d1")
    headers["X-Hub-Signature-256"] = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
    assert post(client, body, headers).status_code == 400


def test_a_nul_and_a_lone_surrogate_do_no_harm(client: Client) -> None:
    for text in ("a\0b", "a\ud800b"):
        payload = {"action": "opened", "number": 1, "repository": {"full_name": NAME}, "title": text}
        answer = post(client, *signed_delivery(SECRET, "pull_request", f"d{ord(text[1])}", payload))
        assert answer.status_code in (202, 400)


def test_another_repository_and_other_events(client: Client) -> None:
    assert post(client, *pull_request_delivery(SECRET, "other/repo", "d1")).status_code == 422
    assert post(client, *signed_delivery(SECRET, "star", "d2", {"repository": {"full_name": NAME}})).status_code == 202
    assert post(client, *signed_delivery(SECRET, "pull_request", "d3", {"repository": "x"})).status_code == 422
    assert client.get("/hooks/github").status_code == 405
    assert not Delivery.objects.exists()


def test_without_a_secret_nothing_is_taken(client: Client, settings: Any) -> None:
    settings.SWAPBENCH_GITHUB = {**settings.SWAPBENCH_GITHUB, "webhook_secret": ""}
    assert deliver(client).status_code == 404


# --- What comes of them ----------------------------------------------------------------------------------------------


@pytest.fixture
def github() -> Iterator[FakeGitHub]:
    with serving() as fake:
        yield fake


@pytest.fixture
def hub(github: FakeGitHub, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GitHubForge:
    """GitHub whose git side is a repository on this machine."""
    where = tmp_path / "host" / f"{NAME}.git"
    where.parent.mkdir(parents=True)
    where.symlink_to(repository.path)
    monkeypatch.setattr(GitHubForge, "fetch_environment", lambda self: {})
    return forge_of(github, host=f"file://{tmp_path / 'host'}")


def opened(github: FakeGitHub, repository: Repository, **changed: Any) -> str:
    head = repository.pull(1, {SWIFT: source()})
    github.answer("GET", f"{REPO}/pulls/1", github.pull(1, head, **changed))
    return head


def signed_comment(login: str, text: str, delivery: str) -> tuple[bytes, dict[str, str]]:
    payload = {
        "action": "created",
        "repository": {"full_name": NAME},
        "issue": {"number": 1, "pull_request": {}},
        "comment": {"body": text, "user": {"login": login}},
    }
    return signed_delivery(SECRET, "issue_comment", delivery, payload)


def comment(client: Client, hub: GitHubForge, login: str, text: str, delivery: str) -> str:
    post(client, *signed_comment(login, text, delivery))
    process(hub)
    return Delivery.objects.get(delivery=delivery).note


def test_deliveries_make_one_submission(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge
) -> None:
    head = opened(github, repository)
    for n in range(10):
        deliver(client, "same")
        deliver(client, f"other-{n}", action="synchronize")
    assert process(hub) == 11
    assert process(hub) == 0
    submission = Submission.objects.get()
    assert (submission.head_sha, submission.author, Attempt.objects.count()) == (head, "alice", 1)
    assert set(Delivery.objects.values_list("state", flat=True)) == {"done"}


def test_a_forge_that_is_away_is_asked_again(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge
) -> None:
    github.answer("GET", f"{REPO}/pulls/1", {"message": "Unavailable"}, 503)
    deliver(client)
    assert process(hub) == 0
    assert "503" in Delivery.objects.get().note
    opened(github, repository)
    assert process(hub) == 1
    assert Submission.objects.get().arrived_at == Delivery.objects.get().received_at


@pytest.mark.parametrize(
    "payload",
    [{}, {"number": "1"}, {"number": 1}, {"number": 1, "action": "assigned"}, {"number": 5, "action": "opened"}],
)
def test_deliveries_that_say_nothing_useful(client: Client, hub: GitHubForge, payload: dict[str, Any]) -> None:
    post(client, *signed_delivery(SECRET, "pull_request", "d1", {**payload, "repository": {"full_name": NAME}}))
    assert process(hub) == 1
    assert not Submission.objects.exists()


def test_commands_in_comments(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge, rules: Any
) -> None:
    rules(first_time_needs_approval=True)
    head = opened(github, repository)
    github.answer("GET", f"{REPO}/collaborators/dora/permission", {"permission": "write"})
    github.answer("GET", f"{REPO}/collaborators/alice/permission", {"permission": "read"})
    deliver(client)
    process(hub)
    submission = Submission.objects.get()
    assert submission.state == Submission.State.WAITING
    assert "no command" in comment(client, hub, "alice", "Looks good to me.", "c1")
    assert "may not approve" in comment(client, hub, "alice", f"/swapbench approve {head}", "c2")
    assert "no command 'explode'" in comment(client, hub, "dora", "/swapbench explode", "c3")
    for text in ("1234567", head[:39], "0" * 40, ""):
        assert "whole SHA" in comment(client, hub, "dora", f"/swapbench approve {text}", f"c4{text}")
    assert submission.attempts.count() == 0
    assert comment(client, hub, "dora", f"Fine.\r\n/swapbench approve {head}\r\n", "c5").startswith("dora: approve")
    submission.refresh_from_db()
    assert (submission.state, submission.attempts.count()) == (Submission.State.JUDGING, 1)
    assert "may not cancel" in comment(client, hub, "bob", "/swapbench cancel", "c6")
    assert comment(client, hub, "alice", "/swapbench cancel", "c7").startswith("alice: cancel")
    submission.refresh_from_db()
    assert submission.state == Submission.State.CANCELLED
    assert comment(client, hub, "alice", "/swapbench retry", "c8").startswith("alice: retry")
    assert {"approved", "refused", "cancelled", "retried"} <= set(AuditEvent.objects.values_list("action", flat=True))


def test_a_draft_waits_until_it_is_ready(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge
) -> None:
    head = opened(github, repository, draft=True)
    deliver(client)
    process(hub)
    assert not Submission.objects.exists()
    github.answer("GET", f"{REPO}/pulls/1", github.pull(1, head))
    deliver(client, "d2", action="ready_for_review")
    process(hub)
    assert Submission.objects.get().head_sha == head


def test_a_comment_counts_once_however_often_it_comes(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge, rules: Any
) -> None:
    rules(first_time_needs_approval=True)
    head = opened(github, repository)
    github.answer("GET", f"{REPO}/collaborators/dora/permission", {"permission": "write"})
    deliver(client)
    process(hub)
    assert comment(client, hub, "dora", f"/swapbench approve {head}", "c1").startswith("dora: approve")
    answer = post(client, *signed_comment("dora", f"/swapbench approve {head}", "another-id"))
    assert (answer.status_code, answer.json()["new"]) == (202, False)
    process(hub)
    assert [approval.purpose for approval in Submission.objects.get().approvals.all()] == ["judge"]


def test_a_process_killed_while_it_obeys_leaves_all_of_it_to_be_done(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge, rules: Any
) -> None:
    rules(first_time_needs_approval=True)
    head = opened(github, repository)
    github.answer("GET", f"{REPO}/collaborators/dora/permission", {"permission": "write"})
    deliver(client)
    process(hub)

    class Killed(BaseException):
        pass

    def killed(*_: object) -> str:
        obey(*_)  # type: ignore[arg-type]
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("swapbench.intake.deliveries.obey", killed)
        with pytest.raises(Killed):
            comment(client, hub, "dora", f"/swapbench approve {head}", "c1")
    submission = Submission.objects.get()
    assert (submission.state, submission.approvals.count()) == (Submission.State.WAITING, 0)
    assert process(hub) == 1
    assert [approval.purpose for approval in submission.approvals.all()] == ["judge"]


def test_a_command_waits_for_a_forge_that_is_away(
    client: Client, github: FakeGitHub, repository: Repository, hub: GitHubForge
) -> None:
    opened(github, repository)
    deliver(client)
    process(hub)
    address = f"{REPO}/collaborators/alice/permission"
    github.answer("GET", address, {"message": "Unavailable"}, 503)
    comment(client, hub, "alice", "/swapbench cancel", "c1")
    for _ in range(10):
        assert process(hub) == 0
    github.answer("GET", address, {"permission": "read"})
    assert process(hub) == 1
    assert Submission.objects.get().state == Submission.State.CANCELLED
    github.answer("GET", address, {"message": "Unavailable"}, 503)
    comment(client, hub, "alice", "/swapbench retry", "c2")
    Delivery.objects.filter(delivery="c2").update(received_at=timezone.now() - timedelta(days=2))
    assert process(hub) == 1
    assert Delivery.objects.get(delivery="c2").state == Delivery.State.FAILED
