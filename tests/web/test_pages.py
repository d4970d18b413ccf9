"""Every page answers on an empty and on a full platform, and says what people need to know."""

import re

import pytest
from django.contrib.auth.models import User
from django.test import Client

from swapbench.mergequeue.models import BranchState
from swapbench.submissions.models import Attempt, Submission
from tests.web import sample

PAGES = (
    "/",
    "/tracks/",
    "/tracks/attention/E/cpu/",
    "/tracks/attention/E/cpu/front.json",
    "/submissions/",
    "/queue",
    "/history",
    "/compare",
    "/compare?head=1",
    "/about/",
    "/error-rates",
    "/login",
    "/healthz",
    "/now/live",
    "/queue/live",
    "/api/docs",
    "/api/openapi.json",
    "/api/submissions",
    "/api/tracks",
    "/api/tracks/attention/E/cpu",
    "/api/tracks/attention/E/cpu.csv",
    "/api/verdicts.csv",
    "/api/queue",
    "/api/workers",
)


@pytest.mark.django_db
@pytest.mark.parametrize("address", PAGES)
def test_a_page_answers_on_an_empty_platform(site: Client, address: str) -> None:
    assert site.get(address).status_code == 200


def test_every_page_answers_on_a_full_platform(site: Client, full: dict[int, Submission]) -> None:
    for address in (*PAGES, "/people/alice", "/people/bob"):
        assert site.get(address).status_code == 200, address


def test_every_submission_has_a_page_and_a_live_part(site: Client, full: dict[int, Submission]) -> None:
    for submission in full.values():
        page = site.get(f"/submissions/{submission.pk}")
        assert page.status_code == 200
        assert submission.pull_request.title in page.content.decode()
        assert site.get(f"/submissions/{submission.pk}/live").status_code == 200


@pytest.mark.parametrize("language", ["en", "zh-hans"])
def test_no_page_leaves_a_template_variable_or_an_inline_style(
    client: Client, full: dict[int, Submission], language: str
) -> None:
    for address in [*PAGES, "/people/alice", *(f"/submissions/{one.pk}" for one in full.values())]:
        answer = client.get(address, headers={"accept-language": language})
        if not answer["Content-Type"].startswith("text/html"):
            continue
        text = answer.content.decode()
        assert "{{" not in text, address
        assert "{%" not in text, address
        assert not re.search(r"<[^>]+\sstyle=", text), address
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), address
        assert not re.search(r"<[^>]+\son[a-z]+=", text), address


def test_a_failure_says_what_happened_whose_doing_it_is_and_what_to_do(
    site: Client, full: dict[int, Submission]
) -> None:
    text = site.get(f"/submissions/{full[5].pk}").content.decode()
    assert "It sees the future: changing token 7 changed the output at position 6." in text
    assert "This is the submission&#x27;s own doing." in text
    assert "expected 0.4121, got 0.3987" in text
    assert "[6, 0, 3]" in text
    assert "Compare key position &lt;= query position" in text
    assert "swapbench check --suite unit --base 3f1c0a9d2b47" in text


def test_a_lost_attempt_is_said_to_be_our_fault(site: Client, full: dict[int, Submission]) -> None:
    text = site.get(f"/submissions/{full[18].pk}").content.decode()
    assert "an earlier one was lost by our infrastructure, at no cost to the contributor" in text
    assert "The worker sample-worker-3 was not heard of for 30 s." in text


def test_an_attempt_that_ended_without_an_outcome_is_shown_as_ours(site: Client, db: None) -> None:
    submission = sample.submit(sample.SAMPLES[0], state=Submission.State.JUDGING)
    attempt = sample.start(submission)
    Attempt.objects.filter(pk=attempt.pk).update(
        state=Attempt.State.LOST, failure_kind=Attempt.Failure.DEADLINE, failure="No outcome came before the deadline."
    )
    text = site.get(f"/submissions/{submission.pk}").content.decode()
    assert "the deadline passed" in text
    assert "No outcome came before the deadline." in text
    assert "This is our infrastructure's doing" in text


def test_an_outcome_that_cannot_be_read_is_no_error_of_the_page(site: Client, full: dict[int, Submission]) -> None:
    Attempt.objects.filter(submission=full[3]).update(outcome='{"version": 99}')
    page = site.get(f"/submissions/{full[3].pk}")
    assert page.status_code == 200
    assert "cannot be read by this version" in page.content.decode()


def test_a_speed_up_is_shown_with_its_unit_and_interval(site: Client, full: dict[int, Submission]) -> None:
    text = site.get(f"/submissions/{full[3].pk}").content.decode()
    assert "+34.0\u202f%" in text
    assert re.search(r"95\u202f% interval \+\d+\.\d … \+\d+\.\d\u202f%", text)
    assert "ms</td>" in text


def test_what_a_whole_model_has_of_a_gain_stands_beside_it(site: Client, full: dict[int, Submission]) -> None:
    text = site.get(f"/submissions/{full[3].pk}").content.decode()
    assert "Of a whole model" in text
    row = text.partition("A token of each of 16 sequences after 2048")[2].partition("</tr>")[0]
    assert "16.0\u202f%" in row
    assert re.search(r"\+4\.\d\d\u202f%", row)
    assert "Of a whole model" not in site.get(f"/submissions/{full[10].pk}").content.decode()


def test_entries_that_cannot_be_told_apart_share_a_rank(site: Client, full: dict[int, Submission]) -> None:
    text = site.get("/tracks/attention/E/cpu/").content.decode()
    ranks = re.findall(r'class="rank"><span class="unseen">Rank</span> (\S+)</td>', text)
    assert ranks == ["1=", "1=", "3", "4", "5"]


def test_the_queue_says_why_an_entry_waits(site: Client, full: dict[int, Submission]) -> None:
    text = site.get("/queue").content.decode()
    assert "Waits for 1 approval by a maintainer." in text
    BranchState.objects.update(held=True, held_by="carol", hold_reason="Release day")
    assert "Held by carol: Release day." in site.get("/queue").content.decode()


def test_contributors_text_is_escaped(site: Client, db: None) -> None:
    hostile = "<script>alert(1)</script>"
    one = sample.Sample(1, hostile, hostile[:30], "attention", "x", summary=hostile, reason=None)
    submission = sample.submit(one)
    sample.finish(submission, one)
    for address in ("/", "/submissions/", f"/submissions/{submission.pk}", "/tracks/attention/E/cpu/", "/history"):
        assert hostile not in site.get(address).content.decode()


def test_the_outcome_and_its_artifacts_can_be_downloaded(site: Client, full: dict[int, Submission]) -> None:
    pk = full[3].pk
    outcome = site.get(f"/submissions/{pk}/outcome.json")
    assert outcome.json()["implementations"][0]["name"] == "varlen-grouped"
    assert outcome["Content-Disposition"].startswith("attachment")
    artifact = site.get(f"/submissions/{pk}/artifacts/benchmark.json")
    assert artifact.content == b'{"benchmarks": []}'
    assert artifact["Content-Type"].startswith("text/plain")
    assert artifact["Content-Disposition"].startswith("attachment")


def test_the_list_is_narrowed_by_every_filter(site: Client, full: dict[int, Submission]) -> None:
    def titles(query: str) -> set[str]:
        text = site.get(f"/submissions/?{query}").content.decode()
        return {one.pull_request.title for one in full.values() if one.pull_request.title in text}

    assert titles("kind=quantization&status=passed") == {
        "Int8 weights, one scale per channel",
        "Int8 weights with outlier columns",
    }
    assert titles("state=refused") == {"Header without a class"}
    assert titles("author=MALLORY") == {"Keep the results of earlier calls"}
    assert titles("class=S") == set()


def test_pages_send_a_strict_policy_and_no_foreign_address(site: Client, full: dict[int, Submission]) -> None:
    for address in ("/", "/tracks/attention/E/cpu/", f"/submissions/{full[3].pk}", "/api/docs"):
        answer = site.get(address)
        policy = answer["Content-Security-Policy"]
        assert "script-src 'self'" in policy
        assert "unsafe-eval" not in policy
        text = answer.content.decode()
        assert not re.search(r'(src|href|action)="(https?:)?//', text), address


def test_a_person_signs_in_and_out(site: Client, db: None) -> None:
    User.objects.create_user("carol", password="a long enough secret")
    wrong = site.post("/login", {"username": "carol", "password": "wrong"})
    assert wrong.status_code == 200
    assert 'role="alert"' in wrong.content.decode()
    right = site.post("/login?next=/queue", {"username": "carol", "password": "a long enough secret", "next": "/queue"})
    assert right.status_code == 302
    assert right["Location"] == "/queue"
    assert "carol" in site.get("/").content.decode()
    assert site.post("/logout").status_code == 302


def test_the_queue_says_how_long_it_will_take(site: Client, full: dict[int, Submission]) -> None:
    text = site.get("/queue").content.decode()
    assert "≈ 1\u202fmin 35\u202fs" in text
    assert "≈ 3\u202fmin 10\u202fs" in text
    BranchState.objects.update(held=True)
    assert "≈" not in site.get("/queue").content.decode()
