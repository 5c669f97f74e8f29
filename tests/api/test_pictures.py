"""``GET /i/{id}``: a stable address, which leads those who may to a fresh one."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from gateway.core import access
from gateway.jobs.database import Database
from gateway.jobs.keys import SqlKeys
from handler import contract
from tests.api.conftest import KEY, Gateway
from tests.api.fake_runpod import paint
from tests.reviewers import SeesColours

pytestmark = pytest.mark.anyio
OTHER = "imgen_test_key_of_another_tenant"
NO_BLUE = """
name = "colours"
title = "No blue"
[[rules]]
id = "blue"
category = "COLOUR"
name = "Blue"
looks_at = "picture"
[rules.reviewers]
detector = ["blue"]
"""


def paint_blue(job: contract.Job, index: int) -> bytes:
    out, image = io.BytesIO(), Image.new("RGB", (job.width, job.height), "blue")
    image.paste("white", (100, 100, 200, 300))
    image.save(out, "PNG")
    return out.getvalue()


async def ask(gateway: Gateway, path: str, *, key: str | None = KEY, method: str = "GET") -> httpx.Response:
    return await gateway.http.request(method, path, headers={"Authorization": f"Bearer {key}"} if key else {})


async def another_tenant(gateway: Gateway) -> str:
    database = Database(gateway.settings.database())
    async with database.open():
        key = access.new_key(OTHER, name="x", tenant="other", now=time.time(), tier="standard", scopes=frozenset())
        await SqlKeys(database).create(key, access.digest(OTHER))
    return OTHER


async def test_an_address_leads_to_the_picture_by_either_id_for_as_long_as_it_is_there(gateway: Gateway) -> None:
    meta = await gateway.picture()
    for name in (meta["id"], meta["gen_id"]):
        answer = await ask(gateway, f"/i/{name}")
        assert answer.status_code == 302 and answer.content == b""
        assert answer.headers["cache-control"] == "private, no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        # The signed address is its own permission.
        file = await gateway.http.get(answer.headers["location"])
        assert file.status_code == 200 and file.headers["content-type"] == "image/jpeg"
        assert file.headers["cross-origin-resource-policy"] == "cross-origin"
        assert file.headers["etag"] == f'"{meta["fingerprint"]}"'


async def test_a_head_leads_there_too(gateway: Gateway) -> None:
    meta = await gateway.picture()
    answer = await ask(gateway, f"/i/{meta['id']}", method="HEAD")
    assert answer.status_code == 302 and "signature=" in answer.headers["location"]


async def test_thumbnails_and_the_pictures_of_several_have_addresses_of_their_own(gateway: Gateway) -> None:
    meta = await gateway.picture(n=2)
    hashes = {(image["type"], image["index"]): image["sha256"] for image in meta["images"]}
    assert len(hashes) == 4
    for (kind, index), sha256 in hashes.items():
        answer = await ask(gateway, f"/i/{meta['id']}?type={kind}&index={index}")
        file = await gateway.http.get(answer.headers["location"])
        assert file.headers["etag"] == f'"{sha256}"'
    first = await gateway.http.get((await ask(gateway, f"/i/{meta['id']}")).headers["location"])
    assert first.headers["etag"] == f'"{hashes["signed", 0]}"'


async def test_what_is_not_there_and_what_is_not_yours_look_the_same(
    open_gateway: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "rulesets").mkdir()
    (tmp_path / "rulesets/colours.toml").write_text(NO_BLUE, encoding="utf-8")
    gateway: Gateway = await open_gateway(SeesColours(), IMGEN_RULESETS=str(tmp_path / "rulesets"))
    gateway.runpod.brush = paint_blue
    blocked = await gateway.call("generate", prompt="a blue house", compliance_ruleset="colours")
    assert (await gateway.ended(blocked["id"]))["compliance"] == "unsafe"
    gateway.runpod.brush = paint
    mine = await gateway.picture("a green house")
    deleted = await gateway.picture("a yellow house")
    assert (await ask(gateway, f"/i/{deleted['gen_id']}")).status_code == 302
    await gateway.call("delete", id=deleted["id"])
    key = await another_tenant(gateway)
    answers = [
        await ask(gateway, "/i/run_neverheardof"),
        await ask(gateway, f"/i/{'a0' * 10}"),
        await ask(gateway, f"/i/{mine['id']}", key=key),
        await ask(gateway, f"/i/{mine['gen_id']}", key=key),
        await ask(gateway, f"/i/{blocked['id']}"),
        await ask(gateway, f"/i/{blocked['gen_id']}"),
        await ask(gateway, f"/i/{deleted['id']}"),
        await ask(gateway, f"/i/{deleted['gen_id']}"),
        await ask(gateway, f"/i/{mine['id']}?index=7"),
    ]
    told = [{**answer.json(), "request_id": ""} for answer in answers]
    assert {answer.status_code for answer in answers} == {404}
    assert all(one == told[0] for one in told) and told[0]["code"] == "picture_not_found"
    assert all("location" not in answer.headers for answer in answers)
    assert (await ask(gateway, f"/i/{mine['gen_id']}")).status_code == 302


async def test_a_failed_or_cancelled_job_has_no_picture(gateway: Gateway) -> None:
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    await gateway.call("cancel", id=job["id"])
    answer = await ask(gateway, f"/i/{job['id']}")
    assert (answer.status_code, answer.json()["code"]) == (404, "picture_not_found")


async def test_a_picture_that_is_still_drawn_is_asked_for_again_later(gateway: Gateway) -> None:
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    for name in (job["id"], job["gen_id"]):
        answer = await ask(gateway, f"/i/{name}")
        assert answer.status_code == 409 and int(answer.headers["retry-after"]) > 0
        assert answer.json()["code"] == "picture_not_ready" and answer.json()["retryable"]
    # To anybody else it does not exist at all.
    key = await another_tenant(gateway)
    assert (await ask(gateway, f"/i/{job['id']}", key=key)).status_code == 404


async def test_without_a_key_nothing_is_said(gateway: Gateway) -> None:
    meta = await gateway.picture()
    for key in (None, "imgen_wrong_key_wrong_key"):
        for name in (meta["id"], "run_neverheardof", "?"):
            answer = await ask(gateway, f"/i/{name}", key=key)
            assert answer.status_code == (404 if name == "?" else 401)
            assert name == "?" or answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize(
    ("path", "status", "field"),
    [
        ("/i/run_abc?index=-1", 400, "index"),
        ("/i/run_abc?index=first", 400, "index"),
        ("/i/run_abc?index=%C2%B2", 400, "index"),
        ("/i/run_abc?type=unsafe", 400, "type"),
        ("/i/run_abc?type=master", 400, "type"),
        ("/i/cache_" + "0" * 32, 404, None),
        ("/i/cache_123", 400, None),
        ("/i/..%2Ffiles", 404, None),
        ("/i/" + "a" * 300, 400, None),
    ],
)
async def test_a_bad_question_is_told_what_is_wrong(
    gateway: Gateway, path: str, status: int, field: str | None
) -> None:
    answer = await ask(gateway, path)
    assert answer.status_code == status and answer.json().get("field") == field
    assert answer.json()["request_id"] == answer.headers["x-request-id"]


async def test_another_method_is_told_which_one_there_is(gateway: Gateway) -> None:
    answer = await ask(gateway, "/i/run_abc", method="POST")
    assert answer.status_code == 405 and answer.headers["allow"] == "GET, HEAD"
    assert answer.json()["fix"] == "Send a GET."
