"""Originals whose time is over: they go, their jobs stay, and what a person has yet to decide about waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.core.images import Caller, Job, Outcome, State, StoredPicture
from gateway.core.originals import BATCH, PAUSE, ROUND, without
from gateway.errors import NothingToAppeal
from tests.core.desk import BLOCKED, MINORS, SAFE, Killed, reviewed
from tests.core.world import World, open_world
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio

OWNER = Caller(key_id="key_1", tenant="default")
DAY = 86400.0


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as opened:
        opened.desk.now = 10 * DAY
        yield opened


def old(*verdicts: object, **changes: object) -> Job:
    """It ended on the first day, with a copy of what was blocked."""
    new = reviewed(*verdicts, **{"finished_at": DAY, "next_at": DAY, **changes})
    assert new.outcome is not None
    copy = StoredPicture(
        key=f"unsafe/{new.gen_id}/x.jpg", type="unsafe", index=0, filename="x.jpg", mime="image/jpeg",
        bytes=1, sha256="ab", width=1, height=1,
    )  # fmt: skip
    reviews = tuple(
        each if each.verdict.safe or each.verdict.minors else replace(each, unsafe=copy) for each in new.outcome.reviews
    )
    return replace(new, outcome=replace(new.outcome, reviews=reviews))


async def test_blocked_originals_go_with_their_copies_and_the_job_stays(world: World) -> None:
    mixed, blocked = await world.add(old(SAFE, BLOCKED)), await world.add(old(BLOCKED))
    young = await world.add(old(BLOCKED, finished_at=9 * DAY, next_at=9 * DAY))
    walker = world.originals(quarantine_days=3)
    for _ in range(2):
        await walker.step()
        for each in (mixed, blocked):
            assert world.files(each) == {"out", "raw", "master"}
    assert "quarantine" in world.files(young)
    found = await world.desk.jobs.find("imgen", mixed.public_id)
    assert found is not None and found.outcome is not None and mixed.outcome is not None
    assert found == replace(mixed, outcome=without(mixed.outcome, "quarantine"))
    first, second = found.outcome.reviews
    assert first == mixed.outcome.reviews[0]
    assert (second.key, second.unsafe, second.verdict) == ("", None, BLOCKED)
    assert found.outcome.masters == (first.key,)
    bodies = await world.desk.recorded("originals_purged")
    assert {(body["gen_id"], body["folder"]) for body in bodies} == {
        (each.gen_id, "quarantine") for each in (mixed, blocked)
    } and len(bodies) == 2


async def test_masters_have_a_time_of_their_own(world: World) -> None:
    mixed = await world.add(old(SAFE, BLOCKED))
    await world.originals(master_days=3).step()
    assert world.files(mixed) == {"out", "unsafe", "raw", "quarantine"}
    left = await world.stored(mixed)
    assert left.outcome is not None and [each.key[:10] for each in left.outcome.reviews] == ["", "quarantine"]
    await world.originals(master_days=3, quarantine_days=3).step()
    assert world.files(mixed) == {"out", "raw"}


async def test_without_a_setting_all_stays(world: World) -> None:
    mixed = await world.add(old(SAFE, BLOCKED))
    await world.originals().step()
    assert "quarantine" in world.files(mixed) and await world.stored(mixed) == mixed


async def test_what_is_gone_can_neither_be_appealed_nor_released(world: World) -> None:
    blocked = await world.add(old(BLOCKED))
    await world.originals(quarantine_days=3).step()
    with pytest.raises(NothingToAppeal, match="no longer kept"):
        await world.appeals().file(OWNER, "imgen", blocked.public_id, "why?")
    kept = await world.add(old(BLOCKED))
    appeal = await world.appeals().file(OWNER, "imgen", kept.public_id, "why?")
    outcome = kept.outcome
    assert outcome is not None
    # Filed in the moment in which it went.
    store = world.originals()._store
    claimed = await store.claim(kept.gen_id, lease="x", now=world.desk.now, until=world.desk.now + 1)
    assert claimed is not None
    assert await store.put(replace(kept, outcome=without(outcome, "quarantine")), lease="x")
    with pytest.raises(NothingToAppeal, match="no longer kept"):
        await world.appeals().release(appeal.id, "Ada", "fine")
    assert (await world.stored(kept)).state is State.BLOCKED
    assert (await world.appeals().uphold(appeal.id, "Ada", "gone")).state == "upheld"


async def test_an_open_appeal_is_waited_for(world: World) -> None:
    blocked = await world.add(old(BLOCKED))
    appeal = await world.appeals().file(OWNER, "imgen", blocked.public_id, "why?")
    walker = world.originals(quarantine_days=3)
    await walker.step()
    assert "quarantine" in world.files(blocked)
    await world.appeals().uphold(appeal.id, "Ada", "no")
    world.desk.now += ROUND
    await walker.step()
    assert "quarantine" not in world.files(blocked)


async def test_evidence_stays(world: World) -> None:
    bad = await world.add(old(SAFE, MINORS))
    await world.judge(bad)
    await world.originals(quarantine_days=3, master_days=3).step()
    assert "quarantine" in world.files(bad)


async def test_open_and_deleted_jobs_are_left_alone(world: World) -> None:
    finishing = await world.add(old(SAFE, BLOCKED, state=State.FINISHING))
    deleted = await world.add(old(SAFE, BLOCKED))
    await world.replica().delete(OWNER, deleted)
    await world.originals(quarantine_days=3, master_days=3).step()
    for each in (finishing, deleted):
        assert {"quarantine", "master"} <= world.files(each)


async def test_a_job_that_is_released_under_the_hands_of_the_walker_keeps_what_was_decided(world: World) -> None:
    blocked = await world.add(old(BLOCKED))
    walker = world.originals(quarantine_days=3)
    latest = world.desk.appeals.latest

    async def overtaken(gen_id: str) -> object:
        world.desk.appeals.latest = latest  # type: ignore[method-assign]
        found = await latest(gen_id)
        appeal = await world.appeals().file(OWNER, "imgen", blocked.public_id, "why?")
        await world.appeals().release(appeal.id, "Ada", "fine")
        return found

    world.desk.appeals.latest = overtaken  # type: ignore[method-assign,assignment]
    await walker.step()
    left = await world.stored(blocked)
    assert (left.state, left.outcome) == (State.FINISHING, blocked.outcome)
    assert await world.desk.recorded("originals_purged") == []


async def test_many_go_a_batch_at_a_time(world: World) -> None:
    many = [await world.add(old(BLOCKED, next_at=DAY + n)) for n in range(BATCH + 3)]
    plain = job(state=State.BLOCKED, finished_at=1.0, next_at=1.0, outcome=Outcome(verdict=BLOCKED))
    await world.desk.add(plain)
    walker = world.originals(quarantine_days=3)
    await walker.step()
    assert ["quarantine" in world.files(each) for each in many] == [False] * BATCH + [True] * 3
    await walker.step()
    assert not any("quarantine" in world.files(each) for each in many)


async def test_a_storage_that_is_away_is_waited_for(world: World) -> None:
    blocked = await world.add(old(BLOCKED))
    walker = world.originals(quarantine_days=3)
    world.storage.down = True
    await walker.step()
    world.storage.down = False
    await walker.step()
    assert "quarantine" in world.files(blocked)
    world.desk.now += PAUSE
    await walker.step()
    assert "quarantine" not in world.files(blocked)


@pytest.mark.parametrize("done", range(8))
async def test_killed_between_any_two_steps_the_next_one_goes_on(world: World, done: int) -> None:
    """The claim, two folders, the lease, the audit and the row."""
    blocked = await world.add(old(BLOCKED))
    world.desk.database.left = done
    killed = False
    try:
        await world.originals(quarantine_days=3).step()
    except Killed:
        killed = True
    world.desk.database.left = None
    assert killed == (done < 6)
    world.desk.now += 20
    for walker in (world.originals(quarantine_days=3), world.originals(quarantine_days=3)):
        await walker.step()
    assert world.files(blocked) == {"out", "raw", "master"}
    assert len(await world.desk.recorded("originals_purged")) == 1
    left = await world.stored(blocked)
    assert left.outcome is not None and left.outcome.masters == ()
