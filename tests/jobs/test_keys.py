"""API keys in the store."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from gateway.core.images import ApiKey
from gateway.errors import InternalError
from gateway.jobs.keys import SqlKeys

pytestmark = pytest.mark.anyio

KEY = ApiKey(
    id="key_0123456789ab",
    tenant="default",
    name="Ada's laptop",
    prefix="imgen_abcdef",
    tier="pro",
    scopes=frozenset({"generate", "quarantine"}),
    created_at=1000.5,
)


async def test_a_key_is_found_by_the_digest_of_its_secret(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    assert await keys.find("digest") == KEY
    assert await keys.find("another") is None


async def test_registering_a_secret_again_changes_nothing(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    await keys.create(replace(KEY, id="key_other", name="again"), "digest")
    assert await keys.list() == [KEY]


async def test_a_disabled_key_stays_disabled_when_it_is_registered_again(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    assert await keys.disable(KEY.id, now=2000.5)
    await keys.create(replace(KEY, id="key_other"), "digest")
    assert await keys.find("digest") == replace(KEY, disabled_at=2000.5)


async def test_replicas_can_register_the_same_secret_at_once(keys: SqlKeys) -> None:
    await asyncio.gather(*(keys.create(replace(KEY, id=f"key_{n}"), "digest") for n in range(5)))
    assert len(await keys.list()) == 1


async def test_a_key_id_is_never_given_twice(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    with pytest.raises(InternalError):
        await keys.create(KEY, "another")


async def test_a_key_is_disabled_once(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    assert await keys.disable(KEY.id, now=1.0)
    assert not await keys.disable(KEY.id, now=2.0)
    assert not await keys.disable("key_unknown", now=2.0)
    assert await keys.list() == [replace(KEY, disabled_at=1.0)]


async def test_keys_are_listed_oldest_first(keys: SqlKeys) -> None:
    new, old = replace(KEY, id="key_b", created_at=2.0), replace(KEY, id="key_a", created_at=1.0, scopes=frozenset())
    await keys.create(new, "new")
    await keys.create(old, "old")
    assert await keys.list() == [old, new]


async def test_a_held_key_is_accepted_again_when_it_is_released(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    assert await keys.hold(KEY.id, "a review", now=2000.5)
    assert await keys.find("digest") == replace(KEY, held_at=2000.5, held_reason="a review")
    assert await keys.release(KEY.id)
    assert await keys.find("digest") == KEY


async def test_a_key_is_held_and_released_once(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    assert not await keys.release(KEY.id)
    assert await keys.hold(KEY.id, "first", now=1.0)
    assert not await keys.hold(KEY.id, "second", now=2.0)
    assert await keys.list() == [replace(KEY, held_at=1.0, held_reason="first")]
    assert await keys.release(KEY.id)
    assert not await keys.release(KEY.id)
    assert not await keys.hold("key_unknown", "a review", now=1.0)


async def test_a_held_key_stays_held_when_its_secret_is_registered_again(keys: SqlKeys) -> None:
    await keys.create(KEY, "digest")
    await keys.hold(KEY.id, "a review", now=1.0)
    await keys.create(replace(KEY, id="key_other"), "digest")
    assert await keys.list() == [replace(KEY, held_at=1.0, held_reason="a review")]
