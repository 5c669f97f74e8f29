"""Appeals in the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.images import Appeal
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.database import Database

pytestmark = pytest.mark.anyio

APPEAL = Appeal(
    id="app_1",
    gen_id="g1",
    tenant="default",
    key_id="key_1",
    public_id="run_1",
    surface="imgen",
    reason="it is a kidney",
    created_at=10.5,
)


async def test_an_appeal_comes_back_as_it_was(appeals: SqlAppeals) -> None:
    assert await appeals.add(APPEAL)
    assert await appeals.get("app_1") == APPEAL
    assert await appeals.latest("g1") == APPEAL
    assert await appeals.get("app_2") is None
    assert await appeals.latest("g2") is None


async def test_a_job_has_one_open_appeal(appeals: SqlAppeals) -> None:
    assert await appeals.add(APPEAL)
    assert not await appeals.add(replace(APPEAL, id="app_2"))
    assert await appeals.add(replace(APPEAL, id="app_3", gen_id="g2"))
    assert [each.id for each in await appeals.list(None)] == ["app_1", "app_3"]


async def test_of_many_appeals_at_once_one_is_stored(url: str, appeals: SqlAppeals) -> None:
    async with Database(url).open() as other:
        stores = [appeals, SqlAppeals(other)] * 4
        added = await asyncio.gather(*(each.add(replace(APPEAL, id=f"app_{n}")) for n, each in enumerate(stores)))
    assert sum(added) == 1


async def test_an_appeal_is_decided_once(appeals: SqlAppeals) -> None:
    await appeals.add(APPEAL)
    decided = await appeals.decide("app_1", "upheld", by="Ada", note="it is not", now=20.5)
    assert decided == replace(APPEAL, state="upheld", decided_at=20.5, decided_by="Ada", note="it is not")
    assert await appeals.get("app_1") == decided
    assert await appeals.decide("app_1", "released", by="Bob", note="it is", now=21.5) is None
    assert await appeals.get("app_1") == decided
    assert await appeals.decide("app_9", "released", by="Bob", note="it is", now=21.5) is None


async def test_appeals_are_listed_by_state_oldest_first(appeals: SqlAppeals) -> None:
    new, old = replace(APPEAL, id="app_b", gen_id="g2", created_at=20.0), APPEAL
    done = replace(APPEAL, id="app_c", gen_id="g3", created_at=1.0)
    for one in (new, old, done):
        await appeals.add(one)
    await appeals.decide("app_c", "released", by="Ada", note="fine", now=2.0)
    assert await appeals.list("open") == [old, new]
    assert [each.id for each in await appeals.list("released")] == ["app_c"]
    assert [each.id for each in await appeals.list(None)] == ["app_c", "app_1", "app_b"]


async def test_the_newest_appeal_of_a_job_is_found(appeals: SqlAppeals) -> None:
    await appeals.add(APPEAL)
    await appeals.decide("app_1", "upheld", by="Ada", note="no", now=20.0)
    newer = replace(APPEAL, id="app_0", created_at=30.0)
    assert await appeals.add(newer)
    assert await appeals.latest("g1") == newer


async def test_what_is_open_of_a_deleted_job_is_closed_and_the_callers_words_go(appeals: SqlAppeals) -> None:
    old = replace(APPEAL, id="app_0", state="upheld", note="no", decided_at=5.0, decided_by="Ada")
    new, theirs = APPEAL, replace(APPEAL, id="app_2", gen_id="g2")
    for each in (old, new, theirs):
        assert await appeals.add(each)
    await appeals.forget("g1", keep_words=True, now=7.0)
    assert await appeals.get(old.id) == old
    closed = replace(new, state="closed", decided_at=7.0, note="The job was deleted")
    assert await appeals.get(new.id) == closed
    for now in (8.0, 9.0):
        await appeals.forget("g1", keep_words=False, now=now)
        assert await appeals.get(old.id) == replace(old, reason="")
        assert await appeals.get(new.id) == replace(closed, reason="")
    assert await appeals.get(theirs.id) == theirs
