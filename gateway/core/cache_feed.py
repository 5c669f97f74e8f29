"""Keeps an index of the cache's entries up to date: embeds what is new, fills in what is missing, lets go what is old.

The table of entries is the one durable copy. An index of this process follows it by its numbers; one that replicas
share is given what it has not got, and the table says what that is. Either can be lost and is made again.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import numpy as np
import structlog

from cache.encoder import Encoder, Vector
from cache.errors import CacheError
from cache.index import Index, Point
from gateway.core.cache_entries import entry_of, index_scope
from gateway.core.caching import CachePolicy
from gateway.core.embedding import Embedder
from gateway.core.images import Entry
from gateway.core.ports import Entries
from gateway.errors import Unavailable

log = structlog.get_logger(__name__)

#: Entries that one step takes.
BATCH = 200
#: Seconds between two looks for new entries, between two for expired ones, and after a part that does not answer.
FRESH = 1.0
SWEEP = 60.0
PAUSE = 10.0
#: Rows of the job store that one look for missing entries passes over.
WINDOW = 200
#: A number may become visible after a higher one: the last ones are looked at again, in so many seconds.
_OVERLAP = 100
LOOK_BACK = 10.0


class CacheFeed:
    """What runs beside the requests. Open it with `running`."""

    def __init__(
        self,
        *,
        entries: Entries,
        embedder: Embedder,
        policy: CachePolicy,
        now: Callable[[], float],
        shared: str = "",
    ) -> None:
        """``shared`` names an index that other replicas use too; empty for one of this process."""
        self._entries = entries
        self._embedder = embedder
        self._policy = policy
        self._now = now
        self._shared = shared
        self._last = 0
        self._look_back_at = 0.0
        self._recent: dict[int, None] = {}
        self._new: anyio.Event | None = None

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with anyio.create_task_group() as tasks:
            self._new = anyio.Event()
            tasks.start_soon(self._follow_for_ever)
            tasks.start_soon(self._tidy_for_ever)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    def wake(self) -> None:
        """There is a new entry."""
        if self._new is not None:
            self._new.set()

    async def follow(self) -> int:
        """Index some entries that are not indexed yet; how many. Raises `Unavailable` and `CacheError`."""
        encoder, index = self._embedder.encoder, self._embedder.index
        if encoder is None or index is None:
            return 0
        if self._shared:
            name = f"{self._shared} {encoder.hash}"
            fresh = await self._entries.unindexed(name, limit=BATCH)
            await self._put(fresh, encoder, index)
            await self._entries.indexed([entry.gen_id for entry in fresh], name)
            return len(fresh)
        looks_back = self._now() >= self._look_back_at
        after = max(0, self._last - _OVERLAP) if looks_back else self._last
        rows = await self._entries.after(after, limit=BATCH + _OVERLAP)
        fresh = [entry for entry in rows if entry.number not in self._recent]
        await self._put(fresh, encoder, index)
        self._recent.update((entry.number, None) for entry in fresh)
        self._last = max([self._last, *(entry.number for entry in fresh)])
        self._recent = {number: None for number in self._recent if number > self._last - _OVERLAP}
        if looks_back:
            self._look_back_at = self._now() + LOOK_BACK
        return len(fresh)

    async def follow_all(self) -> int:
        """Index all that is not indexed yet; how many. The encoder must be there. Raises as `follow` does."""
        count = 0
        while step := await self.follow():
            count += step
        return count

    async def fill(self) -> int:
        """Write down all completed jobs that have no entry; how many. Raises `Unavailable`."""
        count, after = 0, ""
        while True:
            last, jobs = await self._entries.missing(after, limit=WINDOW)
            for job in jobs:
                entry = entry_of(job, self._policy.cache_days)
                if entry is not None and (entry.expires_at is None or entry.expires_at > self._now()):
                    await self._entries.add(entry)
                    count += 1
            if last is None:
                return count
            after = last

    async def count(self) -> int:
        """Points of the index. Raises `CacheError`."""
        return 0 if self._embedder.index is None else await self._embedder.index.count()

    async def forget(self, gen_ids: Sequence[str]) -> None:
        """Take these out of the index. Raises `CacheError`."""
        if self._embedder.index is not None:
            await self._embedder.index.remove(gen_ids)

    async def clear(self) -> None:
        """Take all out of the index. Raises `CacheError`."""
        if self._embedder.index is not None:
            await self._embedder.index.clear()

    async def expire(self) -> int:
        """Let go some entries whose time is over; how many. Raises `Unavailable` and `CacheError`."""
        if self._embedder.index is None:
            return 0
        gone = await self._entries.expire(now=self._now(), limit=BATCH)
        if gone:
            await self.forget(gone)
        return len(gone)

    async def _put(self, fresh: Sequence[Entry], encoder: Encoder, index: Index) -> None:
        points = []
        for entry in fresh:
            if not entry.text:
                continue  # nothing but a character: only an equal request finds it
            points.append(
                Point(
                    id=entry.gen_id,
                    scope=index_scope(entry.scope, encoder),
                    forms=entry.forms | {"pictures": str(entry.pictures)},
                    vector=await self._vector(entry, encoder),
                    expires_at=entry.expires_at,
                )
            )
        if points:
            await index.put(points)

    async def _vector(self, entry: Entry, encoder: Encoder) -> Vector:
        if entry.encoder == encoder.hash and entry.vector is not None:
            return np.frombuffer(entry.vector, "<f4")
        _, vector = await self._embedder.embed(entry.text)
        await self._entries.embedded(entry.gen_id, encoder.hash, np.asarray(vector, "<f4").tobytes())
        return vector

    async def _follow_for_ever(self) -> None:
        assert self._new is not None
        while True:
            pause = FRESH
            try:
                await self.follow_all()
            except (Unavailable, CacheError) as exc:
                log.warning("cache not indexed", error=str(exc))
                pause = PAUSE
            except Exception:
                # Whatever goes wrong with one entry, those to come must still be indexed.
                log.exception("cache not indexed")
                pause = PAUSE
            if pause == FRESH:
                with anyio.move_on_after(pause):
                    await self._new.wait()
                self._new = anyio.Event()
            else:
                await anyio.sleep(pause)

    async def _tidy_for_ever(self) -> None:
        filled = False
        while True:
            try:
                if not filled and await self.fill():
                    self.wake()
                filled = True
                while await self.expire() == BATCH:
                    pass
            except (Unavailable, CacheError) as exc:
                log.warning("cache not tidied", error=str(exc))
            except Exception:
                log.exception("cache not tidied")
            await anyio.sleep(SWEEP)
