"""``/example`` in a real browser: from a key and a prompt to a picture with its pin."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.api.conftest import KEY
from tests.browser.conftest import Gateway, Tab, violations

PAGES = Path(__file__).parents[2] / "gateway/pages"
#: The policy of the page lets no script read an address of a blob: the blobs are noted as they get one.
NOTE = """
    const made = new Map(), make = URL.createObjectURL;
    URL.createObjectURL = (blob) => { const url = make.call(URL, blob); made.set(url, blob); return url; };
    window.blobOf = (url) => made.get(url);
"""
SHOWN = """async () => {
    const bytes = await blobOf(document.getElementById("picture").src).arrayBuffer();
    const digest = await crypto.subtle.digest("SHA-256", bytes);
    return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}"""


@pytest.fixture
def page(tab: Tab) -> Page:
    tab.page.add_init_script(NOTE)
    tab.page.goto("/example")
    return tab.page


def ask(page: Page, prompt: str, key: str = KEY) -> None:
    page.get_by_label("API key").fill(key)
    page.get_by_label("Prompt, or the id of a picture").fill(prompt)
    page.get_by_role("button", name="Show").click()


def test_a_prompt_becomes_a_picture_with_a_pin_that_tells_of_it(gateway: Gateway, page: Page) -> None:
    ask(page, "a lighthouse")
    expect(page.locator("#status")).to_contain_text("Here it is", timeout=30_000)
    expect(page.locator("#picture")).to_have_attribute("alt", "A generated picture: a lighthouse")
    facts = page.locator("#facts")
    expect(facts).to_be_hidden()
    page.locator("#pin summary").press("Enter")
    expect(facts).to_be_visible()
    expect(facts).to_contain_text("imgen development signer")
    expect(facts).to_contain_text("eros")
    assert page.locator("#facts dd").all_inner_texts()[1] == "Yes"
    assert "UTC" in page.locator("#facts dd").last.inner_text()
    page.keyboard.press("Escape")
    expect(facts).to_be_hidden()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    newest = gateway.call("status", id=gateway.call("jobs", limit=1)["jobs"][0]["id"])["meta"]
    assert page.evaluate(SHOWN) == newest["fingerprint"]


def test_a_picture_that_is_there_is_shown_by_its_id(gateway: Gateway, page: Page) -> None:
    meta, data = gateway.picture()
    ask(page, meta["id"])
    expect(page.locator("#status")).to_contain_text("Signed, and unchanged", timeout=30_000)
    assert page.evaluate(SHOWN) == hashlib.sha256(data).hexdigest()


def test_a_wrong_key_is_told_and_a_right_one_can_follow(gateway: Gateway, page: Page) -> None:
    ask(page, "a lighthouse", key="imgen_this_key_is_nobodys")
    expect(page.locator("#status")).to_contain_text("Invalid API key")
    expect(page.locator("#figure")).to_be_hidden()
    meta, _ = gateway.picture()
    ask(page, meta["id"])
    expect(page.locator("#figure")).to_be_visible(timeout=30_000)


def test_an_unknown_id_and_a_gateway_that_is_away_are_told(page: Page) -> None:
    ask(page, "run_neverheardof")
    expect(page.locator("#status")).to_contain_text("Job not found")
    page.route("**/api/v2", lambda route: route.abort())
    ask(page, "a lighthouse")
    expect(page.locator("#status")).to_have_text("The gateway can’t be reached.")


def test_the_key_is_kept_nowhere(tab: Tab, page: Page) -> None:
    ask(page, "run_neverheardof")
    expect(page.locator("#status")).to_contain_text("Job not found")
    assert page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]") == [0, 0, ""]
    assert not any(KEY in url for url in [*tab.requests, page.url])
    page.reload()
    assert page.input_value("#key") == ""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(gateway: Gateway, page: Page, scheme: str) -> None:
    page.emulate_media(color_scheme=scheme)
    assert violations(page) == []
    meta, _ = gateway.picture()
    ask(page, meta["id"])
    expect(page.locator("#figure")).to_be_visible(timeout=30_000)
    page.locator("#pin summary").click()
    assert violations(page) == []
    page.set_viewport_size({"width": 320, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 320


def test_it_is_short_enough_to_be_copied() -> None:
    assert (
        sum(len((PAGES / f"example.{kind}").read_text(encoding="utf-8").splitlines()) for kind in ("html", "css", "js"))
        <= 150
    )
