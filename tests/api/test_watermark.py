"""`wm_*`: a caller's logo on the caller's pictures, reviewed like a picture, and on nobody else's."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from compliance.review import Opinion
from compliance.verify import verify
from gateway.signing import signing_credentials
from handler.builtin.world import Scene, Thing, draw
from tests.api.conftest import BASE, opened, settings
from tests.api.fake_runpod import FakeRunPod
from tests.compliance.test_watermark import BAD, encoded
from tests.reviewers import Silent

pytestmark = pytest.mark.anyio


def data_uri(colour: str, size: tuple[int, int] = (40, 20), mime: str = "image/png") -> str:
    return f"data:{mime};base64,{base64.b64encode(encoded(Image.new('RGB', size, colour))).decode()}"


async def delivered(gateway, meta, kind: str = "signed") -> tuple[bytes, Image.Image]:
    (image,) = (image for image in meta["images"] if image["type"] == kind)
    data = (await gateway.http.get(image["url"].removeprefix(BASE))).content
    return data, Image.open(io.BytesIO(data)).convert("RGB")


def corner(picture: Image.Image) -> tuple[int, ...]:
    return tuple(int(value) for value in np.asarray(picture)[-20:-12, -40:-20].reshape(-1, 3).mean(0).round())


async def test_a_logo_is_on_the_picture_on_its_thumbnail_and_in_its_credentials(gateway):
    meta = await gateway.picture(wm_image=data_uri("red"), wm_scale="20", format="png", seed=3)
    plain = await gateway.picture(format="png", seed=3)
    assert [warning["field"] for warning in meta["warnings"]] == ["wm_scale"], "a number in a string is noted"
    data, marked = await delivered(gateway, meta)
    _, bare = await delivered(gateway, plain)
    differs = (np.asarray(marked) != np.asarray(bare)).any(-1)
    width = round(bare.width * 0.2)
    assert Image.fromarray(differs).getbbox() == (
        bare.width - width - 10,
        bare.height - round(width / 2) - 10,
        bare.width - 10,
        bare.height - 10,
    )
    report = verify(data, signing_credentials(gateway.settings).anchors_pem)
    assert report.state == "trusted" and "c2pa.edited" in report.actions
    _, small = await delivered(gateway, meta, "thumbnail")
    assert corner(small)[0] > 240 and corner(small)[1] < 15
    originals = list((gateway.settings.data / "pictures" / "master").rglob("*.png"))
    assert len(originals) == 2 and len({path.read_bytes() for path in originals}) == 1, "originals are unmarked"


async def test_two_logos_never_mix(gateway):
    jobs = {
        colour: await gateway.call("generate", prompt="a house", wm_image=data_uri(colour), wm_scale=100, format="png")
        for colour in ("red", "lime")
    }
    for colour, job in jobs.items():
        _, shown = await delivered(gateway, (await gateway.ended(job["id"]))["meta"])
        assert shown.getpixel((shown.width // 2, shown.height - 30)) == Image.new("RGB", (1, 1), colour).getpixel(
            (0, 0)
        )


async def test_an_invisible_logo_changes_nothing_and_none_is_asked_for_by_an_empty_one(gateway):
    meta = await gateway.picture(wm_image=data_uri("red"), wm_transparency=0)
    data, _ = await delivered(gateway, meta)
    assert "c2pa.edited" not in verify(data, b"").actions
    await gateway.picture(wm_image="", wm_scale=50)


@pytest.mark.parametrize("case", [name for name in BAD if name not in {"wrong-type", "large"}])
async def test_a_bad_logo_is_a_400_that_names_the_field(gateway, case):
    data, _, _ = BAD[case]
    given = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    answer = await gateway.post({"action": "generate", "prompt": "a house", "wm_image": given})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["error"].startswith("Invalid wm_image: ") and error["code"] == "invalid_field" and error["fix"]
    assert not gateway.runpod.submitted


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        pytest.param("https://example.com/logo.png", "is no base64 data URI", id="address"),
        pytest.param("data:image/png;base64,%%%", "is no base64 data URI", id="no-base64"),
        pytest.param("data:image/png,abc", "is no base64 data URI", id="not-encoded"),
        pytest.param(
            data_uri("red", mime="image/webp"), "is declared as image/webp, but is image/png", id="wrong-type"
        ),
        pytest.param(data_uri("red", mime="image/svg+xml"), "is declared as image/svg+xml", id="declared-svg"),
        pytest.param("data:image/png;base64," + "A" * 3_000_000, "is too large", id="large"),
        pytest.param(7, "must be a string", id="number"),
    ],
)
async def test_what_is_no_data_uri_is_a_400_too(gateway, given, problem):
    answer = await gateway.post({"action": "generate", "prompt": "a house", "wm_image": given})
    assert (answer.status_code, problem in answer.json()["error"]) == (400, True), answer.text


async def test_a_place_out_of_range_falls_back_visibly(gateway):
    job = await gateway.call(
        "generate", prompt="a house", wm_image=data_uri("red"), wm_position="left", wm_scale=0, wm_rotation=999
    )
    assert [(w["field"], w["used"]) for w in job["warnings"]] == [
        ("wm_position", "bottom-right"),
        ("wm_scale", "1"),
        ("wm_rotation", "360"),
    ]


async def test_a_logo_is_looked_at_on_white_and_on_black_and_once_only(open_gateway):
    """What is white on nothing shows on black only."""
    seen = []

    class Looks:
        name, version, labels, always = "judge", "1", None, True

        def review(self, picture, context, ruleset):
            seen.append((picture.size, picture.pixels.getpixel((90, picture.size[1] - 90))))
            return Opinion()

    gateway = await open_gateway(Looks())
    logo = Image.new("RGBA", (40, 20), (0, 0, 0, 0))
    logo.paste((255, 255, 255, 255), (0, 0, 40, 10))
    logo.paste((255, 255, 255, 255), (20, 10, 40, 20))
    logo.paste((128, 128, 128, 255), (30, 5, 38, 15))
    given = f"data:image/png;base64,{base64.b64encode(encoded(logo)).decode()}"
    for _ in range(2):
        await gateway.picture(wm_image=given)
    assert [pixel for size, pixel in seen if size == (1344, 672)] == [(255, 255, 255), (0, 0, 0)]
    seen.clear()
    for hint in ("", "", "a hint"):
        await gateway.picture(wm_image=given, wm_rotation=-90, precompliance=hint)
    assert len([size for size, _ in seen if size == (672, 1344)]) == 4, "seen as it is laid, and anew with a new hint"


async def test_a_reviewer_that_is_silent_about_a_logo_lets_nothing_begin(open_gateway):
    gateway = await open_gateway(Silent(lambda: True))
    logo = Image.new("RGB", (40, 20), "red")
    logo.paste("white", (0, 0, 20, 20))
    given = f"data:image/png;base64,{base64.b64encode(encoded(logo)).decode()}"
    answer = await gateway.post({"action": "generate", "prompt": "a house", "wm_image": given})
    assert (answer.status_code, answer.json()["code"]) == (503, "compliance_unavailable")
    assert answer.json()["retryable"] and not gateway.runpod.submitted
    assert not list((gateway.settings.data / "pictures").rglob("marks/**/*.png"))


@pytest.mark.parametrize("turned", [0, 180])
@pytest.mark.parametrize("shows", [True, False])
async def test_the_shipped_check_sees_in_a_logo_what_it_sees_in_a_picture(gateway, shows, turned):
    """As small as a drawing's own pixels are, and upside down where it is to be laid so."""
    things = (Thing(name="lighthouse", paint="red"),) if shows else ()
    scene = Scene(things=things)
    art = Image.fromarray(draw(scene, (1344, 768))).rotate(turned)
    given = f"data:image/png;base64,{base64.b64encode(encoded(art)).decode()}"
    body = {"prompt": "a house", "wm_image": given, "wm_rotation": turned, "compliance_ruleset": "demo"}
    answer = await gateway.post({"action": "generate", **body})
    if shows:
        assert (answer.status_code, answer.json()["error"]) == (400, "Watermark image blocked"), answer.text
        assert answer.json()["filter_categories"] == ["demo.lighthouse"] and not gateway.runpod.submitted
    else:
        assert answer.status_code == 200, answer.text


async def test_the_operator_s_badge_is_on_every_picture_and_makes_room_for_a_logo(open_gateway):
    gateway = await open_gateway(IMGEN_BADGE="bottom-right")
    plain = await delivered(gateway, await gateway.picture(format="png", seed=3))
    both = await delivered(gateway, await gateway.picture(format="png", seed=3, wm_image=data_uri("red"), wm_scale=10))
    report = verify(both[0], b"")
    assert [action for action in report.actions if action == "c2pa.edited"] == ["c2pa.edited"] * 2
    differs = Image.fromarray((np.asarray(plain[1]) != np.asarray(both[1])).any(-1))
    left, _, right, _ = differs.getbbox()
    assert left == 10, "the badge has gone to the other corner"
    assert right == plain[1].width - 10


async def test_a_restart_finds_the_logo_which_is_kept_once_for_its_tenant(tmp_path):
    runpod, configured = FakeRunPod(key="rp-key"), settings(tmp_path)
    runpod.hold = True
    asked = {"prompt": "a house", "wm_image": data_uri("red"), "wm_scale": 100, "format": "png"}
    async with opened(configured, runpod) as first:
        jobs = [await first.call("generate", **asked) for _ in range(2)]
        assert len(list((tmp_path / "pictures" / "marks").rglob("*.png"))) == 1
    runpod.hold = False
    async with opened(configured, runpod) as second:
        for job in jobs:
            _, shown = await delivered(second, (await second.ended(job["id"]))["meta"])
            assert shown.getpixel((shown.width // 2, shown.height - 30)) == (255, 0, 0)


async def test_a_lost_logo_is_said_and_no_picture_leaves_without_it(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a house", wm_image=data_uri("red"))
    (kept,) = (gateway.settings.data / "pictures" / "marks").rglob("*.png")
    kept.unlink()
    gateway.runpod.hold = False
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["code"]) == ("FAILED", "watermark_lost")
    assert not list((gateway.settings.data / "pictures" / "out").rglob("*.*"))
