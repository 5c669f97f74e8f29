"""When a rule about minors applies: the key is held, its queue ends, the operator is told. All of it once."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gateway.core import access
from gateway.core.access import Access
from gateway.core.images import ApiKey, Caller, Job, State
from gateway.core.safeguard import Mode, Safeguard
from gateway.errors import DisabledKey, HeldKey
from tests.core.desk import BLOCKED, MINORS, Desk, Killed, open_desk
from tests.jobs.samples import DRAWING, job

pytestmark = pytest.mark.anyio

SECRET = "imgen_secret_of_the_key"
KEY = ApiKey(id="key_bad", tenant="default", name="", prefix="imgen_", created_at=1.0)
CALLER = Caller(key_id=KEY.id, tenant="default")
WORDS = "words that must not leave"


class Backend:
    """Remembers which jobs it was told to stop."""

    def __init__(self) -> None:
        self.withdrawn: list[str] = []

    async def withdraw(self, job: Job) -> None:
        self.withdrawn.append(job.gen_id)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        await opened.keys.create(KEY, access.digest(SECRET))
        yield opened


@pytest.fixture
def backend() -> Backend:
    return Backend()


def safeguard(desk: Desk, backend: Backend, mode: Mode = "picture") -> Safeguard:
    return Safeguard(
        keys=desk.keys,
        jobs=desk.jobs,
        events=desk.events,
        audit=desk.audit,
        withdraw=backend.withdraw,
        mode=mode,
        now=desk.clock,
    )


def drawn(**changes: object) -> Job:
    drawing = replace(DRAWING, prompt=WORDS, positive=WORDS, negative=WORDS)
    return job(key_id=KEY.id, state=State.FINISHING, drawing=drawing, **changes)


async def test_a_drawn_picture_holds_the_key_ends_its_queue_and_is_told(desk: Desk, backend: Backend) -> None:
    bad = drawn(attempt=1)
    queued, running = job(key_id=KEY.id), job(key_id=KEY.id, state=State.RUNNING, backend_id="b-1")
    theirs = job(key_id="key_good")
    await desk.add(bad, queued, running, theirs)
    with capture_logs() as logs:
        await safeguard(desk, backend).minors(bad, MINORS)
    (key,) = await desk.keys.list()
    assert (key.held_at, key.held_reason) == (5000.5, f"a picture of job {bad.gen_id} was blocked: minors.picture")
    with pytest.raises(HeldKey, match=r"^API key is disabled$"):
        await Access(desk.keys, now=desk.clock).caller(f"Bearer {SECRET}")
    assert set(backend.withdrawn) == {queued.gen_id, running.gen_id}
    states = [(await desk.jobs.get(one.gen_id)) for one in (bad, queued, running, theirs)]
    assert [one.state for one in states if one] == [
        State.FINISHING,
        State.CANCELLED,
        State.CANCELLED,
        State.QUEUED,
    ], "the job itself goes on to be blocked"
    (event,) = await desk.events.due(now=desk.now, limit=9)
    assert (event.id, event.kind) == (f"minors-{bad.gen_id}-1", "minors")
    assert event.body == {
        "gen_id": bad.gen_id,
        "public_id": bad.public_id,
        "surface": "imgen",
        "request_id": "req_1",
        "tenant": "default",
        "key_id": KEY.id,
        "ruleset": "default",
        "ruleset_version": "abc",
        "rules": ["minors.picture"],
        "key_held": True,
    }
    (body,) = await desk.recorded("key_held")
    assert (body["key_id"], body["gen_id"]) == (KEY.id, bad.gen_id)
    (line,) = [line for line in logs if line["event"] == "operator event"]
    assert (line["log_level"], line["kind"], line["key_id"]) == ("error", "minors", KEY.id)


async def test_no_words_leave_with_an_event(desk: Desk, backend: Backend) -> None:
    guard = safeguard(desk, backend, "prompt")
    with capture_logs() as logs:
        await guard.minors(drawn(), MINORS)
        await guard.refused_prompt(CALLER, MINORS, surface="imgen", request_id="r", positive=WORDS, negative=WORDS)
    told = [dict(event.body) for event in await desk.events.due(now=9999.0, limit=9)]
    assert len(told) == 2
    assert WORDS not in json.dumps([told, logs], default=str)


@pytest.mark.parametrize("writes", range(6))
async def test_killed_between_two_writes_and_done_again_it_is_all_done_and_told_once(
    desk: Desk, backend: Backend, writes: int
) -> None:
    """Four writes: the key, the audit, the queue, the event."""
    bad, queued = drawn(), job(key_id=KEY.id)
    await desk.add(bad, queued)
    desk.database.left = writes
    if writes < 4:
        with pytest.raises(Killed):
            await safeguard(desk, backend).minors(bad, MINORS)
    else:
        await safeguard(desk, backend).minors(bad, MINORS)
    desk.database.left = None
    desk.now += 30
    for _ in range(2):
        await safeguard(desk, backend).minors(bad, MINORS)
    (key,) = await desk.keys.list()
    assert key.held_at == (5030.5 if writes == 0 else 5000.5)
    assert len(await desk.recorded("key_held")) == 1
    assert [event.id for event in await desk.events.due(now=9999.0, limit=9)] == [f"minors-{bad.gen_id}-0"]
    cancelled = await desk.jobs.get(queued.gen_id)
    assert cancelled is not None and cancelled.state is State.CANCELLED


async def test_an_event_that_was_delivered_is_not_told_again(desk: Desk, backend: Backend) -> None:
    bad = drawn()
    await safeguard(desk, backend).minors(bad, MINORS)
    await desk.events.delivered(f"minors-{bad.gen_id}-0", now=desk.now)
    await safeguard(desk, backend).minors(bad, MINORS)
    assert await desk.events.due(now=9999.0, limit=9) == []


async def test_another_verdict_holds_nothing(desk: Desk, backend: Backend) -> None:
    for mode in ("picture", "prompt", "off"):
        guard = safeguard(desk, backend, mode)
        await guard.minors(drawn(), BLOCKED)
        await guard.refused_prompt(CALLER, BLOCKED, surface="imgen", request_id="r", positive="a", negative="b")
        await guard.refused_upload(CALLER, BLOCKED, surface="imgen", request_id="r", index=0, sha256="ab")
    assert [key.held_at for key in await desk.keys.list()] == [None]
    assert await desk.events.due(now=9999.0, limit=9) == []
    assert len(await desk.recorded("prompt_refused")) == 3, "but it is on record"


@pytest.mark.parametrize(
    ("mode", "held"),
    [
        ("picture", {"picture", "upload"}),
        ("prompt", {"picture", "upload", "prompt"}),
        ("off", set()),
    ],
)
async def test_the_setting_says_what_holds_a_key_and_the_operator_is_always_told(
    desk: Desk, backend: Backend, mode: Mode, held: set[str]
) -> None:
    guard = safeguard(desk, backend, mode)
    asked = {"surface": "imgen", "request_id": "req_9"}
    await guard.refused_prompt(CALLER, MINORS, **asked, positive="a", negative="b")
    found = {"prompt": await desk.keys.release(KEY.id)}
    await guard.refused_upload(CALLER, MINORS, **asked, index=0, sha256="ab")
    found["upload"] = await desk.keys.release(KEY.id)
    await guard.minors(drawn(), MINORS)
    found["picture"] = await desk.keys.release(KEY.id)
    assert {name for name, was_held in found.items() if was_held} == held
    events = await desk.events.due(now=9999.0, limit=9)
    assert {event.kind: event.body["key_held"] for event in events} == {
        "minors_prompt": "prompt" in held,
        "minors_upload": "upload" in held,
        "minors": "picture" in held,
    }


async def test_a_flood_of_refused_prompts_is_one_event_an_hour_and_each_is_on_record(
    desk: Desk, backend: Backend
) -> None:
    guard = safeguard(desk, backend)
    for number in range(5):
        desk.now = 7200.0 + 60 * number
        await guard.refused_prompt(CALLER, MINORS, surface="imgen", request_id=str(number), positive="a", negative="b")
    assert len(await desk.events.due(now=9e9, limit=9)) == 1
    desk.now = 10800.0
    await guard.refused_prompt(CALLER, MINORS, surface="imgen", request_id="later", positive="a", negative="b")
    assert len(await desk.events.due(now=9e9, limit=9)) == 2
    assert len(await desk.recorded("prompt_refused")) == 6


async def test_a_backend_can_be_told_without_waiting(desk: Desk) -> None:
    told: list[str] = []
    queued = job(key_id=KEY.id)
    await desk.add(queued)
    guard = Safeguard(
        keys=desk.keys,
        jobs=desk.jobs,
        events=desk.events,
        audit=desk.audit,
        withdraw=lambda cancelled: told.append(cancelled.gen_id),
        mode="picture",
        now=desk.clock,
    )
    await guard.minors(drawn(), MINORS)
    assert told == [queued.gen_id]


async def test_a_disabled_key_says_so_even_when_it_is_held(desk: Desk, backend: Backend) -> None:
    await safeguard(desk, backend).minors(drawn(), MINORS)
    await desk.keys.disable(KEY.id, now=desk.now)
    with pytest.raises(DisabledKey):
        await Access(desk.keys, now=desk.clock).caller(f"Bearer {SECRET}")


async def test_a_released_key_is_a_caller_again(desk: Desk, backend: Backend) -> None:
    await safeguard(desk, backend).minors(drawn(), MINORS)
    gate = Access(desk.keys, now=desk.clock)
    with pytest.raises(HeldKey) as caught:
        await gate.caller(f"Bearer {SECRET}")
    assert (caught.value.code, caught.value.fix) == (
        "api_key_held",
        "Ask the operator: the key is held after a review.",
    )
    await desk.keys.release(KEY.id)
    desk.now += access.REMEMBERED
    assert (await gate.caller(f"Bearer {SECRET}")).key_id == KEY.id
