"""`generate` and `status`: what the reference prints, field by field."""

import hashlib
import io
import re

import anyio
import pytest
from PIL import Image

from compliance.verify import verify
from gateway.signing import authority_folder
from handler import contract
from tests.api.fake_runpod import paint

pytestmark = pytest.mark.anyio

#: Every member that the reference prints in ``meta``.
META = set(
    (
        "id gen_id time prompt positive negative character model style "
        "width height format quality lossless optimized compliance compliance_codes compliance_ruleset "
        "precompliance fingerprint images "
    ).split()
)


def anchors(gateway):
    return (authority_folder(gateway.settings) / "anchors.pem").read_bytes()


async def test_generate_answers_what_the_reference_prints(gateway):
    job = await gateway.call("generate", prompt="@aya on a hill, -fog", format="webp")
    assert re.fullmatch(r"run_[A-Za-z0-9_-]{1,128}", job["id"])
    assert re.fullmatch(r"[a-z0-9]{20}", job["gen_id"])
    assert {k: job[k] for k in ("prompt", "model", "format")} == {
        "prompt": "@aya on a hill, -fog", "model": "eros", "format": "webp",
    }  # fmt: skip
    assert "warnings" not in job


async def test_a_completed_status_has_every_printed_field(gateway):
    job = await gateway.call(
        "generate", prompt="@aya on a hill, -fog", negative="-rain", precompliance="words: none", seed=7, model="eros"
    )
    status = await gateway.ended(job["id"])
    assert status["status"] == "COMPLETED" and status["compliance"] == "safe"
    meta = status["meta"]
    assert meta.keys() >= META
    assert meta["id"] == job["id"] and meta["gen_id"] == job["gen_id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", meta["time"])
    assert meta["prompt"] == "@aya on a hill, -fog"
    assert meta["positive"].startswith("aya, ") and "on a hill" in meta["positive"]
    assert meta["negative"].endswith("fog, rain")
    assert (meta["character"], meta["model"], meta["style"]) == ("aya", "eros", "professional")
    assert (meta["width"], meta["height"]) == (1344, 768)
    assert (meta["format"], meta["quality"], meta["lossless"], meta["optimized"]) == ("jpeg", 95, False, False)
    assert (meta["compliance"], meta["compliance_codes"], meta["compliance_ruleset"]) == ("safe", [], "default")
    assert meta["precompliance"] == "words: none" and meta["seed"] == 7
    assert [image["type"] for image in meta["images"]] == ["signed", "thumbnail"]
    assert meta["images"][0]["filename"].endswith(".jpg")


@pytest.mark.parametrize(
    ("wanted", "mime", "extension", "lossless"),
    [
        ({"format": "jpeg", "lossless": True}, "image/jpeg", ".jpg", False),
        ({"format": "png", "quality": 3}, "image/png", ".png", True),
        ({"format": "webp", "quality": 80}, "image/webp", ".webp", False),
        ({"format": "webp", "lossless": True}, "image/webp", ".webp", True),
        ({"format": "avif", "quality": 60}, "image/avif", ".avif", False),
        ({"format": "avif", "lossless": True}, "image/avif", ".avif", True),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
async def test_the_delivered_file_is_what_meta_says(gateway, wanted, mime, extension, lossless):
    meta = await gateway.picture("a boat at night", width=1024, height=1024, seed=5, **wanted)
    for image in meta["images"]:
        answer = await gateway.http.get(image["url"])
        assert answer.status_code == 200
        assert answer.headers["content-type"] == image["mime"]
        assert hashlib.sha256(answer.content).hexdigest() == image["sha256"]
        assert len(answer.content) == image["bytes"]
        assert verify(answer.content, anchors(gateway)).state == "trusted"
    full, thumb = meta["images"]
    assert (full["mime"], full["sha256"]) == (mime, meta["fingerprint"])
    assert full["filename"].endswith(extension)
    assert thumb["mime"] == "image/jpeg"
    assert meta["lossless"] is lossless
    pixels = Image.open(io.BytesIO((await gateway.http.get(full["url"])).content)).convert("RGB")
    assert pixels.size == (1024, 1024)
    if lossless:
        order = contract.job_from_wire(gateway.runpod.submitted[-1]["input"])
        assert pixels.tobytes() == Image.open(io.BytesIO(paint(order, 0))).convert("RGB").tobytes()


@pytest.mark.parametrize(
    "size", [(1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152)]
)
async def test_every_valid_size_is_drawn(gateway, size):
    meta = await gateway.picture(width=size[0], height=size[1])
    assert (meta["width"], meta["height"]) == size
    order = gateway.runpod.submitted[-1]["input"]
    assert (order["width"], order["height"]) == size


@pytest.mark.parametrize(
    ("given", "used", "noted"),
    [
        pytest.param({"model": "nope"}, {"model": "eros"}, "model", id="invalid-model"),
        pytest.param({"style": "nope"}, {"style": "professional"}, "style", id="invalid-style"),
        pytest.param({"format": "gif"}, {"format": "jpeg"}, "format", id="invalid-format"),
        pytest.param(
            {"width": 1000, "height": 1000}, {"width": 1344, "height": 768}, "width,height", id="bad-dimensions"
        ),
        pytest.param({"width": 1024}, {"width": 1344, "height": 768}, "width,height", id="only-a-width"),
        pytest.param({"compliance_ruleset": "  "}, {"compliance_ruleset": "default"}, None, id="blank-ruleset"),
        pytest.param(
            {"compliance_ruleset": "x"}, {"compliance_ruleset": "default"}, "compliance_ruleset", id="ruleset"
        ),
        pytest.param({"cache_pick": 99}, {}, "cache_pick", id="cache-pick-out-of-range"),
        pytest.param({"precompliance": "x" * 2001}, {"precompliance": "x" * 2000}, "precompliance", id="precompliance"),
        pytest.param({"quality": 0}, {"quality": 1}, "quality", id="quality-clamped"),
        pytest.param({"quality": "80"}, {"quality": 80}, "quality", id="numeric-string"),
        pytest.param({"seed": -1}, {}, None, id="seed-minus-one-is-random"),
        pytest.param({"n": 0}, {}, "n", id="n-below-one"),
        pytest.param({"n": "1"}, {}, "n", id="n-as-text"),
        pytest.param({"n": 3, "seed": 2**31 - 1}, {"seed": 2**31 - 3}, "seed", id="the-last-seed-can-be-asked-for"),
        pytest.param({"steps": 100000}, {"steps": 150}, "steps", id="steps-clamped"),
        pytest.param(
            {"style": "", "model": "", "format": "", "compliance_ruleset": ""},
            {"style": "professional"},
            None,
            id="empty-is-not-given",
        ),
        pytest.param({"style": None, "width": None, "optimize": None}, {"width": 1344}, None, id="null-is-not-given"),
        pytest.param({"wm_position": "left"}, {}, "wm_position", id="watermark-position"),
        pytest.param({"optimize": "yes"}, {"optimized": True}, "optimize", id="optimize-as-text"),
        pytest.param({"cache_match": ["colour"]}, {}, "cache_match", id="cache-match"),
    ],
)
async def test_a_silent_fallback_is_taken_and_made_visible(gateway, given, used, noted):
    job = await gateway.call("generate", prompt="a red house", **given)
    fields = [warning["field"] for warning in job.get("warnings", [])]
    assert fields == ([noted] if noted else [])
    assert all(warning.keys() == {"code", "field", "given", "used"} for warning in job.get("warnings", []))
    meta = (await gateway.ended(job["id"]))["meta"]
    assert {name: meta[name] for name in used} == used
    assert meta.get("warnings", []) == job.get("warnings", [])


async def test_characters_one_per_prompt(gateway):
    job = await gateway.call("generate", prompt="@bella and @aya on a hill")
    assert [(w["code"], w["given"]) for w in job["warnings"]] == [("one_character", "@aya")]
    assert (await gateway.ended(job["id"]))["meta"]["character"] == "bella"


async def test_a_character_alone_is_a_prompt(gateway):
    assert (await gateway.picture("@aya"))["positive"].startswith("aya")


async def test_the_same_request_and_seed_draw_the_same_picture(gateway):
    first, second = await gateway.picture(seed=3, format="png"), await gateway.picture(seed=3, format="png")
    pixels = [
        Image.open(io.BytesIO((await gateway.http.get(meta["images"][0]["url"])).content)).tobytes()
        for meta in (first, second)
    ]
    assert pixels[0] == pixels[1]
    assert first["fingerprint"] != second["fingerprint"]  # each has its own manifest


async def test_the_claims_of_the_caller_are_in_the_credentials(gateway):
    meta = await gateway.picture(
        cs_author="Ada", cs_title="Hill", cs_organization="Org", cs_vendor="V", cs_description="D"
    )
    data = (await gateway.http.get(meta["images"][0]["url"])).content
    report = verify(data, anchors(gateway))
    assert report.state == "trusted"
    assert "Ada" in str(report) and "Hill" in str(report) and "Org" in str(report)
    assert meta["gen_id"] in str(report)


async def test_pixels_that_travel_inline_are_finished_too(gateway):
    gateway.runpod.inline = True
    assert (await gateway.picture())["compliance"] == "safe"


async def test_status_ignores_the_prompt_and_model_sent_with_it(gateway):
    meta = await gateway.picture("a red house")
    again = await gateway.call("status", id=meta["id"], prompt="something else", model="other")
    assert again["meta"]["prompt"] == "a red house"


async def test_pending_status_shows_progress(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    seen = await gateway.call("status", id=job["id"])
    assert seen["status"] in {"IN_QUEUE", "IN_PROGRESS"}
    with anyio.fail_after(10):
        while (seen := await gateway.call("status", id=job["id"]))["status"] != "IN_PROGRESS":
            await anyio.sleep(0.05)
    assert seen["progress"] == {"step": 3, "total_steps": 14}


async def test_each_status_signs_its_urls_anew(gateway):
    meta = await gateway.picture()
    url = meta["images"][0]["url"]
    assert "expires" in url and meta["images"][0]["expires_at"].endswith("Z")
    tampered = url.replace("expires=", "expires=9")
    assert (await gateway.http.get(tampered)).status_code == 403
    assert (await gateway.http.get(url.partition("?")[0])).status_code == 403
    again = await gateway.call("status", id=meta["id"])
    assert (await gateway.http.get(again["meta"]["images"][0]["url"])).status_code == 200


async def test_an_expired_url_is_refused(open_gateway):
    gateway = await open_gateway(IMGEN_URL_TTL="1")
    meta = await gateway.picture()
    with anyio.fail_after(10):
        while (await gateway.http.get(meta["images"][0]["url"])).status_code != 403:
            await anyio.sleep(0.1)


async def test_nothing_but_deliverables_can_be_fetched(gateway):
    meta = await gateway.picture()
    url = meta["images"][0]["url"]
    key = re.search(r"/files/(out/[^?]+)", url)[1]
    for private in ("raw", "master", "../imgen.db", "master/default"):
        assert (await gateway.http.get(url.replace(key, key.replace("out", private)))).status_code in {403, 404}


async def test_stray_dashes_are_kept_as_text_and_warned_of_a_few_times(gateway):
    job = await gateway.call("generate", prompt="a hill" + " -fog" * 100)
    assert [warning["code"] for warning in job["warnings"]] == ["stray_dash"] * 8


async def test_what_the_worker_could_not_do_as_asked_is_made_visible(gateway):
    gateway.runpod.warnings = ("The model takes 50 steps at most.",)
    meta = await gateway.picture(steps=100)
    assert [(w["code"], w["used"]) for w in meta["warnings"]] == [("worker", "The model takes 50 steps at most.")]


#: The members of an image as they were before there could be several, in their order.
IMAGE = ["url", "filename", "type", "mime", "bytes", "sha256", "width", "height", "expires_at"]


async def test_one_picture_is_answered_as_ever_and_says_which_it_is(gateway):
    meta = await gateway.picture(seed=7)
    assert [list(image)[: len(IMAGE)] for image in meta["images"]] == [IMAGE, IMAGE]
    assert [(image["type"], image["index"], image["seed"]) for image in meta["images"]] == [
        ("signed", 0, 7),
        ("thumbnail", 0, 7),
    ]
    assert meta["images"][0]["filename"] == f"{meta['gen_id']}.jpg"


async def test_several_pictures_of_one_job_are_told_apart(gateway):
    meta = await gateway.picture(n=3, seed=7, format="png")
    images = meta["images"]
    assert [(image["type"], image["index"], image["seed"]) for image in images] == [
        (kind, index, 7 + index) for index in range(3) for kind in ("signed", "thumbnail")
    ]
    assert (meta["fingerprint"], meta["seed"]) == (images[0]["sha256"], 7)
    assert len({image["filename"] for image in images}) == len({image["sha256"] for image in images}) == 6
    for image in images:
        content = (await gateway.http.get(image["url"])).content
        assert hashlib.sha256(content).hexdigest() == image["sha256"]
        assert verify(content, anchors(gateway)).state == "trusted"
    sent = gateway.runpod.submitted[-1]["input"]
    assert sent["n"] == 3 and len({upload["url"] for upload in sent["uploads"]}) == 3


async def test_each_of_several_can_be_drawn_again_alone_by_its_seed(gateway):
    async def pixels(image):
        return Image.open(io.BytesIO((await gateway.http.get(image["url"])).content)).tobytes()

    several = [image for image in (await gateway.picture(n=2, format="png"))["images"] if image["type"] == "signed"]
    alone = (await gateway.picture(seed=several[1]["seed"], format="png"))["images"][0]
    assert await pixels(alone) == await pixels(several[1]) != await pixels(several[0])


async def test_more_pictures_than_a_job_may_have_are_eight(gateway):
    job = await gateway.call("generate", prompt="a red house", n=99)
    assert [(w["code"], w["field"], w["used"]) for w in job["warnings"]] == [("clamped", "n", "8")]
    assert gateway.runpod.submitted[-1]["input"]["n"] == 8


async def test_several_pictures_that_travel_inline_are_finished_too(gateway):
    gateway.runpod.inline = True
    assert len((await gateway.picture(n=2))["images"]) == 4


async def test_pictures_that_the_worker_names_out_of_order_are_put_in_order(gateway):
    gateway.runpod.answered = lambda pictures: pictures[::-1]
    meta = await gateway.picture(n=2, seed=7)
    assert [image["index"] for image in meta["images"]] == [0, 0, 1, 1] and meta["seed"] == 7


@pytest.mark.parametrize(
    "answered",
    [
        pytest.param(lambda pictures: pictures[:1], id="too-few"),
        pytest.param(lambda pictures: [pictures[0], pictures[0]], id="one-twice"),
    ],
)
async def test_other_pictures_than_were_ordered_are_no_answer(gateway, answered):
    gateway.runpod.answered = answered
    job = await gateway.call("generate", prompt="a red house", n=2)
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["code"]) == ("FAILED", "worker_contract")
    assert len(gateway.runpod.submitted) == 1


async def test_a_character_is_drawn_with_its_lora(gateway):
    meta = await gateway.picture("@aya on a hill")
    assert gateway.runpod.submitted[-1]["input"]["loras"] == [{"name": "aya", "strength": 1.0}]
    assert meta["loras"] == [{"name": "aya", "strength": 1.0}]


async def test_nobody_wears_a_lora_that_was_not_called(gateway):
    assert (await gateway.picture("a hill"))["loras"] == []
    assert gateway.runpod.submitted[-1]["input"]["loras"] == []


CATALOG = """
version = 1

[characters.aya]
label = "Aya"
trigger = "aya"
lora = "aya"
strength = 0.5

[models.eros]
label = "Eros"
worker = "builtin"
default_style = "plain"

[models.eros.styles.plain]
label = "Plain"

[models.eros.styles.foxy]
label = "Foxy"
lora = "aya"
strength = 1.5

[models.eros.styles.owlish]
label = "Owlish"
lora = "bella"
strength = 0
"""


async def test_character_and_style_wear_their_loras_together(open_gateway, tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG, encoding="utf-8")
    gateway = await open_gateway(IMGEN_CATALOG=str(path))
    assert (await gateway.picture("@aya"))["loras"] == [{"name": "aya", "strength": 0.5}]
    assert (await gateway.picture("@aya", style="foxy"))["loras"] == [{"name": "aya", "strength": 1.5}]
    worn = (await gateway.picture("@aya", style="owlish"))["loras"]
    # What was asked for is both; what the worker says it wore is the one that had an effect.
    assert [lora["name"] for lora in gateway.runpod.submitted[-1]["input"]["loras"]] == ["aya", "bella"]
    assert worn == [{"name": "aya", "strength": 0.5}]


async def test_a_lora_that_the_worker_lacks_ends_the_job_at_once(gateway):
    gateway.runpod.inventory = contract.Inventory(models={"builtin": "sd15"})
    job = await gateway.call("generate", prompt="@aya on a hill")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["code"]) == ("FAILED", "unknown_lora")
    assert len(gateway.runpod.submitted) == 1
