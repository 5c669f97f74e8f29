"""What the job store promises, on every database that it runs on."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compliance.verdict import Verdict
from gateway.core.images import CANCELLABLE, OPEN, Drawn, Fault, Job, Notice, Outcome, RawPicture, Release, State
from gateway.errors import InternalError
from gateway.jobs.database import Database
from gateway.jobs.rows import FIELDS, decode, encode
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import anything, job

pytestmark = pytest.mark.anyio

ENDED = sorted(set(State) - OPEN)
per_example = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


async def add(jobs: SqlJobs, *new: Job) -> None:
    """Stored, and nobody is at work on them."""
    for each in new:
        await jobs.add(each, lease="first", until=0.0)


async def held(jobs: SqlJobs, **changes: object) -> Job:
    """A stored job under the lease `mine`."""
    new = job(**changes)
    await jobs.add(new, lease="mine", until=50.0)
    return new


async def test_a_stored_job_is_found_by_both_its_ids(jobs: SqlJobs) -> None:
    new = job(notices=(Notice(code="fallback", field="style", given="Ωmega", used="plain"),))
    await add(jobs, new, job())
    assert await jobs.get(new.gen_id) == new
    assert await jobs.find(new.surface, new.public_id) == new


async def test_an_unknown_id_finds_nothing(jobs: SqlJobs) -> None:
    await add(jobs, job(public_id="run_known"))
    assert await jobs.get("nowhere") is None
    assert await jobs.find("imgen", "run_unknown") is None
    assert await jobs.find("umrgen", "run_known") is None


async def test_an_id_is_unique_on_its_surface_only(jobs: SqlJobs) -> None:
    await add(jobs, job(public_id="same"), job(public_id="same", surface="umrgen"))
    with pytest.raises(InternalError, match="same was given twice"):
        await add(jobs, job(public_id="same"))


@per_example
@given(new=anything(Job))
async def test_any_job_comes_back_as_it_was_but_for_its_pixels(jobs: SqlJobs, new: Job) -> None:
    fresh = job()
    new = replace(new, gen_id=fresh.gen_id, public_id=fresh.public_id, surface=fresh.surface)
    # PostgreSQL's text has no NUL, nor have our ids. Inside of JSON it is escaped.
    new = replace(new, **{n: getattr(new, n).replace("\0", "") for n in ("tenant", "key_id", "request_id")})
    new = replace(new, backend_id=new.backend_id and new.backend_id.replace("\0", ""))
    await add(jobs, new)
    if new.drawn is not None:
        bare = tuple(replace(picture, data=None) for picture in new.drawn.pictures)
        new = replace(new, drawn=replace(new.drawn, pictures=bare))
    assert await jobs.get(new.gen_id) == new


def test_pixels_never_get_into_a_row() -> None:
    picture = RawPicture(index=0, seed=1, sha256="ab", width=8, height=8, data=b"\xff\xd8pixels")
    drawn = Drawn(pictures=(picture,), steps=1, guidance=1.0, sampler="", family="", revision="")
    assert "pixels" not in str(encode(job(drawn=drawn), FIELDS))


def test_a_row_of_a_later_release_can_be_read() -> None:
    row = encode(job(), FIELDS)
    row["drawing"] = row["drawing"].replace("{", '{"mood": "calm", ', 1)
    assert decode(list(row.values())).drawing == job().drawing


#: As version 0.1 wrote them.
OLD_DRAWING = (
    '{"prompt":"@aya","positive":"aya","negative":"","model":"eros","worker_model":"builtin","style":"","character":"aya",'
    '"width":1344,"height":768,"seed":7,"steps":null,"guidance":null,"n":1,"optimized":false}'
)
OLD_DRAWN = (
    '{"pictures":[{"index":0,"seed":7,"sha256":"ab","width":1344,"height":768}],"steps":14,"guidance":3.0,'
    '"sampler":"DDIM","family":"sd15","revision":"1","negative_used":true,"timings":{"draw":0.4},"warnings":[]}'
)


def test_a_row_of_before_there_were_loras_can_be_read() -> None:
    row = encode(job(), FIELDS) | {"drawing": OLD_DRAWING, "drawn": OLD_DRAWN}
    old = decode(list(row.values()))
    assert old.drawing.loras == () and old.drawing.seed == 7
    assert old.drawn is not None
    assert (old.drawn.loras, old.drawn.references, old.drawn.pictures[0].sha256) == ((), 0, "ab")


async def test_whoever_adds_a_job_holds_its_first_lease(jobs: SqlJobs) -> None:
    new = await held(jobs)
    assert await jobs.claim(new.gen_id, lease="theirs", now=49.0, until=90.0) is None
    assert await jobs.save(new, lease="mine", release=True)
    assert await jobs.claim(new.gen_id, lease="theirs", now=49.0, until=90.0) == new


async def test_a_claimed_job_is_nobody_elses_until_the_lease_ran_out(jobs: SqlJobs) -> None:
    new = job()
    await add(jobs, new)
    assert await jobs.claim(new.gen_id, lease="mine", now=10.0, until=20.0) == new
    assert await jobs.claim(new.gen_id, lease="theirs", now=19.0, until=29.0) is None
    assert await jobs.claim(new.gen_id, lease="mine", now=19.0, until=29.0) is None
    assert await jobs.claim(new.gen_id, lease="theirs", now=20.0, until=30.0) == new


async def test_an_unknown_job_can_not_be_claimed(jobs: SqlJobs) -> None:
    assert await jobs.claim("nowhere", lease="mine", now=10.0, until=20.0) is None


@pytest.mark.parametrize("state", ENDED)
async def test_an_ended_job_can_not_be_claimed(jobs: SqlJobs, state: State) -> None:
    new = job(state=state)
    await add(jobs, new)
    assert await jobs.claim(new.gen_id, lease="mine", now=10.0, until=20.0) is None


async def test_of_many_claims_at_once_one_wins(url: str, jobs: SqlJobs) -> None:
    new = job()
    await add(jobs, new)
    async with Database(url).open() as other:
        stores = [jobs, SqlJobs(other)] * 5
        claims = (each.claim(new.gen_id, lease=str(n), now=10.0, until=20.0) for n, each in enumerate(stores))
        won = await asyncio.gather(*claims)
    assert [one for one in won if one is not None] == [new]


async def test_a_renewed_lease_runs_on(jobs: SqlJobs) -> None:
    new = await held(jobs)
    assert await jobs.renew(new.gen_id, lease="mine", until=100.0)
    assert await jobs.claim(new.gen_id, lease="theirs", now=99.0, until=200.0) is None


async def test_a_lost_lease_can_not_be_renewed(jobs: SqlJobs) -> None:
    new = await held(jobs)
    assert await jobs.claim(new.gen_id, lease="theirs", now=60.0, until=70.0) is not None
    assert not await jobs.renew(new.gen_id, lease="mine", until=100.0)
    assert not await jobs.renew("nowhere", lease="mine", until=100.0)


async def test_a_lease_that_nobody_took_can_be_renewed_late(jobs: SqlJobs) -> None:
    new = await held(jobs)
    assert await jobs.renew(new.gen_id, lease="mine", until=900.0)


async def test_save_writes_all_that_changes(jobs: SqlJobs) -> None:
    new = await held(jobs)
    drawn = Drawn(
        pictures=(RawPicture(index=0, seed=2**40, sha256="ab", width=8, height=8),),
        steps=4,
        guidance=1.5,
        sampler="euler",
        family="sdxl",
        revision="1",
        timings={"draw": 0.25},
    )
    changed = replace(
        new,
        state=State.FINISHING,
        backend_id="b-1",
        attempt=1,
        step=3,
        total_steps=4,
        started_at=1.25,
        drawn_at=2.5,
        next_at=3.75,
        deadline_at=99.0,
        tries=2,
        notices=(Notice(code="c", field="f", given="g", used="u"),),
        drawn=drawn,
        fault=Fault(code="late"),
        outcome=Outcome(verdict=Verdict(safe=True, ruleset="default", ruleset_version="1", scores={"a": 0.5})),
    )
    assert await jobs.save(changed, lease="mine", release=False)
    assert await jobs.get(new.gen_id) == changed
    assert await jobs.claim(new.gen_id, lease="theirs", now=49.0, until=99.0) is None


async def test_a_save_without_the_lease_writes_nothing(jobs: SqlJobs) -> None:
    new = await held(jobs)
    await jobs.claim(new.gen_id, lease="theirs", now=60.0, until=70.0)
    assert not await jobs.save(replace(new, state=State.FAILED), lease="mine", release=True)
    assert await jobs.get(new.gen_id) == new
    assert await jobs.save(replace(new, step=1), lease="theirs", release=False)


async def test_a_released_lease_saves_nothing_more(jobs: SqlJobs) -> None:
    new = await held(jobs)
    assert await jobs.save(new, lease="mine", release=True)
    assert not await jobs.save(replace(new, step=1), lease="mine", release=False)


@pytest.mark.parametrize("state", ENDED)
async def test_an_end_is_final(jobs: SqlJobs, state: State) -> None:
    new = await held(jobs)
    ended = replace(new, state=state, finished_at=5.0)
    assert await jobs.save(ended, lease="mine", release=False)
    assert not await jobs.save(replace(ended, state=State.QUEUED), lease="mine", release=False)
    assert not await jobs.renew(new.gen_id, lease="mine", until=99.0)
    assert await jobs.cancel(new.gen_id, now=6.0) is None
    await jobs.adopt(new.gen_id, "b-1")
    assert await jobs.get(new.gen_id) == ended


@pytest.mark.parametrize("state", sorted(CANCELLABLE))
async def test_a_cancel_beats_whoever_holds_the_lease(jobs: SqlJobs, state: State) -> None:
    new = await held(jobs, state=state)
    cancelled = await jobs.cancel(new.gen_id, now=5.0)
    assert cancelled == replace(new, state=State.CANCELLED, finished_at=5.0)
    assert not await jobs.renew(new.gen_id, lease="mine", until=99.0)
    assert not await jobs.save(replace(new, state=State.FINISHING), lease="mine", release=False)
    assert await jobs.get(new.gen_id) == cancelled
    assert await jobs.cancel(new.gen_id, now=6.0) is None


async def test_a_job_that_is_being_finished_can_not_be_cancelled(jobs: SqlJobs) -> None:
    new = await held(jobs, state=State.FINISHING)
    assert await jobs.cancel(new.gen_id, now=5.0) is None
    assert await jobs.cancel("nowhere", now=5.0) is None
    assert await jobs.save(replace(new, state=State.COMPLETED), lease="mine", release=True)


async def test_of_a_cancel_and_a_finish_at_once_one_wins(jobs: SqlJobs) -> None:
    for _ in range(20):
        new = await held(jobs, state=State.RUNNING)
        finishing = replace(new, state=State.FINISHING)
        cancelled, saved = await asyncio.gather(
            jobs.cancel(new.gen_id, now=5.0), jobs.save(finishing, lease="mine", release=False)
        )
        stored = await jobs.get(new.gen_id)
        assert stored == (finishing if saved else cancelled)
        assert saved == (cancelled is None)


RELEASE = Release(indexes=(0, 2), by="Ada", note="a kidney", at=90.0)


@pytest.mark.parametrize("state", [State.BLOCKED, State.COMPLETED])
async def test_a_released_job_is_finished_once_more(jobs: SqlJobs, state: State) -> None:
    ended = job(state=state, finished_at=5.0, tries=3)
    await add(jobs, ended)
    reopened = await jobs.reopen(ended.gen_id, RELEASE, now=90.0)
    assert reopened == replace(ended, state=State.FINISHING, release=RELEASE, next_at=90.0, tries=0)
    assert await jobs.due(now=90.0, limit=9) == [ended.gen_id]
    claimed = await jobs.claim(ended.gen_id, lease="mine", now=90.0, until=99.0)
    assert claimed == reopened
    done = replace(reopened, state=State.COMPLETED, finished_at=91.0)
    assert await jobs.save(done, lease="mine", release=True)
    assert await jobs.get(ended.gen_id) == done


async def test_a_release_of_the_same_pictures_reopens_a_job_once(jobs: SqlJobs) -> None:
    ended = job(state=State.BLOCKED)
    await add(jobs, ended)
    assert await jobs.reopen(ended.gen_id, RELEASE, now=90.0)
    again = replace(RELEASE, by="Bob", note="the same", at=95.0)
    assert await jobs.reopen(ended.gen_id, again, now=95.0) is None
    await jobs.claim(ended.gen_id, lease="mine", now=95.0, until=99.0)
    assert await jobs.save(replace(ended, state=State.COMPLETED, release=RELEASE), lease="mine", release=True)
    assert await jobs.reopen(ended.gen_id, again, now=96.0) is None
    other = replace(RELEASE, indexes=(0, 1, 2))
    assert (await jobs.reopen(ended.gen_id, other, now=97.0)) is not None


async def test_of_many_releases_at_once_one_reopens_the_job(url: str, jobs: SqlJobs) -> None:
    ended = job(state=State.BLOCKED)
    await add(jobs, ended)
    async with Database(url).open() as other:
        tries = [each.reopen(ended.gen_id, RELEASE, now=90.0) for each in [jobs, SqlJobs(other)] * 4]
        won = await asyncio.gather(*tries)
    assert len([one for one in won if one is not None]) == 1


@pytest.mark.parametrize("state", sorted(set(State) - {State.BLOCKED, State.COMPLETED}))
async def test_a_job_that_has_no_picture_is_not_reopened(jobs: SqlJobs, state: State) -> None:
    new = job(state=state)
    await add(jobs, new)
    assert await jobs.reopen(new.gen_id, RELEASE, now=90.0) is None
    assert await jobs.reopen("nowhere", RELEASE, now=90.0) is None
    assert await jobs.get(new.gen_id) == new


async def test_all_that_a_key_has_queued_is_cancelled_at_once(jobs: SqlJobs) -> None:
    queued, running = job(key_id="key_bad"), await held(jobs, key_id="key_bad", state=State.RUNNING)
    rest = [job(key_id="key_bad", state=state) for state in sorted(set(State) - CANCELLABLE)]
    theirs = job(key_id="key_good")
    await add(jobs, queued, theirs, *rest)
    cancelled = await jobs.cancel_of_key("key_bad", now=5.0)
    assert {one.gen_id for one in cancelled} == {queued.gen_id, running.gen_id}
    assert all(one.state is State.CANCELLED and one.finished_at == 5.0 for one in cancelled)
    assert not await jobs.renew(running.gen_id, lease="mine", until=99.0)
    for one in (theirs, *rest):
        assert await jobs.get(one.gen_id) == one
    assert await jobs.cancel_of_key("key_bad", now=6.0) == []


async def test_only_a_job_without_a_backend_id_adopts_one(jobs: SqlJobs) -> None:
    new = await held(jobs)
    await jobs.adopt(new.gen_id, "b-1")
    await jobs.adopt(new.gen_id, "b-2")
    await jobs.adopt("nowhere", "b-3")
    assert await jobs.get(new.gen_id) == replace(new, backend_id="b-1")


async def test_due_are_the_open_jobs_whose_time_has_come_and_that_nobody_holds(jobs: SqlJobs) -> None:
    late, early, soon = job(next_at=20.0), job(next_at=10.0), job(next_at=31.0)
    ended = [job(next_at=1.0, state=state) for state in ENDED]
    finishing = job(next_at=15.0, state=State.FINISHING)
    await add(jobs, late, early, soon, finishing, *ended)
    taken = await held(jobs, next_at=1.0)
    assert await jobs.due(now=30.0, limit=9) == [early.gen_id, finishing.gen_id, late.gen_id]
    assert await jobs.due(now=30.0, limit=1) == [early.gen_id]
    assert await jobs.due(now=30.0, limit=0) == []
    assert await jobs.due(now=50.0, limit=9) == [
        taken.gen_id,
        early.gen_id,
        finishing.gen_id,
        late.gen_id,
        soon.gen_id,
    ]


async def test_counts_are_of_the_open_jobs(jobs: SqlJobs) -> None:
    await add(jobs, job(), job(), job(state=State.RUNNING), *(job(state=state) for state in ENDED))
    assert await jobs.counts() == {"queued": 2, "running": 1, "finishing": 0}


async def test_a_page_shows_one_tenants_jobs_newest_first(jobs: SqlJobs) -> None:
    old, new, same = job(created_at=1.5), job(created_at=3.0), job(created_at=3.0)
    await add(jobs, old, new, same, job(tenant="other"))
    assert await jobs.page("default", limit=9, before=None) == [same, new, old]
    assert await jobs.page("default", limit=2, before=None) == [same, new]
    assert await jobs.page("default", limit=9, before=(new.created_at, new.gen_id)) == [old]
    assert await jobs.page("nobody", limit=9, before=None) == []


moments = st.lists(st.integers(0, 4).map(float), max_size=6)


@per_example
@given(at_first=moments, meanwhile=st.lists(moments, max_size=8), limit=st.integers(1, 3))
async def test_paging_shows_each_job_once_whatever_is_added_meanwhile(
    jobs: SqlJobs, at_first: list[float], meanwhile: list[list[float]], limit: int
) -> None:
    tenant = job().public_id
    first = [job(tenant=tenant, created_at=moment) for moment in at_first]
    await add(jobs, *first)
    seen: list[Job] = []
    before = None
    arrivals = iter(meanwhile)
    while page := await jobs.page(tenant, limit=limit, before=before):
        seen += page
        before = (page[-1].created_at, page[-1].gen_id)
        await add(jobs, *(job(tenant=tenant, created_at=moment) for moment in next(arrivals, [])))
    places = [(one.created_at, one.gen_id) for one in seen]
    assert places == sorted(set(places), reverse=True)
    assert {one.gen_id for one in first} <= {one.gen_id for one in seen}
