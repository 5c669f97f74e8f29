"""API keys from the operator's side: straight on the job store, with no gateway running."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from gateway.core.access import digest, new_key, new_secret
from gateway.core.audit import Audit
from gateway.core.images import ApiKey
from gateway.desk.claim import replace_file
from gateway.desk.store import open_database
from gateway.jobs.audit import SqlAudit
from gateway.jobs.keys import SqlKeys
from gateway.settings import Settings


@asynccontextmanager
async def open_keys(settings: Settings) -> AsyncIterator[SqlKeys]:
    """The keys of the job store that the settings name; its tables are made when there are none."""
    async with open_database(settings) as database:
        yield SqlKeys(database)


async def release_key(settings: Settings, key_id: str, *, by: str) -> bool:
    """Accept a held key again, and write it into the audit. False when there is no such key, or it is not held."""
    async with open_database(settings) as database:
        keys = SqlKeys(database)
        if not any(key.id == key_id and key.held_at is not None for key in await keys.list()):
            return False
        # On record before it counts.
        await Audit(SqlAudit(database), now=time.time).key_released(key_id, by=by)
        return await keys.release(key_id)


def state(key: ApiKey) -> str:
    """In a word, whether a key is accepted."""
    if key.disabled_at is not None:
        return "disabled"
    return "active" if key.held_at is None else "held"


async def create_key(
    keys: SqlKeys,
    *,
    name: str,
    tenant: str = "default",
    tier: str = "standard",
    scopes: frozenset[str] = frozenset(),
) -> tuple[ApiKey, str]:
    """A new key and its secret, which is shown this once: only its hash is kept."""
    secret = new_secret()
    key = new_key(secret, tenant=tenant, name=name, tier=tier, scopes=scopes, now=time.time())
    await keys.create(key, digest(secret))
    return key, secret


async def first_key(settings: Settings) -> str:
    """The secret of a desk's first key, made when the job store has no key at all; empty when it has some.

    It is also left in ``<data>/api-key``, so that ``imgen generate`` works on the same desk with no set-up.
    """
    async with open_keys(settings) as keys:
        if await keys.list():
            return ""
        _, secret = await create_key(keys, name="first start")
    replace_file(key_file(settings.data), secret + "\n")
    return secret


async def desk_key(settings: Settings) -> str:
    """The key in ``<data>/api-key``; a new one is put there when there is none that the job store accepts."""
    async with open_keys(settings) as keys:
        secret = read_key(settings.data)
        known = await keys.find(digest(secret)) if secret else None
        if known is None or known.disabled_at is not None:
            _, secret = await create_key(keys, name="desk")
            replace_file(key_file(settings.data), secret + "\n")
    return secret


def key_file(data: Path) -> Path:
    return data / "api-key"


def read_key(data: Path) -> str:
    """The key that `first_key` left; empty when there is none."""
    try:
        return key_file(data).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
