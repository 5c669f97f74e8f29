"""`SqlJobs`: the job store. Each method is one statement: no crash and no second replica ever comes between two."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, Text, and_, bindparam, func, insert, not_, null, or_, select, tuple_, update

from gateway.core.images import CANCELLABLE, OPEN, Job, Release, State
from gateway.errors import InternalError
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.rows import CHANGING, FIELDS, decode, encode, encode_release
from gateway.jobs.tables import jobs


class SqlJobs:
    """The port `Jobs` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, job: Job, *, lease: str, until: float) -> None:
        try:
            await self._database.write(_ADD, {**encode(job, FIELDS), "lease": lease, "lease_until": until})
        except Duplicate as error:
            raise InternalError(f"The id {job.gen_id} or {job.public_id} was given twice") from error

    async def get(self, gen_id: str) -> Job | None:
        return _one(await self._database.read(_GET, {"id": gen_id}))

    async def find(self, surface: str, public_id: str) -> Job | None:
        return _one(await self._database.read(_FIND, {"on": surface, "id": public_id}))

    async def page(self, tenant: str, *, limit: int, before: tuple[float, str] | None) -> list[Job]:
        values: dict[str, Any] = {"of": tenant, "most": limit}
        if before is None:
            return [decode(row) for row in await self._database.read(_NEWEST, values)]
        values["then"], values["last"] = before
        return [decode(row) for row in await self._database.read(_OLDER, values)]

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        return _one(await self._database.write(_CLAIM, {"id": gen_id, "holder": lease, "now": now, "until": until}))

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        """A lease that ran out but that nobody took can still be renewed."""
        return bool(await self._database.write(_RENEW, {"id": gen_id, "holder": lease, "until": until}))

    async def save(self, job: Job, *, lease: str, release: bool) -> bool:
        """All but the ids, the owner, ``created_at``, ``drawing``, ``delivery`` and ``source``, which never change.

        A job that was deleted while it was being finished is not queued again: that is as if the lease were lost.
        """
        values = {f"new_{name}": value for name, value in encode(job, CHANGING).items()}
        statement = _SAVE_AND_RELEASE if release else _SAVE
        return bool(await self._database.write(statement, {**values, "id": job.gen_id, "holder": lease}))

    async def cancel(self, gen_id: str, *, now: float) -> Job | None:
        return _one(await self._database.write(_CANCEL, {"id": gen_id, "now": now}))

    async def cancel_of_key(self, key_id: str, *, now: float) -> list[Job]:
        return [decode(row) for row in await self._database.write(_CANCEL_OF_KEY, {"of": key_id, "now": now})]

    async def reopen(self, gen_id: str, release: Release, *, now: float) -> Job | None:
        text, beginning = encode_release(release)
        values = {"id": gen_id, "now": now, "new_release": text, "same": beginning}
        return _one(await self._database.write(_REOPEN, values))

    async def adopt(self, gen_id: str, backend_id: str) -> None:
        await self._database.write(_ADOPT, {"id": gen_id, "theirs": backend_id})

    async def due(self, *, now: float, limit: int) -> list[str]:
        return [row[0] for row in await self._database.read(_DUE, {"now": now, "most": limit})]

    async def counts(self) -> dict[str, int]:
        """Only of the open states: those are cheap to count however long the history grows."""
        rows = await self._database.read(_COUNTS)
        return {state.value: 0 for state in sorted(OPEN)} | {row[0]: row[1] for row in rows}


def _one(rows: Sequence[Row]) -> Job | None:
    return decode(rows[0]) if rows else None


def _among(states: frozenset[State]) -> ColumnElement[bool]:
    return or_(*(jobs.c.state == state.value for state in sorted(states)))


_JOB = [jobs.c[name] for name in FIELDS]
_ID = jobs.c.gen_id == bindparam("id")
_HELD = jobs.c.lease == bindparam("holder")
_FREE = or_(jobs.c.lease.is_(None), jobs.c.lease_until <= bindparam("now"))

_THERE = jobs.c.deleted_at.is_(None)

_ADD = insert(jobs).values({name: bindparam(name) for name in (*FIELDS, "lease", "lease_until")})
_GET = select(*_JOB).where(_ID)
_FIND = select(*_JOB).where(jobs.c.surface == bindparam("on"), jobs.c.public_id == bindparam("id"), _THERE)
_NEWEST = (
    select(*_JOB)
    .where(jobs.c.tenant == bindparam("of"), _THERE, jobs.c.source.is_(None))
    .order_by(jobs.c.created_at.desc(), jobs.c.gen_id.desc())
    .limit(bindparam("most"))
)
_OLDER = _NEWEST.where(tuple_(jobs.c.created_at, jobs.c.gen_id) < tuple_(bindparam("then"), bindparam("last")))
_CLAIM = (
    update(jobs)
    .where(_ID, _among(OPEN), _FREE)
    .values(lease=bindparam("holder"), lease_until=bindparam("until"))
    .returning(*_JOB)
)
# To be drawn (again) a job must still be somebody's.
_GOES_ON = and_(*(bindparam("new_state", type_=Text) != state.value for state in sorted(CANCELLABLE)))
_RENEW = update(jobs).where(_ID, _among(OPEN), _HELD).values(lease_until=bindparam("until")).returning(jobs.c.gen_id)
_SAVE = (
    update(jobs)
    .where(_ID, _among(OPEN), _HELD, or_(_THERE, _GOES_ON))
    .values({name: bindparam(f"new_{name}") for name in CHANGING})
    .returning(jobs.c.gen_id)
)
_SAVE_AND_RELEASE = _SAVE.values(lease=null(), lease_until=null())
_CANCEL = (
    update(jobs)
    .where(_ID, _among(CANCELLABLE))
    .values(state=State.CANCELLED.value, finished_at=bindparam("now"), lease=null(), lease_until=null())
    .returning(*_JOB)
)
_CANCEL_OF_KEY = (
    update(jobs)
    .where(jobs.c.key_id == bindparam("of"), _among(CANCELLABLE))
    .values(state=State.CANCELLED.value, finished_at=bindparam("now"), lease=null(), lease_until=null())
    .returning(*_JOB)
)
_REOPEN = (
    update(jobs)
    .where(
        _ID,
        _THERE,
        _among(frozenset({State.BLOCKED, State.COMPLETED})),
        or_(jobs.c.release.is_(None), not_(jobs.c.release.startswith(bindparam("same")))),
    )
    .values(
        state=State.FINISHING.value,
        release=bindparam("new_release"),
        next_at=bindparam("now"),
        tries=0,
        lease=null(),
        lease_until=null(),
    )
    .returning(*_JOB)
)
_ADOPT = (
    update(jobs)
    .where(_ID, _among(OPEN), jobs.c.backend_id.is_(None))
    .values(backend_id=bindparam("theirs"))
    .returning(jobs.c.gen_id)
)
_DUE = (
    select(jobs.c.gen_id)
    .where(_among(OPEN), jobs.c.next_at <= bindparam("now"), _FREE)
    .order_by(jobs.c.next_at, jobs.c.gen_id)
    .limit(bindparam("most"))
)
_COUNTS = select(jobs.c.state, func.count()).where(_among(OPEN)).group_by(jobs.c.state)
