"""The console's page as a test sees it."""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Locator, Page

__all__ = [
    "PATIENCE_MS",
    "await_sees",
    "await_that",
    "columns",
    "enter",
    "figures",
    "is_within",
    "launched",
    "page_of",
    "table",
    "type_token",
]

PATIENCE_MS = 60_000


FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def _skip(why: str) -> NoReturn:
    if os.environ.get("PRECEPTOR_REQUIRE_BROWSER") == "1":
        pytest.fail(f"{why}, and PRECEPTOR_REQUIRE_BROWSER is set")
    pytest.skip(why)


@contextlib.contextmanager
def launched() -> Iterator[Browser]:
    """A browser without a window; the test is skipped where there is none."""
    try:
        from playwright import sync_api  # noqa: PLC0415
    except ImportError:
        _skip("playwright is not installed")
    chromium = shutil.which("chromium")
    if chromium is None:
        _skip("no `chromium` on the PATH")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        yield browser
        browser.close()


@contextlib.contextmanager
def page_of(
    browser: Browser, width: int, height: int, *, may_complain: bool = False, **options: Any
) -> Iterator[Page]:
    """Opens a tab, and looks whether browser or page complained of anything."""
    context = browser.new_context(viewport={"width": width, "height": height}, **options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    context.close()
    assert may_complain or said == []


def enter(page: Page, url: str, token: str) -> None:
    """Signs in with the keyboard alone."""
    page.goto(url)
    page.get_by_label("Your team's token").wait_for()
    type_token(page, token)
    page.get_by_text("Live", exact=True).wait_for()


def type_token(page: Page, token: str) -> None:
    """Fills in the form, once it has the focus: it takes that after it is there."""
    page.locator("input:focus").wait_for()
    page.keyboard.type(token)
    page.keyboard.press("Enter")


def table(page: Page, title: str) -> Locator:
    return page.get_by_role("table", name=title)


def columns(page: Page, title: str) -> list[str]:
    return [each.strip() for each in table(page, title).locator("thead th:visible").all_inner_texts()]


def await_sees(page: Page, text: str) -> None:
    page.get_by_text(text).first.wait_for()


def await_that(page: Page, condition: Callable[[], bool]) -> None:
    """Waits in this process: the page's policy keeps a browser from evaluating what is not the page's."""
    deadline_s = time.monotonic() + PATIENCE_MS / 1000
    while not condition():
        assert time.monotonic() < deadline_s
        page.wait_for_timeout(200)


def figures(page: Page) -> list[str]:
    return page.locator(".tile .figure").all_inner_texts()


def is_within(page: Page) -> bool:
    """Whether nothing makes the page scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))
