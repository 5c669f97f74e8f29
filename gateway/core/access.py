"""Who is asking: API keys. A key is kept as the SHA-256 of its secret and known by its id and first characters."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Callable

from gateway.core.images import ApiKey, Caller
from gateway.core.ports import Keys
from gateway.errors import DisabledKey, HeldKey, InvalidKey, MissingKey

#: Seconds for which a look-up is remembered: how long a disabled key may go on at most.
REMEMBERED = 1.0
_MOST_REMEMBERED = 4096


def digest(secret: str) -> str:
    """What is stored of a secret: lowercase hex."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def new_secret() -> str:
    """A fresh API key: 256 bits, recognisable by its prefix."""
    return "imgen_" + secrets.token_urlsafe(32)


def new_key(secret: str, *, name: str, tenant: str, now: float, tier: str, scopes: frozenset[str]) -> ApiKey:
    """The record to store for a secret."""
    return ApiKey(
        id=f"key_{secrets.token_hex(6)}",
        tenant=tenant,
        name=name,
        # Enough to recognise it by, and never most of a short one.
        prefix=secret[: min(10, len(secret) // 3)],
        tier=tier,
        scopes=scopes,
        created_at=now,
    )


class Access:
    """Resolves a bearer token to its `Caller`."""

    def __init__(self, keys: Keys, *, now: Callable[[], float]) -> None:
        self._keys = keys
        self._now = now
        self._seen: dict[str, tuple[float, ApiKey | None]] = {}

    async def caller(self, authorization: str | None) -> Caller:
        """Raises `MissingKey`, `InvalidKey`, `DisabledKey` or `HeldKey`."""
        scheme, _, secret = (authorization or "").partition(" ")
        secret = secret.strip()
        if scheme.lower() != "bearer" or not secret:
            raise MissingKey
        key = await self._find(digest(secret))
        if key is None:
            raise InvalidKey
        if key.disabled_at is not None:
            raise DisabledKey
        if key.held_at is not None:
            raise HeldKey
        return Caller(key_id=key.id, tenant=key.tenant, tier=key.tier, scopes=key.scopes)

    async def _find(self, hashed: str) -> ApiKey | None:
        now = self._now()
        seen = self._seen.get(hashed)
        if seen is not None and now - seen[0] < REMEMBERED:
            return seen[1]
        key = await self._keys.find(hashed)
        # Unknown secrets are not remembered: guesses must not push real keys out.
        if key is not None:
            if len(self._seen) >= _MOST_REMEMBERED:
                self._seen.clear()
            self._seen[hashed] = (now, key)
        return key
