"""What a search of the cache's index costs, and what else could have been searched with, over the same points.

Half of the points are spread over 512 scopes of uneven size, the other half are one big scope; then all are one scope.
Everything is measured in one process, a row after the other, and counted in CPU time of all threads: the clock on the
wall tells more of the machine's other work than of ours.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import itertools
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import psutil

from cache.encoder import Vector
from cache.index import Point
from cache.memory import MemoryIndex

Vectors = npt.NDArray[np.float32]

DIMENSIONS = 384
SCOPES = 512
#: Points around one centre: prompts come in families.
FAMILY = 200
FLOOR = 0.95
LIMIT = 10
BATCH = 2000
#: A graph of more points takes longer to build than all the rest.
GRAPH_UP_TO = 100_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to search. Times are in ms, of one search. ``found`` is the share of those that find the nearest.

    ``late`` is how late another task of the event loop was, p99; ``idle`` is the same while nothing was searched.
    """

    way: str
    points: int
    cpu: float
    p50: float
    p99: float
    found: float
    late: float | None = None
    idle: float | None = None
    note: str = ""


def run(*, million: bool = False, searches: int = 300) -> None:
    print(f"\nsearch of {DIMENSIONS} dimensions, top {LIMIT} above {FLOOR}; ms of one search")
    print("| points | way | CPU | p50 | p99 | loop late, p99 (idle) | right | |")
    print("|---:|---|---:|---:|---:|---:|---:|---|")
    for points in (1_000, 10_000, 100_000, *([1_000_000] if million else [])):
        for row in rows(points, searches=searches):
            late = "" if row.late is None else f"{row.late:.2f} ({row.idle:.2f})"
            numbers = f"{row.cpu:.3f} | {row.p50:.3f} | {row.p99:.3f} | {late} | {row.found:.1%}"
            print(f"| {row.points:,} | {row.way} | {numbers} | {row.note} |", flush=True)


def rows(points: int, *, searches: int = 300) -> Iterator[Row]:
    """Every way to search so many points, the index of the cache first."""
    yield from asyncio.run(_ours(points, searches))
    world = _World(points)
    vectors = np.empty((points, DIMENSIONS), np.float32)
    for start, batch in world.batches():
        vectors[start : start + BATCH] = batch
    asked = world.asked(searches, range(points))
    yield _row("numpy, all points", points, _fewer(asked, points), lambda _, vector: _numpy(vectors, vector))
    for way, build in (("usearch", _usearch), ("hnswlib", _hnswlib), ("qdrant-edge", _edge)):
        if points > GRAPH_UP_TO:
            continue
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            try:
                search = build(vectors, world, Path(folder))
            except ImportError:
                continue
            note = f"built in {time.process_time() - began:.1f} s of CPU"
            theirs = world.asked(searches, range(points // 2)) if way == "qdrant-edge" else asked
            scope = ", 512 scopes" if way == "qdrant-edge" else ", all points, no filter"
            yield _row(way + scope, points, theirs, search, note=note)
            del search
            gc.collect()


class _World:
    """Points by number, the same at each reading, and a batch at a time: a million of them are 1.5 GB."""

    def __init__(self, points: int, *, one_scope: bool = False) -> None:
        self.points = points
        chance = np.random.default_rng(points)
        self._centres = chance.standard_normal((max(8, points // FAMILY), DIMENSIONS), np.float32)
        weights = 1 / np.arange(1, SCOPES + 1)
        spread = 0 if one_scope else points // 2
        self.scope = np.full(points, SCOPES)
        self.scope[:spread] = chance.choice(SCOPES, spread, p=weights / weights.sum())

    def batches(self) -> Iterator[tuple[int, Vectors]]:
        for start in range(0, self.points, BATCH):
            yield start, self._vectors(start, min(BATCH, self.points - start))

    def asked(self, count: int, numbers: range) -> list[tuple[int, Vector]]:
        """Numbers of points and vectors near theirs."""
        chance = np.random.default_rng(0)
        wanted = sorted(chance.choice(numbers, count).tolist())
        near, start, batch = [], -1, np.empty((0, DIMENSIONS), np.float32)
        for number in wanted:
            if number // BATCH != start:
                start = number // BATCH
                batch = self._vectors(start * BATCH, min(BATCH, self.points - start * BATCH))
            vector = batch[number % BATCH] + chance.standard_normal(DIMENSIONS).astype(np.float32) * 0.005
            near.append((number, vector / np.linalg.norm(vector)))
        chance.shuffle(near)
        return near

    def _vectors(self, start: int, count: int) -> Vectors:
        chance = np.random.default_rng((self.points, start))
        vectors = self._centres[chance.integers(0, len(self._centres), count)]
        vectors += 0.7 * chance.standard_normal(vectors.shape, np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors


def _id(number: int) -> str:
    return f"{number:020}"


def _form(number: int) -> str:
    return f"{number:016x}{number:016x}"[::-1]


async def _ours(points: int, searches: int) -> list[Row]:
    world = _World(points)
    gc.collect()
    before = psutil.Process().memory_info().rss
    index, put = await _filled(world)
    gc.collect()
    each = (psutil.Process().memory_info().rss - before) / points
    spread = world.asked(searches, range(points // 2))
    # Fewer fit into what the process has had before.
    memory = f"{each:,.0f} bytes and " if points >= 100_000 else ""
    note = f"{memory}{1e6 * put:.0f} µs of CPU to put a point"
    measured = []
    for way, form in (("ours, 512 scopes, a form to agree on", True), ("ours, 512 scopes", False)):
        search = partial(_search, index, world, form=form)
        measured.append(await _own_row(way, world, spread, search, note))
    del index, search
    world = _World(points, one_scope=True)
    index, _ = await _filled(world)
    for way, form in (("ours, all in one scope, a form to agree on", True), ("ours, all in one scope", False)):
        asked = world.asked(searches, range(points))
        asked = asked if form else _fewer(asked, points)
        search = partial(_search, index, world, form=form)
        measured.append(await _own_row(way, world, asked, search))
    return measured


async def _filled(world: _World) -> tuple[MemoryIndex, float]:
    """An index of all points, and the seconds of CPU that it took to put one."""
    index, spent = MemoryIndex(DIMENSIONS), 0.0
    for start, batch in world.batches():
        points = [_point(world, start + row, vector) for row, vector in enumerate(batch)]
        began = time.process_time()
        await index.put(points)
        spent += time.process_time() - began
    return index, spent / world.points


def _point(world: _World, number: int, vector: Vector) -> Point:
    forms = {"ordered": _form(number), "words": _form(number)}
    return Point(id=_id(number), scope=str(world.scope[number]), forms=forms, vector=vector)


async def _search(index: MemoryIndex, world: _World, number: int, vector: Vector, *, form: bool) -> str | None:
    agree = ("ordered", _form(number)) if form else None
    scope = str(world.scope[number])
    found = await index.search(vector, scope=scope, floor=FLOOR, limit=LIMIT, now=0.0, form=agree)
    return found[0].id if found else None


def _fewer(asked: list[tuple[int, Vector]], points: int) -> list[tuple[int, Vector]]:
    return asked[: max(20, len(asked) * 20_000 // max(points, 20_000))]


async def _own_row(
    way: str,
    world: _World,
    asked: list[tuple[int, Vector]],
    search: Callable[[int, Vector], Awaitable[str | None]],
    note: str = "",
) -> Row:
    for number, vector in asked[:5]:
        await search(number, vector)
    times, right, began = [], 0, time.process_time()
    for number, vector in asked:
        one = time.perf_counter()
        right += await search(number, vector) == _id(number)
        times.append(time.perf_counter() - one)
    cpu = (time.process_time() - began) / len(asked)
    turns = itertools.cycle(asked)
    return Row(
        way=way,
        points=world.points,
        cpu=1e3 * cpu,
        p50=1e3 * float(np.quantile(times, 0.5)),
        p99=1e3 * float(np.quantile(times, 0.99)),
        late=await _late(lambda: search(*next(turns))),
        idle=await _late(lambda: asyncio.sleep(0.001)),
        found=right / len(asked),
        note=note,
    )


async def _late(other: Callable[[], Awaitable[object]], seconds: float = 2.0) -> float:
    """How many ms later than asked for a task of the event loop goes on, p99, while another does this over and over."""
    late: list[float] = []

    async def tick() -> None:
        while True:
            began = time.perf_counter()
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - began - 0.001)

    ticker = asyncio.create_task(tick())
    until = time.perf_counter() + seconds
    while time.perf_counter() < until:
        await other()
        await asyncio.sleep(0)
    ticker.cancel()
    return 1e3 * float(np.quantile(late, 0.99))


def _row(
    way: str, points: int, asked: list[tuple[int, Vector]], search: Callable[[int, Vector], int], *, note: str = ""
) -> Row:
    for number, vector in asked[:5]:
        search(number, vector)
    times, right, began = [], 0, time.process_time()
    for number, vector in asked:
        one = time.perf_counter()
        right += search(number, vector) == number
        times.append(time.perf_counter() - one)
    return Row(
        way=way,
        points=points,
        cpu=1e3 * (time.process_time() - began) / len(asked),
        p50=1e3 * float(np.quantile(times, 0.5)),
        p99=1e3 * float(np.quantile(times, 0.99)),
        found=right / len(asked),
        note=note,
    )


def _numpy(vectors: Vectors, vector: Vector) -> int:
    scores = vectors @ vector
    top = np.argpartition(scores, -LIMIT)[-LIMIT:]
    return int(top[scores[top].argmax()])


def _usearch(vectors: Vectors, world: _World, folder: Path) -> Callable[[int, Vector], int]:
    module = importlib.import_module("usearch.index")
    index = module.Index(ndim=DIMENSIONS, metric="cos", dtype="f16")
    index.add(np.arange(len(vectors)), vectors, threads=1)
    return lambda _, vector: int(index.search(vector, LIMIT, threads=1).keys[0])


def _hnswlib(vectors: Vectors, world: _World, folder: Path) -> Callable[[int, Vector], int]:
    module = importlib.import_module("hnswlib")
    index = module.Index(space="cosine", dim=DIMENSIONS)
    index.init_index(max_elements=len(vectors), ef_construction=128, M=16)
    index.set_num_threads(1)
    index.add_items(vectors, np.arange(len(vectors)))
    index.set_ef(64)
    return lambda _, vector: int(index.knn_query(vector, LIMIT)[0][0][0])


def _edge(vectors: Vectors, world: _World, folder: Path) -> Callable[[int, Vector], int]:
    """One combined keyword, no graph: what answers fastest there."""
    edge = importlib.import_module("qdrant_edge")
    config = edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(size=DIMENSIONS, distance=edge.Distance.Cosine),
        optimizers=edge.EdgeOptimizersConfig(indexing_threshold=10**9),
        max_search_threads=1,
    )
    shard = edge.EdgeShard.create(str(folder), config)
    shard.update(edge.UpdateOperation.create_field_index("scope", edge.PayloadSchemaType.Keyword))
    for start, batch in world.batches():
        there = [
            edge.Point(start + row, vector.tolist(), {"scope": str(world.scope[start + row])})
            for row, vector in enumerate(batch)
        ]
        shard.update(edge.UpdateOperation.upsert_points(there))

    def search(number: int, vector: Vector) -> int:
        match = edge.FieldCondition("scope", match=edge.MatchValue(str(world.scope[number])))
        request = edge.QueryRequest(
            limit=LIMIT,
            query=edge.Query.Nearest(vector.tolist()),
            filter=edge.Filter(must=[match]),
            score_threshold=FLOOR,
        )
        return next((int(point.id) for point in shard.query(request)), -1)

    return search
