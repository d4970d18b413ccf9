"""The parts of pages that ask again: 304 while nothing has changed, the new state as soon as something has."""

import re

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from swapbench.mergequeue.models import Build
from swapbench.submissions.models import Attempt, Submission, Verdict, Worker
from tests.web import sample


def again(site: Client, address: str, tag: str) -> int:
    return site.get(address, headers={"if-none-match": tag}).status_code


@pytest.mark.parametrize("address", ["/now/live", "/queue/live"])
def test_an_unchanged_part_is_304_without_a_body(site: Client, full: dict[int, Submission], address: str) -> None:
    first = site.get(address)
    assert first["ETag"]
    second = site.get(address, headers={"if-none-match": first["ETag"]})
    assert second.status_code == 304
    assert second.content == b""


def test_progress_changes_now_and_the_run(site: Client, full: dict[int, Submission]) -> None:
    run = f"/submissions/{full[14].pk}/live"
    tags = {address: site.get(address)["ETag"] for address in ("/now/live", run)}
    attempt = full[14].attempts.get()
    Attempt.objects.filter(pk=attempt.pk).update(done=9, progress_at=sample.timezone.now())
    for address, tag in tags.items():
        assert again(site, address, tag) == 200
        assert "9/24 pairs" in site.get(address).content.decode()


def test_another_submissions_progress_leaves_a_run_alone(site: Client, full: dict[int, Submission]) -> None:
    run = f"/submissions/{full[18].pk}/live"
    tag = site.get(run)["ETag"]
    Attempt.objects.filter(submission=full[14]).update(done=9, progress_at=sample.timezone.now())
    assert again(site, run, tag) == 304


def test_a_worker_that_falls_silent_changes_now(site: Client, full: dict[int, Submission]) -> None:
    tag = site.get("/now/live")["ETag"]
    Worker.objects.filter(name="sample-worker-2").update(seen_at=sample.timezone.now() - sample.timedelta(minutes=5))
    answer = site.get("/now/live", headers={"if-none-match": tag})
    assert answer.status_code == 200
    assert len(re.findall("silent", answer.content.decode())) == 2


def test_an_etag_is_of_one_language(site: Client, full: dict[int, Submission]) -> None:
    tag = site.get("/queue/live")["ETag"]
    assert site.get("/queue/live", headers={"if-none-match": tag, "accept-language": "zh-hans"}).status_code == 200


def test_a_part_asks_again_only_while_it_can_change(site: Client, full: dict[int, Submission]) -> None:
    assert "data-live" in site.get(f"/submissions/{full[14].pk}/live").content.decode()
    assert "data-live" in site.get(f"/submissions/{full[12].pk}/live").content.decode(), "it is in the queue"
    assert "data-live" not in site.get(f"/submissions/{full[5].pk}/live").content.decode()
    attempt = full[14].attempts.get()
    assert "data-live" not in site.get(f"/submissions/{full[14].pk}?attempt={attempt.pk}").content.decode()


def test_pages_need_few_queries(site: Client, full: dict[int, Submission], django_assert_max_num_queries) -> None:  # type: ignore[no-untyped-def]
    for address, most in (
        ("/", 20),
        ("/now/live", 26),
        ("/submissions/", 6),
        (f"/submissions/{full[3].pk}", 14),
        ("/queue", 14),
    ):
        with django_assert_max_num_queries(most):
            site.get(address)


def test_more_rows_need_no_more_queries(site: Client, full: dict[int, Submission]) -> None:
    def queries(address: str) -> int:
        with CaptureQueriesContext(connection) as asked:
            assert site.get(address).status_code == 200
        return len(asked)

    build, verdict = Build.objects.latest("id"), Verdict.objects.filter(current=True).latest("id")
    addresses = ("/", f"/submissions/{verdict.submission_id}")
    Attempt.objects.create(build=build, suite_version="s", machine_class="first", token="0")
    Verdict.objects.filter(pk=verdict.pk).update(reused_from=verdict)
    before = [queries(address) for address in addresses]
    for n in range(5):
        Attempt.objects.create(build=build, suite_version="s", machine_class=f"more-{n}", token="0")
        verdict.pk, verdict.path = None, f"engine/attention/more_{n}.py"
        verdict.reused_from = Verdict.objects.exclude(submission=verdict.submission)[n]
        verdict.save(force_insert=True)
    assert [queries(address) for address in addresses] == before
