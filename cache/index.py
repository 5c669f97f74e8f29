"""Where vectors are kept and found again by nearness, among those of one scope."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Protocol

from cache.encoder import Vector


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One drawn prompt. ``id`` names what was drawn (20 of a-z0-9): an id has one point, whatever its scope.

    ``scope`` is all that must be equal (tenant, model, style, character, ruleset, encoder ...) in one opaque word.
    ``forms`` has the prompt's canonical form for each level of the guard, as opaque words: at a level, two prompts with
    equal forms may stand for each other. Words are short (hashes), not empty, and have no NUL. ``vector`` has length 1.
    ``expires_at`` is in seconds since the epoch, None for never; from that second on the point is not found.
    """

    id: str
    scope: str
    forms: Mapping[str, str]
    vector: Vector = field(repr=False)
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Near:
    """A point that was found: its id, its cosine similarity (at most 1), and its forms."""

    id: str
    similarity: float
    forms: Mapping[str, str]


class Index(Protocol):
    """Vectors by nearness. Every method raises `cache.errors.IndexUnavailable` when there is no answer."""

    def open(self) -> AbstractAsyncContextManager[None]:
        """Ready for use while the block runs."""

    async def put(self, points: Sequence[Point]) -> None:
        """Keep these; a point replaces the one of its id, and of two with one id the later counts."""

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
        """At most ``limit`` points of a scope that have not expired at ``now`` and are strictly more similar than
        ``floor``, the nearest first; those that are equally near in no order.

        With ``form``, a level and a form, only those whose form at that level is equal.
        """

    async def remove(self, ids: Sequence[str]) -> None:
        """Forget these, where they are there."""

    async def clear(self) -> None:
        """Forget all."""

    async def count(self) -> int:
        """How many there are, those that have expired and were not removed among them."""

    def ids(self) -> AsyncIterator[str]:
        """All ids, in no order."""
