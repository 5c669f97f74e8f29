"""`SqlOriginals`: ended jobs whose originals are still there. Each method is one statement, as in `store`."""

from __future__ import annotations

from sqlalchemy import bindparam, func, null, or_, select, tuple_, update

from gateway.core.images import Job, State
from gateway.jobs.database import Database
from gateway.jobs.rows import FIELDS, decode, encode
from gateway.jobs.tables import jobs


class SqlOriginals:
    """The port `KeptOriginals` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def ended(
        self, state: State, *, holding: str, before: float, after: tuple[float, str], limit: int
    ) -> list[tuple[tuple[float, str], bool]]:
        values = {"in": state.value, "mark": f'%"{holding}/%', "before": before, "most": limit}
        values["then"], values["last"] = after
        return [((row[0], row[1]), bool(row[2])) for row in await self._database.read(_ENDED, values)]

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        values = {"id": gen_id, "holder": lease, "now": now, "until": until}
        rows = await self._database.write(_CLAIM, values)
        return decode(rows[0]) if rows else None

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        return bool(await self._database.write(_RENEW, {"id": gen_id, "holder": lease, "until": until}))

    async def put(self, job: Job, *, lease: str) -> bool:
        values = {"id": job.gen_id, "holder": lease, "new_outcome": encode(job, ("outcome",))["outcome"]}
        return bool(await self._database.write(_PUT, values))


_ID = jobs.c.gen_id == bindparam("id")
_THERE = jobs.c.deleted_at.is_(None)
_FREE = or_(jobs.c.lease.is_(None), jobs.c.lease_until <= bindparam("now"))
_FINISHED = or_(jobs.c.state == State.COMPLETED.value, jobs.c.state == State.BLOCKED.value)
_HELD = (_ID, _THERE, _FINISHED, jobs.c.lease == bindparam("holder"))

# By the index on state and `next_at`; the JSON text is looked at only of so many rows.
_ENDED = (
    select(jobs.c.next_at, jobs.c.gen_id, func.coalesce(jobs.c.outcome.like(bindparam("mark")), False))
    .where(
        jobs.c.state == bindparam("in"),
        jobs.c.next_at <= bindparam("before"),
        tuple_(jobs.c.next_at, jobs.c.gen_id) > tuple_(bindparam("then"), bindparam("last")),
        _THERE,
        func.coalesce(jobs.c.finished_at, jobs.c.created_at) <= bindparam("before"),
    )
    .order_by(jobs.c.next_at, jobs.c.gen_id)
    .limit(bindparam("most"))
)
_CLAIM = (
    update(jobs)
    .where(_ID, _THERE, _FINISHED, _FREE)
    .values(lease=bindparam("holder"), lease_until=bindparam("until"))
    .returning(*(jobs.c[name] for name in FIELDS))
)
_RENEW = update(jobs).where(*_HELD).values(lease_until=bindparam("until")).returning(jobs.c.gen_id)
_PUT = (
    update(jobs)
    .where(*_HELD)
    .values(outcome=bindparam("new_outcome"), lease=null(), lease_until=null())
    .returning(jobs.c.gen_id)
)
