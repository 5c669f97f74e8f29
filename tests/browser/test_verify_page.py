"""``/verify`` in a real browser: what people see of pictures of every kind, and what they can't be made to see."""

from __future__ import annotations

import base64
import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from playwright.sync_api import BrowserContext, Page, expect

from compliance.authority import load_or_create
from tests.browser.conftest import Gateway, Tab, violations
from tests.compliance.samples import bytes_of, new_signer, scene, signed

STATES = ("trusted", "valid", "tampered", "invalid", "unsigned", "unreadable")


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Files of every kind. ``meta`` is what the gateway says of the one that it drew."""

    meta: dict[str, Any]
    trusted: bytes
    tampered: bytes
    stripped: bytes
    stranger: bytes
    foreign: bytes
    garbage: bytes = b"no picture at all, whatever its name says"


@pytest.fixture(scope="module")
def pictures(gateway: Gateway, tmp_path_factory: pytest.TempPathFactory) -> Pictures:
    meta, data = gateway.picture(cs_author="Ada L.", cs_title="<b>A fox</b>")
    at = len(data) - 200
    with Image.open(io.BytesIO(data)) as picture:
        stripped = bytes_of(picture.convert("RGB"), "JPEG")
    stranger = new_signer(load_or_create(tmp_path_factory.mktemp("stranger") / "ca"))
    return Pictures(
        meta=meta,
        trusted=data,
        tampered=data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :],
        stripped=stripped,
        stranger=signed(stranger).data,
        foreign=bytes_of(scene(), "JPEG"),
    )


@pytest.fixture
def page(tab: Tab) -> Page:
    tab.page.goto("/verify")
    return tab.page


def choose(page: Page, data: bytes, name: str = "fox.jpg", mime: str = "image/jpeg") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": mime, "buffer": data})


def hand_over(page: Page, kind: str, data: bytes, name: str = "fox.jpg", mime: str = "image/jpeg") -> None:
    """Drop or paste a file, as the browser would tell the page of it."""
    page.evaluate(
        """([kind, data, name, type]) => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(data), (character) => character.charCodeAt(0));
            if (data) transfer.items.add(new File([bytes], name, { type }));
            const more = { bubbles: true, cancelable: true };
            const event = kind === "paste"
                ? new ClipboardEvent("paste", { ...more, clipboardData: transfer })
                : new DragEvent(kind, { ...more, dataTransfer: transfer });
            document.querySelector("h1").dispatchEvent(event);
        }""",
        [kind, base64.b64encode(data).decode(), name, mime],
    )


def facts(page: Page) -> dict[str, str]:
    page.locator("#result").wait_for()
    rows = page.locator("#facts > div")
    return {row.locator("dt").inner_text(): row.locator("dd").inner_text() for row in rows.all()}


def answered(state: str, **more: Any) -> dict[str, Any]:
    """An answer of the API, for what no file can make it say."""
    empty = dict.fromkeys(("signer", "time", "generator", "model", "ai_generated", "training", "pixels_changed"))
    told = {"state": state, "summary": "", **empty, "actions": [], "claims": {}, "failures": [], "found": []}
    return {**told, "request_id": "req_1", **more}


def test_a_picture_of_this_service_is_trusted_and_says_all_that_is_known(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.trusted)
    expect(page.locator("#verdict")).to_have_text("Trusted")
    assert page.locator("#state").get_attribute("data-state") == "trusted"
    told = facts(page)
    assert (
        "imgen development signer" in told["Signed by"]
        and "certificate issued by imgen development" in told["Signed by"]
    )
    assert told["When"].startswith(pictures.meta["time"][8:10].lstrip("0")) and "UTC" in told["When"]
    assert "imgen" in told["Made with"] and told["Model"] == "eros" and told["Drawn by AI"] == "Yes"
    assert told["Pixels"] == "Unchanged since it was signed"
    assert told["What was done"].startswith("Created") and "Drawn by the model eros" in told["What was done"]
    expect(page.locator("#caution")).to_contain_text("it is trusted here only")
    expect(page.locator("#status")).to_contain_text("Checked. Trusted.")
    # The very file is on record, and not only something like it.
    assert told["On record"].startswith(pictures.meta["gen_id"])
    expect(page.locator("#found")).to_be_hidden()
    # The picture beside it is the file itself, and nothing that came over the net.
    assert (page.get_attribute("#picture", "src") or "").startswith("blob:")
    assert page.evaluate("document.getElementById('picture').naturalWidth") == pictures.meta["width"]
    expect(page.locator("#caption")).to_contain_text("fox.jpg")


def test_claims_and_the_whole_answer_stand_in_the_details(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.trusted)
    page.locator("summary").click()
    details = page.locator("#details")
    expect(details).to_contain_text("Claimed by whoever asked for the picture")
    expect(details).to_contain_text("Ada L.")
    expect(details).to_contain_text("<b>A fox</b>")
    expect(details).to_contain_text("c2pa.created")
    expect(page.locator("#json")).to_contain_text('"state": "trusted"')
    assert page.locator("#result b").count() == 0


def test_a_changed_byte_is_told_in_words_and_by_another_mark(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.tampered)
    expect(page.locator("#verdict")).to_have_text("Changed after signing")
    assert page.locator("#mark").get_attribute("href") == "#mark-tampered"
    assert facts(page)["Pixels"] == "Changed since it was signed"
    expect(page.locator("#caution")).to_contain_text("Don’t rely on it.")
    page.locator("summary").click()
    expect(page.locator("#more")).to_contain_text("What does not hold")


def test_a_stripped_copy_is_found_again_and_the_page_says_how_and_what_that_is_worth(
    page: Page, pictures: Pictures
) -> None:
    choose(page, pictures.stripped)
    expect(page.locator("#verdict")).to_have_text("No credentials")
    found = page.locator("#found")
    expect(found).to_contain_text(f"This looks like picture {pictures.meta['gen_id']} of this service")
    expect(found).to_contain_text("by the invisible mark in its pixels")
    expect(found).to_contain_text("eros")
    expect(found).to_contain_text("It proves nothing alone")
    expect(page.locator("#status")).to_contain_text(pictures.meta["gen_id"])
    assert facts(page) == {}


def test_a_signer_from_elsewhere_is_valid_and_not_trusted(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.stranger)
    expect(page.locator("#verdict")).to_have_text("Valid, signer not known here")
    expect(page.locator("#caution")).to_contain_text("as far as you know the signer")


def test_a_picture_of_somebody_else_without_credentials_is_no_find(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.foreign)
    expect(page.locator("#verdict")).to_have_text("No credentials")
    expect(page.locator("#found")).to_be_hidden()


def test_what_is_no_picture_is_told_so(page: Page, pictures: Pictures) -> None:
    choose(page, pictures.garbage)
    expect(page.locator("#verdict")).to_have_text("Not readable")
    expect(page.locator("#no-picture")).to_be_visible()
    expect(page.locator("#picture")).to_be_hidden()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_picture_can_be_dropped_and_pasted(page: Page, pictures: Pictures, kind: str) -> None:
    if kind == "drop":
        hand_over(page, "dragover", b"")
        assert "over" in (page.get_attribute("#drop", "class") or "")
    hand_over(page, kind, pictures.trusted, name="pasted.jpg")
    expect(page.locator("#verdict")).to_have_text("Trusted")
    assert page.get_attribute("#drop", "class") == "drop done"


@pytest.mark.parametrize(("kind", "words"), [("drop", "Save the picture"), ("paste", "Copy a picture")])
def test_what_holds_no_file_is_told_so(page: Page, kind: str, words: str) -> None:
    hand_over(page, kind, b"")
    expect(page.locator("#problem")).to_contain_text(words)


def test_a_file_that_is_too_large_is_not_even_sent(tab: Tab, page: Page, tmp_path: Path) -> None:
    most = int(page.locator("body").get_attribute("data-most-bytes") or "")
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(most + 1)
    page.set_input_files("#file", large)
    expect(page.locator("#problem-title")).to_have_text("This file is too large.")
    expect(page.locator("#again")).to_be_hidden()
    assert not any(url.endswith("/api/verify") for url in tab.requests)


def test_one_that_the_server_finds_too_large_is_told_so_too(context: BrowserContext, tab: Tab, tmp_path: Path) -> None:
    def generous(route: Any) -> None:
        page = route.fetch()
        route.fulfill(response=page, body=page.text().replace('data-most-bytes="', 'data-most-bytes="9'))

    context.route("**/verify", generous, times=1)
    tab.page.goto("/verify")
    large = tmp_path / "large.jpg"
    with large.open("wb") as file:
        file.truncate(int((tab.page.locator("body").get_attribute("data-most-bytes") or "")[1:]) + 1)
    tab.page.set_input_files("#file", large)
    expect(tab.page.locator("#problem-title")).to_have_text("This file is too large.")
    assert any(url.endswith("/api/verify") for url in tab.requests)


@pytest.mark.parametrize(
    ("fault", "title", "text"),
    [
        ({"status": 429, "headers": {"retry-after": "7"}, "json": {}}, "Too many pictures", "Try again in 7 seconds."),
        ({"status": 503, "json": {"request_id": "req_7"}}, "The server can’t check", "req_7"),
        ({"status": 502, "body": "<html>"}, "The server can’t check", "nothing to do with your picture"),
        ({"status": 200, "body": "<html>"}, "The answer can’t be read", "Try again."),
        (
            {"status": 415, "json": {"error": "No", "fix": "Send a PNG."}},
            "This file can’t be checked",
            "No. Send a PNG.",
        ),
        (None, "The server can’t be reached", "Check your connection"),
    ],
    ids=["429", "503", "502", "nonsense", "415", "away"],
)
def test_a_fault_is_told_in_plain_words_and_can_be_tried_again(
    page: Page, pictures: Pictures, fault: dict[str, Any] | None, title: str, text: str
) -> None:
    page.route("**/api/verify", lambda route: route.fulfill(**fault) if fault else route.abort(), times=1)
    choose(page, pictures.trusted)
    expect(page.locator("#problem-title")).to_contain_text(title)
    expect(page.locator("#problem-text")).to_contain_text(text)
    expect(page.locator("#status")).to_contain_text(title)
    expect(page.locator("#result")).to_be_hidden()
    if fault and fault["status"] == 415:
        expect(page.locator("#again")).to_be_hidden()
        return
    page.locator("#again").click()
    expect(page.locator("#verdict")).to_have_text("Trusted")
    expect(page.locator("#problem")).to_be_hidden()


def test_being_offline_is_told(context: BrowserContext, page: Page, pictures: Pictures) -> None:
    context.set_offline(True)
    choose(page, pictures.trusted)
    expect(page.locator("#problem-title")).to_have_text("You are offline.")
    context.set_offline(False)
    page.locator("#again").click()
    expect(page.locator("#verdict")).to_have_text("Trusted")


def test_a_second_picture_takes_the_place_of_the_first(page: Page, pictures: Pictures) -> None:
    page.route("**/api/verify", lambda route: None, times=1)
    choose(page, pictures.foreign, name="first.jpg")
    expect(page.locator("#status")).to_contain_text("Checking first.jpg")
    choose(page, pictures.trusted, name="second.jpg")
    expect(page.locator("#verdict")).to_have_text("Trusted")
    expect(page.locator("#caption")).to_contain_text("second.jpg")
    # The same file again is a question again.
    choose(page, pictures.trusted, name="second.jpg")
    expect(page.locator("#verdict")).to_have_text("Trusted")


def test_everything_can_be_done_with_the_keyboard(page: Page, pictures: Pictures) -> None:
    # Heard from the start: what is asked for only when the key is pressed may come too late.
    file = {"name": "fox.jpg", "mimeType": "image/jpeg", "buffer": pictures.trusted}
    page.on("filechooser", lambda chooser: chooser.set_files(file))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    outline = "getComputedStyle(document.querySelector('label.button')).outlineStyle"
    assert page.evaluate(outline) == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_have_text("Trusted")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    page.keyboard.press("Enter")
    expect(page.locator("#json")).to_be_visible()
    for _ in range(3):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "json":
            break
    assert page.evaluate("document.activeElement.id") == "json"


@pytest.mark.parametrize("state", STATES)
def test_no_two_answers_look_the_same_without_colours(page: Page, pictures: Pictures, state: str) -> None:
    page.route("**/api/verify", lambda route: route.fulfill(json=answered(state)))
    choose(page, pictures.foreign)
    page.locator("#result").wait_for()
    assert page.locator("#mark").get_attribute("href") == f"#mark-{state}"
    assert page.locator(f"#mark-{state}").count() == 1
    title, legend = page.locator("#verdict").inner_text(), page.locator("#legend dt").all_inner_texts()
    assert title in legend and len(set(legend)) == len(STATES)
    assert page.locator("#summary").inner_text()


@pytest.mark.parametrize("found", [0, 2], ids=["its own words", "finds"])
def test_what_an_answer_says_is_text_and_never_markup(page: Page, pictures: Pictures, found: int) -> None:
    bad = "<img src=x onerror=\"document.title='broken'\">"
    match = {"id": bad, "manifest": bad, "created": bad, "model": bad, "by": [bad], "distance": None, "mirrored": True}
    evil = answered(
        "trusted",
        summary=bad,
        signer={"name": bad, "issuer": bad},
        time=bad,
        generator=bad,
        model=bad,
        ai_generated=False,
        actions=[{"action": bad, "description": bad, "when": bad}],
        claims={"author": bad, bad: bad},
        training={bad: bad},
        failures=[bad],
        found=[match] * found,
    )
    page.route("**/api/verify", lambda route: route.fulfill(json=evil))
    choose(page, pictures.foreign)
    expect(page.locator("#matches li" if found else "#summary").first).to_contain_text(bad)
    page.locator("summary").click()
    assert page.locator("img").count() == 1 and page.title() == "Verify a picture"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(page: Page, pictures: Pictures, scheme: Any) -> None:
    page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    assert violations(page) == []
    for data in (pictures.trusted, pictures.tampered, pictures.stripped, pictures.garbage):
        choose(page, data)
        expect(page.locator("#status")).to_contain_text("Checked.")
        page.evaluate("document.getElementById('details').open = true")
        assert violations(page) == []
    hand_over(page, "paste", b"")
    expect(page.locator("#problem")).to_be_visible()
    assert violations(page) == []


def test_it_follows_a_dark_scheme_and_stands_still_where_that_is_wished(page: Page, pictures: Pictures) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    turning = "getComputedStyle(document.getElementById('status'), '::before').animationName"
    light = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) != light
    page.route("**/api/verify", lambda route: None)
    choose(page, pictures.foreign)
    expect(page.locator("#status.busy")).to_be_visible()
    assert page.evaluate(turning) == "turn"
    page.emulate_media(reduced_motion="reduce")
    assert page.evaluate(turning) == "none"


@pytest.mark.parametrize("width", [320, 375])
def test_it_fits_a_phone(page: Page, pictures: Pictures, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 700})
    choose(page, pictures.stripped, name="a-very-long-name-without-a-single-space-in-it-that-goes-on-and-on-and-on.jpg")
    expect(page.locator("#found")).to_be_visible()
    page.locator("summary").click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator(".button").first.bounding_box()["height"] >= 44


def test_the_picture_leaves_the_page_for_the_gateway_alone_and_once(tab: Tab, page: Page, pictures: Pictures) -> None:
    with page.expect_request("**/api/verify") as asked:
        choose(page, pictures.trusted)
    expect(page.locator("#verdict")).to_have_text("Trusted")
    sent = asked.value.post_data_buffer
    assert sent is None or hashlib.sha256(sent).digest() == hashlib.sha256(pictures.trusted).digest()
    assert sum(url.endswith("/api/verify") for url in tab.requests) == 1
