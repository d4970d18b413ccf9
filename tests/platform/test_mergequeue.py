"""The merge queue on a real repository: exact merge results, tested, and moved to by compare-and-set."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from swapbench.forge.contract import ForgeError, NotFastForward, PullRequestInfo
from swapbench.forge.local import LocalForge
from swapbench.forge.mirror import git
from swapbench.intake.reconcile import reconcile
from swapbench.intake.take_in import take_in
from swapbench.mergequeue.hold import hold, put_back, release, take_out
from swapbench.mergequeue.models import BranchState, Build, QueueEntry, QueueEvent
from swapbench.mergequeue.tick import tick
from swapbench.submissions.approve import approve_judging, approve_merging
from swapbench.submissions.dispatch import job_of
from swapbench.submissions.models import Attempt, FileOwner, PullRequest, Submission
from swapbench.submissions.reaper import reap
from swapbench.submissions.record import record
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.retry import retry
from tests.platform.cast import MAINTAINER, Repository, implementation, outcome_of, signed, source, taken_in
from workers.protocol import Reason, Speed, Status

pytestmark = pytest.mark.django_db


def judged(
    repository: Repository,
    forge: LocalForge,
    number: int,
    name: str,
    author: str = "alice",
    speed: Speed = "faster",
    status: Status = "passed",
    **figures: float,
) -> Submission:
    path = f"engine/attention/{name}.py"
    repository.pull(
        number, {path: source(name=name, body=f"code = {number}")}, author=author, title=f"Attention: {name}"
    )
    submission = taken_in(forge, number)
    attempt = submission.attempts.get()
    outcome = implementation(
        path, status, speed, name, figures={key.replace("_", " "): value for key, value in figures.items()}
    )
    assert record(*signed(attempt, outcome_of(attempt, outcome, status=status)))
    return submission


def build_ends(status: Status = "passed") -> Attempt:
    """Ends the attempt of the live build as a worker would."""
    build = Build.objects.get(state=Build.State.TESTING)
    attempt = build.attempts.get(state=Attempt.State.QUEUED)
    reasons = [Reason("wrong", "It sees the future at token 3.", stage="unit")] if status == "failed" else []
    files = [file for entry in build.entries.all() for file in entry.submission.files]
    outcomes = [implementation(file["path"], status, "not_measured", file["name"], reasons) for file in files]
    assert record(*signed(attempt, outcome_of(attempt, *outcomes, status=status)))
    return attempt


def entry_of(submission: Submission) -> QueueEntry:
    return QueueEntry.objects.get(submission=submission)


def test_what_qualifies_is_merged_by_itself(repository: Repository, forge: LocalForge) -> None:
    before = repository.sha("refs/heads/main")
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build = Build.objects.get()
    assert entry_of(submission).state == QueueEntry.State.BUILDING
    job = job_of(build.attempts.get())
    assert (job.base_sha, job.head_sha, job.suites) == (build.merge_sha, build.merge_sha, ("unit", "integration"))
    assert repository.sha(job.head_ref) == build.merge_sha
    assert repository.sha("refs/heads/main") == before
    for _ in range(3):
        tick(forge, "main")
    assert Build.objects.count() == 1
    build_ends()
    tick(forge, "main")
    entry = entry_of(submission)
    assert entry.state == QueueEntry.State.MERGED
    assert repository.sha("refs/heads/main") == entry.merge_sha == build.merge_sha
    assert repository.show("main", "engine/attention/swift.py") == source(body="code = 1")
    assert repository.sha(build.ref) == ""
    assert FileOwner.objects.get(path="engine/attention/swift.py").author == "alice"
    reconcile(forge)
    tick(forge, "main")
    assert PullRequest.objects.get().state == PullRequest.State.MERGED
    assert (Submission.objects.count(), Attempt.objects.count(), Build.objects.count()) == (1, 2, 1)


@pytest.mark.parametrize(
    ("status", "speed", "figures", "enters"),
    [
        ("passed", "faster", {}, True),
        ("passed", "no_difference", {}, False),
        ("passed", "no_difference", {"memory_ratio": 0.5}, True),
        ("passed", "no_difference", {"memory_ratio": 0.95}, False),
        ("passed", "slower", {"memory_ratio": 0.5}, False),
        ("passed", "inconclusive", {}, False),
        ("failed", "faster", {}, False),
        ("tampered", "faster", {}, False),
    ],
)
def test_only_gains_enter(
    status: Status, speed: Speed, figures: dict[str, float], enters: bool, repository: Repository, forge: LocalForge
) -> None:
    judged(repository, forge, 1, "swift", status=status, speed=speed, **figures)
    tick(forge, "main")
    assert QueueEntry.objects.exists() == enters


def test_entries_are_merged_one_after_the_other(repository: Repository, forge: LocalForge) -> None:
    names = ("one", "two", "three")
    for number, name in enumerate(names, 1):
        judged(repository, forge, number, name)
    for _ in names:
        tick(forge, "main")
        build_ends()
        tick(forge, "main")
    assert [entry.state for entry in QueueEntry.objects.all()] == ["merged"] * 3
    for name in names:
        assert repository.show("main", f"engine/attention/{name}.py")
    assert Build.objects.filter(state=Build.State.MERGED).count() == 3


def test_a_maintainer_must_approve_that_sha(repository: Repository, forge: LocalForge, rules: Any) -> None:
    rules(merge_approvals=1)
    submission = judged(repository, forge, 1, "swift", author="alice")
    tick(forge, "main")
    assert "maintainer" in entry_of(submission).sentence
    assert not Build.objects.exists()
    with pytest.raises(NotPossible, match="own"):
        approve_merging(submission, "alice", submission.head_sha)
    with pytest.raises(NotPossible):
        approve_merging(submission, MAINTAINER, "0" * 40)
    approve_merging(submission, MAINTAINER, submission.head_sha)
    tick(forge, "main")
    assert Build.objects.count() == 1
    submission.approvals.all().delete()
    build_ends()
    tick(forge, "main")
    assert Build.objects.get().state == Build.State.ABANDONED
    assert repository.sha("refs/heads/main") == submission.base_sha


def test_a_merge_result_that_fails_leaves_with_the_reason(repository: Repository, forge: LocalForge) -> None:
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends("failed")
    tick(forge, "main")
    entry = entry_of(submission)
    assert entry.state == QueueEntry.State.LEFT
    assert "sees the future" in entry.sentence
    tick(forge, "main")
    assert Build.objects.count() == 1
    with pytest.raises(NotPossible):
        take_out(entry, MAINTAINER, "")
    put_back(entry, MAINTAINER)
    tick(forge, "main")
    assert Build.objects.count() == 2


def test_a_retry_that_qualifies_enters_again(repository: Repository, forge: LocalForge) -> None:
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends("failed")
    tick(forge, "main")
    retry(submission, MAINTAINER, may_maintain=True)
    attempt = submission.attempts.get(round=2)
    record(*signed(attempt, outcome_of(attempt, implementation())))
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.BUILDING


def test_a_branch_that_moves_has_the_merge_result_made_anew(repository: Repository, forge: LocalForge) -> None:
    judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends()
    moved = repository.commit("refs/heads/main", "By hand", {"README.md": "By hand.\n"}, author=MAINTAINER)
    tick(forge, "main")
    old, new = Build.objects.order_by("id")
    assert (old.state, new.state, new.base_sha) == (Build.State.ABANDONED, Build.State.TESTING, moved)
    build_ends()
    tick(forge, "main")
    assert repository.show("main", "README.md") == "By hand.\n"
    assert repository.show("main", "engine/attention/swift.py")


def test_a_push_while_it_is_tested_takes_it_out(repository: Repository, forge: LocalForge) -> None:
    before = repository.sha("refs/heads/main")
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    repository.pull(1, {"engine/attention/swift.py": source(body="import os")})
    build_ends()
    reconcile(forge)
    tick(forge, "main")
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.LEFT
    assert repository.sha("refs/heads/main") == before


def test_what_the_poll_has_not_seen_is_asked_for_before_the_branch_moves(
    repository: Repository, forge: LocalForge
) -> None:
    before = repository.sha("refs/heads/main")
    pushed, gone = judged(repository, forge, 1, "swift"), judged(repository, forge, 2, "other", author="bob")
    tick(forge, "main")
    repository.pull(1, {"engine/attention/swift.py": source(body="import os")})
    build_ends()
    tick(forge, "main")
    assert entry_of(pushed).state == QueueEntry.State.LEFT
    assert entry_of(gone).state == QueueEntry.State.BUILDING
    git(repository.path, "update-ref", "-d", "refs/pull/2/head")
    build_ends()
    tick(forge, "main")
    assert entry_of(gone).state == QueueEntry.State.LEFT
    assert repository.sha("refs/heads/main") == before


def test_a_draft_waits_in_the_queue(repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch) -> None:
    before = repository.sha("refs/heads/main")
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends()
    with monkeypatch.context() as patch:
        info = replace(forge.pull_request(1), draft=True)
        patch.setattr(LocalForge, "pull_request", lambda self, number: info)
        for _ in range(2):
            tick(forge, "main")
    assert (entry_of(submission).state, repository.sha("refs/heads/main")) == (QueueEntry.State.WAITING, before)
    assert "draft" in entry_of(submission).sentence
    reconcile(forge)
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.BUILDING


def test_a_hold_counts_from_the_moment_that_it_is_placed(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = repository.sha("refs/heads/main")
    judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends()
    asked = LocalForge.pull_request

    def held_meanwhile(self: LocalForge, number: int) -> PullRequestInfo:
        hold(BranchState.objects.get(), MAINTAINER, "Release day.")
        return asked(self, number)

    monkeypatch.setattr(LocalForge, "pull_request", held_meanwhile)
    tick(forge, "main")
    assert (Build.objects.get().state, repository.sha("refs/heads/main")) == (Build.State.PASSED, before)


def test_files_outside_the_slots_are_tested_as_they_would_be_merged(repository: Repository, forge: LocalForge) -> None:
    plain, own = "engine/attention/plain.py", "engine/attention/swift.py"
    changed = {plain: source(name="plain", body="x = 3"), own: source(body="code = 1"), "engine/kv.py": "x = 1\n"}
    repository.pull(1, changed)
    submission = taken_in(forge, 1)
    approve_judging(submission, MAINTAINER, submission.head_sha)
    attempt = submission.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation(own))))
    approve_merging(submission, MAINTAINER, submission.head_sha)
    tick(forge, "main")
    job = job_of(Build.objects.get().attempts.get())
    assert repository.show(job.base_sha, "engine/kv.py") == "x = 1\n"
    assert {(file.path, file.kind, file.status) for file in job.files} == {
        (own, "attention", "added"),
        (plain, "attention", "modified"),
    }


def test_a_build_that_was_not_to_be_leaves_no_ref_behind(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged(repository, forge, 1, "swift")
    kept = LocalForge.keep

    def held_meanwhile(self: LocalForge, ref: str, sha: str, mirror_path: Path) -> None:
        kept(self, ref, sha, mirror_path)
        hold(BranchState.objects.get(), MAINTAINER, "Release day.")

    monkeypatch.setattr(LocalForge, "keep", held_meanwhile)
    tick(forge, "main")
    assert not Build.objects.exists()
    assert git(repository.path, "for-each-ref", "refs/swapbench/builds/")[1] == b""


def test_an_entry_that_was_put_back_is_tried_as_often_as_a_new_one(repository: Repository, forge: LocalForge) -> None:
    submission = judged(repository, forge, 1, "swift")
    for _ in range(3):
        tick(forge, "main")
        for n in (1, 2, 3):
            lost = Attempt.objects.filter(build__state=Build.State.TESTING, n=n)
            lost.update(state="running", worker="w1", lease_until=timezone.now() - timedelta(1))
            assert reap() == 1
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.LEFT
    put_back(entry_of(submission), MAINTAINER)
    tick(forge, "main")
    for n in (1, 2, 3):
        lost = Attempt.objects.filter(build__state=Build.State.TESTING, n=n)
        lost.update(state="running", worker="w1", lease_until=timezone.now() - timedelta(1))
        assert reap() == 1
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.BUILDING


def test_a_name_that_was_taken_meanwhile(repository: Repository, forge: LocalForge) -> None:
    judged(repository, forge, 1, "swift")
    path = "engine/attention/swift_two.py"
    repository.pull(2, {path: source(name="swift", body="y = 2")}, author="bob")
    second = taken_in(forge, 2)
    attempt = second.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation(path))))
    tick(forge, "main")
    build_ends()
    tick(forge, "main")
    tick(forge, "main")
    entry = entry_of(second)
    assert entry.state == QueueEntry.State.LEFT
    assert "engine/attention/swift.py" in entry.sentence


def test_a_merge_that_would_change_more_than_was_looked_at(repository: Repository, forge: LocalForge) -> None:
    base = repository.sha("refs/heads/main")
    fix = repository.commit("refs/heads/fix", "Mend it", {"README.md": "Mended.\n"}, base=base)
    path = "engine/attention/swift.py"
    repository.pull(1, {path: source(body="code = 1"), "README.md": "An engine.\n"}, base=fix)
    submission = taken_in(forge, 1)
    assert (submission.outside, [file["path"] for file in submission.files]) == ([], [path])
    attempt = submission.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation(path))))
    repository.merge("refs/heads/main", [base, fix], fix)
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.LEFT
    assert "also change README.md" in entry_of(submission).sentence
    assert not Build.objects.exists()


def test_what_was_judged_on_another_branch_is_not_merged(repository: Repository, forge: LocalForge) -> None:
    repository.commit("refs/heads/next", "Ahead", {"README.md": "Ahead.\n"}, base=repository.sha("refs/heads/main"))
    path = "engine/attention/swift.py"
    repository.pull(1, {path: source(body="code = 1")}, base=repository.sha("refs/heads/next"))
    info = replace(forge.pull_request(1), base_ref="next")
    submission = take_in(forge, info)
    assert submission is not None
    attempt = submission.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation(path))))
    take_in(forge, replace(info, base_ref="main"))
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.LEFT
    assert "not in main" in entry_of(submission).sentence


def test_a_batch_that_fails_is_taken_apart(repository: Repository, forge: LocalForge, rules: Any) -> None:
    rules(batch_size=4)
    good = judged(repository, forge, 1, "good")
    bad = judged(repository, forge, 2, "bad", author="bob")
    tick(forge, "main")
    assert Build.objects.get().entries.count() == 2
    build_ends("failed")
    tick(forge, "main")
    assert Build.objects.get(state=Build.State.TESTING).entries.get() == entry_of(good)
    build_ends()
    tick(forge, "main")
    tick(forge, "main")
    build_ends("failed")
    tick(forge, "main")
    assert (entry_of(good).state, entry_of(bad).state) == (QueueEntry.State.MERGED, QueueEntry.State.LEFT)


def test_our_own_failures_do_not_cost_the_entry_its_place(repository: Repository, forge: LocalForge) -> None:
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    for n in (1, 2, 3):
        row = Attempt.objects.get(build__isnull=False, n=n)
        Attempt.objects.filter(pk=row.pk).update(
            state="running", worker="w1", lease_until=timezone.now() - timedelta(1)
        )
        assert reap() == 1
    tick(forge, "main")
    assert Build.objects.order_by("id")[0].state == Build.State.ABANDONED
    assert entry_of(submission).state == QueueEntry.State.BUILDING
    assert Build.objects.filter(state=Build.State.TESTING).count() == 1


def test_a_held_queue_merges_nothing(repository: Repository, forge: LocalForge) -> None:
    before = repository.sha("refs/heads/main")
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    branch = BranchState.objects.get()
    hold(branch, MAINTAINER, "Release day.")
    build_ends()
    tick(forge, "main")
    assert repository.sha("refs/heads/main") == before
    release(branch, MAINTAINER)
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.MERGED
    assert {"held", "released", "merged"} <= set(QueueEvent.objects.values_list("kind", flat=True))


def test_a_process_killed_between_fast_forward_and_its_record(
    repository: Repository, forge: LocalForge, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission = judged(repository, forge, 1, "swift")
    tick(forge, "main")
    build_ends()

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("swapbench.mergequeue.tick._merged", killed)
        with pytest.raises(Killed):
            tick(forge, "main")
    assert Build.objects.get().state == Build.State.PASSED
    assert repository.sha("refs/heads/main") == Build.objects.get().merge_sha
    repository.commit("refs/heads/main", "And then by hand", {"README.md": "By hand.\n"})
    tick(forge, "main")
    assert entry_of(submission).state == QueueEntry.State.MERGED
    assert QueueEvent.objects.filter(kind="merged").count() == 1


def test_the_forge_moves_a_branch_only_from_where_it_was_expected(repository: Repository, forge: LocalForge) -> None:
    old = repository.sha("refs/heads/main")
    new = repository.commit("refs/heads/main", "On", {"README.md": "On.\n"})
    other = repository.commit("refs/heads/other", "Aside", {"README.md": "Aside.\n"}, base=old)
    with pytest.raises(NotFastForward):
        forge.fast_forward("main", old, other)
    assert repository.sha("refs/heads/main") == new
    with pytest.raises(ForgeError, match="demo"):
        LocalForge(repository.path / "nowhere").branch_tip("main")
