"""The outbox of what the operator must be told."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.images import Event
from gateway.jobs.database import Database
from gateway.jobs.events import SqlEvents

pytestmark = pytest.mark.anyio

EVENT = Event(id="minors-g1-0", at=10.5, kind="minors", body={"gen_id": "g1", "rules": ["minors.picture"]})


async def test_an_event_is_due_at_once_and_until_it_was_delivered(events: SqlEvents) -> None:
    assert await events.add(EVENT)
    assert await events.due(now=10.0, limit=9) == []
    assert await events.due(now=10.5, limit=9) == [EVENT]
    await events.delivered(EVENT.id, now=11.0)
    assert await events.due(now=99.0, limit=9) == []


async def test_an_event_is_added_once_even_when_it_was_delivered(events: SqlEvents) -> None:
    assert await events.add(EVENT)
    assert not await events.add(replace(EVENT, body={"other": 1}))
    await events.delivered(EVENT.id, now=11.0)
    assert not await events.add(EVENT)
    assert await events.due(now=99.0, limit=9) == []


async def test_a_try_is_counted_and_puts_the_next_one_off(events: SqlEvents) -> None:
    await events.add(EVENT)
    assert await events.later(EVENT, next_at=20.0)
    assert await events.due(now=19.0, limit=9) == []
    assert await events.due(now=20.0, limit=9) == [replace(EVENT, tries=1)]


async def test_of_many_replicas_one_begins_a_try(url: str, events: SqlEvents) -> None:
    await events.add(EVENT)
    async with Database(url).open() as other:
        stores = [events, SqlEvents(other)] * 4
        won = await asyncio.gather(*(each.later(EVENT, next_at=20.0) for each in stores))
    assert sum(won) == 1
    assert [each.tries for each in await events.due(now=20.0, limit=9)] == [1]


async def test_the_longest_waiting_comes_first(events: SqlEvents) -> None:
    for name, at in (("b", 2.0), ("a", 3.0), ("c", 1.0)):
        await events.add(replace(EVENT, id=name, at=at))
    assert [each.id for each in await events.due(now=9.0, limit=2)] == ["c", "b"]
