"""How jobs leave the store: marked at once, purged under a lease, and then only a line of what they were."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from compliance.verdict import Verdict
from gateway.core.deletion import NEVER, bare
from gateway.core.images import CANCELLABLE, OPEN, Credentials, Delivery, Drawn, Job, Notice, Outcome, Release, State
from gateway.jobs.database import Database
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import DRAWING, job

pytestmark = pytest.mark.anyio

ENDED = sorted(set(State) - OPEN)
VERDICT = Verdict(safe=True, ruleset="default", ruleset_version="1")
DRAWN = Drawn(pictures=(), steps=4, guidance=1.5, sampler="euler", family="sdxl", revision="1")
WORDS = "words of the caller"


@pytest.fixture
def deletions(database: Database) -> SqlDeletions:
    return SqlDeletions(database)


async def add(jobs: SqlJobs, *new: Job) -> None:
    for each in new:
        await jobs.add(each, lease="first", until=0.0)


async def deleted(jobs: SqlJobs, deletions: SqlDeletions, **changes: object) -> Job:
    """A job that has ended and was deleted at 50."""
    new = job(**{"state": State.COMPLETED, "finished_at": 40.0, "next_at": 40.0, **changes})
    await add(jobs, new)
    marked = await deletions.mark(new.gen_id, now=50.0)
    assert marked is not None
    return marked


@pytest.mark.parametrize("state", ENDED)
async def test_a_deleted_job_is_nobodys_and_stays_what_it_was(
    jobs: SqlJobs, deletions: SqlDeletions, state: State
) -> None:
    old, new, other = job(state=state, finished_at=5.0), job(created_at=1500.0), job(tenant="other")
    await add(jobs, old, new, other)
    assert await deletions.mark(old.gen_id, now=50.0) == replace(old, deleted_at=50.0, next_at=50.0, tries=0)
    assert await jobs.find(old.surface, old.public_id) is None
    assert await jobs.page("default", limit=9, before=None) == [new]
    assert await jobs.page("default", limit=9, before=(1500.0, new.gen_id)) == []
    assert (await jobs.get(old.gen_id)) is not None
    assert await jobs.find(new.surface, new.public_id) == new


async def test_a_job_is_deleted_once(url: str, jobs: SqlJobs, deletions: SqlDeletions) -> None:
    new = job(state=State.COMPLETED)
    await add(jobs, new)
    async with Database(url).open() as other:
        tries = [each.mark(new.gen_id, now=50.0) for each in [deletions, SqlDeletions(other)] * 4]
        won = await asyncio.gather(*tries)
    assert len([one for one in won if one is not None]) == 1
    assert await deletions.mark(new.gen_id, now=60.0) is None
    assert await deletions.mark("nowhere", now=60.0) is None
    marked = await jobs.get(new.gen_id)
    assert marked is not None and marked.deleted_at == 50.0


@pytest.mark.parametrize("state", sorted(CANCELLABLE))
async def test_a_job_that_can_be_cancelled_ends_as_cancelled(
    jobs: SqlJobs, deletions: SqlDeletions, state: State
) -> None:
    new = job(state=state, backend_id="b-1", tries=3)
    await jobs.add(new, lease="mine", until=99.0)
    marked = await deletions.mark(new.gen_id, now=50.0)
    assert marked is not None
    assert (marked.state, marked.finished_at, marked.deleted_at) == (State.CANCELLED, 50.0, 50.0)
    assert not await jobs.save(replace(new, step=3), lease="mine", release=True), "whoever was at it has lost it"
    assert await deletions.due(now=50.0, limit=9) == [new.gen_id]


async def test_a_job_that_is_being_finished_goes_on_and_is_purged_when_it_has_ended(
    jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    new = job(state=State.FINISHING, tries=2, next_at=30.0)
    await jobs.add(new, lease="mine", until=99.0)
    assert await deletions.mark(new.gen_id, now=50.0) == replace(new, deleted_at=50.0)
    assert await jobs.find(new.surface, new.public_id) is None
    assert await deletions.due(now=90.0, limit=9) == []
    assert await deletions.claim(new.gen_id, lease="theirs", now=200.0, until=210.0) is None
    assert await jobs.renew(new.gen_id, lease="mine", until=120.0)
    done = replace(new, state=State.COMPLETED, finished_at=60.0, next_at=30.0)
    assert await jobs.save(done, lease="mine", release=True)
    stored = await jobs.get(new.gen_id)
    assert stored == replace(done, deleted_at=50.0), "what is saved does not bring it back"
    assert await deletions.due(now=90.0, limit=9) == [new.gen_id]


async def test_a_finishing_job_whose_replica_died_is_taken_up_although_it_is_deleted(
    jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    new = job(state=State.FINISHING, next_at=30.0)
    await jobs.add(new, lease="dead", until=60.0)
    await deletions.mark(new.gen_id, now=50.0)
    assert await jobs.due(now=70.0, limit=9) == [new.gen_id]
    claimed = await jobs.claim(new.gen_id, lease="mine", now=70.0, until=80.0)
    assert claimed is not None and claimed.deleted_at == 50.0


async def test_a_deleted_job_is_never_drawn_again(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    new = job(state=State.FINISHING)
    await jobs.add(new, lease="mine", until=99.0)
    again = replace(new, state=State.QUEUED, attempt=1)
    assert await jobs.save(again, lease="mine", release=False), "but for its deletion it may"
    assert await jobs.save(new, lease="mine", release=False)
    await deletions.mark(new.gen_id, now=50.0)
    for state in sorted(CANCELLABLE):
        assert not await jobs.save(replace(again, state=state), lease="mine", release=False)
    assert await jobs.save(replace(new, state=State.FAILED), lease="mine", release=True)


async def test_a_deleted_job_is_not_reopened(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    old = await deleted(jobs, deletions, state=State.BLOCKED)
    assert await jobs.reopen(old.gen_id, Release(indexes=(0,), by="Ada", note="", at=60.0), now=60.0) is None


async def test_a_deletion_and_a_finish_at_once_both_count(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    for _ in range(20):
        new = job(state=State.RUNNING)
        await jobs.add(new, lease="mine", until=99.0)
        marked, saved = await asyncio.gather(
            deletions.mark(new.gen_id, now=50.0),
            jobs.save(replace(new, state=State.FINISHING), lease="mine", release=False),
        )
        stored = await jobs.get(new.gen_id)
        assert marked is not None and stored is not None and stored.deleted_at == 50.0
        assert stored.state is (State.FINISHING if saved else State.CANCELLED)


async def test_what_is_due_is_taken_by_one_and_the_newest_deletion_goes_first(
    url: str, jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    first = await deleted(jobs, deletions)
    second = job(state=State.FAILED)
    await add(jobs, second, job(state=State.COMPLETED))
    await deletions.mark(second.gen_id, now=51.0)
    assert await deletions.due(now=49.0, limit=9) == []
    assert await deletions.due(now=51.0, limit=9) == [second.gen_id, first.gen_id]
    assert await deletions.due(now=51.0, limit=1) == [second.gen_id]
    async with Database(url).open() as other:
        stores = [deletions, SqlDeletions(other)] * 4
        claims = (each.claim(first.gen_id, lease=str(n), now=51.0, until=60.0) for n, each in enumerate(stores))
        won = await asyncio.gather(*claims)
    assert [one for one in won if one is not None] == [first]
    assert await deletions.due(now=59.0, limit=9) == [second.gen_id]
    assert await deletions.due(now=60.0, limit=9) == [second.gen_id, first.gen_id], "a lease runs out"


async def test_a_lease_on_a_deleted_job_can_be_renewed_until_somebody_else_has_it(
    jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    old = await deleted(jobs, deletions)
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0) == old
    assert await deletions.renew(old.gen_id, lease="mine", until=80.0)
    assert await deletions.claim(old.gen_id, lease="theirs", now=79.0, until=90.0) is None
    assert await deletions.claim(old.gen_id, lease="theirs", now=80.0, until=90.0) == old
    assert not await deletions.renew(old.gen_id, lease="mine", until=99.0)
    await deletions.later(old.gen_id, lease="mine", tries=1, next_at=1.0)
    assert not await deletions.put_away(old, lease="mine", purged_at=81.0, next_at=NEVER)
    assert await deletions.renew(old.gen_id, lease="theirs", until=99.0)


async def test_a_purge_that_failed_is_tried_again_at_its_time(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    old = await deleted(jobs, deletions)
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0)
    await deletions.later(old.gen_id, lease="mine", tries=1, next_at=70.0)
    assert await deletions.due(now=69.0, limit=9) == []
    assert await deletions.claim(old.gen_id, lease="hasty", now=69.0, until=80.0) is None
    assert await deletions.claim(old.gen_id, lease="mine", now=70.0, until=80.0) == replace(old, tries=1, next_at=70.0)


async def test_of_a_purged_job_a_line_stays_for_bills_and_the_audit(
    database: Database, jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    old = await deleted(
        jobs,
        deletions,
        drawing=replace(DRAWING, prompt=WORDS, positive=WORDS, negative=WORDS, n=3, steps=9),
        delivery=Delivery(
            format="avif", tier="pro", precompliance=WORDS, credentials=Credentials(author=WORDS, title=WORDS)
        ),
        notices=(Notice(code="fallback", field="style", given=WORDS, used="plain"),),
        backend_id="b-1",
        attempt=1,
        started_at=20.0,
        drawn_at=30.0,
        drawn=DRAWN,
        outcome=Outcome(verdict=VERDICT, masters=("master/x/0.png",)),
        release=Release(indexes=(0,), by="Ada", note=WORDS, at=35.0),
    )
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0)
    assert await deletions.put_away(bare(old), lease="mine", purged_at=52.0, next_at=NEVER)
    left = await jobs.get(old.gen_id)
    assert left == replace(bare(old), next_at=NEVER)
    assert left is not None and (left.drawn, left.outcome, left.release, left.notices) == (None, None, None, ())
    for name in ("gen_id", "public_id", "tenant", "key_id", "request_id", "state", "attempt", "backend_id"):
        assert getattr(left, name) == getattr(old, name), name
    for name in ("created_at", "started_at", "drawn_at", "finished_at", "deleted_at"):
        assert getattr(left, name) == getattr(old, name) is not None, name
    assert (left.drawing.model, left.drawing.width, left.drawing.height, left.drawing.n, left.drawing.steps) == (
        *("toon", 512, 768, 3, 9),
    )
    assert (left.delivery.format, left.delivery.tier) == ("avif", "pro")
    assert WORDS not in str(left) and "aya" not in str(left)
    assert await deletions.due(now=9e9, limit=9) == []


async def test_a_job_that_is_to_be_looked_at_once_more_is_due_then(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    old = await deleted(jobs, deletions)
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0)
    assert await deletions.put_away(bare(old), lease="mine", purged_at=None, next_at=90.0)
    assert await deletions.due(now=89.0, limit=9) == []
    assert await deletions.due(now=90.0, limit=9) == [old.gen_id]


async def test_what_was_purged_can_be_purged_once_more(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    old, there = await deleted(jobs, deletions), job(state=State.COMPLETED)
    await add(jobs, there)
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0)
    assert await deletions.put_away(old, lease="mine", purged_at=52.0, next_at=NEVER)
    assert await deletions.due(now=60.0, limit=9) == []
    assert await deletions.reopen(old.gen_id, now=60.0)
    assert await deletions.due(now=60.0, limit=9) == [old.gen_id]
    assert not await deletions.reopen(there.gen_id, now=60.0)
    assert not await deletions.reopen("nowhere", now=60.0)


async def test_jobs_expire_so_long_after_their_end_a_few_at_a_time(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    times = {"created_at": 1.0}
    old = [
        job(**times, state=state, finished_at=10.0 + n, next_at=9.0 + n)
        for n, state in enumerate(sorted(set(ENDED) - {State.COMPLETED}))
    ]
    long_drawn = job(**times, state=State.COMPLETED, finished_at=90.0, next_at=9.0)
    still_open = [job(**times, state=state, next_at=1.0) for state in sorted(OPEN)]
    await add(jobs, *old, long_drawn, *still_open)
    gone = await deleted(jobs, deletions, **times)
    assert await deletions.expire(ended_before=9.0, now=100.0, limit=9) == []
    taken = await deletions.expire(ended_before=50.0, now=100.0, limit=2)
    assert len(taken) == 2
    taken += await deletions.expire(ended_before=50.0, now=100.0, limit=9)
    assert sorted(taken) == sorted(each.gen_id for each in old)
    assert await deletions.expire(ended_before=50.0, now=100.0, limit=9) == []
    for each in (long_drawn, *still_open):
        assert await jobs.find(each.surface, each.public_id) == each
    for each in old:
        stored = await jobs.get(each.gen_id)
        assert stored == replace(each, deleted_at=100.0, next_at=100.0)
    assert set(await deletions.due(now=100.0, limit=9)) == {gone.gen_id, *(each.gen_id for each in old)}


async def test_replicas_that_expire_at_once_take_each_job_once(
    url: str, jobs: SqlJobs, deletions: SqlDeletions
) -> None:
    old = [job(state=State.COMPLETED, created_at=1.0, finished_at=5.0, next_at=5.0) for _ in range(20)]
    await add(jobs, *old)
    async with Database(url).open() as other:
        stores = [deletions, SqlDeletions(other)] * 3
        taken = await asyncio.gather(*(each.expire(ended_before=50.0, now=100.0, limit=20) for each in stores))
    ids = [gen_id for one in taken for gen_id in one]
    assert sorted(ids) == sorted(each.gen_id for each in old)


async def test_what_is_purged_does_not_expire_again(jobs: SqlJobs, deletions: SqlDeletions) -> None:
    old = await deleted(jobs, deletions)
    assert await deletions.claim(old.gen_id, lease="mine", now=51.0, until=60.0)
    assert await deletions.put_away(bare(old), lease="mine", purged_at=52.0, next_at=NEVER)
    assert await deletions.expire(ended_before=9e9, now=100.0, limit=9) == []
