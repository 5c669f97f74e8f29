"""How the walk over ended jobs sees them, on every database."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from compliance.verdict import Verdict
from gateway.core.images import Job, Outcome, PictureReview, State
from gateway.jobs.database import Database
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.originals import SqlOriginals
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio

VERDICT = Verdict(safe=True, ruleset="default", ruleset_version="1")
START = (0.0, "")


def ended(folder: str, at: float, **changes: object) -> Job:
    review = PictureReview(index=0, verdict=VERDICT, key=f"{folder}/x/0.png")
    outcome = Outcome(verdict=VERDICT, reviews=(review,))
    values = {"state": State.COMPLETED, "created_at": 1.0, "finished_at": at, "next_at": at, "outcome": outcome}
    return job(**{**values, **changes})


async def add(jobs: SqlJobs, *new: Job) -> None:
    for each in new:
        await jobs.add(each, lease="first", until=0.0)


@pytest.fixture
def originals(database: Database) -> SqlOriginals:
    return SqlOriginals(database)


async def test_the_walk_sees_each_ended_job_once_and_what_it_holds(jobs: SqlJobs, originals: SqlOriginals) -> None:
    first, second, third = ended("quarantine", 5.0), ended("master", 6.0), ended("quarantine", 6.0)
    bare, late = ended("master", 7.0, outcome=None), ended("quarantine", 8.0, finished_at=90.0)
    others = [ended("quarantine", 5.0, state=state) for state in (State.BLOCKED, State.FINISHING, State.FAILED)]
    gone = ended("quarantine", 5.5)
    await add(jobs, third, second, first, bare, late, gone, *others)
    await SqlDeletions(jobs._database).mark(gone.gen_id, now=5.6)
    seen: list[tuple[tuple[float, str], bool]] = []
    after = START
    while page := await originals.ended(State.COMPLETED, holding="quarantine", before=50.0, after=after, limit=2):
        seen += page
        after = page[-1][0]
    middle = sorted([((6.0, second.gen_id), False), ((6.0, third.gen_id), True)])
    assert seen == [((5.0, first.gen_id), True), *middle, ((7.0, bare.gen_id), False)]
    assert await originals.ended(State.COMPLETED, holding="quarantine", before=4.9, after=START, limit=9) == []


async def test_an_ended_job_is_taken_by_one_and_written_by_whoever_holds_it(
    url: str, jobs: SqlJobs, originals: SqlOriginals
) -> None:
    new = ended("quarantine", 5.0)
    await add(jobs, new)
    async with Database(url).open() as other:
        stores = [originals, SqlOriginals(other)] * 4
        claims = (each.claim(new.gen_id, lease=str(n), now=51.0, until=60.0) for n, each in enumerate(stores))
        won = await asyncio.gather(*claims)
    assert [one for one in won if one is not None] == [new]
    assert await originals.claim(new.gen_id, lease="mine", now=60.0, until=70.0) == new
    assert await originals.renew(new.gen_id, lease="mine", until=80.0)
    assert not await originals.renew(new.gen_id, lease="other", until=99.0)
    changed = replace(new, outcome=Outcome(verdict=VERDICT), tries=9)
    assert not await originals.put(changed, lease="other")
    assert await originals.put(changed, lease="mine")
    assert await jobs.get(new.gen_id) == replace(changed, tries=0), "nothing but the outcome"
    assert not await originals.put(new, lease="mine"), "it was given back"


@pytest.mark.parametrize("state", sorted(set(State) - {State.COMPLETED, State.BLOCKED}))
async def test_a_job_without_originals_is_not_taken(jobs: SqlJobs, originals: SqlOriginals, state: State) -> None:
    new = ended("quarantine", 5.0, state=state)
    await add(jobs, new)
    assert await originals.claim(new.gen_id, lease="mine", now=60.0, until=70.0) is None
    assert await originals.claim("nowhere", lease="mine", now=60.0, until=70.0) is None


async def test_a_deletion_takes_the_lease_away(jobs: SqlJobs, originals: SqlOriginals) -> None:
    new = ended("quarantine", 5.0)
    await add(jobs, new)
    assert await originals.claim(new.gen_id, lease="mine", now=60.0, until=70.0)
    await SqlDeletions(jobs._database).mark(new.gen_id, now=61.0)
    assert not await originals.put(replace(new, outcome=None), lease="mine")
    assert await originals.claim(new.gen_id, lease="mine", now=62.0, until=70.0) is None
