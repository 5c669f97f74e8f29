"""Reference pictures: from the caller's body, cleaned, to the worker over a signed loan, and gone with the job."""

from __future__ import annotations

import base64
import hashlib
import io
from typing import Any

import anyio
import pytest
from PIL import Image

from compliance.authority import load_or_create
from compliance.reader import new_context, read_in_detail
from compliance.sign import DISCLOSURE
from compliance.verify import verify
from tests.api.test_compliance import painted
from tests.reviewers import SeesColours

pytestmark = pytest.mark.anyio


def picture(image: Image.Image, kind: str = "png", **saved: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind.upper(), **saved)
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"


RED = picture(Image.new("RGB", (40, 20), "red"))


def with_exif() -> str:
    image = Image.new("RGB", (40, 20), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "a secret place"
    return picture(image, "jpeg", exif=exif)


async def test_a_reference_reaches_the_worker_and_the_answer_says_that_it_counted(gateway):
    given = [{"image": RED, "strength": 0.4}, {"image": with_exif(), "role": "guide"}]
    meta = await gateway.picture("a hill", references=given)
    assert meta["references"] == 1
    assert "warnings" not in meta
    sent = gateway.runpod.submitted[-1]["input"]["references"]
    assert [(r["role"], r["strength"]) for r in sent] == [("init", 0.4), ("guide", 0.6)]
    first, second = (Image.open(io.BytesIO(data)) for data in gateway.runpod.lent)
    assert (first.format, first.mode, first.size) == ("PNG", "RGB", (40, 20))
    assert first.getpixel((0, 0)) == (255, 0, 0)
    # Upright, and nothing of what the camera wrote.
    assert second.size == (20, 40)
    assert b"secret" not in gateway.runpod.lent[1]
    assert not second.getexif()
    assert (await gateway.picture("a hill"))["references"] == 0


async def test_a_picture_of_ours_as_a_reference_is_the_parent_with_its_manifest(gateway):
    first = (await gateway.picture("a hill"))["images"][0]
    data = (await gateway.http.get(first["url"])).content
    given = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
    second = (await gateway.picture("a hill", references=[{"image": given}]))["images"][0]
    drawn_over = (await gateway.http.get(second["url"])).content
    report = verify(drawn_over, load_or_create(gateway.settings.data / "signing").anchors_pem)
    assert (report.state, report.failures) == ("trusted", ())
    assert report.actions[:2] == ("c2pa.opened", "c2pa.edited")
    assert report.claims[DISCLOSURE]["sources"] == [{"role": "init", "sha256": hashlib.sha256(data).hexdigest()}]
    store = read_in_detail(drawn_over, "image/jpeg", new_context(b""))
    assert len(store["manifests"]) == 2
    await gone(gateway)


async def test_a_transparent_reference_lies_on_white(gateway):
    await gateway.picture("a hill", references=[{"image": picture(Image.new("RGBA", (8, 8), (9, 9, 9, 0)))}])
    assert Image.open(io.BytesIO(gateway.runpod.lent[0])).getpixel((0, 0)) == (255, 255, 255)


async def test_a_large_reference_is_made_smaller(gateway):
    await gateway.picture("a hill", references=[{"image": picture(Image.new("RGB", (4096, 1024)))}])
    assert Image.open(io.BytesIO(gateway.runpod.lent[0])).size == (2048, 512)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("https://example.org/cat.png", "must be a list of objects"),
        (["https://example.org/cat.png"], "must be a list of objects"),
        ([{}], "an image is no data URI"),
        ([{"image": "https://example.org/cat.png"}], "an image is no data URI"),
        ([{"image": "data:image/svg+xml;base64,PHN2Zy8+"}], "an image is no data URI"),
        ([{"image": "data:image/png;base64,%%%"}], "an image is no data URI"),
        ([{"image": "data:image/png;base64,AAAA"}], "picture 0 is no picture that can be read"),
        (
            [{"image": RED}, {"image": picture(Image.new("RGB", (8, 8)), "gif").replace("gif", "png")}],
            "picture 1 is no",
        ),
        ([{"image": picture(Image.new("1", (8000, 6000)))}], "picture 0 has too many pixels"),
        ([{"image": RED}] * 5, "has 5 entries"),
    ],
)
async def test_what_is_no_picture_is_refused_and_costs_nothing(gateway, given, says):
    answer = await gateway.post({"action": "generate", "prompt": "a hill", "references": given})
    assert answer.status_code == 400
    body = answer.json()
    assert body["error"].startswith("Invalid references: ")
    assert says in body["error"]
    assert body["fix"]
    assert not gateway.runpod.submitted
    assert not list((gateway.settings.data / "pictures").rglob("*.png"))


async def test_wrong_roles_and_strengths_fall_back_with_a_warning_that_names_them(gateway):
    meta = await gateway.picture("a hill", references=[{"image": RED, "role": "mask", "strength": 7}])
    assert {(w["field"], w["given"], w["used"]) for w in meta["warnings"]} == {
        ("references[0].role", "mask", "init"),
        ("references[0].strength", "7", "1.0"),
    }


async def test_a_blocked_prompt_keeps_no_reference(gateway):
    answer = await gateway.post({"action": "generate", "prompt": "naked child", "references": [{"image": RED}]})
    assert answer.json()["error"] == "Prompt blocked"
    assert not list((gateway.settings.data / "pictures").rglob("*.png"))


async def test_a_second_attempt_can_read_the_reference_too_and_then_it_is_gone(gateway):
    gateway.runpod.corrupt = 1
    await gateway.picture("a hill", references=[{"image": RED}])
    assert len(gateway.runpod.lent) == 2
    assert gateway.runpod.lent[0] == gateway.runpod.lent[1]
    await gone(gateway)
    url = gateway.runpod.submitted[-1]["input"]["references"][0]["url"]
    assert (await gateway.http.get(url)).status_code == 404


async def test_a_cancelled_job_leaves_no_reference(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a hill", references=[{"image": RED}])
    assert list((gateway.settings.data / "pictures/raw").rglob("*.png"))
    await gateway.call("cancel", id=job["id"])
    await gone(gateway)


async def test_only_the_loan_itself_opens_a_reference(gateway):
    gateway.runpod.hold = True
    await gateway.call("generate", prompt="a hill", references=[{"image": RED}])
    sent = gateway.runpod.submitted[-1]["input"]
    loan, upload = sent["references"][0]["url"], sent["uploads"][0]["url"]
    answer = await gateway.http.get(loan)
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    assert answer.headers["cache-control"] == "no-store"
    path, _, query = loan.partition("?")
    for tampered in (
        path,
        path.replace("/0.png", "/1.png") + "?" + query,
        loan.replace("/loans/", "/files/"),
        upload.replace("/uploads/", "/loans/"),
    ):
        assert (await gateway.http.get(tampered)).status_code == 403, tampered
    assert (await gateway.http.put(loan.replace("/loans/", "/uploads/"), content=b"\x89PNG")).status_code == 403


async def gone(gateway) -> None:
    with anyio.fail_after(10):
        while list((gateway.settings.data / "pictures/raw").rglob("*.*")):
            await anyio.sleep(0.02)


async def test_the_references_of_a_job_that_a_held_key_had_queued_are_gone_with_it(open_gateway):
    gateway = await open_gateway(SeesColours())
    gateway.runpod.held, gateway.runpod.brush = frozenset({1}), painted("magenta")
    waiting = await gateway.call("generate", prompt="a hill", references=[{"image": RED}])
    await gateway.call("generate", prompt="a boat")
    kept = gateway.settings.data / "pictures" / "raw" / waiting["gen_id"]
    assert kept.exists()
    with anyio.fail_after(20):
        while (await gateway.post({"action": "models"})).status_code == 200 or kept.exists():
            await anyio.sleep(0.05)
