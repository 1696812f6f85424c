"""The console in a browser, over a service that three teams train against.

`PRECEPTOR_PICTURES=1` has it wait for a minute and a half and write the pictures of `docs/console.md` anew.
"""

from __future__ import annotations

import itertools
import os
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from deploy.console import BUILT, digest_of
from tests.toy_console import Service, served_console
from tests.toy_page import (
    PATIENCE_MS,
    await_sees,
    await_that,
    columns,
    enter,
    figures,
    is_within,
    launched,
    page_of,
    table,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page, Route

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
PICTURES_DIGEST = PICTURES / "console.sha256"
MAKES_PICTURES = os.environ.get("PRECEPTOR_PICTURES") == "1"
MAX_PAGE_BYTES = 200_000
# Of each element with text of its own: how it stands out from what is behind it.
CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()
NOTHING = "\N{EN DASH}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    wait_s = 90 if MAKES_PICTURES else 0
    with served_console(tmp_path_factory.mktemp("console"), wait_s) as service:
        yield service


def take(page: Page, name: str, folder: Path) -> None:
    """Takes a picture, and compares its size with that of the docs; or puts it there."""
    path = PICTURES / f"console-{name}.png"
    taken = path if MAKES_PICTURES else folder / path.name
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=taken)
    if MAKES_PICTURES:
        PICTURES_DIGEST.write_text(digest_of(BUILT) + "\n")
    assert _size(taken) == _size(path)


def _size(path: Path) -> tuple[int, int]:
    content = path.read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    return width, height


def test_an_operator_sees_who_talks_who_waits_and_who_is_refused(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    with page_of(browser, 1400, 1500) as page:
        enter(page, service.url, service.tokens["platform"])
        await_sees(page, "platform, and see all")
        await_sees(page, "1 up")
        for name in ("search", "ads", "support"):
            table(page, "Talking now").get_by_text(name).first.wait_for()
            table(page, "Fairness").get_by_text(name).wait_for()
        refused = table(page, "Refused or failed").get_by_role("row").filter(has_text="ads")
        refused.get_by_text("Not finite", exact=True).wait_for()
        assert "lower its learning rate" in refused.inner_text()
        assert refused.get_by_role("cell", name="3", exact=True).count() == 1
        await_sees(page, "the student left")
        paces = table(page, "Talking now").locator("tbody td:nth-child(6)")
        await_that(page, lambda: NOTHING not in figures(page) and "0" not in paces.all_inner_texts())
        assert columns(page, "Talking now") == [
            "Tenant",
            "Conversation",
            "Replica",
            "For",
            "Turns",
            "Turns/s",
            "Queue a turn",
            "Compute a turn",
            "Refused",
        ]
        assert {"Busy", "Tokens/s busy", "Tenants a pass", "Memory"} <= set(columns(page, "Replicas"))
        assert {"Weight", "Queue p50", "p99", "Bytes in"} <= set(columns(page, "Tenants"))
        assert is_within(page)
        take(page, "operator", tmp_path)


def test_the_numbers_move(browser: Browser, service: Service) -> None:
    with page_of(browser, 1400, 900) as page:
        enter(page, service.url, service.tokens["platform"])
        table(page, "Talking now").wait_for()
        clock, turns = (
            page.locator(".state .note"),
            table(page, "Talking now").locator("tbody td:nth-child(5)"),
        )
        before, turns_before = clock.inner_text(), turns.first.inner_text()
        await_that(page, lambda: clock.inner_text() != before)
        await_that(page, lambda: turns.first.inner_text() != turns_before)
        await_that(page, lambda: not {"0", NOTHING} & set(figures(page)[:2]))  # tokens and turns a second


def test_a_tenant_sees_its_own_only(browser: Browser, service: Service, tmp_path: Path) -> None:
    answers: list[str] = []
    with page_of(browser, 1400, 1150) as page:
        page.on(
            "response", lambda response: answers.append(response.text()) if "/api/" in response.url else None
        )
        enter(page, service.url, service.tokens["search"])
        await_sees(page, "search, and see your own")
        table(page, "Talking now").get_by_text("search").first.wait_for()
        await_sees(page, "Your share")
        await_sees(page, "Nothing was refused.")
        await_that(page, lambda: len(answers) > 3)
        seen = page.locator("body").inner_text()
        assert "ads" not in seen.split()
        assert "support" not in seen
        assert is_within(page)
        take(page, "tenant", tmp_path)
    for name in ("ads", "support", "platform"):
        assert not any(f'"{name}"' in answer for answer in answers)


def test_it_fits_a_phone_and_keeps_its_tables_for_screen_readers(
    browser: Browser, service: Service, tmp_path: Path
) -> None:
    with page_of(browser, 360, 1500) as page:
        enter(page, service.url, service.tokens["platform"])
        row = table(page, "Talking now").get_by_role("row").filter(has_text="search").first
        row.get_by_role("cell").first.wait_for()
        assert row.get_by_role("rowheader").inner_text().strip() == "search"
        assert is_within(page)
        take(page, "phone", tmp_path)


def test_the_keyboard_reaches_everything_and_shows_where_it_is(browser: Browser, service: Service) -> None:
    with page_of(browser, 1400, 900, reduced_motion="reduce", color_scheme="dark") as page:
        enter(page, service.url, service.tokens["platform"])
        table(page, "Talking now").wait_for()
        assert page.evaluate("getComputedStyle(document.querySelector('.dot')).animationName") == "none"
        reached = set()
        page.keyboard.press("Tab")
        while (
            name := page.evaluate("document.activeElement.innerText.trim().split('\\n')[0]")
        ) not in reached:
            reached.add(name)
            assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement === document.body"):
                break
        assert reached >= {"Sign out", "As a table"}
        page.locator("summary").first.focus()
        page.keyboard.press("Enter")
        numbers = page.get_by_role("table", name="Throughput by tenant").locator("tbody td")
        numbers.first.wait_for()
        page.get_by_role("button", name="Sign out").focus()
        page.keyboard.press("Enter")
        page.get_by_label("Your team's token").wait_for()
        assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(browser: Browser, service: Service, scheme: str) -> None:
    with page_of(browser, 1400, 900, color_scheme=scheme) as page:
        page.goto(service.url)
        page.get_by_label("Your team's token").wait_for()
        found = page.evaluate(CONTRASTS)
        enter(page, service.url, service.tokens["platform"])
        table(page, "Refused or failed").wait_for()
        found += page.evaluate(CONTRASTS)
    assert len(found) > 50
    assert [each for each in found if each["ratio"] < 4.5] == []  # WCAG 2, AA


def test_a_hidden_tab_asks_rarely_and_says_so(browser: Browser, service: Service) -> None:
    asked: list[str] = []
    with page_of(browser, 1400, 900) as page:
        page.add_init_script(
            "Object.defineProperty(document, 'hidden', {get: () => window.isHidden === true})"
        )
        enter(page, service.url, service.tokens["search"])
        turn = "document.dispatchEvent(new Event('visibilitychange'))"
        page.evaluate(f"window.isHidden = true; {turn}")
        await_sees(page, "Slow: this tab is hidden")
        page.wait_for_timeout(1500)  # what was under way
        page.on("request", lambda request: asked.append(request.url))
        page.wait_for_timeout(4000)
        assert len(asked) <= 1
        page.evaluate(f"window.isHidden = false; {turn}")
        page.get_by_text("Live", exact=True).wait_for()


def test_it_says_that_the_service_is_away_and_comes_back_by_itself(
    browser: Browser, service: Service
) -> None:
    with page_of(browser, 1400, 900, may_complain=True) as page:  # of each 503
        enter(page, service.url, service.tokens["ads"])
        asked: list[float] = []

        def refuse(route: Route) -> None:
            asked.append(time.monotonic())
            route.fulfill(status=503)

        page.route("**/api/status*", refuse)
        status = page.get_by_role("status")
        page.locator(".state.away").wait_for()
        assert "The service does not answer: it answered 503" in status.inner_text()
        await_that(page, lambda: len(asked) >= 4)
        gaps_s = [after - before for before, after in itertools.pairwise(asked)]
        assert all(gap_s > 0.9 * wait_s for gap_s, wait_s in zip(gaps_s, (1, 2, 4), strict=False))
        page.unroute("**/api/status*")
        page.get_by_role("button", name="Try now").click()
        page.get_by_text("Live", exact=True).wait_for()


def test_an_answer_that_breaks_off_is_told_and_what_was_known_stays(
    browser: Browser, service: Service
) -> None:
    with page_of(browser, 1400, 900) as page:
        enter(page, service.url, service.tokens["ads"])
        page.get_by_text("You are").wait_for()
        page.route("**/api/status*", lambda route: route.fulfill(body='{"teacher": "min'))
        page.locator(".state.away").wait_for()
        assert "ads, and see your own" in page.locator(".facts").inner_text()


def test_a_team_may_be_called_others(browser: Browser, service: Service) -> None:
    def rename(route: Route) -> None:
        answer = route.fetch()
        route.fulfill(response=answer, body=answer.text().replace('"ads"', '"others"'))

    with page_of(browser, 1400, 900) as page:
        page.route("**/api/status*", rename)
        enter(page, service.url, service.tokens["platform"])
        page.locator("summary").first.click()
        shown = table(page, "Throughput by tenant")
        shown.wait_for()
        column = columns(page, "Throughput by tenant").index("others")
        cells = shown.locator(f"tbody td:nth-child({column + 1})")
        await_that(page, lambda: any(each != "0" for each in cells.all_inner_texts()))


def test_the_page_is_light_and_quick(
    browser: Browser, service: Service, record_property: Callable[[str, object], None]
) -> None:
    sizes: dict[str, int] = {}
    with page_of(browser, 1400, 900) as page:
        page.on("response", lambda response: sizes.update({response.url: len(response.body())}))
        page.goto(service.url, wait_until="load")
        page.get_by_label("Your team's token").wait_for()
        loaded_ms = page.evaluate("performance.now()")
        page.wait_for_timeout(500)
    assert all(url.startswith(service.url) for url in sizes)
    record_property("console_bytes", sum(sizes.values()))
    record_property("console_shown_ms", loaded_ms)
    assert sum(sizes.values()) < MAX_PAGE_BYTES
    assert loaded_ms < PATIENCE_MS


def test_the_pictures_are_of_the_console_as_it_is() -> None:
    assert PICTURES_DIGEST.read_text().strip() == digest_of(BUILT), "run `make pictures`"
