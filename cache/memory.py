"""An index in this process's memory: exact, partitioned by scope, gone with the process and refilled at the start.

A scope is a list of blocks, a block a few columns; rows never move, so that a search may run in a thread while the
event loop puts and removes. What such a search has found is looked at once more under the lock before it counts.

There is no graph for large scopes: one of 100,000 points answers in 0.7 ms where comparing them all takes 15 ms, but
costs 1 ms of CPU and 1 kB for each point at every start, and knows neither forms nor expiry. With a form to agree on,
which is the rule, few vectors are compared at all.
"""

from __future__ import annotations

import itertools
import threading
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import NamedTuple, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import numpy as np
import numpy.typing as npt

from cache.encoder import Vector
from cache.index import Near, Point

#: Points up to which a search compares vectors on the event loop: 0.1 ms, what the way to a thread and back costs.
INLINE = 1500
#: Points of a scope up to which a search looks for a form on the event loop: as long.
INLINE_FORMS = 100 * INLINE
#: Points of a block at most, and so what the number of a place leaves room for.
ROWS = 65536
#: A scope's first block grows by copying up to here, 3 MB. The next are as large as all before them together.
COPIED = 2048
#: Steps of a long loop after which others have their turn.
TURN = 64

T = TypeVar("T", bound=np.generic)
Rows = npt.NDArray[np.intp]
_NONE: Rows = np.empty(0, np.intp)


class MemoryIndex:
    """Implements `cache.index.Index`. Belongs to one event loop; never raises `IndexUnavailable`."""

    def __init__(self, dimensions: int) -> None:
        self._dimensions = dimensions
        self._lock = threading.Lock()
        # Its own, so that a search never waits behind pictures.
        self._threads = anyio.CapacityLimiter(4)
        self._numbers = itertools.count()
        self._scopes: dict[str, list[_Block]] = {}
        self._blocks: dict[int, _Block] = {}
        # A place is the number of a block times ROWS, plus the row: one small integer for each point.
        self._places: dict[str, int] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        yield

    async def put(self, points: Sequence[Point]) -> None:
        for done, point in enumerate(points, 1):
            if point.vector.shape != (self._dimensions,):
                raise ValueError(f"a vector of shape {point.vector.shape} among those of {self._dimensions} numbers")
            with self._lock:
                self._put(point)
            if done % TURN == 0:
                await anyio.lowlevel.checkpoint()

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
        blocks = list(self._scopes.get(scope, ()))
        asked = (blocks, np.asarray(vector, np.float32), floor, limit, now, form)
        if _is_quick(blocks, form):
            return self._search(*asked)
        # It only reads, so who is tired of waiting may go.
        return await anyio.to_thread.run_sync(self._search, *asked, limiter=self._threads, abandon_on_cancel=True)

    async def remove(self, ids: Sequence[str]) -> None:
        for done, id in enumerate(ids, 1):
            with self._lock:
                self._remove(id)
            if done % TURN == 0:
                await anyio.lowlevel.checkpoint()

    async def clear(self) -> None:
        with self._lock:
            for block in self._blocks.values():
                block.expires_at[:] = -np.inf
            self._scopes, self._blocks, self._places = {}, {}, {}

    async def count(self) -> int:
        return len(self._places)

    async def ids(self) -> AsyncIterator[str]:
        for done, id in enumerate(list(self._places), 1):
            yield id
            if done % TURN == 0:
                await anyio.lowlevel.checkpoint()

    def _put(self, point: Point) -> None:
        place = self._places.get(point.id)
        if place is not None and (block := self._blocks[place // ROWS]).scope == point.scope:
            block.write(place % ROWS, point)
            return
        self._remove(point.id)
        block = self._block_with_room(point.scope)
        self._places[point.id] = block.number * ROWS + block.add(point)

    def _block_with_room(self, scope: str) -> _Block:
        blocks = self._scopes.setdefault(scope, [])
        for block in reversed(blocks):
            if block.has_room():
                return block
        capacity = min(ROWS, sum(block.count for block in blocks)) if blocks else 2
        block = _Block(next(self._numbers), scope, capacity, self._dimensions, grows=not blocks)
        blocks.append(block)
        self._blocks[block.number] = block
        return block

    def _remove(self, id: str) -> None:
        place = self._places.pop(id, None)
        if place is None:
            return
        block = self._blocks[place // ROWS]
        block.drop(place % ROWS)
        if not block.count:
            del self._blocks[block.number]
            blocks = self._scopes[block.scope]
            blocks.remove(block)
            if not blocks:
                del self._scopes[block.scope]

    def _search(
        self,
        blocks: Sequence[_Block],
        vector: Vector,
        floor: float,
        limit: int,
        now: float,
        form: tuple[str, str] | None,
    ) -> list[Near]:
        lowest, agree = _at_most(floor), (form[0], _Word.of(form[1])) if form else None
        found = [(block, *block.near(vector, lowest, limit, now, agree)) for block in blocks]
        best = sorted(
            ((score, block, row) for block, rows, scores in found for row, score in zip(rows, scores, strict=True)),
            key=lambda each: each[0],
            reverse=True,
        )
        with self._lock:
            nears = [block.read(row, vector, now, form) for _, block, row in best[:limit]]
        hits = [near for near in nears if near and near.similarity > floor]
        return sorted(hits, key=lambda near: near.similarity, reverse=True)


def _is_quick(blocks: Sequence[_Block], form: tuple[str, str] | None) -> bool:
    points = sum(block.count for block in blocks)
    if form is None or points <= INLINE:
        return points <= INLINE
    agree = form[0], _Word.of(form[1])
    return points <= INLINE_FORMS and sum(len(block.agreeing(*agree)) for block in blocks) <= INLINE


class _Block:
    """Columns of one scope's points. A row that is free has expired before all time."""

    def __init__(self, number: int, scope: str, capacity: int, dimensions: int, *, grows: bool) -> None:
        self.number = number
        self.scope = scope
        self.count = 0
        self.expires_at = np.full(capacity, -np.inf)
        self._grows = grows
        self._used = 0
        self._free: list[int] = []
        self._vectors = np.empty((capacity, dimensions), np.float32)
        self._ids = _Words(capacity)
        self._forms: dict[str, _Words] = {}

    def has_room(self) -> bool:
        capacity = len(self.expires_at)
        return bool(self._free) or self._used < capacity or (self._grows and capacity < COPIED)

    def add(self, point: Point) -> int:
        if self._free:
            row = self._free.pop()
        else:
            row = self._used
            if row == len(self.expires_at):
                self._grow(2 * row)
        self.write(row, point)
        self._used = max(self._used, row + 1)
        self.count += 1
        return row

    def write(self, row: int, point: Point) -> None:
        self._vectors[row] = point.vector
        self._ids.write(row, point.id)
        for level in point.forms.keys() - self._forms.keys():
            self._forms = {**self._forms, level: _Words(len(self.expires_at))}
        for level, words in self._forms.items():
            words.write(row, point.forms.get(level, ""))
        self.expires_at[row] = np.inf if point.expires_at is None else point.expires_at

    def drop(self, row: int) -> None:
        self.expires_at[row] = -np.inf
        self._free.append(row)
        self.count -= 1

    def read(self, row: int, vector: Vector, now: float, form: tuple[str, str] | None) -> Near | None:
        """A row as it is now, or None if it is not what was looked for any more."""
        forms = {level: word for level, words in self._forms.items() if (word := words.read(row))}
        if self.expires_at[row] <= now or (form and forms.get(form[0]) != form[1]):
            return None
        # Rounding takes a vector's product with itself a little over 1.
        similarity = min(1.0, float(np.vecdot(self._vectors[row], vector)))
        return Near(id=self._ids.read(row), similarity=similarity, forms=forms)

    def agreeing(self, level: str, form: _Word) -> Rows:
        """The rows of a form, those that have expired among them."""
        used = self._used
        words = self._forms.get(level)
        return words.rows_of(form, used) if words else _NONE

    def near(
        self, vector: Vector, floor: np.float32, limit: int, now: float, agree: tuple[str, _Word] | None
    ) -> tuple[list[int], list[float]]:
        """The rows and the scores of the nearest, in no order, while others may write."""
        if agree is None:
            used = self._used  # before the columns, which only get longer
            # One row after another: a product with the matrix goes to BLAS, whose threads spin and hold up the rest.
            scores = np.vecdot(self._vectors[:used], vector)
            rows = ((scores > floor) & (self.expires_at[:used] > now)).nonzero()[0]
            scores = scores[rows]
        else:
            rows = self.agreeing(*agree)
            if not len(rows):
                return [], []
            rows = rows[self.expires_at[rows] > now]
            scores = np.vecdot(self._vectors[rows], vector)
        if len(rows) > limit:
            nearest = np.argpartition(scores, -limit)[-limit:]
            rows, scores = rows[nearest], scores[nearest]
        return rows.tolist(), scores.tolist()

    def _grow(self, capacity: int) -> None:
        self._vectors = _longer(self._vectors, capacity)
        self._ids.grow(capacity)
        for words in self._forms.values():
            words.grow(capacity)
        # Last, and free where it is new: a row is there once it has not expired.
        free = np.full(capacity - self._used, -np.inf)
        self.expires_at = np.concatenate([self.expires_at, free])


class _Word(NamedTuple):
    """A word as it is compared: two bytes that most others do not share, and all of it, eight bytes at a time."""

    tag: np.uint16
    packed: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, word: str) -> _Word:
        data = word.encode()
        packed = np.frombuffer(data.ljust(-(-len(data) // 8) * 8 or 8, b"\0"), np.uint64)
        return cls(np.uint16(zlib.crc32(data) & 0xFFFF), packed)


class _Words:
    """A column of short words: their tags, and a lane for each eight bytes.

    To find a word among a million is to read two megabytes of tags.
    """

    def __init__(self, capacity: int) -> None:
        self._tags = np.zeros(capacity, np.uint16)
        self._lanes = np.zeros((1, capacity), np.uint64)

    def write(self, row: int, word: str) -> None:
        tag, packed = _Word.of(word)
        if len(packed) > len(self._lanes):
            self._lanes = _longer(self._lanes, len(packed))
        self._lanes[: len(packed), row] = packed
        self._lanes[len(packed) :, row] = 0
        self._tags[row] = tag

    def read(self, row: int) -> str:
        return self._lanes[:, row].tobytes().rstrip(b"\0").decode()

    def rows_of(self, word: _Word, used: int) -> Rows:
        """Which of the first rows have this word."""
        lanes, packed = self._lanes, word.packed
        if len(packed) > len(lanes):
            return _NONE
        rows: Rows = (self._tags[:used] == word.tag).nonzero()[0]
        for lane in range(len(lanes)):
            if not len(rows):
                break
            rows = rows[lanes[lane, rows] == (packed[lane] if lane < len(packed) else 0)]
        return rows

    def grow(self, capacity: int) -> None:
        self._tags = _longer(self._tags, capacity)
        self._lanes = np.ascontiguousarray(_longer(self._lanes.T, capacity).T)


def _longer(column: npt.NDArray[T], length: int) -> npt.NDArray[T]:
    """A copy with zeros after what was there."""
    longer = np.zeros((length, *column.shape[1:]), column.dtype)
    longer[: len(column)] = column
    return longer


def _at_most(floor: float) -> np.float32:
    """The last of the 32-bit floats that are not above: scores above the one are those above the other."""
    near = np.float32(floor)
    return np.nextafter(near, np.float32(-np.inf)) if near > floor else near
