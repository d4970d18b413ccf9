"""Attempts: dispatched, leased, recorded exactly once, and replaced where they are lost."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from django.db import connection
from django.utils import timezone

from swapbench.forge.local import LocalForge
from swapbench.forge.mirror import git
from swapbench.intake.take_in import take_in
from swapbench.submissions import lease
from swapbench.submissions import record as recording
from swapbench.submissions.approve import approve_judging
from swapbench.submissions.dispatch import dispatch
from swapbench.submissions.models import Attempt, Result, Submission, Verdict, Worker
from swapbench.submissions.reaper import reap
from swapbench.submissions.record import record
from swapbench.submissions.refusal import NotPossible
from swapbench.submissions.retry import retry
from swapbench.submissions.supersede import cancel
from swapbench.submissions.tries import number
from tests.platform.cast import MACHINE, Repository, implementation, outcome_of, signed, source, taken_in
from workers.protocol import Job, Outcome, PairRecord, Progress, Reason, WorkerSeen, decode_job, encode, sign

pytestmark = pytest.mark.django_db
SWIFT = "engine/attention/swift.py"


class Broker:
    """Keeps the jobs that it is given, or fails as a broker that is away does."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.away = False

    def send(self, machine_class: str, job: str, expires: float) -> None:
        if self.away:
            raise ConnectionRefusedError
        assert machine_class == MACHINE
        self.jobs.append(decode_job(job))


@pytest.fixture
def broker() -> Broker:
    return Broker()


@pytest.fixture
def submission(repository: Repository, forge: LocalForge) -> Submission:
    repository.pull(1, {SWIFT: source()})
    return taken_in(forge, 1)


@pytest.fixture
def attempt(submission: Submission) -> Attempt:
    return submission.attempts.get()


def seen(name: str, state: str = "idle") -> None:
    lease.worker_seen(
        msgspec.convert({"worker": name, "machine_class": MACHINE, "state": state, "isolation": "full"}, WorkerSeen)
    )


def started(attempt: Attempt, worker: str = "w1") -> Attempt:
    assert lease.started(str(attempt.pk), attempt.token, worker)
    attempt.refresh_from_db()
    return attempt


def lapse(attempt: Attempt) -> None:
    Attempt.objects.filter(pk=attempt.pk).update(lease_until=timezone.now() - timedelta(seconds=1))


def test_a_job_says_all_that_a_worker_needs_and_nothing_more(
    submission: Submission, broker: Broker, repository: Repository
) -> None:
    assert dispatch(broker.send) == 1
    (job,) = broker.jobs
    assert (job.base_sha, job.head_sha) == (submission.base_sha, submission.head_sha)
    assert job.repository == str(repository.path)
    assert [(file.path, file.kind, file.status) for file in job.files] == [(SWIFT, "attention", "added")]
    assert job.suites == ("unit", "integration", "performance")
    assert 0 < job.policy.alpha < 0.05  # The first try may not spend what is left for all others.


def test_a_message_is_sent_once_until_it_is_due_again(submission: Submission, broker: Broker) -> None:
    assert [dispatch(broker.send) for _ in range(5)] == [1, 0, 0, 0, 0]
    Attempt.objects.update(sent_at=timezone.now() - timedelta(minutes=5))
    assert dispatch(broker.send) == 1
    assert len({job.token for job in broker.jobs}) == 1


def test_a_broker_that_is_away_loses_nothing(submission: Submission, broker: Broker) -> None:
    broker.away = True
    assert dispatch(broker.send) == 0
    broker.away = False
    Attempt.objects.update(sent_at=timezone.now() - timedelta(minutes=5))
    assert dispatch(broker.send) == 1


def test_no_more_is_sent_than_there_are_workers_free(repository: Repository, forge: LocalForge, broker: Broker) -> None:
    for n in range(1, 6):
        repository.pull(n, {f"engine/attention/s{n}.py": source(name=f"s{n}")})
        take_in(forge, forge.pull_request(n))
    assert dispatch(broker.send) == 1
    seen("w1")
    seen("w2")
    assert dispatch(broker.send) == 1
    started(Attempt.objects.order_by("id")[0])
    assert dispatch(broker.send) == 0
    Worker.objects.update(seen_at=timezone.now() - timedelta(hours=1))
    seen("w3")
    seen("w4", "stopping")
    assert dispatch(broker.send) == 0


def test_what_a_worker_says_is_believed_only_with_the_token(attempt: Attempt) -> None:
    assert not lease.started(str(attempt.pk), "0" * 64, "w1")
    assert not lease.started("no such", attempt.token, "w1")
    assert not lease.started("9" * 30, attempt.token, "w1")
    started(attempt)
    assert not lease.started(str(attempt.pk), attempt.token, "w2")
    assert not lease.heartbeat(str(attempt.pk), attempt.token, "w2")
    before = attempt.lease_until
    assert lease.heartbeat(str(attempt.pk), attempt.token, "w1")
    attempt.refresh_from_db()
    assert attempt.lease_until > before


def test_a_heartbeat_stands_in_for_a_lost_start(attempt: Attempt) -> None:
    assert lease.heartbeat(str(attempt.pk), attempt.token, "w1")
    attempt.refresh_from_db()
    assert (attempt.state, attempt.worker) == (Attempt.State.RUNNING, "w1")


def test_progress_that_comes_late_does_not_go_backwards(attempt: Attempt) -> None:
    started(attempt)
    name = str(attempt.pk)
    assert lease.progress(name, attempt.token, Progress(name, "performance", "Pair 3.", 3, 24, "pairs", at=20.0))
    assert not lease.progress(name, attempt.token, Progress(name, "unit", "Test 9.", 9, 10, "tests", at=10.0))
    assert lease.progress(name, attempt.token, Progress(name, "report", "Writing\0.", -5, 2**40, "", at=30.0))
    attempt.refresh_from_db()
    assert (attempt.stage, attempt.done, attempt.sentence) == ("report", 0, "Writing\ufffd.")
    assert [entered["stage"] for entered in attempt.stages] == ["performance", "report"]


def test_an_outcome_is_recorded_whole_and_once(submission: Submission, attempt: Attempt) -> None:
    started(attempt)
    text = outcome_of(attempt, implementation())
    assert [record(*signed(attempt, text)) for _ in range(3)] == [True, False, False]
    submission.refresh_from_db()
    verdict = submission.verdicts.get()
    assert (submission.state, verdict.status, verdict.speed, verdict.qualifies) == ("judged", "passed", "faster", True)
    assert (verdict.speedup, verdict.speedup_low, verdict.speedup_high) == (
        0.2,
        pytest.approx(0.18),
        pytest.approx(0.22),
    )
    assert (verdict.name, verdict.quality_class, verdict.track_speedup) == ("swift", "E", 0.2)
    assert Result.objects.count() == 2 * 2 * 2
    assert verdict.next_steps


def test_pairs_of_identical_code_are_kept_beside_the_others(attempt: Attempt) -> None:
    judged = implementation()
    assert judged.performance is not None
    same = PairRecord(32, "BA", "same", {"prefill": 2e-3, "decode": 1e-3}, {"prefill": 2.1e-3, "decode": 1e-3})
    performance = msgspec.structs.replace(judged.performance, sentinels=[same])
    assert record(*signed(attempt, outcome_of(attempt, msgspec.structs.replace(judged, performance=performance))))
    assert Result.objects.filter(phase="stop").count() == 2 * 2 * 2
    kept = Result.objects.filter(phase="same").values_list("case", "side", "seconds").order_by("case", "side")
    assert list(kept) == [
        ("decode", "base", 1e-3),
        ("decode", "head", 1e-3),
        ("prefill", "base", 2e-3),
        ("prefill", "head", 2.1e-3),
    ]


def test_an_outcome_counts_also_where_the_start_was_lost(attempt: Attempt, submission: Submission) -> None:
    assert record(*signed(attempt, outcome_of(attempt, implementation())))
    submission.refresh_from_db()
    assert submission.state == Submission.State.JUDGED


def test_an_outcome_with_another_signature_is_not_taken(attempt: Attempt) -> None:
    started(attempt)
    text = outcome_of(attempt, implementation())
    assert not record(str(attempt.pk), text, sign("00" * 32, text))
    assert not record(str(attempt.pk), text + " ", sign(attempt.token, text))
    assert not record("999999", text, sign(attempt.token, text))
    attempt.refresh_from_db()
    assert attempt.state == Attempt.State.RUNNING


def test_what_the_judge_says_is_made_fit_for_the_database(attempt: Attempt) -> None:
    reasons = [Reason("odd", "It printed \0 and that was it.", stage="unit", index=(1, 2))]
    text = outcome_of(attempt, implementation(status="failed", speed="not_measured", reasons=reasons), status="failed")
    assert record(*signed(attempt, text))
    assert "\ufffd" in Verdict.objects.get().reasons[0]["sentence"]


def test_a_header_decides_the_track_and_not_the_outcome(attempt: Attempt) -> None:
    moved = msgspec.structs.replace(implementation(), name="other", quality_class="S", kind="activation")
    assert record(*signed(attempt, outcome_of(attempt, moved)))
    verdict = Verdict.objects.get()
    assert (verdict.kind, verdict.name, verdict.quality_class) == ("attention", "swift", "E")


@pytest.mark.parametrize("text", ["{}", "not JSON", '{"attempt": "x"}', "[" * 5000])
def test_an_unreadable_outcome_is_our_fault_and_is_tried_again(text: str, attempt: Attempt) -> None:
    started(attempt)
    assert record(*signed(attempt, text))
    attempt.refresh_from_db()
    assert (attempt.state, attempt.failure_kind) == (Attempt.State.FINISHED, Attempt.Failure.ENVIRONMENT)
    assert Attempt.objects.get(n=2).state == Attempt.State.QUEUED
    assert not Verdict.objects.exists()


def test_a_silent_worker_loses_its_attempt_and_cannot_record_it(submission: Submission, attempt: Attempt) -> None:
    started(attempt)
    assert reap() == 0
    lapse(attempt)
    assert [reap(), reap()] == [1, 0]
    attempt.refresh_from_db()
    assert (attempt.state, attempt.failure_kind) == (Attempt.State.LOST, Attempt.Failure.LEASE)
    late = outcome_of(attempt, implementation())
    assert not record(*signed(attempt, late))
    assert not lease.heartbeat(str(attempt.pk), attempt.token, "w1")
    second = Attempt.objects.get(n=2)
    assert second.token != attempt.token
    assert not record(str(second.pk), late, sign(attempt.token, late))
    started(second, "w2")
    assert record(*signed(second, outcome_of(second, implementation())))
    submission.refresh_from_db()
    assert (submission.state, submission.verdicts.count()) == (Submission.State.JUDGED, 1)
    assert number(submission, MACHINE) == 2  # One measured try, however many attempts it took.


def test_after_three_losses_it_timed_out_through_our_fault(submission: Submission) -> None:
    for n in (1, 2, 3):
        lapse(started(submission.attempts.get(n=n)))
        assert reap() == 1
    submission.refresh_from_db()
    verdict = submission.verdicts.get()
    assert (submission.state, verdict.status) == (Submission.State.JUDGED, "timed_out_infrastructure")
    assert submission.attempts.count() == 3
    assert "not your fault" in verdict.next_steps[0]
    assert number(submission, MACHINE) == 1  # It cost the author nothing.


def test_an_overdue_attempt_is_taken_though_its_heart_beats(attempt: Attempt) -> None:
    started(attempt)
    Attempt.objects.update(deadline_at=timezone.now() - timedelta(seconds=1))
    assert reap() == 0  # Its worker is ending it.
    Attempt.objects.update(deadline_at=timezone.now() - timedelta(seconds=31))
    assert reap() == 1
    attempt.refresh_from_db()
    assert attempt.failure_kind == Attempt.Failure.DEADLINE


@pytest.mark.parametrize(("intake", "left"), [(-5, 900), (0, 900), (10, 890), (3600, 870)])
def test_the_deadline_counts_from_the_push_and_not_while_it_waits(
    intake: int, left: int, submission: Submission, attempt: Attempt, broker: Broker
) -> None:
    submission.refresh_from_db()
    Submission.objects.update(arrived_at=submission.created_at - timedelta(seconds=intake))
    Attempt.objects.update(created_at=timezone.now() - timedelta(hours=2))
    assert dispatch(broker.send) == 1
    assert broker.jobs[0].deadline_seconds == left >= sum(broker.jobs[0].stage_seconds.values())
    started(attempt)
    assert attempt.deadline_at is not None
    assert attempt.started_at is not None
    assert attempt.deadline_at - attempt.started_at == timedelta(seconds=left)


def test_an_unfit_machine_is_replaced_and_then_given_up(submission: Submission) -> None:
    for n in (1, 2, 3):
        row = submission.attempts.get(n=n)
        reasons = [Reason("no_sandbox", "bubblewrap is not installed.")]
        text = encode(Outcome(str(row.pk), "invalid_environment", [], [], reasons))
        assert record(*signed(row, text))
    submission.refresh_from_db()
    assert submission.state == Submission.State.JUDGED
    assert submission.verdicts.get().reasons[0]["sentence"] == "bubblewrap is not installed."


def test_a_cancelled_attempt_cannot_be_recorded(submission: Submission, attempt: Attempt) -> None:
    started(attempt)
    assert [cancel(submission, "alice", "Not wanted."), cancel(submission, "alice", "Not wanted.")] == [True, False]
    assert not record(*signed(attempt, outcome_of(attempt, implementation())))
    assert not Verdict.objects.exists()


def test_only_a_maintainer_draws_a_decided_verdict_again(submission: Submission, attempt: Attempt) -> None:
    with pytest.raises(NotPossible, match="being judged"):
        retry(submission, "dora", may_maintain=True)
    record(*signed(attempt, outcome_of(attempt, implementation(speed="no_difference"))))
    with pytest.raises(NotPossible, match="Push a change"):
        retry(submission, "alice", may_maintain=False)
    retry(submission, "dora", may_maintain=True)
    second = submission.attempts.get(round=2)
    assert (second.n, second.state) == (1, Attempt.State.QUEUED)
    assert second.alpha < attempt.alpha
    record(*signed(second, outcome_of(second, implementation())))
    assert [verdict.current for verdict in submission.verdicts.order_by("id")] == [False, True]


@pytest.mark.parametrize("by", ["alice", "dora"])
def test_a_retry_runs_nothing_that_nobody_approved(
    by: str, repository: Repository, forge: LocalForge, rules: Any
) -> None:
    rules(first_time_needs_approval=True)
    repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    assert cancel(submission, "alice", "Not yet.")
    retry(submission, by, may_maintain=by == "dora")
    submission.refresh_from_db()
    assert (submission.state, submission.attempts.count()) == (Submission.State.WAITING, 0)
    approve_judging(submission, "dora", submission.head_sha)
    assert cancel(submission, "alice", "Not yet.")
    retry(submission, by, may_maintain=by == "dora")
    assert submission.attempts.get(state=Attempt.State.QUEUED).round == 2


def test_each_measured_try_leaves_less_alpha(
    repository: Repository, forge: LocalForge, submission: Submission, attempt: Attempt
) -> None:
    record(*signed(attempt, outcome_of(attempt, implementation(speed="no_difference"))))
    repository.pull(1, {SWIFT: source(body="x = 2")})
    repository.pull(2, {"engine/attention/other.py": source(name="other")}, author="bob")
    assert taken_in(forge, 1).attempts.get().alpha == pytest.approx(attempt.alpha / 4)
    assert taken_in(forge, 2).attempts.get().alpha == attempt.alpha


def test_the_same_code_gets_its_verdict_again_and_no_other_draw(
    repository: Repository, forge: LocalForge, submission: Submission, attempt: Attempt
) -> None:
    record(*signed(attempt, outcome_of(attempt, implementation(speed="no_difference"))))
    repository.pull(1, {SWIFT: source(name="swifter", body="# Nothing but a comment\nx   =   1  # and spaces")})
    again = taken_in(forge, 1)
    verdict = again.verdicts.get()
    assert again.state == Submission.State.JUDGED
    assert (verdict.reused_from, verdict.name, verdict.speed) == (submission.verdicts.get(), "swifter", "no_difference")
    repository.pull(2, {"engine/attention/copied.py": source(name="copied")}, author="bob")
    assert taken_in(forge, 2).state == Submission.State.JUDGING  # Nobody is given what another was.


def test_a_head_that_comes_back_gets_the_verdict_that_its_code_earned_meanwhile(
    repository: Repository, forge: LocalForge, submission: Submission
) -> None:
    first = submission.head_sha
    repository.pull(1, {SWIFT: source(body="x = 1  # The same, said otherwise.")})
    second = taken_in(forge, 1)
    attempt = second.attempts.get()
    record(*signed(attempt, outcome_of(attempt, implementation(speed="no_difference"))))
    git(repository.path, "update-ref", "refs/pull/1/head", first)
    again = taken_in(forge, 1)
    again.refresh_from_db()
    assert (again, again.state) == (submission, Submission.State.JUDGED)
    assert again.verdicts.get().reused_from == second.verdicts.get()
    assert [row.round for row in again.attempts.order_by("id")] == [1, 2]


@pytest.mark.parametrize("leave", ["cancel", "push"])
def test_a_measurement_that_its_author_stops_is_a_try(
    leave: str, repository: Repository, forge: LocalForge, submission: Submission, attempt: Attempt
) -> None:
    started(attempt)
    for stage in ("unit", "performance"):
        said = Progress(str(attempt.pk), stage, "Pair 9 of 24.", 9, 24, "pairs", 1.0)  # type: ignore[arg-type]
        assert lease.progress(str(attempt.pk), attempt.token, said)
    if leave == "cancel":
        assert cancel(submission, "alice", "It does not look well.")
        retry(submission, "alice", may_maintain=False)
        newest = submission.attempts.get(round=2)
    else:
        repository.pull(1, {SWIFT: source(body="x = 1  # Another draw, please.")})
        newest = taken_in(forge, 1).attempts.get()
    assert newest.alpha == pytest.approx(attempt.alpha / 4)
    repository.pull(2, {"engine/attention/other.py": source(name="other")}, author="bob")
    assert taken_in(forge, 2).attempts.get().alpha == attempt.alpha


def test_every_machine_class_must_have_judged(repository: Repository, forge: LocalForge, rules: Any) -> None:
    rules(machine_classes=[MACHINE, "h100"])
    repository.pull(3, {SWIFT: source()})
    submission = taken_in(forge, 3)
    first, second = submission.attempts.order_by("id")
    record(*signed(first, outcome_of(first, implementation())))
    submission.refresh_from_db()
    assert submission.state == Submission.State.JUDGING
    record(*signed(second, outcome_of(second, implementation())))
    submission.refresh_from_db()
    assert submission.state == Submission.State.JUDGED


@pytest.mark.django_db(transaction=True)
def test_two_attempts_that_end_at_the_same_moment_settle_their_submission(
    repository: Repository, forge: LocalForge, rules: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules(machine_classes=[MACHINE, "h100"])
    repository.pull(1, {SWIFT: source()})
    submission = taken_in(forge, 1)
    both = threading.Barrier(2)
    settle = recording.settle

    def settle_together(settled: Submission) -> None:
        for act in (lambda: None, lambda: settle(settled)):
            act()
            with suppress(threading.BrokenBarrierError):  # Where one waits for the other's commit, they cannot meet.
                both.wait(1)

    def end(attempt: Attempt) -> bool:
        try:
            return record(*signed(attempt, outcome_of(attempt, implementation())))
        finally:
            connection.close()

    monkeypatch.setattr(recording, "settle", settle_together)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(end, submission.attempts.all())) == [True, True]
    submission.refresh_from_db()
    assert (submission.state, submission.verdicts.count()) == (Submission.State.JUDGED, 2)
