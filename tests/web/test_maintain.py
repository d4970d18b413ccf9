"""The page for maintainers: who may come in, what each form does, what is refused and how that is said."""

import pytest
from django.contrib.auth.models import User
from django.test import Client

from swapbench.mergequeue.models import BranchState
from swapbench.submissions.models import Approval, AuditEvent, Submission
from tests.web import sample


@pytest.fixture
def carol(site: Client, db: None) -> Client:
    """A maintainer, signed in."""
    site.force_login(User.objects.create_user("carol", is_staff=True))
    return site


def act(client: Client, action: str, submission: Submission | None = None, **fields: str) -> str:
    """Sends a form and returns the text of the page that it leads to."""
    data = {"action": action, **fields}
    if submission is not None:
        data = {"submission": str(submission.pk), "head_sha": submission.head_sha, **data}
    answer = client.post("/maintain/act", data, follow=True)
    return answer.content.decode()


def test_a_stranger_is_sent_to_sign_in(site: Client, db: None) -> None:
    for answer in (site.get("/maintain"), site.post("/maintain/act", {"action": "retry"})):
        assert answer.status_code == 302
        assert answer["Location"].startswith("/login?next=")


def test_an_account_that_is_no_maintainers_is_refused(site: Client, db: None) -> None:
    site.force_login(User.objects.create_user("alice"))
    for answer in (site.get("/maintain"), site.post("/maintain/act", {"action": "retry"})):
        assert answer.status_code == 403
        assert "your account is not one" in answer.content.decode()


def test_what_waits_is_listed_with_what_was_done(carol: Client, full: dict[int, Submission]) -> None:
    text = carol.get("/maintain").content.decode()
    assert "Speed up the scheduler" in text
    assert "Int8 weights with outlier columns" in text
    assert "Attempt 1 was lost with its worker and is made again." in text


def test_an_approval_lets_a_waiting_commit_be_judged(carol: Client, db: None) -> None:
    submission = sample.submit(sample.SAMPLES[0], state=Submission.State.WAITING)
    assert f"Submission {submission.pk} will be judged." in act(carol, "approve-judging", submission)
    submission.refresh_from_db()
    assert submission.state == Submission.State.JUDGING
    assert submission.attempts.count() > 0
    assert Approval.objects.get().by == "carol"
    assert AuditEvent.objects.filter(actor="carol", submission=submission).exists()


def test_an_approval_of_a_commit_that_was_pushed_over_is_refused(carol: Client, db: None) -> None:
    submission = sample.submit(sample.SAMPLES[0], state=Submission.State.WAITING)
    text = act(carol, "approve-judging", submission, head_sha="0" * 40)
    assert "The pull request is now at" in text
    assert not Approval.objects.exists()


def test_a_merge_is_approved_once_per_person(carol: Client, full: dict[int, Submission]) -> None:
    for _ in range(2):
        assert "may be merged" in act(carol, "approve-merging", full[13])
    assert Approval.objects.filter(submission=full[13], purpose=Approval.Purpose.MERGE).count() == 1


def test_a_retry_starts_another_attempt(carol: Client, full: dict[int, Submission]) -> None:
    assert "is judged once more" in act(carol, "retry", full[11])
    assert full[11].attempts.filter(state="queued").count() == 1
    assert "cannot be retried while it is" in act(carol, "retry", full[11])


def test_a_submission_is_cancelled_with_a_reason(carol: Client, full: dict[int, Submission]) -> None:
    assert "was cancelled" in act(carol, "cancel", full[14], reason="Wrong branch")
    full[14].refresh_from_db()
    assert full[14].state == Submission.State.CANCELLED
    assert "nothing to cancel" in act(carol, "cancel", full[14], reason="Again")


def test_the_queue_is_held_and_let_go_on(carol: Client, full: dict[int, Submission]) -> None:
    assert "nothing is merged until the hold is lifted" in act(carol, "hold", reason="Release day")
    branch = BranchState.objects.get()
    assert (branch.held, branch.held_by, branch.hold_reason) == (True, "carol", "Release day")
    assert "Held by carol: Release day" in carol.get("/maintain").content.decode()
    assert "The queue goes on." in act(carol, "release")
    branch.refresh_from_db()
    assert not branch.held


def test_an_entry_is_taken_out_and_put_back(carol: Client, full: dict[int, Submission]) -> None:
    assert "was taken out of the queue" in act(carol, "take-out", full[13], reason="Not now")
    full[13].queue_entry.refresh_from_db()
    assert full[13].queue_entry.state == "left"
    assert "waits in the queue again" in act(carol, "put-back", full[13])
    full[13].queue_entry.refresh_from_db()
    assert full[13].queue_entry.state == "waiting"
    assert "is not in the queue" in act(carol, "put-back", full[5])


def test_a_queue_that_has_no_branch_yet_cannot_be_held(carol: Client, db: None) -> None:
    assert "has not looked at its branch yet" in act(carol, "hold", reason="Early")


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"action": "explode"}, 400),
        ({"action": "retry"}, 404),
        ({"action": "retry", "submission": "x"}, 400),
        ({"action": "retry", "submission": "999"}, 404),
        ({"action": "approve-judging", "submission": "SELF"}, 400),
        ({"action": "cancel", "submission": "SELF", "reason": ""}, 400),
        ({"action": "cancel", "submission": "SELF", "reason": "a\nb"}, 400),
        ({"action": "cancel", "submission": "SELF", "reason": "x" * 501}, 400),
    ],
)
def test_a_bad_form_is_answered_with_a_sentence(carol: Client, fields: dict[str, str], status: int) -> None:
    submission = sample.submit(sample.SAMPLES[0], state=Submission.State.WAITING)
    data = {name: value.replace("SELF", str(submission.pk)) for name, value in fields.items()}
    assert carol.post("/maintain/act", data).status_code == status
    submission.refresh_from_db()
    assert submission.state == Submission.State.WAITING


def test_a_form_without_its_token_does_nothing(full: dict[int, Submission]) -> None:
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(User.objects.create_user("carol", is_staff=True))
    assert strict.post("/maintain/act", {"action": "retry", "submission": str(full[11].pk)}).status_code == 403
    assert full[11].attempts.filter(state="queued").count() == 0
