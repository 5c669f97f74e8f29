"""`SqlDeletions`: jobs on their way out. Each method is one statement, as in `store`."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, bindparam, case, func, null, or_, select, update

from gateway.core.images import CANCELLABLE, OPEN, Job, State
from gateway.jobs.database import Database
from gateway.jobs.rows import FIELDS, decode, encode
from gateway.jobs.tables import jobs

#: `put_away` writes these: what there was to know of the pictures and of the caller's words.
_WORDS = ("drawing", "delivery", "notices", "drawn", "outcome", "release", "hit")


class SqlDeletions:
    """The port `Deletions` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def mark(self, gen_id: str, *, now: float) -> Job | None:
        rows = await self._database.write(_MARK, {"id": gen_id, "now": now})
        return next((job for job in map(decode, rows) if job.gen_id == gen_id), None)

    async def expire(self, *, ended_before: float, now: float, limit: int) -> list[str]:
        values = {"before": ended_before, "now": now, "most": limit}
        return [row[0] for row in await self._database.write(_EXPIRE, values)]

    async def expire_copies(self, *, created_before: float, now: float, limit: int) -> list[str]:
        values = {"before": created_before, "now": now, "most": limit}
        return [row[0] for row in await self._database.write(_EXPIRE_COPIES, values)]

    async def due(self, *, now: float, limit: int) -> list[str]:
        return [row[0] for row in await self._database.read(_DUE, {"now": now, "most": limit})]

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        values = {"id": gen_id, "holder": lease, "now": now, "until": until}
        rows = await self._database.write(_CLAIM, values)
        return decode(rows[0]) if rows else None

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        return bool(await self._database.write(_RENEW, {"id": gen_id, "holder": lease, "until": until}))

    async def later(self, gen_id: str, *, lease: str, tries: int, next_at: float) -> None:
        await self._database.write(_LATER, {"id": gen_id, "holder": lease, "failed": tries, "then": next_at})

    async def put_away(self, job: Job, *, lease: str, purged_at: float | None, next_at: float) -> bool:
        words: dict[str, Any] = {f"new_{name}": value for name, value in encode(job, _WORDS).items()}
        values = {**words, "id": job.gen_id, "holder": lease, "end": purged_at, "then": next_at}
        return bool(await self._database.write(_PUT_AWAY, values))

    async def reopen(self, gen_id: str, *, now: float) -> bool:
        return bool(await self._database.write(_REOPEN, {"id": gen_id, "now": now}))


_ID = jobs.c.gen_id == bindparam("id")
_ENDED = and_(*(jobs.c.state != state.value for state in sorted(OPEN)))
_IN_AN_END = or_(*(jobs.c.state == state.value for state in sorted(set(State) - OPEN)))
_THERE = jobs.c.deleted_at.is_(None)
_WAITS = and_(jobs.c.deleted_at.is_not(None), jobs.c.purged_at.is_(None), _ENDED)
_FREE = or_(jobs.c.lease.is_(None), jobs.c.lease_until <= bindparam("now"))
_HELD = and_(_WAITS, jobs.c.lease == bindparam("holder"))
_JOB = [jobs.c[name] for name in FIELDS]
_NOBODYS: dict[str, Any] = {"lease": null(), "lease_until": null()}

_CANCELS = or_(*(jobs.c.state == state.value for state in sorted(CANCELLABLE)))
# Whoever finishes it goes on: what the review says of a picture counts, deleted or not.
_GOES_ON = jobs.c.state == State.FINISHING.value
# With the copies that were made from its originals.
_MARK = (
    update(jobs)
    .where(or_(_ID, jobs.c.source == bindparam("id")), _THERE)
    .values(
        deleted_at=bindparam("now"),
        state=case((_CANCELS, State.CANCELLED.value), else_=jobs.c.state),
        finished_at=case((_CANCELS, bindparam("now")), else_=jobs.c.finished_at),
        next_at=case((_GOES_ON, jobs.c.next_at), else_=bindparam("now")),
        tries=case((_GOES_ON, jobs.c.tries), else_=0),
        lease=case((_GOES_ON, jobs.c.lease), else_=null()),
        lease_until=case((_GOES_ON, jobs.c.lease_until), else_=null()),
    )
    .returning(*_JOB)
)
# In no order, so that a long history need not be sorted for a few. `next_at` of an ended job stands where its last step
# left it, about at its end, and there is an index on it. Purged jobs have one that never comes: what has gone is not
# looked at for ever.
_OLD = (
    select(jobs.c.gen_id)
    .where(
        _IN_AN_END,
        jobs.c.next_at <= bindparam("before"),
        _THERE,
        func.coalesce(jobs.c.finished_at, jobs.c.created_at) <= bindparam("before"),
    )
    .limit(bindparam("most"))
)
_EXPIRE = (
    update(jobs)
    .where(jobs.c.gen_id.in_(_OLD), _THERE, _ENDED)
    .values(deleted_at=bindparam("now"), next_at=bindparam("now"), tries=0, **_NOBODYS)
    .returning(jobs.c.gen_id)
)
_OLD_COPIES = (
    select(jobs.c.gen_id)
    .where(jobs.c.source.is_not(None), jobs.c.created_at <= bindparam("before"), _THERE, _ENDED)
    .limit(bindparam("most"))
)
_EXPIRE_COPIES = (
    update(jobs)
    .where(jobs.c.gen_id.in_(_OLD_COPIES), _THERE, _ENDED)
    .values(deleted_at=bindparam("now"), next_at=bindparam("now"), tries=0, **_NOBODYS)
    .returning(jobs.c.gen_id)
)
_DUE = (
    select(jobs.c.gen_id)
    .where(_WAITS, jobs.c.next_at <= bindparam("now"), _FREE)
    .order_by(jobs.c.deleted_at.desc())
    .limit(bindparam("most"))
)
_CLAIM = (
    update(jobs)
    .where(_ID, _WAITS, jobs.c.next_at <= bindparam("now"), _FREE)
    .values(lease=bindparam("holder"), lease_until=bindparam("until"))
    .returning(*_JOB)
)
_RENEW = update(jobs).where(_ID, _HELD).values(lease_until=bindparam("until")).returning(jobs.c.gen_id)
_LATER = (
    update(jobs)
    .where(_ID, _HELD)
    .values(tries=bindparam("failed"), next_at=bindparam("then"), **_NOBODYS)
    .returning(jobs.c.gen_id)
)
_PUT_AWAY = (
    update(jobs)
    .where(_ID, _HELD)
    .values(
        {name: bindparam(f"new_{name}") for name in _WORDS}
        | {"purged_at": bindparam("end"), "next_at": bindparam("then"), "tries": 0}
        | _NOBODYS
    )
    .returning(jobs.c.gen_id)
)
_REOPEN = (
    update(jobs)
    .where(_ID, jobs.c.deleted_at.is_not(None))
    .values(
        purged_at=null(),
        next_at=case((_GOES_ON, jobs.c.next_at), else_=bindparam("now")),
        tries=case((_GOES_ON, jobs.c.tries), else_=0),
    )
    .returning(jobs.c.gen_id)
)
