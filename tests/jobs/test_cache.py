"""What the cache knows of completed jobs: found by key, followed by number, and let go with its job."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.images import CacheShare, Entry, Hit, Job, State
from gateway.jobs.cache import SqlEntries
from gateway.jobs.database import Database
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio


def entry(gen_id: str, **changes: object) -> Entry:
    values: dict[str, object] = {
        "gen_id": gen_id,
        "tenant": "default",
        "key": "key",
        "scope": "scope",
        "text": "a red house, ünïcode 🏠",
        "forms": {"ordered": "o", "words": "w", "dimensions": "1344x768"},
        "width": 1344,
        "height": 768,
        "seed": 2**31 - 1,
        "pictures": 1,
        "created_at": 1.5,
    }
    return Entry(**(values | changes))  # type: ignore[arg-type]


@pytest.fixture
def entries(database: Database) -> SqlEntries:
    return SqlEntries(database)


async def test_an_entry_is_read_as_it_was_written_and_written_once(entries: SqlEntries) -> None:
    new = entry("a", expires_at=9.0)
    await entries.add(new)
    await entries.add(replace(new, text="another"))
    stored = await entries.get("a")
    assert stored is not None and replace(stored, number=0) == new and stored.number > 0
    assert await entries.get("b") is None
    vector = bytes(range(256)) * 6
    await entries.embedded("a", "abcd", vector)
    stored = await entries.get("a")
    assert stored is not None and (stored.encoder, stored.vector) == ("abcd", vector)


async def test_a_key_finds_the_newest_that_live_and_those_of_a_seed(entries: SqlEntries) -> None:
    for number, expires_at in enumerate((None, 20.0, 5.0, None)):
        await entries.add(entry(f"g{number}", seed=number % 2, expires_at=expires_at))
    await entries.add(entry("other", key="other"))

    async def found(**asked: object) -> list[str]:
        values: dict[str, object] = {"seed": None, "now": 10.0, "limit": 9}
        return [each.gen_id for each in await entries.of_key("key", **(values | asked))]  # type: ignore[arg-type]

    assert await found() == ["g3", "g1", "g0"]
    assert await found(limit=2) == ["g3", "g1"]
    assert await found(now=20.0) == ["g3", "g0"]
    assert await found(seed=1) == ["g3", "g1"]
    assert await found(seed=7) == []


async def test_entries_are_followed_by_their_numbers(entries: SqlEntries) -> None:
    for name in "abcde":
        await entries.add(entry(name))
    first = await entries.after(0, limit=2)
    assert [each.gen_id for each in first] == ["a", "b"]
    assert [each.gen_id for each in await entries.after(first[-1].number, limit=9)] == ["c", "d", "e"]
    await entries.remove("e")
    await entries.add(entry("e"))
    # A number is given once, so that who has seen it does not pass over what comes after.
    assert (await entries.after(0, limit=9))[-1].number > first[-1].number + 3


async def test_a_shared_index_is_told_what_it_has_not_got(entries: SqlEntries) -> None:
    for name in "abc":
        await entries.add(entry(name))
    assert [each.gen_id for each in await entries.unindexed("one", limit=2)] == ["a", "b"]
    await entries.indexed(["a", "b"], "one")
    assert [each.gen_id for each in await entries.unindexed("one", limit=9)] == ["c"]
    assert len(await entries.unindexed("two", limit=9)) == 3


async def test_entries_go_when_their_time_is_over_or_all_of_a_tenant_or_all(entries: SqlEntries) -> None:
    for number in range(4):
        await entries.add(entry(f"old{number}", expires_at=5.0))
    await entries.add(entry("stays", expires_at=50.0))
    await entries.add(entry("theirs", tenant="other"))
    assert len(await entries.expire(now=10.0, limit=3)) == 3
    assert len(await entries.expire(now=10.0, limit=3)) == 1
    assert await entries.expire(now=10.0, limit=3) == []
    assert await entries.clear("other") == ["theirs"]
    assert await entries.clear() == ["stays"]


async def test_completed_jobs_without_an_entry_are_found_window_by_window(jobs: SqlJobs, entries: SqlEntries) -> None:
    done = [job(state=State.COMPLETED) for _ in range(7)]
    others = [
        job(state=State.FAILED),
        job(),
        job(state=State.COMPLETED, source=done[0].gen_id),
        job(state=State.COMPLETED, deleted_at=5.0),
    ]
    for each in (*done, *others):
        await jobs.add(each, lease="x", until=0.0)
    await entries.add(entry(done[3].gen_id))
    seen: list[Job] = []
    after: str | None = ""
    while after is not None:
        after, found = await entries.missing(after, limit=2)
        seen += found
    assert [each.gen_id for each in seen] == [each.gen_id for each in done if each is not done[3]]


async def test_each_tenant_s_share_counts_hits_that_were_purged_too(
    jobs: SqlJobs, entries: SqlEntries, database: Database
) -> None:
    source = job(state=State.COMPLETED, started_at=10.0, drawn_at=12.5)
    hit = Hit(gen_id=source.gen_id, exact=True, similarity=1.0, matched="a", prompt="a")
    copies = [job(state=State.COMPLETED, source=source.gen_id, hit=hit) for _ in range(2)]
    for each in (source, *copies):
        await jobs.add(each, lease="x", until=0.0)
    await entries.add(entry(source.gen_id))
    await entries.add(entry("theirs", tenant="other"))
    await entries.embedded("theirs", "e", b"1234")
    assert await entries.shares() == [
        CacheShare(tenant="default", entries=1, embedded=0, hits=2, saved=5.0),
        CacheShare(tenant="other", entries=1, embedded=1, hits=0, saved=0.0),
    ]


async def test_copies_are_in_no_list_and_are_deleted_with_their_source(jobs: SqlJobs, database: Database) -> None:
    deletions = SqlDeletions(database)
    source, other = job(state=State.COMPLETED), job(state=State.COMPLETED)
    copies = [job(state=state, source=source.gen_id) for state in (State.COMPLETED, State.FINISHING)]
    for each in (source, other, *copies):
        await jobs.add(each, lease="x", until=0.0)
    assert {each.gen_id for each in await jobs.page("default", limit=9, before=None)} == {source.gen_id, other.gen_id}
    marked = await deletions.mark(source.gen_id, now=50.0)
    assert marked is not None and marked.gen_id == source.gen_id
    for each in copies:
        assert await jobs.find("imgen", each.public_id) is None
        kept = await jobs.get(each.gen_id)
        assert kept is not None and kept.deleted_at == 50.0
    assert await jobs.find("imgen", other.public_id) is not None


async def test_a_copy_is_deleted_alone_and_goes_when_its_time_is_over(jobs: SqlJobs, database: Database) -> None:
    deletions = SqlDeletions(database)
    source = job(state=State.COMPLETED)
    copies = [job(state=State.COMPLETED, source=source.gen_id, created_at=at) for at in (10.0, 20.0, 30.0)]
    late = job(state=State.FINISHING, source=source.gen_id, created_at=5.0)
    for each in (source, *copies, late):
        await jobs.add(each, lease="x", until=0.0)
    assert (await deletions.mark(copies[0].gen_id, now=40.0)) is not None
    assert await jobs.find("imgen", source.public_id) is not None
    gone = await deletions.expire_copies(created_before=25.0, now=50.0, limit=9)
    assert gone == [copies[1].gen_id]
    assert await jobs.find("imgen", copies[2].public_id) is not None
    assert await jobs.find("imgen", source.public_id) is not None
