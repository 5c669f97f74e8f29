"""`SqlEntries`: what the cache knows of completed jobs. The one durable copy; every index is made from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import BindParameter, and_, bindparam, delete, func, insert, or_, select, update

from gateway.core.images import CacheShare, Entry, Job, State
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.rows import FIELDS, decode
from gateway.jobs.tables import cache_entries as entries
from gateway.jobs.tables import jobs

_COLUMNS = tuple(column.name for column in entries.columns if column.name != "indexed")


class SqlEntries:
    """The port `Entries` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, entry: Entry) -> None:
        values = {name: getattr(entry, name) for name in _COLUMNS if name != "number"}
        try:
            await self._database.write(_ADD, values | {"forms": json.dumps(entry.forms), "indexed": ""})
        except Duplicate:
            return

    async def get(self, gen_id: str) -> Entry | None:
        rows = await self._database.read(_GET, {"id": gen_id})
        return _decode(rows[0]) if rows else None

    async def of_key(self, key: str, *, seed: int | None, now: float, limit: int) -> list[Entry]:
        values: dict[str, Any] = {"asked": key, "now": now, "most": limit}
        if seed is None:
            return [_decode(row) for row in await self._database.read(_OF_KEY, values)]
        return [_decode(row) for row in await self._database.read(_OF_SEED, values | {"of_seed": seed})]

    async def after(self, number: int, *, limit: int) -> list[Entry]:
        return [_decode(row) for row in await self._database.read(_AFTER, {"last": number, "most": limit})]

    async def unindexed(self, index: str, *, limit: int) -> list[Entry]:
        return [_decode(row) for row in await self._database.read(_UNINDEXED, {"name": index, "most": limit})]

    async def indexed(self, gen_ids: Sequence[str], index: str) -> None:
        for gen_id in gen_ids:
            await self._database.write(_INDEXED, {"id": gen_id, "name": index})

    async def embedded(self, gen_id: str, encoder: str, vector: bytes) -> None:
        await self._database.write(_EMBEDDED, {"id": gen_id, "by": encoder, "numbers": vector})

    async def remove(self, gen_id: str) -> None:
        await self._database.write(_REMOVE, {"id": gen_id})

    async def expire(self, *, now: float, limit: int) -> list[str]:
        return [row[0] for row in await self._database.write(_EXPIRE, {"now": now, "most": limit})]

    async def clear(self, tenant: str | None = None) -> list[str]:
        if tenant is None:
            return [row[0] for row in await self._database.write(_CLEAR, {})]
        return [row[0] for row in await self._database.write(_CLEAR_TENANT, {"of": tenant})]

    async def missing(self, after: str, *, limit: int) -> tuple[str | None, list[Job]]:
        window = await self._database.read(_WINDOW, {"last": after, "most": limit})
        found = []
        for gen_id, known in window:
            if known is None:
                rows = await self._database.read(_JOB_OF, {"id": gen_id})
                found += [decode(row) for row in rows]
        return (window[-1][0] if window else None), found

    async def shares(self) -> list[CacheShare]:
        hits = {row[0]: (row[1], row[2]) for row in await self._database.read(_HITS)}
        known = {row[0]: (row[1], row[2]) for row in await self._database.read(_COUNT)}
        return [
            CacheShare(
                tenant=tenant,
                entries=known.get(tenant, (0, 0))[0],
                embedded=known.get(tenant, (0, 0))[1],
                hits=hits.get(tenant, (0, 0.0))[0],
                saved=float(hits.get(tenant, (0, 0.0))[1] or 0.0),
            )
            for tenant in sorted(known.keys() | hits.keys())
        ]


def _decode(row: Row) -> Entry:
    values = dict(zip(_COLUMNS, row, strict=True))
    values["forms"] = json.loads(values["forms"])
    values["vector"] = None if values["vector"] is None else bytes(values["vector"])
    return Entry(**values)


_ENTRY = [entries.c[name] for name in _COLUMNS]
_ID = entries.c.gen_id == bindparam("id")
_MOST: BindParameter[int] = bindparam("most")
_LIVES = or_(entries.c.expires_at.is_(None), entries.c.expires_at > bindparam("now"))

_ADD = insert(entries).values({name: bindparam(name) for name in (*_COLUMNS, "indexed") if name != "number"})
_GET = select(*_ENTRY).where(_ID)
_OF_KEY = (
    select(*_ENTRY).where(entries.c.key == bindparam("asked"), _LIVES).order_by(entries.c.number.desc()).limit(_MOST)
)
_OF_SEED = _OF_KEY.where(entries.c.seed == bindparam("of_seed"))
_AFTER = select(*_ENTRY).where(entries.c.number > bindparam("last")).order_by(entries.c.number).limit(_MOST)
_UNINDEXED = select(*_ENTRY).where(entries.c.indexed != bindparam("name")).order_by(entries.c.number).limit(_MOST)
_INDEXED = update(entries).where(_ID).values(indexed=bindparam("name")).returning(entries.c.gen_id)
_EMBEDDED = (
    update(entries).where(_ID).values(encoder=bindparam("by"), vector=bindparam("numbers")).returning(entries.c.gen_id)
)
_REMOVE = delete(entries).where(_ID).returning(entries.c.gen_id)
_OLD = select(entries.c.gen_id).where(entries.c.expires_at <= bindparam("now")).limit(_MOST)
_EXPIRE = delete(entries).where(entries.c.gen_id.in_(_OLD)).returning(entries.c.gen_id)
_CLEAR = delete(entries).returning(entries.c.gen_id)
_CLEAR_TENANT = delete(entries).where(entries.c.tenant == bindparam("of")).returning(entries.c.gen_id)
_DONE = and_(jobs.c.state == State.COMPLETED.value, jobs.c.deleted_at.is_(None), jobs.c.source.is_(None))
# A window of the table at a time, so that no look at a long history holds up other readers.
_WINDOW = (
    select(jobs.c.gen_id, entries.c.number)
    .select_from(jobs.outerjoin(entries, entries.c.gen_id == jobs.c.gen_id))
    .where(jobs.c.gen_id > bindparam("last"), _DONE)
    .order_by(jobs.c.gen_id)
    .limit(_MOST)
)
_JOB_OF = select(*[jobs.c[name] for name in FIELDS]).where(jobs.c.gen_id == bindparam("id"), _DONE)
_COUNT = select(entries.c.tenant, func.count(), func.count(entries.c.vector)).group_by(entries.c.tenant)
_DRAWN = jobs.alias("drawn_jobs")
_HITS = (
    select(jobs.c.tenant, func.count(), func.sum(_DRAWN.c.drawn_at - _DRAWN.c.started_at))
    .select_from(jobs.outerjoin(_DRAWN, _DRAWN.c.gen_id == jobs.c.source))
    .where(jobs.c.source.is_not(None))
    .group_by(jobs.c.tenant)
)
