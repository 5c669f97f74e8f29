"""What the audit says of a verdict, and what it must not say."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from compliance.authority import load_or_create
from compliance.ledger import export, verify
from gateway.core.audit import sha256_of
from gateway.core.images import Caller
from tests.core.desk import BLOCKED, MINORS, SAFE, Desk, open_desk, reviewed
from tests.jobs.samples import DRAWING, job

pytestmark = pytest.mark.anyio

CALLER = Caller(key_id="key_1", tenant="shop", tier="pro")
WORDS = "a lighthouse that nobody may read of"


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        yield opened


async def test_a_verdict_says_which_rule_of_which_version_decided_and_why(desk: Desk) -> None:
    new = job(attempt=1)
    await desk.audit.verdict(new, 2, BLOCKED, "ab" * 32)
    (body,) = await desk.recorded("verdict")
    assert body == {
        "gen_id": new.gen_id,
        "public_id": new.public_id,
        "surface": "imgen",
        "tenant": "default",
        "key_id": "key_0123456789ab",
        "request_id": "req_1",
        "attempt": 1,
        "index": 2,
        "sha256": "ab" * 32,
        "ruleset": "default",
        "ruleset_version": "abc",
        "safe": False,
        "minors": False,
        "releasable": True,
        "codes": ["adult.nudity"],
        "findings": [],
        "reasons": [
            {
                "rule": "adult.nudity",
                "category": "ADULT",
                "action": "block",
                "reviewer": "builtin",
                "label": "nudity",
                "seen_in": "picture",
                "score": 0.93,
                "threshold": 0.5,
            }
        ],
        "asked": [{"name": "builtin", "version": "3"}],
        "reviewer": "builtin",
        "positive_sha256": hashlib.sha256(b"aya, on a hill").hexdigest(),
        "negative_sha256": hashlib.sha256(b"fog").hexdigest(),
    }


async def test_the_same_verdict_is_on_record_once_however_often_its_job_is_finished(desk: Desk) -> None:
    new = job()
    for _ in range(3):
        await desk.audit.verdict(new, 0, BLOCKED, "ab")
    await desk.audit.verdict(new, 1, BLOCKED, "cd")
    await desk.audit.verdict(replace(new, attempt=1), 0, BLOCKED, "ab")
    await desk.audit.verdict(new, 0, SAFE, "ab")
    assert [(body["attempt"], body["index"], body["safe"]) for body in await desk.recorded("verdict")] == [
        (0, 0, False),
        (0, 1, False),
        (1, 0, False),
        (0, 0, True),
    ]


async def test_no_words_of_a_caller_are_recorded(desk: Desk) -> None:
    drawing = replace(DRAWING, prompt=WORDS, positive=f"{WORDS}, best", negative=f"no {WORDS}")
    appealed = reviewed(BLOCKED, drawing=drawing)
    await desk.audit.verdict(appealed, 0, BLOCKED, "ab")
    await desk.audit.refused(CALLER, MINORS, surface="imgen", request_id="r", positive=WORDS, negative=WORDS)
    links = await desk.log.after(0, 9)
    assert WORDS not in json.dumps([dict(link.entry.body) for link in links])
    assert links[1].entry.body["positive_sha256"] == sha256_of(WORDS)


async def test_the_words_are_recorded_where_the_operator_wants_them(tmp_path: Path) -> None:
    async with open_desk(tmp_path, keep_prompts=True) as desk:
        await desk.audit.refused(CALLER, MINORS, surface="imgen", request_id="r", positive=WORDS, negative="no")
        (body,) = await desk.recorded("prompt_refused")
    assert (body["positive"], body["negative"]) == (WORDS, "no")
    assert body["positive_sha256"] == sha256_of(WORDS)


async def test_a_text_that_is_no_unicode_has_a_hash_too() -> None:
    assert len(sha256_of("half a pair: \ud800")) == 64


async def test_a_refused_prompt_says_who_asked(desk: Desk) -> None:
    await desk.audit.refused(CALLER, BLOCKED, surface="umrgen", request_id="req_9", positive="a", negative="b")
    (body,) = await desk.recorded("prompt_refused")
    asked = {"tenant": "shop", "key_id": "key_1", "tier": "pro", "surface": "umrgen", "request_id": "req_9"}
    assert asked.items() <= body.items()
    assert (body["ruleset"], body["ruleset_version"], body["codes"]) == ("default", "abc", ["adult.nudity"])


async def test_a_refused_upload_names_the_picture_by_its_hash(desk: Desk) -> None:
    await desk.audit.upload_refused(CALLER, MINORS, surface="imgen", request_id="r", index=1, sha256="ef" * 32)
    (body,) = await desk.recorded("upload_refused")
    assert (body["index"], body["sha256"], body["minors"]) == (1, "ef" * 32, True)


async def test_an_auditor_with_only_the_export_finds_what_decided_over_any_picture(desk: Desk, tmp_path: Path) -> None:
    decided = {}
    for number in range(30):
        new = job()
        verdict = (SAFE, BLOCKED, MINORS)[number % 3]
        raw = hashlib.sha256(str(number).encode()).hexdigest()
        await desk.audit.verdict(new, 0, verdict, raw)
        decided[new.gen_id, raw] = verdict
    credentials = load_or_create(tmp_path / "signing")
    lines = list(export(await desk.log.after(0, 100), credentials, dt.datetime.now(dt.UTC)))
    assert verify(lines, credentials.anchors_pem).intact
    entries = [json.loads(line) for line in lines[1:-1]]
    for (gen_id, raw), verdict in decided.items():
        by_job = [entry["body"] for entry in entries if entry["body"]["gen_id"] == gen_id]
        by_hash = [entry["body"] for entry in entries if entry["body"]["sha256"] == raw]
        assert by_job == by_hash
        assert [(body["safe"], tuple(body["codes"])) for body in by_job] == [(verdict.safe, verdict.codes)]
        assert {(body["ruleset"], body["ruleset_version"]) for body in by_job} == {("default", "abc")}
