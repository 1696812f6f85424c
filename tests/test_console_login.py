"""The console's form for tokens in a browser: what it says of one that is refused, and what it keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.teacher.config import ServiceConfig
from services.teacher.tenants import Tenant, Tenants, new_key
from tests.toy_page import await_sees, launched, page_of, type_token
from tests.toy_status import ToySource, console_of, status_of_a_day

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

TEACHER = "minilm"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as browser:
        yield browser


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Its address, and the tokens of one who may talk to this teacher and one who may not."""
    keys = {name: new_key(name) for name in ("ads", "elsewhere")}
    path = tmp_path / "tenants.yaml"
    Tenants(
        tenants={
            name: Tenant(keys=(key,), teachers=[TEACHER] if name == "ads" else ["another"])
            for name, (_, key) in keys.items()
        }
    ).save(path)
    with console_of(ServiceConfig(name=TEACHER, tenants=path), ToySource(status_of_a_day())) as port:
        yield f"http://127.0.0.1:{port}/", {name: token for name, (token, _) in keys.items()}


def test_a_wrong_token_is_told_and_the_right_one_leaves_no_trace(
    browser: Browser, console: tuple[str, dict[str, str]]
) -> None:
    url, tokens = console
    with page_of(browser, 1400, 900, may_complain=True) as page:  # of the 401
        page.goto(url)
        page.get_by_label("Your team's token").fill("ads.wrong")
        page.keyboard.press("Enter")
        await_sees(page, "This token is refused: got a token that is not known, or not any more.")
        type_token(page, tokens["ads"])
        page.get_by_text("Live", exact=True).wait_for()
        assert page.url == url
        assert page.evaluate("Object.keys(localStorage).length + document.cookie.length") == 0
        assert tokens["ads"] not in page.content()


def test_why_a_good_token_is_refused_is_told(browser: Browser, console: tuple[str, dict[str, str]]) -> None:
    url, tokens = console
    with page_of(browser, 1400, 900, may_complain=True) as page:
        page.goto(url)
        type_token(page, tokens["elsewhere"])
        await_sees(page, "This token is refused: elsewhere may not talk to minilm.")
        assert page.evaluate("sessionStorage.length") == 0


@pytest.mark.parametrize("body", ["<html>of a proxy", "null", '{"error": 1}', '{"error": ""}'])
def test_a_refusal_without_a_reason_is_told(
    body: str, browser: Browser, console: tuple[str, dict[str, str]]
) -> None:
    url, tokens = console
    with page_of(browser, 1400, 900, may_complain=True) as page:
        page.route("**/api/status*", lambda route: route.fulfill(status=401, body=body))
        page.goto(url)
        type_token(page, tokens["ads"])
        page.get_by_text("This token is refused.", exact=True).wait_for()


@pytest.mark.parametrize(
    "token", ["ads.\N{EURO SIGN}uro", "ads.s\N{CYRILLIC SMALL LETTER ES}cret", "ads. b", "ads.\x01"]
)
def test_what_can_be_no_token_is_refused_in_the_form(
    token: str, browser: Browser, console: tuple[str, dict[str, str]]
) -> None:
    url, tokens = console
    asked: list[str] = []
    with page_of(browser, 1400, 900) as page:
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        field = page.get_by_label("Your team's token")
        field.fill(token)
        page.keyboard.press("Enter")
        page.get_by_text("A token has letters, digits, points, - and _ only").wait_for()
        assert field.get_attribute("aria-invalid") == "true"
        assert page.evaluate("sessionStorage.length") == 0
        assert not any("/api/status" in each for each in asked)
        field.fill(tokens["ads"] + " ")
        page.get_by_role("alert").wait_for(state="hidden")
        page.keyboard.press("Enter")
        page.get_by_text("Live", exact=True).wait_for()
