"""Deletion: nobody finds the job from its mark on, its files go whatever happens, and evidence stays."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import anyio
import pytest

from compliance.verdict import Verdict
from gateway.core.advance import Policy
from gateway.core.appeals import Appeals
from gateway.core.deletion import FOLDERS, LONGEST_BACK_OFF, LOOK_AGAIN, bare, order_purge
from gateway.core.images import Caller, Job, Release, State
from gateway.core.service import GenerationService
from gateway.errors import AppealDecided, InvalidField, JobNotFound
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.store import SqlJobs
from tests.core.desk import BLOCKED, MINORS, SAFE, Killed, reviewed
from tests.core.world import HOUR, World, open_world
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio

OWNER = Caller(key_id="key_other_of_the_tenant", tenant="default")


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    async with open_world(tmp_path) as opened:
        yield opened


async def test_a_deleted_job_is_gone_at_once_and_its_files_at_the_next_look(world: World) -> None:
    new, other = await world.add(reviewed(SAFE, BLOCKED)), await world.add(reviewed(SAFE))
    await world.judge(new)
    deleted = await world.replica().delete(OWNER, new)
    assert (deleted.gen_id, deleted.state, deleted.deleted_at) == (new.gen_id, State.COMPLETED, 5000.5)
    assert await world.desk.jobs.find("imgen", new.public_id) is None
    assert world.files(new) == set(FOLDERS), "the answer does not wait for them"
    await world.replica().sweep()
    assert world.files(new) == set()
    assert await world.stored(new) == replace(bare(deleted), next_at=5000.5 + LOOK_AGAIN)
    assert world.files(other) == set(FOLDERS)
    assert world.records.kept == {other.gen_id}
    assert await world.history(new) == ["verdict", "verdict", "deleted", "purged"]
    (body,) = await world.desk.recorded("deleted")
    assert (body["cause"], body["by"], body["key_id"]) == ("caller", OWNER.key_id, new.key_id)
    assert world.withdrawn == []


async def test_what_comes_late_is_purged_until_nothing_can_come_any_more(world: World) -> None:
    new = await world.add(reviewed(SAFE, finished_at=5000.0))
    await world.replica().delete(OWNER, new)
    await world.replica().sweep()
    assert await world.purged_at(new) is None
    late = world.root / "raw" / new.gen_id / "0" / "0.png"
    late.parent.mkdir(parents=True)
    late.write_bytes(b"a worker that had not heard of it")
    world.desk.now = 5000.5 + LOOK_AGAIN - 1
    await world.replica().sweep()
    assert late.exists()
    looks = []
    while await world.purged_at(new) is None:
        world.desk.now = (await world.stored(new)).next_at
        looks.append(world.desk.now - 5000.5)
        late.parent.mkdir(parents=True, exist_ok=True)
        late.write_bytes(b"a worker that had not heard of it")
        await world.replica().sweep()
        assert world.files(new) == set()
    assert looks == [30, 60, 120, 240, 480, 960, 1920, HOUR - 0.5]
    assert await world.purged_at(new) == 5000.0 + HOUR
    world.desk.now += 9e8
    await world.replica(retention_days=1).sweep()
    assert await world.history(new) == ["deleted", "purged"]


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING])
async def test_an_open_job_is_cancelled_by_it_and_the_backend_is_told(world: World, state: State) -> None:
    new = await world.add(job(state=state, backend_id="b-1"))
    assert (await world.replica().delete(OWNER, new)).state is State.CANCELLED
    await world.replica().sweep()
    assert world.withdrawn == [new.gen_id]
    assert world.files(new) == set()


async def test_a_backend_that_does_not_answer_holds_up_nothing(world: World) -> None:
    new = await world.add(job(state=State.RUNNING, backend_id="b-1"))
    replica = world.replica(lease=0.1)
    await replica.delete(OWNER, new)

    async def hanging(job: Job) -> None:
        await anyio.sleep_forever()

    replica._withdraw = hanging
    await replica.sweep()
    assert world.files(new) == set()
    assert await world.history(new) == ["deleted", "purged"]


async def test_a_job_that_is_being_finished_is_purged_when_it_has_ended(world: World) -> None:
    finishing = await world.add(reviewed(SAFE, state=State.FINISHING, outcome=None, finished_at=None))
    assert (await world.replica().delete(OWNER, finishing)).state is State.FINISHING
    await world.replica().sweep()
    assert world.files(finishing) == set(FOLDERS)
    claimed = await world.desk.jobs.claim(finishing.gen_id, lease="f", now=world.desk.now, until=world.desk.now + 9)
    assert claimed is not None
    done = replace(claimed, state=State.COMPLETED, outcome=reviewed(SAFE).outcome, finished_at=world.desk.now)
    assert await world.desk.jobs.save(done, lease="f", release=True)
    assert await world.desk.jobs.find("imgen", finishing.public_id) is None
    await world.replica().sweep()
    assert world.files(finishing) == set()


class Overtaken(SqlJobs):
    """A store in which something happens after a row was read and before the reader has it."""

    meanwhile: Callable[[], Awaitable[object]] | None = None

    async def find(self, surface: str, public_id: str) -> Job | None:
        found = await super().find(surface, public_id)
        if self.meanwhile is not None:
            meanwhile, self.meanwhile = self.meanwhile, None
            await meanwhile()
        return found


async def test_a_job_that_was_deleted_while_it_was_read_is_not_shown_nor_remembered(world: World) -> None:
    new = await world.add(reviewed(SAFE))
    jobs, nobody = Overtaken(world.desk.database), cast(Any, None)
    service = GenerationService(
        jobs=jobs,
        backend=nobody,
        storage=world.storage,
        catalog=nobody,
        compliance=nobody,
        finisher=nobody,
        advancer=nobody,
        logos=nobody,
        appeals=world.appeals(),
        deletion=world.replica(),
        safeguard=nobody,
        optimizing=nobody,
        caching=nobody,
        policy=Policy(),
        now=world.desk.clock,
    )
    jobs.meanwhile = lambda: service.delete(OWNER, "imgen", new.public_id)
    for _ in range(2):
        with pytest.raises(JobNotFound):
            await service.find(OWNER, "imgen", new.public_id)


async def test_whoever_deletes_again_finds_nothing(world: World) -> None:
    new = await world.add(reviewed(SAFE))
    await world.replica().delete(OWNER, new)
    with pytest.raises(JobNotFound):
        await world.replica().delete(OWNER, new)
    assert await world.history(new) == ["deleted"]


async def test_an_open_appeal_is_closed_and_can_not_be_decided(world: World) -> None:
    new = await world.add(reviewed(BLOCKED))
    appeal = await world.appeals().file(OWNER, "imgen", new.public_id, "it is a kidney")
    await world.replica().delete(OWNER, new)
    for purged in (False, True):
        for decide in (world.appeals().release, world.appeals().uphold):
            with pytest.raises(AppealDecided, match="The job was deleted"):
                await decide(appeal.id, "Ada", "fine")
        assert (await world.stored(new)).state is State.BLOCKED
        await world.replica().sweep()
        closed, _ = await world.appeals().get(appeal.id)
        assert (closed.state, closed.reason, closed.decided_by) == ("closed", "", None), purged
    assert await world.appeals().list() == []
    with pytest.raises(JobNotFound):
        await world.appeals().file(OWNER, "imgen", new.public_id, "again")


async def test_an_appeal_that_comes_in_while_its_job_is_purged_is_none(world: World) -> None:
    new = await world.add(reviewed(BLOCKED, finished_at=1.0))
    jobs = Overtaken(world.desk.database)
    appeals = Appeals(store=world.desk.appeals, jobs=jobs, audit=world.desk.audit, now=world.desk.clock)

    async def deleted_and_purged() -> None:
        await world.replica().delete(OWNER, new)
        await world.replica().sweep()

    jobs.meanwhile = deleted_and_purged
    with pytest.raises(JobNotFound):
        await appeals.file(OWNER, "imgen", new.public_id, "words of the caller")
    (left,) = await world.appeals().list(None)
    assert (left.state, left.reason) == ("closed", "")


async def test_a_deletion_between_the_release_of_a_person_and_its_write_wins(world: World) -> None:
    new = await world.add(reviewed(BLOCKED))
    appeal = await world.appeals().file(OWNER, "imgen", new.public_id, "it is a kidney")
    reopen = world.desk.jobs.reopen

    async def overtaken(gen_id: str, release: Release, *, now: float) -> Job | None:
        await world.replica().delete(OWNER, new)
        return await reopen(gen_id, release, now=now)

    world.desk.jobs.reopen = overtaken  # type: ignore[method-assign]
    with pytest.raises(AppealDecided, match="The job was deleted"):
        await world.appeals().release(appeal.id, "Ada", "fine")
    assert (await world.stored(new)).state is State.BLOCKED
    assert (await world.appeals().get(appeal.id))[0].state == "open", "the purge closes it"


@pytest.mark.parametrize("given", [(MINORS,), (SAFE, MINORS)], ids=["alone", "beside"])
async def test_what_a_rule_about_minors_blocked_is_evidence(world: World, given: tuple[Verdict, ...]) -> None:
    new = await world.add(reviewed(*given))
    await world.judge(new)
    appeal = await world.appeals().file(OWNER, "imgen", new.public_id, "why?")
    deleted = await world.replica().delete(OWNER, new)
    for _ in range(2):
        await world.replica(retention_days=1).sweep()
        assert world.files(new) == {"quarantine"}
        left = await world.stored(new)
        assert left == replace(deleted, next_at=left.next_at), "who asked for what is a part of it"
        assert (await world.appeals().get(appeal.id))[0].reason == "why?"
        world.desk.now += HOUR
    assert await world.purged_at(new) is not None
    assert await world.desk.jobs.find("imgen", new.public_id) is None
    (body,) = await world.desk.recorded("purged")
    assert body["kept"] == ["quarantine"]


async def test_the_end_of_its_time_leaves_evidence_too(world: World) -> None:
    new = await world.add(reviewed(MINORS))
    await world.judge(new)
    world.desk.now = 9e8
    await world.replica(retention_days=1).sweep()
    assert world.files(new) == {"quarantine"}
    assert await world.desk.jobs.find("imgen", new.public_id) is None


async def test_a_failed_job_whose_picture_was_about_minors_keeps_what_was_asked_for(world: World) -> None:
    """One picture had its verdict, the next one never got any."""
    new = await world.add(job(state=State.FAILED, finished_at=5.0, next_at=5.0))
    await world.desk.audit.verdict(new, 0, MINORS, "ab")
    deleted = await world.replica().delete(OWNER, new)
    await world.replica().sweep()
    assert (await world.stored(new)).drawing == deleted.drawing
    assert world.files(new) == {"quarantine"}


@pytest.mark.parametrize("before", ["there", "deleted", "purged"])
async def test_the_operator_can_have_evidence_purged_by_name(world: World, before: str) -> None:
    new = await world.add(reviewed(MINORS))
    await world.judge(new)
    if before != "there":
        await world.replica().delete(OWNER, new)
    if before == "purged":
        world.desk.now += HOUR
        await world.replica().sweep()
        assert await world.purged_at(new) is not None
    for _ in range(2):
        await order_purge(
            SqlDeletions(world.desk.database), world.desk.audit, new, by=" Ada ", note="handed over", now=world.desk.now
        )
    await world.replica().sweep()
    assert world.files(new) == set()
    assert (await world.stored(new)).outcome is None
    assert await world.desk.jobs.find("imgen", new.public_id) is None
    (ordered,) = await world.desk.recorded("purge_ordered")
    assert (ordered["by"], ordered["note"]) == ("Ada", "handed over")
    assert [body["kept"] for body in await world.desk.recorded("purged")][-1] == []
    assert len(await world.desk.recorded("deleted")) == (before != "there")


@pytest.mark.parametrize(("by", "note"), [("", "why"), ("Ada", " ")])
async def test_nobody_has_evidence_purged_without_a_name_and_a_reason(world: World, by: str, note: str) -> None:
    new = await world.add(reviewed(MINORS))
    with pytest.raises(InvalidField):
        await order_purge(SqlDeletions(world.desk.database), world.desk.audit, new, by=by, note=note, now=1.0)
    assert await world.desk.jobs.find("imgen", new.public_id) is not None


async def test_retention_takes_away_what_is_too_old_and_says_so(world: World) -> None:
    old = await world.add(reviewed(SAFE, finished_at=1000.0, next_at=1000.0))
    young = await world.add(reviewed(SAFE, finished_at=90_000.0, next_at=90_000.0))
    open_job = await world.add(job(created_at=1.0, next_at=1.0))
    world.desk.now = 1000.0 + 2 * 86_400
    await world.replica().sweep()
    assert world.files(old) == set(FOLDERS), "0 days keep it for ever"
    await world.replica(retention_days=2.5).sweep()
    assert world.files(old) == set(FOLDERS)
    await world.replica(retention_days=1.5).sweep()
    assert world.files(old) == set() and await world.purged_at(old) == world.desk.now
    for each in (young, open_job):
        assert world.files(each) == set(FOLDERS)
        assert await world.desk.jobs.find("imgen", each.public_id) is not None
    (body,) = await world.desk.recorded("deleted")
    assert (body["gen_id"], body["cause"], body["by"]) == (old.gen_id, "retention", "")
    assert await world.history(old) == ["deleted", "purged"]


async def test_a_storage_that_is_away_is_tried_again_with_a_growing_pause(world: World) -> None:
    new = await world.add(reviewed(SAFE))
    await world.replica().delete(OWNER, new)
    world.storage.down = True
    pauses = []
    for number in range(12):
        await world.replica().sweep()
        left = await world.stored(new)
        assert (left.tries, world.files(new)) == (number + 1, set(FOLDERS))
        assert await world.desk.jobs.find("imgen", new.public_id) is None
        pauses.append(left.next_at - world.desk.now)
        await world.replica().sweep()
        assert (await world.stored(new)).tries == number + 1, "it waits"
        world.desk.now = left.next_at
    assert all(2**n / 2 <= pause <= 2**n for n, pause in enumerate(pauses[:8]))
    assert LONGEST_BACK_OFF / 2 <= pauses[-1] <= LONGEST_BACK_OFF
    world.storage.down = False
    await world.replica().sweep()
    assert world.files(new) == set()
    assert await world.history(new) == ["deleted", "purged"]


async def test_one_job_that_can_not_be_purged_does_not_hold_up_the_others(world: World) -> None:
    bad, good = await world.add(reviewed(SAFE)), await world.add(reviewed(SAFE))
    for each in (good, bad):
        await world.replica().delete(OWNER, each)
    purge = world.records.purge

    async def picky(gen_id: str, *, keep: frozenset[str] = frozenset()) -> None:
        if gen_id == bad.gen_id:
            raise RuntimeError("a bug")
        await purge(gen_id)

    world.records.purge = picky  # type: ignore[method-assign]
    await world.replica().sweep()
    assert await world.history(good) == ["deleted", "purged"]
    assert await world.history(bad) == ["deleted"]
    assert (await world.stored(bad)).tries == 1


STEPS = 14


@pytest.mark.parametrize("kind", ["done", "running", "evidence"])
@pytest.mark.parametrize("done", range(STEPS + 2))
async def test_killed_between_any_two_steps_it_goes_on_after_the_restart_and_is_told_once(
    world: World, done: int, kind: str
) -> None:
    """The audit and the mark; then the claim, each folder, the records, the appeals, the backend, audit and row."""
    verdict = MINORS if kind == "evidence" else BLOCKED
    new = job(state=State.RUNNING, backend_id="b-1") if kind == "running" else reviewed(SAFE, verdict)
    new = await world.add(replace(new, finished_at=None if kind == "running" else world.desk.now))
    if kind != "running":
        await world.judge(new)
        await world.appeals().file(OWNER, "imgen", new.public_id, "why?")
    world.desk.database.left = done
    killed = False
    try:
        await world.replica().delete(OWNER, new)
        await world.replica().purge(new.gen_id)
    except Killed:
        killed = True
    world.desk.database.left = None
    if kind == "done":
        assert killed == (done < STEPS)
    marked = (await world.stored(new)).deleted_at is not None
    assert marked == (done >= 2)
    assert (await world.desk.jobs.find("imgen", new.public_id) is None) == marked
    if not marked:
        # Nobody was told that it is gone, and it is all there.
        await world.replica().sweep()
        assert world.files(new) == set(FOLDERS)
        assert (await world.stored(new)).state is new.state
        await world.replica().delete(OWNER, new)
    for seconds in (0, 20, HOUR, 20):
        world.desk.now += seconds
        await world.replica().sweep()
    kept = {"quarantine"} if kind == "evidence" else set()
    assert world.files(new) == kept
    assert world.records.kept == set()
    assert await world.purged_at(new) is not None
    left = await world.stored(new)
    assert (left.drawing.prompt == "") == (kind != "evidence")
    assert len(await world.desk.recorded("deleted")) == len(await world.desk.recorded("purged")) == 1
    assert await world.appeals().list() == []
    assert (new.gen_id in world.withdrawn) == (kind == "running")


async def test_of_two_replicas_one_purges(world: World) -> None:
    new = await world.add(reviewed(SAFE))
    await world.replica().delete(OWNER, new)
    store = SqlDeletions(world.desk.database)
    assert await store.claim(new.gen_id, lease="other", now=world.desk.now, until=world.desk.now + 15)
    await world.replica().sweep()
    await world.replica().purge(new.gen_id)
    assert world.files(new) == set(FOLDERS)
    world.desk.now += 15
    await world.replica().sweep()
    assert world.files(new) == set()
    assert not await store.put_away(new, lease="other", purged_at=1.0, next_at=1.0)


async def test_a_purge_that_took_too_long_leaves_the_rest_to_whoever_has_it_now(world: World) -> None:
    new = await world.add(reviewed(SAFE))
    await world.replica().delete(OWNER, new)
    purge = world.records.purge

    async def slow(gen_id: str, *, keep: frozenset[str] = frozenset()) -> None:
        world.records.purge = purge  # type: ignore[method-assign]
        world.desk.now += 15
        await world.replica().purge(gen_id)

    world.records.purge = slow  # type: ignore[method-assign]
    await world.replica().purge(new.gen_id)
    assert await world.history(new) == ["deleted", "purged"]
    assert world.files(new) == set()
