"""Bad addresses, parameters and forms are answered with 4xx and a sentence, never with 500."""

import pytest
from django.test import Client

from swapbench.submissions.models import Submission

WRONG = (
    ("/nothing", 404, "There is no page at this address."),
    ("/submissions/999", 404, "There is no submission 999."),
    ("/submissions/999/live", 404, "There is no submission 999."),
    ("/submissions/99999999999999999999", 404, "There is no page"),
    ("/submissions/abc", 404, "There is no page"),
    ("/submissions/-1", 404, "There is no page"),
    ("/submissions/999/outcome.json", 404, "There is no submission 999."),
    ("/submissions/?kind=nope", 400, "“kind” cannot be “nope”. It is one of: attention"),
    ("/submissions/?class=nope", 400, "It is one of: E, Q8, Q4, S"),
    ("/submissions/?state=nope", 400, "“state” cannot be “nope”"),
    ("/submissions/?status=nope", 400, "“status” cannot be “nope”"),
    ("/submissions/?page=x", 400, "“page” must be a whole number"),
    ("/submissions/?page=0", 400, "“page” must be a whole number"),
    ("/submissions/?page=-3", 400, "“page” must be a whole number"),
    ("/submissions/?page=99999999999", 400, "“page” must be a whole number"),
    ("/submissions/?page=%D9%A3", 400, "“page” must be a whole number"),
    ("/submissions/?author=%00", 400, "control characters"),
    (f"/submissions/?author={'a' * 200}", 400, "at most 120"),
    ("/tracks/nope/E/cpu/", 404, "There is no slot kind “nope”."),
    ("/tracks/attention/Q9/cpu/", 404, "There is no quality class “Q9”."),
    ("/tracks/attention/Q9/cpu/front.json", 404, "There is no quality class “Q9”."),
    ("/people/nobody", 404, "Nobody called “nobody”"),
    ("/people/%00", 404, "There is no page"),
    ("/history?kind=nope", 400, "“kind” cannot be “nope”"),
    ("/compare?base=1&head=zzz", 400, "“head” must be the number of a submission"),
    ("/compare?base=998&head=999", 400, "there is no submission “998”"),
    ("/compare?base=²&head=1", 400, "“base” must be the number"),
    ("/assets/other.js", 404, "There is no such script."),
)
WRONG_API = (
    ("/api/submissions?kind=nope", 400),
    ("/api/submissions?page=x", 400),
    ("/api/submissions/abc", 400),
    ("/api/submissions/99999999999999999999", 400),
    ("/api/submissions/999", 404),
    ("/api/submissions/999/outcome", 404),
    ("/api/tracks/nope/E/cpu", 404),
    ("/api/tracks/nope/E/cpu.csv", 404),
)


@pytest.mark.django_db
@pytest.mark.parametrize(("address", "status", "sentence"), WRONG)
def test_a_wrong_address_is_answered_with_a_sentence(site: Client, address: str, status: int, sentence: str) -> None:
    answer = site.get(address)
    assert answer.status_code == status
    assert sentence in answer.content.decode()


@pytest.mark.django_db
@pytest.mark.parametrize(("address", "status"), WRONG_API)
def test_a_wrong_call_of_the_api_is_answered_with_a_sentence(site: Client, address: str, status: int) -> None:
    answer = site.get(address)
    assert answer.status_code == status
    assert answer.json()["error"].endswith(".")


def test_an_attempt_of_another_submission_is_refused(site: Client, full: dict[int, Submission]) -> None:
    attempt = full[3].attempts.get()
    answer = site.get(f"/submissions/{full[4].pk}?attempt={attempt.pk}")
    assert answer.status_code == 400
    assert f"Attempt {attempt.pk} is not one of submission {full[4].pk}." in answer.content.decode()


def test_what_is_missing_of_a_submission_is_404(site: Client, full: dict[int, Submission]) -> None:
    assert site.get(f"/submissions/{full[17].pk}/outcome.json").status_code == 404
    assert site.get(f"/submissions/{full[3].pk}/artifacts/other.txt").status_code == 404
    assert site.get(f"/submissions/{full[3].pk}/artifacts/..%2F..%2Fetc").status_code == 404


@pytest.mark.django_db
def test_pages_that_only_show_refuse_to_be_posted_to(site: Client) -> None:
    for address in (
        "/",
        "/submissions/",
        "/queue",
        "/tracks/",
        "/history",
        "/compare",
        "/about/",
        "/error-rates",
        "/healthz",
    ):
        assert site.post(address).status_code == 405, address
    assert site.post("/api/submissions").status_code == 405


@pytest.mark.django_db
def test_a_form_without_its_token_changes_nothing_and_says_so() -> None:
    strict = Client(enforce_csrf_checks=True, HTTP_ACCEPT_LANGUAGE="en")
    answer = strict.post("/language", {"language": "zh-hans", "next": "/"})
    assert answer.status_code == 403
    assert "The form came without a valid token" in answer.content.decode()
    assert "django_language" not in answer.cookies


@pytest.mark.django_db
def test_a_broken_page_is_shown_in_the_same_style(site: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("out of order")

    monkeypatch.setattr("swapbench.web.queries.now", broken)
    site.raise_request_exception = False
    answer = site.get("/")
    assert answer.status_code == 500
    assert "Something broke on our side" in answer.content.decode()
    assert "out of order" not in answer.content.decode()


def test_a_cookie_may_hold_anything(site: Client, full: dict[int, Submission]) -> None:
    for text in ("aaaaaaaa\\000", "é" * 20, "' OR 1=1 --", "x" * 5000, ""):
        answer = site.get("/", HTTP_COOKIE=f'sessionid="{text}"; csrftoken="{text}"; django_language="{text}"')
        assert answer.status_code == 200
