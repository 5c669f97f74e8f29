"""Every error row of the reference, the rows added to it, and that no body whatever gives a 5xx."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.core import access
from gateway.jobs.database import Database
from gateway.jobs.keys import SqlKeys

pytestmark = pytest.mark.anyio

ENVELOPE = {"error", "code", "fix", "retryable", "request_id"}


async def refused(gateway, body, status, error, **more):
    answer = await gateway.post(body, **more)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json().keys() >= ENVELOPE
    assert answer.json()["request_id"] == answer.headers["x-request-id"]
    return answer.json()


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        pytest.param({}, 400, "Missing action", id="no-action"),
        pytest.param({"action": ""}, 400, "Missing action", id="empty-action"),
        pytest.param({"action": "paint"}, 400, "Unknown action", id="unknown-action"),
        pytest.param({"action": 5}, 400, "Unknown action", id="action-of-wrong-type"),
        pytest.param({"action": "generate"}, 400, "Prompt is required", id="no-prompt"),
        pytest.param({"action": "generate", "prompt": " \n"}, 400, "Prompt is required", id="blank-prompt"),
        pytest.param({"action": "generate", "prompt": "-fog, -rain"}, 400, "Prompt is required", id="only-negatives"),
        pytest.param({"action": "generate", "prompt": "@nobody x"}, 400, "Invalid character", id="unknown-character"),
        pytest.param({"action": "generate", "prompt": "@aya @nobody"}, 400, "Invalid character", id="one-unknown"),
        pytest.param({"action": "generate", "prompt": "x" * 4001}, 400, "Prompt too long", id="too-long"),
        pytest.param({"action": "generate", "prompt": "x" + " " * 20000}, 400, "Prompt too long", id="blanks"),
        pytest.param(
            {"action": "generate", "prompt": "x", "cache_only": True}, 404, "No cached result found", id="miss"
        ),
        pytest.param({"action": "status"}, 400, "Bad ID", id="no-id"),
        pytest.param({"action": "status", "id": "job-1"}, 400, "Bad ID", id="malformed-id"),
        pytest.param({"action": "status", "id": "run_a/b"}, 400, "Bad ID", id="id-with-slash"),
        pytest.param({"action": "status", "id": ["run_a"]}, 400, "Bad ID", id="id-of-wrong-type"),
        pytest.param({"action": "status", "id": "run_nobodys"}, 404, "Job not found", id="unknown-id"),
        pytest.param(
            {"action": "status", "id": "cache_" + "0" * 32}, 404, "Cached result not found or expired", id="cache-id"
        ),
        pytest.param({"action": "cancel", "id": "run_nobodys"}, 404, "Job not found", id="cancel-unknown"),
    ],
)
async def test_an_error_row_of_the_reference(gateway, body, status, error):
    answer = await refused(gateway, body, status, error)
    if body.get("action") == "status":
        assert answer["status"] == "FAILED"


@pytest.mark.parametrize(
    "field",
    [
        {"prompt": 5},
        {"prompt": ["x"]},
        {"style": 5},
        {"width": "wide"},
        {"width": {}},
        {"optimize": "maybe"},
        {"quality": True},
        {"n": "many"},
        {"n": [2]},
    ],
    ids=str,
)
async def test_a_field_of_the_wrong_kind_is_named(gateway, field):
    name = next(iter(field))
    answer = await gateway.post({"action": "generate", "prompt": "a house", **field})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(f"Invalid {name}: ") and answer.json()["fix"]


async def test_authorization_rows(gateway):
    body = {"action": "models"}
    await refused(gateway, body, 401, "Unauthorized", key=None)
    await refused(gateway, body, 401, "Invalid API key", key="imgen_guessed")
    await refused(gateway, body, 401, "Invalid API key", key="z-img-secret-key-2026")
    for header in ("Basic abc", "Bearer", "Bearer   ", "bearer\ttoken"):
        answer = await gateway.http.post("/api/v2", json=body, headers={"Authorization": header})
        assert answer.status_code == 401


async def test_a_disabled_key_says_so(gateway):
    database = Database(gateway.settings.database())
    async with database.open():
        keys = SqlKeys(database)
        secret = access.new_secret()
        key = access.new_key(secret, name="x", tenant="default", now=1.0, tier="standard", scopes=frozenset())
        await keys.create(key, access.digest(secret))
        assert (await gateway.post({"action": "models"}, key=secret)).status_code == 200
        await keys.disable(key.id, now=2.0)
    import anyio

    await anyio.sleep(access.REMEMBERED)
    await refused(gateway, {"action": "models"}, 401, "API key is disabled", key=secret)


async def test_another_tenants_job_is_not_found(gateway):
    database = Database(gateway.settings.database())
    async with database.open():
        secret = access.new_secret()
        key = access.new_key(secret, name="x", tenant="other", now=1.0, tier="standard", scopes=frozenset())
        await SqlKeys(database).create(key, access.digest(secret))
    meta = await gateway.picture()
    mine = await refused(gateway, {"action": "status", "id": "run_nobodys"}, 404, "Job not found", key=secret)
    theirs = await refused(gateway, {"action": "status", "id": meta["id"]}, 404, "Job not found", key=secret)
    assert {**mine, "request_id": ""} == {**theirs, "request_id": ""}
    await refused(gateway, {"action": "cancel", "id": meta["id"]}, 404, "Job not found", key=secret)
    assert (await gateway.post({"action": "jobs"}, key=secret)).json() == {"jobs": [], "next": None}


async def test_bodies_that_are_not_an_object(gateway):
    headers = {"Authorization": "Bearer imgen_test_key_for_the_default_tenant"}
    for content in (b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b"[" * 100_000, b'{"a":\xed\xa0\x80}', b"NaN"):
        answer = await gateway.http.post("/api/v2", content=content, headers=headers)
        assert (answer.status_code, answer.json()["error"]) == (400, "Invalid JSON")


async def test_a_body_above_16_mb_is_refused(gateway):
    answer = await gateway.post({"action": "generate", "prompt": "x", "wm_image": "A" * (16 * 1024 * 1024)})
    assert answer.status_code == 413 and answer.json().keys() >= ENVELOPE


async def test_other_methods_and_paths_speak_the_same_voice(gateway):
    wrong = await gateway.http.get("/api/v2")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST") and wrong.json().keys() >= ENVELOPE
    lost = await gateway.http.post("/api/v2/generate")
    assert lost.status_code == 404 and lost.json().keys() >= ENVELOPE
    assert (await gateway.http.get("/nowhere")).status_code == 404


async def test_a_caller_can_bring_its_request_id(gateway):
    answer = await gateway.post({"action": "models"})
    assert answer.headers["x-request-id"].startswith("req_")
    mine = await gateway.http.post("/api/v2", headers={"X-Request-ID": "trace-12345678"})
    assert mine.headers["x-request-id"] == mine.json()["request_id"] == "trace-12345678"
    bad = await gateway.http.post("/api/v2", headers={"X-Request-ID": "no spaces allowed"})
    assert bad.json()["request_id"].startswith("req_")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
FIELDS = (
    "prompt model negative optimize use_cache cache_only cache_force cache_pick cache_match character width "
    "height style format quality lossless compliance_ruleset precompliance wm_image wm_position "
    "wm_scale wm_transparency wm_rotation wm_padding_x wm_padding_y cs_author cs_title cs_description cs_organization "
    "cs_vendor seed steps guidance n id limit cursor "
).split()


@given(
    action=st.sampled_from(["models", "generate", "status", "cancel", "jobs", "optimize", "random"]) | JSON,
    fields=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=6),
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_no_body_whatever_gives_a_5xx(gateway, action, fields):
    answer = await gateway.post({"action": action, **fields})
    assert answer.status_code < 500, answer.text
    answer.json()
