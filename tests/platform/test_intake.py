"""What intake makes of pull requests, good and bad: a Submission or a refusal with a sentence, never an exception."""

from dataclasses import replace

import pytest

from swapbench.forge.contract import PullRequestInfo
from swapbench.forge.local import LocalForge
from swapbench.intake.reconcile import reconcile
from swapbench.intake.take_in import take_in
from swapbench.submissions.approve import approve_judging
from swapbench.submissions.models import Attempt, FileOwner, PullRequest, Submission
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.supersede import cancel
from tests.platform.cast import MAINTAINER, Repository, source, taken_in

pytestmark = pytest.mark.django_db
SWIFT = "engine/attention/swift.py"


def codes(submission: Submission) -> list[str]:
    for reason in submission.reasons:
        assert len(reason["sentence"]) > 20
        assert reason["next_step"]
    return [reason["code"] for reason in submission.reasons]


def test_a_new_slot_file_is_judged_at_once(repository: Repository, forge: LocalForge) -> None:
    head = repository.pull(1, {SWIFT: source()}, author="alice", title="Attention: swift")
    submission = taken_in(forge, 1)
    assert submission.state == Submission.State.JUDGING
    assert (submission.head_sha, submission.base_sha) == (head, repository.sha("refs/heads/main"))
    (file,) = submission.files
    assert (file["path"], file["kind"], file["name"], file["status"]) == (SWIFT, "attention", "swift", "added")
    assert (submission.pull_request.title, submission.author) == ("Attention: swift", "alice")
    attempt = submission.attempts.get()
    assert (attempt.state, attempt.n, attempt.machine_class) == (Attempt.State.QUEUED, 1, "cpu-test")


def test_taking_in_the_same_again_changes_nothing(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: source()})
    first = taken_in(forge, 1)
    for _ in range(10):
        assert reconcile(forge) == 0
        assert taken_in(forge, 1) == first
    assert Submission.objects.count() == Attempt.objects.count() == PullRequest.objects.count() == 1


BAD = {
    "no header": ({SWIFT: "x = 1\n"}, None, "bad_header"),
    "not TOML": ({SWIFT: "# /// swapbench\n# kind = \n# ///\n"}, None, "bad_header"),
    "lying kind": ({SWIFT: source(kind="normalization")}, None, "wrong_folder"),
    "unknown class": ({SWIFT: source(quality_class="Z")}, None, "bad_header"),
    "not UTF-8": ({SWIFT: source().encode() + b"# \xff\xfe\n"}, None, "bad_header"),
    "NUL byte": ({SWIFT: source().encode() + b"\0"}, None, "bad_header"),
    "too large": ({SWIFT: source() + "#" * 600_000}, None, "too_large"),
    "symlink": ({SWIFT: "/etc/passwd"}, {SWIFT: "120000"}, "not_a_file"),
    "submodule": ({"engine/attention/sub": "x"}, {"engine/attention/sub": "160000"}, "not_a_file"),
    "newline in the name": ({"engine/attention/a\nb.py": source()}, None, "bad_name"),
    "escape in the name": ({"engine/attention/a\x1b[31m.py": source()}, None, "bad_name"),
    "capitals": ({"engine/attention/Swift.py": source()}, None, "bad_name"),
    "data file": ({"engine/attention/table.bin": b"\0\1"}, None, "bad_name"),
    "folder": ({"engine/attention/deep/swift.py": source()}, None, "bad_name"),
    "new __init__": ({"engine/attention/__init__.py": "import os\n"}, None, "bad_name"),
    "name taken": ({SWIFT: source(name="plain")}, None, "name_taken"),
    "name twice": ({SWIFT: source(), "engine/attention/other.py": source()}, None, "name_taken"),
    "too many": ({f"engine/attention/s{n}.py": source(name=f"s{n}") for n in range(25)}, None, "too_many_files"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_pull_requests_are_refused_with_a_sentence(what: str, repository: Repository, forge: LocalForge) -> None:
    files, modes, code = BAD[what]
    repository.pull(1, dict(files), modes=modes)
    submission = taken_in(forge, 1)
    assert submission.state == Submission.State.REFUSED
    assert set(codes(submission)) == {code}
    assert not submission.attempts.exists()
    assert "\n" not in submission.reasons[0]["sentence"]
    assert submission.reasons[0]["sentence"].isprintable()


@pytest.mark.slow(reason="git packs and unpacks 200 MB, which takes half a minute")
def test_a_file_of_200_mb_is_refused_by_its_size_alone(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: b"#" * 200_000_000})
    submission = taken_in(forge, 1)
    assert (submission.state, codes(submission)) == (Submission.State.REFUSED, ["too_large"])


def test_a_file_that_does_not_parse_is_for_the_judge_to_refuse(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: source(body="def f(:")})
    repository.pull(2, {"engine/attention/deep.py": source(name="deep", body="x = " + "(" * 50_000)}, author="bob")
    assert taken_in(forge, 1).state == taken_in(forge, 2).state == Submission.State.JUDGING


def test_an_empty_pull_request(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {})
    repository.commit("refs/pull/2/head", "Nothing", {}, base=repository.sha("refs/heads/main"))
    assert codes(taken_in(forge, 1)) == codes(taken_in(forge, 2)) == ["empty"]


def test_a_head_without_common_history(repository: Repository, forge: LocalForge) -> None:
    repository.commit("refs/pull/1/head", "Elsewhere", {SWIFT: source()})
    assert codes(taken_in(forge, 1)) == ["no_common_history"]


def test_a_conflict_and_a_branch_that_is_behind(repository: Repository, forge: LocalForge) -> None:
    base = repository.sha("refs/heads/main")
    repository.commit("refs/heads/main", "Change", {"README.md": "Another engine.\n", SWIFT: source(body="y = 2")})
    repository.pull(1, {"README.md": "My engine.\n"}, base=base)
    repository.pull(2, {"engine/attention/new.py": source(name="new")}, base=base)
    assert codes(taken_in(forge, 1)) == ["merge_conflict"]
    fine = taken_in(forge, 2)
    assert fine.state == Submission.State.JUDGING
    assert fine.base_sha == repository.sha("refs/heads/main")


@pytest.mark.parametrize(
    ("files", "why"),
    [
        ({"README.md": "My engine.\n"}, "outside the slots"),
        ({SWIFT: source(), "engine/slots/kind.py": "x = 1\n"}, "outside the slots"),
        ({"engine/attention/plain.py": source(name="plain", body="x = 2")}, f"belongs to {MAINTAINER}"),
        ({"engine/attention/plain.py": None}, "deletes"),
        ({"engine/attention/plain.py": None, SWIFT: source(name="plain")}, "deletes"),
    ],
)
def test_what_is_not_ones_own_waits_for_a_maintainer(
    files: dict[str, str | bytes | None], why: str, repository: Repository, forge: LocalForge
) -> None:
    repository.pull(1, files)
    submission = taken_in(forge, 1)
    assert submission.state == Submission.State.WAITING
    assert codes(submission) == ["outside_the_slots"]
    assert why in submission.outside[0]["why"]
    assert not submission.attempts.exists()


def test_the_owner_may_change_their_file(repository: Repository, forge: LocalForge) -> None:
    repository.commit("refs/heads/main", "Swift", {SWIFT: source()}, author="alice")
    repository.pull(1, {SWIFT: source(body="x = 2")}, author="alice")
    repository.pull(2, {SWIFT: source(body="x = 3")}, author="bob")
    assert taken_in(forge, 1).files[0]["status"] == "modified"
    assert taken_in(forge, 2).state == Submission.State.WAITING
    FileOwner.objects.create(path=SWIFT, author="bob", author_email="bob@example.org")
    repository.pull(3, {SWIFT: source(body="x = 4")}, author="bob")
    assert taken_in(forge, 3).state == Submission.State.JUDGING


def test_a_document_of_its_own_comes_along(repository: Repository, forge: LocalForge) -> None:
    repository.pull(1, {SWIFT: source(), "docs/swift.md": "How it works.\n"})
    submission = taken_in(forge, 1)
    assert (submission.state, submission.documents) == (Submission.State.JUDGING, ["docs/swift.md"])


def test_somebody_new_waits_for_approval_of_that_sha(repository: Repository, forge: LocalForge, rules) -> None:  # type: ignore[no-untyped-def]
    rules(first_time_needs_approval=True)
    head = repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    assert (submission.state, codes(submission)) == (Submission.State.WAITING, ["first_time"])
    newer = repository.pull(1, {SWIFT: source(body="x = 2")})
    newest = taken_in(forge, 1)
    assert newest.state == Submission.State.WAITING
    submission.refresh_from_db()
    assert submission.state == Submission.State.SUPERSEDED
    with pytest.raises(NotPossible, match=newer[:12]):
        approve_judging(submission, MAINTAINER, head)
    approve_judging(newest, MAINTAINER, newer)
    newest.refresh_from_db()
    assert (newest.state, newest.attempts.count()) == (Submission.State.JUDGING, 1)


def test_a_newer_push_supersedes_and_an_older_head_can_come_back(repository: Repository, forge: LocalForge) -> None:
    first_head = repository.pull(1, {SWIFT: source()})
    first = taken_in(forge, 1)
    repository.pull(1, {SWIFT: source(body="x = 2")})
    second = taken_in(forge, 1)
    first.refresh_from_db()
    assert first.state == Submission.State.SUPERSEDED
    assert first.attempts.get().state == Attempt.State.CANCELLED
    assert second.state == Submission.State.JUDGING
    repository.commit("refs/pull/1/head", "", {}, base=first_head)
    from swapbench.forge.mirror import git

    git(repository.path, "update-ref", "refs/pull/1/head", first_head)
    assert taken_in(forge, 1) == first
    first.refresh_from_db()
    second.refresh_from_db()
    assert (first.state, second.state) == (Submission.State.JUDGING, Submission.State.SUPERSEDED)
    assert first.attempts.filter(state=Attempt.State.QUEUED).count() == 1


def test_a_pull_request_that_goes_away_is_called_off(repository: Repository, forge: LocalForge) -> None:
    from swapbench.forge.mirror import git

    repository.pull(1, {SWIFT: source()})
    reconcile(forge)
    git(repository.path, "update-ref", "-d", "refs/pull/1/head")
    reconcile(forge)
    submission = Submission.objects.get()
    assert (submission.state, submission.pull_request.state) == (Submission.State.CANCELLED, PullRequest.State.CLOSED)
    assert not submission.attempts.filter(state=Attempt.State.QUEUED).exists()


@pytest.mark.parametrize(("by", "then"), [("swapbench", "judging"), (MAINTAINER, "cancelled")])
def test_opening_a_pull_request_again_undoes_no_persons_decision(
    by: str, then: str, repository: Repository, forge: LocalForge
) -> None:
    repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    if by == MAINTAINER:
        assert cancel(submission, by, "It does no good.")
    take_in(forge, replace(forge.pull_request(1), state="closed"))
    submission.refresh_from_db()
    assert submission.state == Submission.State.CANCELLED
    take_in(forge, forge.pull_request(1))
    submission.refresh_from_db()
    assert submission.state == then


def test_one_pull_request_that_nobody_foresaw_does_not_hold_up_the_others(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for n in (1, 2):
        repository.pull(n, {f"engine/attention/s{n}.py": source(name=f"s{n}")})

    def look(forge: LocalForge, info: PullRequestInfo) -> Submission | None:
        if info.number == 1:
            raise RecursionError("Too deep.")
        return take_in(forge, info)

    monkeypatch.setattr("swapbench.intake.reconcile.take_in", look)
    assert reconcile(forge) == 1
    assert Submission.objects.get().pull_request.number == 2
    assert "Too deep." in caplog.text


def test_what_a_merge_takes_back_is_seen_whatever_the_common_ancestors(
    repository: Repository, forge: LocalForge
) -> None:
    base = repository.sha("refs/heads/main")
    fix = repository.commit("refs/heads/fix", "Mend it", {"README.md": "Mended.\n"}, base=base)
    other = repository.commit("refs/heads/other", "Aside", {"NOTES.md": "Aside.\n"}, base=base)
    both = repository.commit("refs/heads/both", "Both", {"README.md": "Mended.\n"}, base=other)
    repository.merge("refs/heads/main", [other, fix], both)
    sly = repository.commit("refs/heads/sly", "Only a module", {SWIFT: source()}, base=other)
    for parents in ([other, fix], [fix, other]):
        repository.merge("refs/pull/1/head", parents, sly, title=f"A swift module {parents[0]}")
        submission = taken_in(forge, 1)
        assert [file["path"] for file in submission.outside] == ["README.md"]
        assert submission.state == Submission.State.WAITING
