"""Where does this picture come from: asked by anybody, with any bytes, of the whole gateway."""

from __future__ import annotations

import base64
import io
import json
from random import Random
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from compliance.credentials import Credentials
from compliance.fingerprint import ISCC, binding_value, image_code
from compliance.pixelmark import ALGORITHM
from compliance.reader import active_manifest
from gateway.core.polishing import mark_id
from gateway.dialects import provenance
from handler.builtin.world import draw, sample
from tests.api.conftest import BASE
from tests.api.test_compliance import RULES
from tests.compliance.samples import Authority, bytes_of, new_signer, noise, scene, signed
from tests.reviewers import SeesColours

pytestmark = pytest.mark.anyio


def landscape(size: tuple[int, int], seed: int) -> Image.Image:
    """A picture as the built-in model would draw it at its best."""
    return Image.fromarray(draw(sample(Random(seed)), size)).resize(size, Image.Resampling.NEAREST)


def brush(job: Any, index: int) -> bytes:
    return bytes_of(landscape((job.width, job.height), job.seed + index), compress_level=1)


@pytest.fixture
async def gateway(open_gateway):
    gateway = await open_gateway(IMGEN_PIXEL_MARK="true", IMGEN_VERIFY_RATE="6000")
    gateway.runpod.brush = brush
    return gateway


async def file_of(gateway, meta: dict[str, Any], kind: str = "signed") -> bytes:
    url = next(image["url"] for image in meta["images"] if image["type"] == kind)
    return (await gateway.http.get(url.removeprefix(BASE))).content


async def verified(gateway, data: bytes, mime: str = "image/jpeg") -> dict[str, Any]:
    answer = await gateway.http.post("/api/verify", content=data, headers={"content-type": mime})
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return answer.json()


def stripped(data: bytes, kind: str = "JPEG", factor: float = 1.0, **saved: Any) -> bytes:
    """Opened and saved again, as every chat program does."""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.resize((round(picture.width * factor), round(picture.height * factor)))
    return bytes_of(picture, kind, **saved)


async def test_a_picture_says_everything_of_itself(gateway):
    meta = await gateway.picture(cs_author="Ann", cs_title="Hills", cs_organization="Hill & Co", seed=5)
    told = await verified(gateway, await file_of(gateway, meta))
    assert (told["state"], told["ai_generated"], told["pixels_changed"], told["failures"]) == (
        "trusted",
        True,
        False,
        [],
    )
    assert told["summary"].startswith("Signed by a signer that is trusted here")
    assert told["signer"]["name"] and told["model"] == meta["model"] and told["generator"].startswith("imgen ")
    assert told["claims"] == {"author": "Ann", "title": "Hills", "organization": "Hill & Co"}
    names = [action["action"] for action in told["actions"]]
    assert names[0] == "c2pa.created" and "c2pa.watermarked.bound" in names
    assert all(action.keys() == {"action", "description", "when"} for action in told["actions"])
    (found,) = told["found"]
    assert (found["id"], found["by"], found["model"]) == (meta["gen_id"], ["sha256"], meta["model"])
    private = (meta["prompt"], "default", meta["id"], "/files/", "imgen_test_key")
    assert not [word for word in private if word in json.dumps(told)]


@pytest.mark.parametrize(
    ("kind", "factor", "saved"),
    [
        pytest.param("PNG", 1.0, {}, id="metadata-gone"),
        pytest.param("JPEG", 1.0, {"quality": 75}, id="jpeg75"),
        pytest.param("WEBP", 1.0, {"quality": 75}, id="webp75"),
        pytest.param("JPEG", 0.5, {"quality": 75}, id="half"),
        pytest.param("AVIF", 1.0, {"quality": 75}, id="avif"),
    ],
)
async def test_a_stripped_copy_is_found_again_by_the_id_in_its_pixels(gateway, kind, factor, saved):
    meta, _ = await gateway.picture(seed=5), await gateway.picture(seed=6)
    copy = stripped(await file_of(gateway, meta), kind, factor, **saved)
    told = await verified(gateway, copy)
    assert (told["state"], told["signer"], told["ai_generated"], told["pixels_changed"]) == (
        "unsigned",
        None,
        None,
        None,
    )
    best = told["found"][0]
    assert best["id"] == meta["gen_id"] and "pixel_mark" in best["by"] and not best["mirrored"]
    assert "proves nothing by itself" in told["summary"] and meta["gen_id"] in told["summary"]
    assert [match["id"] for match in told["found"]] == [meta["gen_id"]], (
        "the id decides between pictures that look alike"
    )


async def test_a_mirrored_copy_is_found_and_called_so(gateway):
    meta = await gateway.picture(seed=5)
    picture = Image.open(io.BytesIO(await file_of(gateway, meta))).transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    (found,) = (await verified(gateway, bytes_of(picture, "PNG")))["found"]
    assert found["mirrored"] and found["by"] == ["pixel_mark", "image_code"]


async def test_without_an_id_a_copy_is_found_by_how_it_looks(open_gateway):
    gateway = await open_gateway(IMGEN_VERIFY_RATE="6000")
    gateway.runpod.brush = brush
    metas = [await gateway.picture(seed=seed) for seed in (5, 60)]
    told = await verified(gateway, stripped(await file_of(gateway, metas[1]), factor=0.5, quality=60))
    best = told["found"][0]
    assert (best["id"], best["by"]) == (metas[1]["gen_id"], ["image_code"]) and best["distance"] <= 6
    assert "It looks like picture" in told["summary"]
    small = await verified(gateway, stripped(await file_of(gateway, metas[0], "thumbnail"), quality=80))
    assert small["found"][0]["id"] == metas[0]["gen_id"]


async def test_a_changed_picture_is_called_changed_and_still_found(gateway):
    meta = await gateway.picture(format="png", seed=5)
    data = bytearray(await file_of(gateway, meta))
    at = data.index(b"IDAT") + 2000
    data[at] ^= 1
    told = await verified(gateway, bytes(data), "image/png")
    assert (told["state"], told["pixels_changed"]) == ("tampered", True)
    assert told["summary"].startswith("Changed after it was signed.")
    assert told["found"] and told["found"][0]["id"] == meta["gen_id"] and "manifest" in told["found"][0]["by"]


@pytest.mark.parametrize(
    ("data", "state"),
    [
        pytest.param(b"not a picture", "unreadable", id="text"),
        pytest.param(bytes_of(noise()), "unsigned", id="foreign"),
        pytest.param(b"\x89PNG\r\n\x1a\n" + bytes(100), "unreadable", id="broken"),
    ],
)
async def test_what_is_not_ours_is_said_to_be_nothing_of_ours(gateway, data, state):
    await gateway.picture(seed=5)
    told = await verified(gateway, data, "application/octet-stream")
    assert (told["state"], told["found"]) == (state, [])


async def test_another_signer_s_picture_is_valid_and_not_trusted(gateway):
    authority = Authority()
    leaf, key = authority.leaf()
    stranger = new_signer(Credentials.from_pem(leaf + authority.issuer, key, authority.root))
    told = await verified(gateway, signed(stranger, "jpeg", scene(640, 480)).data)
    assert (told["state"], told["found"], told["pixels_changed"]) == ("valid", [], False)


async def test_a_form_is_taken_too_and_what_has_no_picture_is_a_400(gateway):
    meta = await gateway.picture(seed=5)
    data = await file_of(gateway, meta)
    answer = await gateway.http.post("/api/verify", files={"file": ("x.jpg", data, "image/jpeg")})
    assert (answer.status_code, answer.json()["state"]) == (200, "trusted")
    for wrong in (
        {"content": b""},
        {"files": {"picture": ("x.jpg", data)}},
        {"data": {"file": "text"}, "files": {"other": ("x", b"")}},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data; boundary=x"}},
        {"content": b"--x", "headers": {"content-type": "multipart/form-data"}},
    ):
        refused = await gateway.http.post("/api/verify", **wrong)
        error = refused.json()
        assert (refused.status_code, error["field"]) == (400, "file") and error["fix"] and error["request_id"], error


async def test_too_much_is_a_413_and_too_often_a_429(open_gateway):
    gateway = await open_gateway(IMGEN_VERIFY_RATE="2")
    large = await gateway.http.post("/api/verify", content=bytes(32 * 1024 * 1024 + 1))
    assert (large.status_code, large.json()["code"]) == (413, "body_too_large")
    assert (await gateway.http.post("/matches/byContent", content=b"x")).status_code == 200
    for path in ("/api/verify", "/matches/byContent"):
        refused = await gateway.http.post(path, content=b"x")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert 1 <= int(refused.headers["retry-after"]) <= 60
    assert (await gateway.http.get("/api/verify")).status_code == 405


async def test_whoever_sends_slowly_holds_up_nobody_for_long(open_gateway, monkeypatch):
    monkeypatch.setattr(provenance, "AT_ONCE", 1)
    monkeypatch.setattr(provenance, "ARRIVAL", 0.5)
    gateway = await open_gateway(IMGEN_VERIFY_RATE="6000")
    answers: dict[str, Any] = {}

    async def never_ending():
        yield b"\x89PNG"
        await anyio.sleep_forever()

    async def ask(name: str, content: Any) -> None:
        answers[name] = await gateway.http.post("/api/verify", content=content)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, "slow", never_ending())
            await anyio.sleep(0.05)
            tasks.start_soon(ask, "quick", b"not a picture")
            await anyio.sleep(0.1)
            assert not answers, "there is room for one at a time"
    slow = answers["slow"].json()
    assert (answers["slow"].status_code, slow["field"]) == (400, "file") and "did not arrive" in slow["error"]
    assert (answers["quick"].status_code, answers["quick"].json()["state"]) == (200, "unreadable")


# What may be told of


async def test_a_blocked_and_a_deleted_picture_are_never_told_of(open_gateway, tmp_path):
    gateway = await open_gateway(IMGEN_PIXEL_MARK="true", IMGEN_VERIFY_RATE="6000")
    gateway.runpod.brush = brush
    meta = await gateway.picture(seed=5)
    copy = stripped(await file_of(gateway, meta), quality=90)
    assert (await verified(gateway, copy))["found"]
    label = (await verified(gateway, copy))["found"][0]["manifest"]
    await gateway.call("delete", id=meta["id"])
    assert (await verified(gateway, copy))["found"] == []
    assert (await gateway.http.get(f"/manifests/{label}")).status_code == 404


async def test_the_copy_of_a_blocked_picture_is_never_told_of(open_gateway, tmp_path):
    rules = tmp_path / "rules"
    rules.mkdir()
    (rules / "colours.toml").write_text(RULES, encoding="utf-8")
    gateway = await open_gateway(
        SeesColours(), IMGEN_PIXEL_MARK="true", IMGEN_VERIFY_RATE="6000", IMGEN_RULESETS=str(rules)
    )

    def blue(job: Any, index: int) -> bytes:
        picture = landscape((job.width, job.height), job.seed)
        picture.putpixel((0, 0), (0, 0, 255))
        return bytes_of(picture)

    gateway.runpod.brush = blue
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    assert (await gateway.ended(job["id"]))["compliance"] == "unsafe"
    (copy,) = (path for path in (gateway.settings.data / "pictures" / "unsafe").rglob("*.*") if path.is_file())
    assert (await verified(gateway, copy.read_bytes()))["found"] == []
    assert (await verified(gateway, stripped(copy.read_bytes(), quality=90)))["found"] == []


async def test_two_finishings_of_a_picture_leave_one_record(gateway):
    meta = await gateway.picture(seed=5)
    again = await gateway.picture(seed=5)
    value = base64.b64encode(mark_id(meta["gen_id"], 0).to_bytes(6, "big")).decode()
    answer = await gateway.http.get("/matches/byBinding", params={"alg": ALGORITHM, "value": value})
    assert len(answer.json()["matches"]) == 1
    assert mark_id(meta["gen_id"], 0) != mark_id(again["gen_id"], 0) != mark_id(again["gen_id"], 1)


# C2PA's soft binding look-ups


async def test_a_manifest_is_found_by_binding_and_by_content_and_reads(gateway):
    meta = await gateway.picture(seed=5)
    data = await file_of(gateway, meta)
    copy = stripped(data, quality=85)
    label = (await verified(gateway, data))["found"][0]["manifest"]
    by_content = await gateway.http.post("/matches/byContent", content=copy, headers={"content-type": "image/jpeg"})
    (match,) = by_content.json()["matches"]
    assert match["manifestId"] == label and match["similarityScore"] >= 90
    mark = base64.b64encode(mark_id(meta["gen_id"], 0).to_bytes(6, "big")).decode()
    code = binding_value(image_code(Image.open(io.BytesIO(data)).convert("RGB")))
    for alg, value in ((ALGORITHM, mark), (ISCC, code)):
        by_get = await gateway.http.get("/matches/byBinding", params={"alg": alg, "value": value, "maxResults": 1})
        by_post = await gateway.http.post("/matches/byBinding", json={"alg": alg, "value": value})
        assert by_get.json()["matches"][0]["manifestId"] == by_post.json()["matches"][0]["manifestId"] == label
    store = await gateway.http.get(f"/manifests/{label}")
    assert store.headers["content-type"] == "application/c2pa" and store.content in data
    thumb = (await verified(gateway, await file_of(gateway, meta, "thumbnail")))["found"][0]["manifest"]
    whole = (await gateway.http.get(f"/manifests/{thumb}")).content
    active = (await gateway.http.get(f"/manifests/{thumb}", params={"returnActiveManifest": "true"})).content
    assert len(active) < len(whole) and active == active_manifest(whole) and thumb.encode() in active
    supported = (await gateway.http.get("/services/supportedAlgorithms")).json()
    assert supported == {"watermarks": [{"alg": ALGORITHM}], "fingerprints": [{"alg": ISCC}]}


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({}, "value"),
        ({"alg": ISCC}, "value"),
        ({"alg": "com.example.mark", "value": "AAAA"}, "alg"),
        ({"alg": ISCC, "value": "%%%"}, "value"),
        ({"alg": ALGORITHM, "value": "AAAA"}, "value"),
        ({"alg": ALGORITHM, "value": "AAAAAAAA", "maxResults": "many"}, "maxResults"),
        ({"alg": ALGORITHM, "value": "AAAAAAAA", "maxResults": "0"}, "maxResults"),
    ],
    ids=str,
)
async def test_a_bad_look_up_is_a_400_that_names_the_field(gateway, query, field):
    answer = await gateway.http.get("/matches/byBinding", params=query)
    assert (answer.status_code, answer.json()["field"]) == (400, field) and answer.json()["fix"]


async def test_an_unknown_manifest_is_a_404_and_an_unknown_binding_matches_nothing(gateway):
    missing = await gateway.http.get("/manifests/urn:c2pa:00000000-0000-0000-0000-000000000000")
    assert (missing.status_code, missing.json()["code"]) == (404, "manifest_not_found")
    none = await gateway.http.get("/matches/byBinding", params={"alg": ALGORITHM, "value": "AAAAAAAA"})
    assert none.json() == {"matches": []}


async def test_any_bytes_are_answered(gateway):
    meta = await gateway.picture(seed=5)
    data = await file_of(gateway, meta)

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(st.integers(0, len(data)), st.binary(max_size=40), st.booleans())
    def damaged(at: int, noise: bytes, cut: bool) -> None:
        broken = data[:at] + noise + (b"" if cut else data[at + len(noise) :])
        answer = anyio.from_thread.run(post, broken or b"x")
        assert answer.status_code == 200 and answer.json()["state"], answer.text

    async def post(broken: bytes):
        return await gateway.http.post("/api/verify", content=broken)

    await anyio.to_thread.run_sync(damaged)
