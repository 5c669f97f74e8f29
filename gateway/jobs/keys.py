"""`SqlKeys`: API keys, found by the SHA-256 of their secret."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, insert, null, select, update

from gateway.core.images import ApiKey
from gateway.errors import InternalError
from gateway.jobs.database import Database, Duplicate, Row
from gateway.jobs.tables import api_keys


class SqlKeys:
    """The port `Keys` on an open `Database`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, digest: str) -> ApiKey | None:
        rows = await self._database.read(_FIND, {"sought": digest})
        return _decode(rows[0]) if rows else None

    async def create(self, key: ApiKey, digest: str) -> None:
        """Does nothing when the digest is registered already: that key stays as it is, disabled or not."""
        values = {name: getattr(key, name) for name in _FIELDS} | {"scopes": " ".join(sorted(key.scopes))}
        try:
            await self._database.write(_CREATE, {**values, "digest": digest})
        except Duplicate as error:
            if await self.find(digest) is None:
                raise InternalError(f"The key id {key.id} was given twice") from error

    async def list(self) -> Sequence[ApiKey]:
        """All keys, oldest first."""
        return [_decode(row) for row in await self._database.read(_LIST)]

    async def disable(self, key_id: str, *, now: float) -> bool:
        """False when there is no such key, or it was disabled before."""
        return bool(await self._database.write(_DISABLE, {"key": key_id, "now": now}))

    async def hold(self, key_id: str, reason: str, *, now: float) -> bool:
        return bool(await self._database.write(_HOLD, {"key": key_id, "why": reason, "now": now}))

    async def release(self, key_id: str) -> bool:
        return bool(await self._database.write(_RELEASE, {"key": key_id}))


def _decode(row: Row) -> ApiKey:
    values = dict(zip(_FIELDS, row, strict=True))
    values["scopes"] = frozenset(values["scopes"].split())
    return ApiKey(**values)


_FIELDS = tuple(column.name for column in api_keys.columns if column.name != "digest")
_KEY = [api_keys.c[name] for name in _FIELDS]
_FIND = select(*_KEY).where(api_keys.c.digest == bindparam("sought"))
_LIST = select(*_KEY).order_by(api_keys.c.created_at, api_keys.c.id)
_CREATE = insert(api_keys).values({column.name: bindparam(column.name) for column in api_keys.columns})
_DISABLE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key"), api_keys.c.disabled_at.is_(None))
    .values(disabled_at=bindparam("now"))
    .returning(api_keys.c.id)
)
_HOLD = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key"), api_keys.c.held_at.is_(None))
    .values(held_at=bindparam("now"), held_reason=bindparam("why"))
    .returning(api_keys.c.id)
)
_RELEASE = (
    update(api_keys)
    .where(api_keys.c.id == bindparam("key"), api_keys.c.held_at.is_not(None))
    .values(held_at=null(), held_reason=null())
    .returning(api_keys.c.id)
)
