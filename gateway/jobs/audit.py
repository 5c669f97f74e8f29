"""`SqlAudit`: the audit as a chain in one table.

An entry is made from the one before it, so two replicas that append at once both want the same number: the primary key
lets one of them have it, and the other one reads the new head and tries again.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Mapping
from typing import Any

from sqlalchemy import bindparam, insert, select

from compliance.ledger import GENESIS, Entry, Link, canonical, link, moment
from gateway.errors import StoreUnavailable
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.tables import audit

#: How often an entry may lose the race for its number. Somebody wins each one, so this many mean a fault.
MOST_RACES = 200


class SqlAudit:
    """The port `AuditLog` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: In one process entries queue up here, and only replicas race.
        self._turn = asyncio.Lock()

    async def append(self, kind: str, at: float, gen_id: str | None, body: Mapping[str, Any]) -> int:
        text = canonical(dict(body))
        async with self._turn:
            for race in range(MOST_RACES):
                head = await self.head()
                entry = Entry(seq=head.entry.seq + 1 if head else 1, at=moment(at), kind=kind, body=body)
                new = link(entry, head.hash if head else GENESIS)
                values = {"seq": entry.seq, "at": at, "kind": kind, "gen_id": gen_id, "body": text}
                try:
                    await self._database.write(_APPEND, {**values, "previous": new.previous, "hash": new.hash})
                except Duplicate:
                    await asyncio.sleep(random.uniform(0, 0.001 * min(race, 20)))
                else:
                    return entry.seq
        raise StoreUnavailable("The audit can't be written: its next entry never finds a place")

    async def after(self, seq: int, limit: int) -> list[Link]:
        return [_decode(row) for row in await self._database.read(_AFTER, {"last": seq, "most": limit})]

    async def of(self, gen_id: str) -> list[Link]:
        return [_decode(row) for row in await self._database.read(_OF, {"id": gen_id})]

    async def head(self) -> Link | None:
        rows = await self._database.read(_HEAD)
        return _decode(rows[0]) if rows else None

    async def since(self, at: float) -> int:
        """The number after which an export must begin to hold everything from a time on."""
        rows = await self._database.read(_SINCE, {"from": at})
        if rows:
            return int(rows[0][0]) - 1
        head = await self.head()
        return head.entry.seq if head else 0


def _decode(row: Row) -> Link:
    """As it stands there: whether it still fits its hash is for `compliance.ledger.verify` to say."""
    seq, at, kind, body, previous, hash = row
    return Link(entry=Entry(seq=seq, at=moment(at), kind=kind, body=json.loads(body)), previous=previous, hash=hash)


_LINK = [audit.c[name] for name in ("seq", "at", "kind", "body", "previous", "hash")]
_APPEND = insert(audit).values({column.name: bindparam(column.name) for column in audit.columns})
_AFTER = select(*_LINK).where(audit.c.seq > bindparam("last")).order_by(audit.c.seq).limit(bindparam("most"))
_OF = select(*_LINK).where(audit.c.gen_id == bindparam("id")).order_by(audit.c.seq)
_HEAD = select(*_LINK).order_by(audit.c.seq.desc()).limit(1)
# Clocks of replicas differ: the first entry of that time, not the last one before it.
_SINCE = select(audit.c.seq).where(audit.c.at >= bindparam("from")).order_by(audit.c.seq).limit(1)
