"""`SqlEvents`: the outbox of what the operator must be told."""

from __future__ import annotations

from collections.abc import Sequence

import orjson
from sqlalchemy import bindparam, insert, select, update

from gateway.core.images import Event
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.tables import events


class SqlEvents:
    """The port `Events` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, event: Event) -> bool:
        values = {"id": event.id, "at": event.at, "kind": event.kind, "body": orjson.dumps(dict(event.body)).decode()}
        try:
            await self._database.write(_ADD, {**values, "tries": 0, "next_at": event.at, "delivered_at": None})
        except Duplicate:
            return False
        return True

    async def due(self, *, now: float, limit: int) -> Sequence[Event]:
        return [_decode(row) for row in await self._database.read(_DUE, {"now": now, "most": limit})]

    async def later(self, event: Event, *, next_at: float) -> bool:
        values = {"one": event.id, "seen": event.tries, "then": next_at}
        return bool(await self._database.write(_LATER, values))

    async def delivered(self, event_id: str, *, now: float) -> None:
        await self._database.write(_DELIVERED, {"one": event_id, "now": now})


def _decode(row: Row) -> Event:
    id, at, kind, body, tries = row
    return Event(id=id, at=at, kind=kind, body=orjson.loads(body), tries=tries)


_EVENT = [events.c[name] for name in ("id", "at", "kind", "body", "tries")]
_WAITS = events.c.delivered_at.is_(None)
_ADD = insert(events).values({column.name: bindparam(column.name) for column in events.columns})
_DUE = (
    select(*_EVENT)
    .where(_WAITS, events.c.next_at <= bindparam("now"))
    .order_by(events.c.next_at, events.c.id)
    .limit(bindparam("most"))
)
_LATER = (
    update(events)
    .where(events.c.id == bindparam("one"), _WAITS, events.c.tries == bindparam("seen"))
    .values(tries=events.c.tries + 1, next_at=bindparam("then"))
    .returning(events.c.id)
)
_DELIVERED = (
    update(events).where(events.c.id == bindparam("one")).values(delivered_at=bindparam("now")).returning(events.c.id)
)
