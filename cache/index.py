"""Where vectors are kept and found again by nearness, among those of one scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from cache.encoder import Vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One drawn prompt. ``id`` names what was drawn (20 of a-z0-9); points of an id that is there are replaced.

    ``scope`` is all that must be equal (tenant, model, style, character, ruleset, encoder ...) in one opaque word.
    ``forms`` has the prompt's canonical form for each level of the guard, as opaque words: at a level, two prompts with
    equal forms may stand for each other. ``expires_at`` is in seconds since the epoch, None for never.
    """

    id: str
    scope: str
    forms: Mapping[str, str]
    vector: Vector = field(repr=False)
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A point that was found: its id, its cosine similarity, and its forms."""

    id: str
    similarity: float
    forms: Mapping[str, str]


class Index(Protocol):
    """Vectors by nearness. Every method raises `cache.errors.IndexUnavailable` when there is no answer."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Ready for use while the block runs."""

    async def put(self, points: Sequence[Point]) -> None: ...

    async def search(
        self,
        vector: Vector,
        *,
        scope: str,
        floor: float,
        limit: int,
        now: float,
        form: tuple[str, str] | None = None,
    ) -> list[Near]:
        """Points of a scope that have not expired and are strictly more similar than ``floor``, the nearest first.

        With ``form``, a level and a form, only those whose form at that level is equal.
        """

    async def remove(self, ids: Sequence[str]) -> None:
        """Forget these, where they are there."""

    async def clear(self) -> None:
        """Forget all."""

    async def count(self) -> int: ...

    def ids(self) -> AsyncIterator[str]:
        """All ids, in no order."""
