"""`use_cache` over the front door: what is a hit, what is none, and what a hit is made of."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from PIL import Image
from sqlalchemy import text

from compliance.authority import load_or_create
from compliance.verify import verify
from gateway.core import access
from gateway.core.images import State
from gateway.errors import SettingsError
from gateway.jobs.database import Database
from gateway.jobs.keys import SqlKeys
from gateway.jobs.store import SqlJobs
from gateway.settings import Settings
from tests.api.conftest import KEY, Gateway, opened, settings
from tests.api.fake_runpod import FakeRunPod
from tests.api.test_compliance import RULES, painted
from tests.reviewers import SeesColours

pytestmark = pytest.mark.anyio

PROMPT = "a red house on a hill, soft light, -fog"
#: The same picture in other words, which only the semantic tier knows.
REWORDED = "soft light, a Red house on the hill, -Fog"


def data_uri(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


async def hit(gateway: Gateway, prompt: str = PROMPT, **fields: Any) -> dict[str, Any]:
    """A generate that must be a hit, with ``meta`` of its picture."""
    job = await gateway.call("generate", prompt=prompt, use_cache=True, **fields)
    assert job.get("cache") is True, job
    status = await gateway.ended(job["id"])
    assert status["status"] == "COMPLETED" and status["cache"] is True, status
    return job | {"meta": status["meta"]}


async def semantic(gateway: Gateway, prompt: str, **fields: Any) -> dict[str, Any]:
    """The same for what the index must know first: asked until it does, for a bounded time."""
    with anyio.fail_after(60):
        while True:
            answer = await gateway.post(
                {"action": "generate", "prompt": prompt, "use_cache": True, "cache_only": True, **fields}
            )
            if answer.status_code == 200:
                job = answer.json()
                status = await gateway.ended(job["id"])
                assert status["status"] == "COMPLETED" and status["cache"] is True, status
                return job | {"meta": status["meta"]}
            assert answer.status_code == 404, answer.text
            await anyio.sleep(0.1)


async def missed(gateway: Gateway, prompt: str, *, key: str = KEY, **fields: Any) -> httpx.Response:
    answer = await gateway.post(
        {"action": "generate", "prompt": prompt, "use_cache": True, "cache_only": True, **fields}, key=key
    )
    assert (answer.status_code, answer.json()["error"]) == (404, "No cached result found"), answer.text
    return answer


async def image(gateway: Gateway, meta: dict[str, Any], type: str = "signed") -> bytes:
    url = next(each["url"] for each in meta["images"] if each["type"] == type)
    answer = await gateway.http.get(url)
    assert answer.status_code == 200
    return answer.content


async def test_an_equal_request_is_answered_from_the_cache_and_nothing_is_drawn(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT)
    drawn = len(gateway.runpod.jobs)
    found = await hit(gateway)
    assert found["id"].startswith("cache_") and len(found["id"]) == 38
    assert found["gen_id"] == first["gen_id"] == found["meta"]["gen_id"]
    assert found["prompt"] == PROMPT and found["similarity"] == 1.0 and found["matched_prompt"] == PROMPT
    meta = found["meta"]
    assert meta["cache"] is True and meta["compliance"] == "safe" and meta["requested_prompt"] == PROMPT
    assert meta["seed"] == first["seed"] and meta["images"][0]["sha256"] == meta["fingerprint"]
    assert len(gateway.runpod.jobs) == drawn
    before = Image.open(io.BytesIO(await image(gateway, first)))
    after = Image.open(io.BytesIO(await image(gateway, meta)))
    assert before.tobytes() == after.tobytes()


async def test_a_reworded_prompt_is_found_by_its_meaning(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT)
    found = await semantic(gateway, REWORDED)
    assert found["gen_id"] == first["gen_id"] and 0.95 < found["similarity"] <= 1
    assert found["prompt"] == REWORDED and found["matched_prompt"] == PROMPT
    assert found["meta"]["prompt"] == PROMPT and found["meta"]["requested_prompt"] == REWORDED


@pytest.mark.parametrize(
    "prompt",
    [
        pytest.param("a blue house on a hill, soft light, -fog", id="colour"),
        pytest.param("a red house on a hill, soft light, -people", id="negatives"),
        pytest.param("a hill on a red house, soft light, -fog", id="order"),
        pytest.param("two red houses on a hill, soft light, -fog", id="number"),
    ],
)
async def test_a_near_miss_is_a_miss_and_a_forced_look_takes_it(gateway: Gateway, prompt: str) -> None:
    await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    await missed(gateway, prompt)
    found = await hit(gateway, prompt, cache_force=True)
    assert found["similarity"] <= 1 and found["matched_prompt"] == PROMPT


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"style": "neon"}, id="style"),
        pytest.param({"compliance_ruleset": "strict"}, id="ruleset"),
    ],
)
async def test_another_style_or_ruleset_is_a_miss_even_by_force(gateway: Gateway, fields: dict[str, Any]) -> None:
    await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    await missed(gateway, PROMPT, **fields)
    await missed(gateway, PROMPT, cache_force=True, **fields)
    await missed(gateway, f"@aya {PROMPT}", cache_force=True)


async def test_a_hit_has_the_format_marks_and_credentials_of_its_own_request(gateway: Gateway) -> None:
    red, blue = (data_uri(Image.new("RGBA", (64, 64), colour)) for colour in ("#ff0000", "#0000ff"))
    first = await gateway.picture(PROMPT, wm_image=red, wm_scale=20, cs_author="Anna", cs_title="First", format="png")
    found = await hit(gateway, wm_image=blue, wm_scale=20, cs_author="Bert", format="webp", lossless=True)
    assert found["format"] == "webp" and found["meta"]["format"] == "webp" and found["meta"]["lossless"] is True
    before, after = await image(gateway, first), await image(gateway, found["meta"])
    assert Image.open(io.BytesIO(after)).format == "WEBP"
    assert b"Anna" in before and b"Bert" in after and b"Anna" not in after and b"First" not in after
    corner = (first["width"] - 20, first["height"] - 20)
    assert Image.open(io.BytesIO(before)).convert("RGB").getpixel(corner) == (255, 0, 0)
    assert Image.open(io.BytesIO(after)).convert("RGB").getpixel(corner) == (0, 0, 255)
    plain = await hit(gateway, format="png")
    clean = Image.open(io.BytesIO(await image(gateway, plain["meta"]))).convert("RGB").getpixel(corner)
    assert clean not in ((255, 0, 0), (0, 0, 255))


async def test_a_hit_is_signed_and_says_when_it_was_drawn(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT)
    found = await hit(gateway)
    anchors = load_or_create(gateway.settings.data / "signing").anchors_pem
    for type in ("signed", "thumbnail"):
        report = verify(await image(gateway, found["meta"], type), anchors)
        assert report.state == "trusted", report
    assert found["meta"]["images"][0]["sha256"] != first["images"][0]["sha256"]


async def test_another_tenant_finds_nothing(gateway: Gateway) -> None:
    other_key = access.new_secret()
    database = Database(gateway.settings.database())
    async with database.open():
        key = access.new_key(other_key, name="x", tenant="other", now=1.0, tier="standard", scopes=frozenset())
        await SqlKeys(database).create(key, access.digest(other_key))
    await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    await missed(gateway, PROMPT, key=other_key)
    await missed(gateway, REWORDED, key=other_key, cache_force=True)


async def test_cache_only_is_a_404_and_implies_use_cache(gateway: Gateway) -> None:
    await missed(gateway, PROMPT)
    answer = await gateway.post({"action": "generate", "prompt": PROMPT, "cache_only": True})
    assert answer.status_code == 404
    assert not gateway.runpod.jobs
    await gateway.picture(PROMPT)
    job = await gateway.call("generate", prompt=PROMPT, cache_only=True)
    assert job["cache"] is True and job["warnings"][0]["code"] == "implied"


async def test_a_miss_without_cache_only_is_drawn(gateway: Gateway) -> None:
    job = await gateway.call("generate", prompt=PROMPT, use_cache=True)
    assert job["id"].startswith("run_") and "cache" not in job
    assert "cache" not in await gateway.ended(job["id"])


async def test_without_use_cache_an_equal_request_is_drawn_anew(gateway: Gateway) -> None:
    await gateway.picture(PROMPT)
    assert (await gateway.call("generate", prompt=PROMPT))["id"].startswith("run_")


async def test_a_picture_of_another_size_is_a_hit_with_a_warning_unless_sizes_must_match(gateway: Gateway) -> None:
    await gateway.picture(PROMPT, width=1024, height=1024)
    found = await semantic(gateway, PROMPT)
    assert (found["meta"]["width"], found["meta"]["height"]) == (1024, 1024)
    assert {"code": "cache_size", "field": "width,height", "given": "1344x768", "used": "1024x1024"} in found[
        "warnings"
    ]
    await missed(gateway, PROMPT, cache_match=["dimensions"])
    await gateway.picture(PROMPT)
    assert "warnings" not in await hit(gateway)


async def test_negatives_must_match_where_the_caller_says_so(open_gateway: Any) -> None:
    gateway = await open_gateway(IMGEN_CACHE_GUARD="off")
    await gateway.picture("a red house on a hill, -fog")
    await semantic(gateway, "a red house on a hill, -rain")
    await missed(gateway, "a red house on a hill, -rain", cache_match=["negative"])
    answer = await gateway.post({"action": "generate", "prompt": "a", "use_cache": True, "cache_match": "size"})
    assert answer.status_code == 400 and "cache_match" in answer.json()["error"]


async def test_a_seed_is_part_of_an_equal_request_and_fixes_the_choice(gateway: Gateway) -> None:
    ids = {(await gateway.picture(PROMPT, seed=seed))["gen_id"]: seed for seed in (7, 8, 9)}
    for gen_id, seed in ids.items():
        assert (await hit(gateway, seed=seed))["gen_id"] == gen_id
    chosen = {(await hit(gateway, cache_pick=10))["gen_id"] for _ in range(20)}
    assert chosen == set(ids)
    newest = [gen_id for gen_id, seed in ids.items() if seed == 9]
    assert {(await hit(gateway, cache_pick=1))["gen_id"] for _ in range(5)} == set(newest)


async def test_pictures_of_one_job_stand_for_as_many(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT, n=3)
    found = await hit(gateway, n=3)
    seeds = [each["seed"] for each in found["meta"]["images"] if each["type"] == "signed"]
    assert seeds == [each["seed"] for each in first["images"] if each["type"] == "signed"]
    assert len((await semantic(gateway, PROMPT, n=1))["meta"]["images"]) == 2
    await missed(gateway, PROMPT, n=4)


async def test_what_a_review_blocked_is_never_found(open_gateway: Any, tmp_path: Any) -> None:
    (tmp_path / "rules").mkdir()
    (tmp_path / "rules" / "blue.toml").write_text(RULES.replace('"colours"', '"blue"'), encoding="utf-8")
    gateway = await open_gateway(SeesColours(), IMGEN_RULESETS=str(tmp_path / "rules"))
    gateway.runpod.brush = painted("#0000ff")
    job = await gateway.call("generate", prompt=PROMPT, compliance_ruleset="blue")
    assert (await gateway.ended(job["id"]))["compliance"] == "unsafe"
    await missed(gateway, PROMPT, compliance_ruleset="blue")
    await missed(gateway, PROMPT, compliance_ruleset="blue", cache_force=True)


async def test_a_deleted_picture_is_no_hit_and_its_copies_go_with_it(gateway: Gateway) -> None:
    job = await gateway.call("generate", prompt=PROMPT)
    await gateway.ended(job["id"])
    found = await hit(gateway)
    url = found["meta"]["images"][0]["url"]
    assert (await gateway.http.get(url)).status_code == 200
    await gateway.call("delete", id=job["id"])
    await missed(gateway, PROMPT)
    gone = await gateway.post({"action": "status", "id": found["id"]})
    assert gone.status_code == 404
    with anyio.fail_after(30):
        while (await gateway.http.get(url)).status_code == 200:
            await anyio.sleep(0.05)


async def test_a_hit_can_be_deleted_alone(gateway: Gateway) -> None:
    await gateway.picture(PROMPT)
    found = await hit(gateway)
    assert (await gateway.call("delete", id=found["id"]))["deleted"] is True
    assert (await hit(gateway))["gen_id"] == found["gen_id"]


async def test_ids_of_the_cache_that_nobody_has_are_a_404_in_the_reference_s_words(gateway: Gateway) -> None:
    for action in ("status", "cancel", "delete"):
        answer = await gateway.post({"action": action, "id": "cache_" + "0" * 32})
        assert (answer.status_code, answer.json()["error"]) == (404, "Cached result not found or expired"), action
    assert (await gateway.post({"action": "status", "id": "cache_123"})).json()["error"] == "Bad ID"


async def test_a_hit_is_in_no_list_of_jobs_and_cannot_be_cancelled(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT)
    found = await hit(gateway)
    assert [job["gen_id"] for job in (await gateway.call("jobs"))["jobs"]] == [first["gen_id"]]
    assert (await gateway.post({"action": "cancel", "id": found["id"]})).status_code == 409
    assert (await gateway.http.get(f"/i/{found['id']}", headers={"Authorization": f"Bearer {KEY}"})).status_code == 302


async def test_the_metrics_tell_hits_misses_refusals_and_seconds(gateway: Gateway) -> None:
    await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    await hit(gateway)
    await missed(gateway, "a red house on a hill, soft light, -people")
    text = (await gateway.http.get("/metrics")).text
    figures = {line.split(" ")[0]: float(line.split(" ")[1]) for line in text.splitlines() if line[:1] not in "#"}
    assert figures['imgen_cache_lookups_total{result="exact"}'] == 1
    assert figures['imgen_cache_lookups_total{result="semantic"}'] == 1
    assert figures['imgen_cache_lookups_total{result="miss"}'] >= 1
    assert figures["imgen_cache_guard_refusals_total"] >= 1
    assert "imgen_cache_saved_seconds_total" in figures


async def test_requests_with_references_are_always_drawn(gateway: Gateway) -> None:
    reference = [{"image": data_uri(Image.new("RGB", (64, 64), "green"))}]
    await gateway.picture(PROMPT, references=reference)
    job = await gateway.call("generate", prompt=PROMPT, references=reference, use_cache=True)
    assert job["id"].startswith("run_") and job["warnings"][0]["code"] == "cache_skipped"
    await missed(gateway, PROMPT)


async def test_a_cache_that_is_off_is_a_miss_with_a_warning(open_gateway: Any) -> None:
    gateway = await open_gateway(IMGEN_CACHE="off")
    await gateway.picture(PROMPT)
    job = await gateway.call("generate", prompt=PROMPT, use_cache=True)
    assert job["id"].startswith("run_") and job["warnings"][0]["code"] == "cache_off"
    await missed(gateway, PROMPT)


async def test_both_tiers_answer_after_a_restart_and_what_was_drawn_while_it_was_off_is_filled_in(
    tmp_path: Any,
) -> None:
    async with opened(settings(tmp_path, IMGEN_CACHE="off"), FakeRunPod(key="rp-key")) as gateway:
        first = await gateway.picture(PROMPT)
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        assert (await semantic(gateway, REWORDED))["gen_id"] == first["gen_id"]
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        assert (await hit(gateway))["gen_id"] == first["gen_id"]
        assert (await semantic(gateway, REWORDED))["gen_id"] == first["gen_id"]


@pytest.mark.parametrize("field", ["use_cache", "cache_only", "cache_force"])
async def test_a_flag_of_a_wrong_kind_is_a_400(gateway: Gateway, field: str) -> None:
    answer = await gateway.post({"action": "generate", "prompt": PROMPT, field: {"a": 1}})
    assert answer.status_code == 400 and field in answer.json()["error"]


def test_the_settings_know_what_fits_together() -> None:
    with pytest.raises(SettingsError, match="IMGEN_CACHE_KEY: set it together with cache_url"):
        Settings.from_environ({"IMGEN_CACHE_KEY": "secret"})


async def _change(gateway: Gateway, statement: str, **values: Any) -> None:
    database = Database(gateway.settings.database())
    async with database.open():
        await database.write(text(statement), values)


async def test_a_hit_that_nobody_finished_is_finished_after_a_restart(tmp_path: Any) -> None:
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        await gateway.picture(PROMPT)
        found = await hit(gateway)
        database = Database(gateway.settings.database())
        async with database.open():
            jobs = SqlJobs(database)
            done = await jobs.find("imgen", found["id"])
            assert done is not None and done.source == found["gen_id"]
    # As a kill -9 right after the row was written leaves it.
    torn = replace(done, gen_id="a" * 20, public_id="cache_" + "a" * 32, state=State.FINISHING, outcome=None)
    async with database.open():
        await SqlJobs(database).add(torn, lease="dead", until=0.0)
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        status = await gateway.ended(torn.public_id)
        assert status["status"] == "COMPLETED" and status["cache"] is True
        assert status["meta"]["gen_id"] == found["gen_id"]
        await image(gateway, status["meta"])


async def test_a_hit_whose_original_was_deleted_before_it_was_finished_fails_and_shows_nothing(tmp_path: Any) -> None:
    async with opened(settings(tmp_path), FakeRunPod(key="rp-key")) as gateway:
        job = await gateway.call("generate", prompt=PROMPT)
        await gateway.ended(job["id"])
        found = await hit(gateway)
        database = Database(gateway.settings.database())
        async with database.open():
            done = await SqlJobs(database).find("imgen", found["id"])
        assert done is not None
        await gateway.call("delete", id=job["id"])
        torn = replace(done, gen_id="b" * 20, public_id="cache_" + "b" * 32, state=State.FINISHING, outcome=None)
        async with database.open():
            await SqlJobs(database).add(torn, lease="dead", until=0.0)
        status = await gateway.ended(torn.public_id)
        assert (status["status"], status["code"]) == ("FAILED", "cached_picture_gone") and "meta" not in status


async def test_an_hour_later_a_hit_is_a_404_and_then_its_files_go(gateway: Gateway) -> None:
    first = await gateway.picture(PROMPT)
    found = await hit(gateway)
    url = found["meta"]["images"][0]["url"]
    statement = "UPDATE jobs SET created_at = created_at - :by WHERE public_id = :id"
    await _change(gateway, statement, id=found["id"], by=3601.0)
    with anyio.fail_after(10):
        while (answer := await gateway.post({"action": "status", "id": found["id"]})).status_code == 200:
            await anyio.sleep(0.1)
    told = answer.json()
    assert (answer.status_code, told["error"]) == (404, "Cached result not found or expired")
    # What was handed out in time is there as long as its address lives.
    assert (await gateway.http.get(url)).status_code == 200
    assert (await hit(gateway))["gen_id"] == first["gen_id"]


async def test_optimised_requests_are_found_by_the_words_that_were_asked(gateway: Gateway) -> None:
    first = await gateway.picture("a red house", optimize=True)
    assert first["optimized"] is True and first["prompt"] != "a red house"
    found = await hit(gateway, "a red house", optimize=True)
    assert found["gen_id"] == first["gen_id"] and found["matched_prompt"] == first["prompt"]
    assert found["prompt"] == "a red house"
    assert (await semantic(gateway, "A Red house"))["gen_id"] == first["gen_id"]


async def test_what_expired_is_no_hit(open_gateway: Any) -> None:
    gateway = await open_gateway(IMGEN_CACHE_DAYS="1")
    await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    await _change(gateway, "UPDATE cache_entries SET expires_at = :now", now=1.0)
    await anyio.sleep(1.1)
    await missed(gateway, PROMPT)
