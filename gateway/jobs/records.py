"""`SqlRecords`: manifests, and what is left of them in the pixels."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, delete, insert, select

from gateway.core.images import Record
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.tables import records

_FIELDS = tuple(column.name for column in records.columns if column.name != "number")
_WRAP = 1 << 64


class SqlRecords:
    """The port `Records` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, record: Record) -> None:
        values = {name: getattr(record, name) for name in _FIELDS}
        try:
            await self._database.write(_ADD, values | {"code": _signed(record.code)})
        except Duplicate:
            return

    async def get(self, label: str) -> Record | None:
        rows = await self._database.read(_GET, {"one": label})
        return _decode(rows[0]) if rows else None

    async def of_mark(self, mark: int) -> Sequence[Record]:
        return [_decode(row) for row in await self._database.read(_OF_MARK, {"one": mark})]

    async def of_picture(self, sha256: str) -> Sequence[Record]:
        return [_decode(row) for row in await self._database.read(_OF_PICTURE, {"one": sha256})]

    async def codes(self, *, after: int, limit: int) -> Sequence[tuple[int, str, int]]:
        rows = await self._database.read(_CODES, {"after": after, "most": limit})
        return [(number, label, code % _WRAP) for number, label, code in rows]

    async def purge(self, gen_id: str, *, keep: frozenset[str] = frozenset()) -> None:
        for number, label in await self._database.read(_OF_JOB, {"one": gen_id}):
            if label not in keep:
                await self._database.write(_REMOVE, {"one": number})

    async def forget(self, labels: Collection[str]) -> None:
        for label in labels:
            await self._database.write(_FORGET, {"one": label})


def _signed(code: int | None) -> int | None:
    """Databases have no unsigned numbers of 64 bits."""
    return code - _WRAP if code is not None and code >= _WRAP // 2 else code


def _decode(row: Row) -> Record:
    values = dict(zip(_FIELDS, row, strict=True))
    code = values["code"]
    values["code"] = None if code is None else code % _WRAP
    values["manifest"] = bytes(values["manifest"])
    return Record(**values)


_RECORD = [records.c[name] for name in _FIELDS]
#: More files than these are never told of one id or hash.
_MOST = 100
_ADD = insert(records).values({name: bindparam(name) for name in _FIELDS})
_GET = select(*_RECORD).where(records.c.label == bindparam("one"))
_OF_MARK = select(*_RECORD).where(records.c.mark == bindparam("one")).order_by(records.c.number.desc()).limit(_MOST)
_OF_PICTURE = (
    select(*_RECORD).where(records.c.sha256 == bindparam("one")).order_by(records.c.number.desc()).limit(_MOST)
)
_CODES = (
    select(records.c.number, records.c.label, records.c.code)
    .where(records.c.number > bindparam("after"), records.c.code.is_not(None), records.c.type != "unsafe")
    .order_by(records.c.number)
    .limit(bindparam("most"))
)
_OF_JOB = select(records.c.number, records.c.label).where(records.c.gen_id == bindparam("one"))
_REMOVE = delete(records).where(records.c.number == bindparam("one")).returning(records.c.number)
_FORGET = delete(records).where(records.c.label == bindparam("one")).returning(records.c.number)
