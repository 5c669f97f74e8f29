"""`SqlAppeals`: what callers object to, and what was decided."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, case, insert, select, update

from gateway.core.images import Appeal
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.tables import appeals


class SqlAppeals:
    """The port `AppealStore` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, appeal: Appeal) -> bool:
        try:
            await self._database.write(_ADD, {name: getattr(appeal, name) for name in _FIELDS})
        except Duplicate:
            return False
        return True

    async def get(self, appeal_id: str) -> Appeal | None:
        return _one(await self._database.read(_GET, {"one": appeal_id}))

    async def latest(self, gen_id: str) -> Appeal | None:
        return _one(await self._database.read(_LATEST, {"of": gen_id}))

    async def list(self, state: str | None) -> Sequence[Appeal]:
        rows = await (self._database.read(_IN, {"in": state}) if state else self._database.read(_ALL))
        return [_decode(row) for row in rows]

    async def decide(self, appeal_id: str, state: str, *, by: str, note: str, now: float) -> Appeal | None:
        values = {"one": appeal_id, "new_state": state, "who": by, "why": note, "now": now}
        return _one(await self._database.write(_DECIDE, values))

    async def forget(self, gen_id: str, *, keep_words: bool, now: float) -> None:
        await self._database.write(_CLOSE if keep_words else _FORGET, {"of": gen_id, "now": now})


def _one(rows: Sequence[Row]) -> Appeal | None:
    return _decode(rows[0]) if rows else None


def _decode(row: Row) -> Appeal:
    return Appeal(**dict(zip(_FIELDS, row, strict=True)))


_FIELDS = tuple(column.name for column in appeals.columns)
_APPEAL = [appeals.c[name] for name in _FIELDS]
_ADD = insert(appeals).values({name: bindparam(name) for name in _FIELDS})
_GET = select(*_APPEAL).where(appeals.c.id == bindparam("one"))
_LATEST = select(*_APPEAL).where(appeals.c.gen_id == bindparam("of")).order_by(appeals.c.created_at.desc()).limit(1)
_ALL = select(*_APPEAL).order_by(appeals.c.created_at, appeals.c.id)
_IN = _ALL.where(appeals.c.state == bindparam("in"))
_DECIDE = (
    update(appeals)
    .where(appeals.c.id == bindparam("one"), appeals.c.state == "open")
    .values(
        state=bindparam("new_state"),
        decided_by=bindparam("who"),
        note=bindparam("why"),
        decided_at=bindparam("now"),
    )
    .returning(*_APPEAL)
)
_OPEN = appeals.c.state == "open"
_CLOSE = (
    update(appeals)
    .where(appeals.c.gen_id == bindparam("of"))
    .values(
        state=case((_OPEN, "closed"), else_=appeals.c.state),
        decided_at=case((_OPEN, bindparam("now")), else_=appeals.c.decided_at),
        note=case((_OPEN, "The job was deleted"), else_=appeals.c.note),
    )
    .returning(appeals.c.id)
)
_FORGET = _CLOSE.values(reason="")
