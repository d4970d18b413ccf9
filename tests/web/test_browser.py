"""The pages in a real Chromium: a submission watched from running to its verdict, themes, keyboard, small screens."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from swapbench.submissions.models import Attempt, Submission
from tests.web import sample
from tests.web.chromium import CHROMIUM, FLAGS

pytestmark = [
    pytest.mark.browser,
    pytest.mark.django_db(transaction=True),
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed; apt install chromium"),
]

# What people look at; the numbers are those of the samples' submissions.
SHOWN = ("/", "/tracks/", "/tracks/attention/E/cpu/", "/submissions/", "/submissions/{3}", "/submissions/{5}", "/submissions/{14}", "/queue", "/history", "/compare?base={3}&head={12}", "/people/alice", "/about/", "/error-rates", "/api/docs", "/login", "/nothing")  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    # Playwright's event loop lives in this thread; the ORM would refuse to be used beside it.
    before = os.environ.get("DJANGO_ALLOW_ASYNC_UNSAFE")
    os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=list(FLAGS))
        yield browser
        browser.close()
    if before is None:
        del os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"]
    else:
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = before


@pytest.fixture
def context(browser: Browser, live_server: Any) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=live_server.url, locale="en-GB", viewport={"width": 1280, "height": 900})
    yield context
    context.close()


@pytest.fixture
def page(context: BrowserContext) -> Page:
    page = context.new_page()
    page.set_default_timeout(15_000)
    return page


def addresses(full: dict[int, Submission]) -> list[str]:
    found = []
    for shown in SHOWN:
        for number, submission in full.items():
            shown = shown.replace(f"{{{number}}}", str(submission.pk))
        found.append(shown)
    return found


def test_a_submission_is_watched_from_running_to_its_verdict(page: Page, full: dict[int, Submission]) -> None:
    submission = full[14]
    attempt = submission.attempts.get()
    page.goto(f"/submissions/{submission.pk}")
    expect(page.locator("#run")).to_contain_text("Being judged: Performance")
    expect(page.locator("#run")).to_contain_text("7/24 pairs")

    Attempt.objects.filter(pk=attempt.pk).update(
        done=19, sentence="Pair 20, order AB.", progress_at=sample.timezone.now()
    )
    expect(page.locator("#run")).to_contain_text("19/24 pairs", timeout=15_000)

    result = sample.Sample(14, "Sliding window over pages", "alice", "attention", "window-pages", effect=0.22, hours_ago=0.05, summary="Correct in every test, and 22 % faster than the default over 5 cases.")  # fmt: skip
    sample.finish(submission, result, attempt)
    expect(page.locator(".verdict .says")).to_contain_text("22 % faster", timeout=20_000)
    expect(page.locator("#run .verdict")).to_contain_text("Passed")
    assert page.locator("#run[data-live]").count() == 0, "the page is final and must stop asking"
    assert page.locator("[data-stale]:visible").count() == 0


def test_now_follows_what_happens_and_asks_for_changes_only(page: Page, full: dict[int, Submission]) -> None:
    page.goto("/")
    with page.expect_response(lambda answer: answer.url.endswith("/now/live") and answer.status == 304):
        pass
    expect(page.locator("#now .run").first).to_contain_text("7/24 pairs")
    Attempt.objects.filter(submission=full[14]).update(done=11, progress_at=sample.timezone.now())
    expect(page.locator("#now .run").first).to_contain_text("11/24 pairs", timeout=15_000)


def test_an_unreachable_server_is_said_and_asked_again(
    page: Page, context: BrowserContext, full: dict[int, Submission]
) -> None:
    page.goto("/")
    context.set_offline(True)
    expect(page.locator("[data-stale]")).to_be_visible(timeout=15_000)
    context.set_offline(False)
    expect(page.locator("[data-stale]")).to_be_hidden(timeout=30_000)


def test_no_page_reports_an_error_or_overflows_at_any_width(
    context: BrowserContext, full: dict[int, Submission]
) -> None:
    page = context.new_page()
    told: list[str] = []
    page.on("console", lambda message: told.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: told.append(str(error)))
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    for address in addresses(full):
        page.set_viewport_size({"width": 1440, "height": 900})
        page.goto(address, wait_until="load")
        for width in (1440, 768, 360):
            page.set_viewport_size({"width": width, "height": 900})
            over = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            assert over <= 0, f"{address} is {over} px too wide at {width} px"
    told = [text for text in told if "404" not in text]
    assert told == []
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {page.url.split("/")[2]}


def test_the_pareto_figure_is_drawn_only_when_it_comes_into_view(page: Page, full: dict[int, Submission]) -> None:
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.set_viewport_size({"width": 1280, "height": 200})
    page.goto("/tracks/attention/E/cpu/")
    page.wait_for_timeout(300)
    assert not any("plotly" in url for url in asked if url.endswith(".js"))
    page.locator("[data-plot]").scroll_into_view_if_needed()
    expect(page.locator("[data-plot] .main-svg").first).to_be_visible(timeout=20_000)
    assert "varlen-grouped" in page.locator("[data-plot]").text_content()


def test_the_theme_follows_the_system_and_the_toggle_is_remembered(
    browser: Browser, live_server: Any, full: dict[int, Submission]
) -> None:
    context = browser.new_context(base_url=live_server.url, color_scheme="dark")
    page = context.new_page()
    page.goto("/")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert dark == "rgb(16, 18, 21)"
    page.locator("[data-theme-toggle]").click()
    light = page.evaluate(background)
    assert light == "rgb(246, 246, 243)"
    page.goto("/queue")
    assert page.evaluate(background) == light
    expect(page.locator("[data-theme-toggle]")).to_have_attribute("aria-pressed", "false")
    context.close()


def test_the_keyboard_reaches_the_content_and_shows_where_it_is(page: Page, full: dict[int, Submission]) -> None:
    page.goto("/")
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    assert page.locator(".skip").bounding_box()["y"] >= 0
    page.keyboard.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    assert page.evaluate("document.activeElement.closest('main') !== null")


def test_the_language_can_be_changed_and_is_kept(page: Page, full: dict[int, Submission]) -> None:
    page.goto("/queue")
    page.get_by_role("button", name="中文").click()
    expect(page.locator("html")).to_have_attribute("lang", "zh-hans")
    page.goto("/")
    expect(page.locator("html")).to_have_attribute("lang", "zh-hans")
    page.get_by_role("button", name="English").click()
    expect(page.locator("html")).to_have_attribute("lang", "en")


def test_a_filter_is_applied_when_it_is_chosen(page: Page, full: dict[int, Submission]) -> None:
    page.goto("/submissions/")
    page.select_option("#kind", "quantization")
    page.wait_for_url("**kind=quantization**")
    assert page.locator("tbody tr").count() == 3


BASICS = """() => {
  const wrong = [];
  const named = (e) => (e.getAttribute("aria-label") || e.textContent || e.title || "").trim()
    || (e.getAttribute("aria-labelledby") || "").split(" ").some((id) => document.getElementById(id)?.textContent.trim());
  if (document.querySelectorAll("h1").length !== 1) wrong.push("not exactly one h1");
  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title.trim()) wrong.push("no title");
  const ids = [...document.querySelectorAll("[id]")].map((e) => e.id);
  for (const id of new Set(ids)) if (ids.filter((other) => other === id).length > 1) wrong.push(`id twice: ${id}`);
  for (const e of document.querySelectorAll("a, button")) if (!named(e)) wrong.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("input:not([type=hidden]), select, textarea"))
    if (!e.labels.length && !e.getAttribute("aria-label")) wrong.push(`no label: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("svg")) if (e.getAttribute("aria-hidden") !== "true" && !e.getAttribute("aria-label")) wrong.push(`svg without name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("progress, [role=region]")) if (!named(e)) wrong.push(`no name: ${e.outerHTML.slice(0, 80)}`);
  for (const e of document.querySelectorAll("[aria-labelledby]"))
    for (const id of e.getAttribute("aria-labelledby").split(" ")) if (!document.getElementById(id)) wrong.push(`labelled by nothing: ${id}`);
  for (const e of document.querySelectorAll("table")) if (!e.querySelector("thead th")) wrong.push("table without heads");
  let level = 1;
  for (const e of document.querySelectorAll("h1, h2, h3, h4")) {
    const own = Number(e.tagName[1]);
    if (own > level + 1) wrong.push(`heading skips a level: ${e.textContent}`);
    level = own;
  }
  const channel = (v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; };
  const parse = (text) => (text.match(/[\\d.]+/g) || []).map(Number);
  const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = (e) => { for (; e; e = e.parentElement) { const c = parse(getComputedStyle(e).backgroundColor); if (c.length === 3 || c[3] === 1) return c; } return [255, 255, 255]; };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const seen = new Set();
  while (walker.nextNode()) {
    const e = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || seen.has(e) || e.closest("svg, .unseen, script, style, option") || !e.getClientRects().length) continue;
    seen.add(e);
    const style = getComputedStyle(e);
    const [a, b] = [luminance(parse(style.color)), luminance(behind(e))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && Number(style.fontWeight) >= 700);
    if (ratio < (large ? 3 : 4.5)) wrong.push(`contrast ${ratio.toFixed(2)}: ${e.tagName}.${e.className} "${e.textContent.trim().slice(0, 30)}"`);
  }
  return wrong;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_keep_the_basics_of_accessibility(
    browser: Browser, live_server: Any, full: dict[int, Submission], scheme: Any
) -> None:
    context = browser.new_context(base_url=live_server.url, color_scheme=scheme)
    page = context.new_page()
    for address in addresses(full):
        page.goto(address, wait_until="load")
        assert page.evaluate(BASICS) == [], f"{address}, {scheme}"
    context.close()
