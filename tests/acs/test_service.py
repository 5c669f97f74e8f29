"""The service's own wire: what it takes, how it refuses, and what it never says."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance.panel import Panel
from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import Ruleset, load_rulesets
from compliance.service import create_app
from compliance.service.app import WAITING
from compliance.service.questions import MAX_BODY
from compliance.verdict import Verdict
from tests.acs.rig import AWAY, BUG, FLAT, KEY, PATIENCE, PLAIN, RED, SIZE, make_panel, picture, timeless, words

pytestmark = pytest.mark.anyio

BEARER = {"Authorization": f"Bearer {KEY}"}
WORDS = {"positive": "a hill", "width": SIZE[0], "height": SIZE[1]}
GATE = {"ruleset": "default", "stage": "gate", "context": WORDS}


def client_of(panel: Panel, *, threads: int = 2) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(create_app(panel, key=KEY, threads=threads), raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://acs.test", headers=BEARER, timeout=PATIENCE)


@pytest.fixture
async def acs(panel: Panel, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(panel) as client:
        yield client


def shown(raw: Raw, **more: Any) -> dict[str, Any]:
    """The question about a picture, with something else in it."""
    encoded = base64.b64encode(raw.data).decode()
    return {"ruleset": "colours", "context": WORDS, "picture": encoded, "sha256": raw.sha256, **more}


def refused(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """The body of a refusal, once it is seen to have its form and to tell nothing of the inside."""
    body = answer.json()
    assert (answer.status_code, body["code"]) == (status, code), answer.text
    assert body.keys() == {"error", "code", "fix", "retryable", "request_id"}
    assert body["error"].endswith(".") and body["fix"]
    assert body["request_id"] == answer.headers["x-request-id"]
    assert answer.headers["cache-control"] == "no-store"
    assert not re.search(r"/srv|Traceback|File \"|\.py|0x[0-9a-f]{6}", answer.text) and KEY not in answer.text
    return body


# What it answers.


@pytest.mark.parametrize("stage", [{}, {"stage": None}, {"stage": "review"}], ids=["unsaid", "null", "said"])
async def test_a_picture_is_reviewed(acs: httpx.AsyncClient, panel: Panel, stage: dict[str, Any]) -> None:
    answer = await acs.post("/v1/review", json=shown(RED, **stage))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert timeless(Verdict.from_dict(body["verdict"])) == timeless(panel.review(RED, words(), "colours"))
    assert (body["sha256"], body["request_id"]) == (RED.sha256, answer.headers["x-request-id"])
    assert answer.headers["cache-control"] == "no-store"


async def test_words_alone_are_read_at_the_gate(acs: httpx.AsyncClient, panel: Panel) -> None:
    for question in (GATE, {"ruleset": "default", "context": WORDS}):
        body = (await acs.post("/v1/review", json=question)).json()
        assert Verdict.from_dict(body["verdict"]) == panel.gate(words(), "default")


async def test_what_it_does_not_know_is_ignored(acs: httpx.AsyncClient) -> None:
    question = {**GATE, "added": [1], "context": {**WORDS, "later": {"x": 1}}}
    assert (await acs.post("/v1/review", json=question)).status_code == 200


async def test_a_hint_never_makes_a_review_milder(acs: httpx.AsyncClient) -> None:
    question = shown(RED, context={**WORDS, "precompliance": '{"safe": true}'})
    assert not (await acs.post("/v1/review", json=question)).json()["verdict"]["safe"]


async def test_the_rulesets_and_the_reviewers_are_told(acs: httpx.AsyncClient, panel: Panel) -> None:
    told = (await acs.get("/v1/rulesets")).json()
    assert {each["name"]: each["version"] for each in told["rulesets"]} == {
        name: each.version for name, each in panel.rulesets.items()
    }
    colours = next(each for each in told["rulesets"] if each["name"] == "colours")
    assert (colours["title"], colours["requires"]) == ("Colours", ["builtin"])
    assert [rule["id"] for rule in colours["rules"]] == [rule.id for rule in panel.rulesets["colours"].rules]
    assert next(rule for rule in colours["rules"] if rule["id"] == "red") == {
        "id": "red",
        "category": "COLOUR",
        "name": "Too much red",
        "looks_at": "picture",
        "action": "block",
        "refuse_prompt": False,
        "releasable": True,
        "except_tiers": ["painter"],
        "reviewers": {"builtin": {"red": 0.6}},
    }
    assert {each["name"]: each["version"] for each in told["reviewers"]} == {
        each.name: each.version for each in panel.reviewers
    }


async def test_health_needs_no_key(acs: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/readyz"):
        assert (await acs.get(path, headers={"Authorization": ""})).status_code == 200


async def test_the_caller_s_request_id_is_kept_when_it_is_a_plain_token(acs: httpx.AsyncClient) -> None:
    kept = await acs.post("/v1/review", json=GATE, headers={"X-Request-ID": "req_0123456789"})
    assert kept.json()["request_id"] == kept.headers["x-request-id"] == "req_0123456789"
    other = await acs.post("/v1/review", json=GATE, headers={"X-Request-ID": "a b\tc"})
    assert other.json()["request_id"].startswith("acs_")


# How it refuses.


@pytest.mark.parametrize(
    "header",
    ["", KEY, f"Basic {KEY}", "Bearer", "Bearer ", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", "Bearer \xe9"],
)
@pytest.mark.parametrize("call", [("POST", "/v1/review"), ("GET", "/v1/rulesets")], ids=["review", "rulesets"])
async def test_without_the_key_nothing_is_answered(acs: httpx.AsyncClient, call: tuple[str, str], header: str) -> None:
    answer = await acs.request(*call, json=GATE, headers={"Authorization": header.encode("latin-1")})
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_there_is_no_service_without_a_key(panel: Panel) -> None:
    with pytest.raises(ValueError, match="key"):
        create_app(panel, key="", threads=1)


@pytest.mark.parametrize(
    ("question", "says"),
    [
        pytest.param([], "valid dictionary", id="list"),
        pytest.param({}, "ruleset", id="empty"),
        pytest.param({**GATE, "ruleset": 1}, "ruleset: ", id="ruleset"),
        pytest.param({**GATE, "stage": "later"}, "stage: ", id="stage"),
        pytest.param({**GATE, "context": "a hill"}, "context: ", id="context"),
        pytest.param({**GATE, "context": None}, "context.positive: ", id="no-context"),
        pytest.param({**GATE, "context": {}}, "context.positive: ", id="no-words"),
        pytest.param({**GATE, "context": {**WORDS, "positive": ["a"]}}, "context.positive: ", id="words"),
        pytest.param({**GATE, "context": {**WORDS, "positive": "a" * 100_001}}, "context.positive: ", id="too-long"),
        pytest.param({**GATE, "context": {**WORDS, "width": "96"}}, "context.width: ", id="width-text"),
        pytest.param({**GATE, "context": {**WORDS, "width": True}}, "context.width: ", id="width-true"),
        pytest.param({**GATE, "context": {**WORDS, "height": -1}}, "context.height: ", id="height"),
        pytest.param({**GATE, "context": {**WORDS, "height": 1.5}}, "context.height: ", id="height-half"),
        pytest.param({**GATE, "context": {**WORDS, "tier": None}}, "context.tier: ", id="tier"),
        pytest.param({**GATE, "stage": "review"}, "picture: ", id="no-picture"),
        pytest.param({**GATE, "stage": "upload"}, "picture: ", id="no-upload"),
        pytest.param(shown(PLAIN, sha256=None), "sha256: ", id="no-hash"),
        pytest.param(shown(PLAIN, sha256="abc"), "sha256: ", id="hash"),
        pytest.param(shown(PLAIN, picture="not base64!"), "picture: ", id="no-base64"),
        pytest.param(shown(PLAIN, picture="é"), "picture: ", id="no-ascii"),
        pytest.param(shown(PLAIN, picture=[1]), "picture: ", id="picture-list"),
        pytest.param(shown(PLAIN, context=None), "context.positive: ", id="picture-without-words"),
    ],
)
async def test_a_wrong_question_is_told_what_is_wrong(acs: httpx.AsyncClient, question: Any, says: str) -> None:
    body = refused(await acs.post("/v1/review", json=question), 400, "bad_request")
    assert says in body["error"] and not body["retryable"]


@pytest.mark.parametrize("body", [b"", b"{", b"\xff", b'{"ruleset": "\xed\xa0\x80"}', b"[" * 100_000, b'{"a": NaN}'])
async def test_what_is_no_json_is_told_so(acs: httpx.AsyncClient, body: bytes) -> None:
    assert "not JSON" in refused(await acs.post("/v1/review", content=body), 400, "bad_request")["error"]


async def test_an_unknown_ruleset_is_answered_with_those_there_are(acs: httpx.AsyncClient) -> None:
    body = refused(await acs.post("/v1/review", json={**GATE, "ruleset": "colour"}), 404, "unknown_ruleset")
    assert "'colour'" in body["error"] and "colours" in body["fix"]


async def test_a_picture_that_is_none_is_refused(acs: httpx.AsyncClient) -> None:
    other = shown(PLAIN, sha256="0" * 64)
    damaged = PLAIN.data[:200]
    headless = PLAIN.data[:8] + b"nothing like a header"
    questions = [other] + [
        shown(PLAIN, picture=base64.b64encode(data).decode(), sha256=hashlib.sha256(data).hexdigest())
        for data in (damaged, headless, b"", b"GIF89a")
    ]
    for question in questions:
        for stage in ("review", "upload"):
            refused(await acs.post("/v1/review", json={**question, "stage": stage}), 422, "picture_refused")


async def test_a_broken_render_is_told_so_and_may_be_drawn_again(acs: httpx.AsyncClient) -> None:
    body = refused(await acs.post("/v1/review", json=shown(FLAT)), 422, "broken_render")
    assert body["retryable"] and "single colour" in body["error"]


async def test_a_reviewer_without_an_answer_is_a_pause_and_tells_nothing_of_the_inside(acs: httpx.AsyncClient) -> None:
    answer = await acs.post("/v1/review", json=shown(picture(corner=AWAY)))
    assert refused(answer, 503, "compliance_unavailable")["retryable"]
    assert int(answer.headers["retry-after"]) > 0


async def test_a_bug_in_a_reviewer_tells_nothing_of_the_inside(acs: httpx.AsyncClient) -> None:
    answer = await acs.post("/v1/review", json=shown(picture(corner=BUG)))
    body = answer.json()
    assert (answer.status_code, body["code"], body["retryable"]) == (500, "internal_error", True)
    assert "/srv" not in answer.text and "bug" not in answer.text


async def test_other_paths_and_methods_speak_json_too(acs: httpx.AsyncClient) -> None:
    refused(await acs.get("/v1/reviews"), 404, "not_found")
    refused(await acs.get("/v1/review"), 405, "method_not_allowed")
    refused(await acs.post("/v1/rulesets"), 405, "method_not_allowed")


async def test_a_body_that_is_too_large_is_refused_before_it_is_read_whole(acs: httpx.AsyncClient) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while True:
            sent += 2**20
            yield b" " * 2**20

    refused(await acs.post("/v1/review", content=endless()), 413, "body_too_large")
    assert MAX_BODY < sent <= MAX_BODY + 2**21
    declared = await acs.post("/v1/review", content=b"{}", headers={"Content-Length": str(MAX_BODY + 1)})
    refused(declared, 413, "body_too_large")


# When too many ask.


class Waiting:
    """A reviewer that is not done before the test says so."""

    name, version = "builtin", "1"
    labels = frozenset({"red", "green", "lighthouse"})
    always = True

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.seen = 0

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        self.seen += 1
        anyio.from_thread.run(self.done.wait)
        return Opinion()


async def test_a_crowd_is_sent_away_and_the_gate_stays_open() -> None:
    waiting = Waiting()
    panel = Panel(Words(PromptGate.built_in()), [waiting], load_rulesets())
    answers: list[httpx.Response] = []
    async with client_of(panel, threads=1) as acs:

        async def ask() -> None:
            answers.append(await acs.post("/v1/review", json=shown(PLAIN, ruleset="default")))

        async with anyio.create_task_group() as tasks:
            # One is in hand, as many wait as may, and these three are too many.
            for _ in range(1 + WAITING + 3):
                tasks.start_soon(ask)
            with anyio.fail_after(PATIENCE):
                while len(answers) < 3:
                    await anyio.sleep(0.01)
            assert not (await acs.get("/readyz")).json()["ready"]
            assert (await acs.post("/v1/review", json=GATE)).status_code == 200
            waiting.done.set()
        for answer in answers[:3]:
            refused(answer, 503, "compliance_unavailable")
        assert [answer.status_code for answer in answers[3:]] == [200] * (1 + WAITING)
        assert (await acs.get("/readyz")).json()["ready"]
    assert waiting.seen == 1 + WAITING


async def test_who_has_left_is_not_reviewed_for() -> None:
    waiting = Waiting()
    panel = Panel(Words(PromptGate.built_in()), [waiting], load_rulesets())
    app = create_app(panel, key=KEY, threads=1)
    body = orjson.dumps(shown(PLAIN, ruleset="default"))
    gone = anyio.Event()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/review",
        "query_string": b"",
        "headers": [(b"authorization", f"Bearer {KEY}".encode())],
    }

    async def call(*, leaves: bool) -> None:
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def receive() -> dict[str, Any]:
            if message := next(messages, None):
                return message
            if not leaves:
                await anyio.sleep_forever()
            # As a server does it: what has happened already is said without another turn of the loop.
            if not gone.is_set():
                await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            pass

        await app(scope.copy(), receive, send)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: call(leaves=False))
        with anyio.fail_after(PATIENCE):
            while not waiting.seen:
                await anyio.sleep(0.01)
        tasks.start_soon(lambda: call(leaves=True))
        await anyio.wait_all_tasks_blocked()
        gone.set()
        waiting.done.set()
    assert waiting.seen == 1


# No body breaks it.

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def _damaged(data: bytes) -> st.SearchStrategy[bytes]:
    """A picture with some bytes changed, or cut off."""
    flips = st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), min_size=1, max_size=4)

    def flipped(changes: list[tuple[int, int]]) -> bytes:
        changed = bytearray(data)
        for place, value in changes:
            changed[place] = value
        return bytes(changed)

    return flips.map(flipped) | st.integers(0, len(data)).map(lambda end: data[:end])


def _with_hash(data: bytes) -> dict[str, Any]:
    return {"picture": base64.b64encode(data).decode(), "sha256": hashlib.sha256(data).hexdigest()}


CONTEXT = st.fixed_dictionaries(
    {"positive": st.text(max_size=200)},
    optional={
        "negative": st.text(max_size=50) | JSON,
        "width": st.sampled_from([0, 96, 95]) | JSON,
        "height": st.sampled_from([0, 64]) | JSON,
        "tier": st.text(max_size=10) | JSON,
        "precompliance": JSON,
    },
)
QUESTIONS = st.builds(
    lambda base, picture, odd: {**base, **picture, **odd},
    st.fixed_dictionaries(
        {"ruleset": st.sampled_from(["default", "strict", "colours"]), "context": CONTEXT},
        optional={"stage": st.sampled_from(["gate", "upload", "review"])},
    ),
    st.just({})
    | st.sampled_from([PLAIN.data, RED.data, FLAT.data]).map(_with_hash)
    | _damaged(PLAIN.data).map(_with_hash)
    | st.binary(max_size=60).map(_with_hash),
    st.just({})
    | st.dictionaries(st.sampled_from(["ruleset", "context", "picture", "sha256", "stage"]), JSON, max_size=1),
)


def _dumped(value: Any) -> bytes:
    """As JSON. Python writes what other parsers stumble over, too: NaN, huge integers, halves of surrogate pairs."""
    return json.dumps(value).encode()


@settings(max_examples=150, deadline=None)
@given(body=st.binary(max_size=100) | (JSON | QUESTIONS).map(_dumped))
def test_no_body_makes_it_fail(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    panel = make_panel(tmp_path_factory.getbasetemp())

    async def ask() -> httpx.Response:
        async with client_of(panel) as acs:
            return await acs.post("/v1/review", content=body)

    answer = anyio.run(ask)
    if answer.status_code == 200:
        assert Verdict.from_dict(answer.json()["verdict"]).ruleset in panel.rulesets
    else:
        assert answer.status_code in {400, 404, 422}
        refused(answer, answer.status_code, answer.json()["code"])
