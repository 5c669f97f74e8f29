"""What a look into the cache costs, against a bare route and against the encoder alone: CPU time, in one run.

The look-up is what the gateway does between the prompt gate and the drawing: keys and canonical forms, the table of
entries, the vector, the index, the guard, and the job's own row. The bare route is a Starlette route that answers JSON,
under the load of `python -m bench calls`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import ClassVar

import orjson
import structlog

from bench.gateway_calls import KEY, server
from bench.load import measure
from cache.encoder import Encoder
from cache.memory import MemoryIndex
from cache.minilm import MiniLM
from compliance.verdict import Verdict
from gateway.core.cache_entries import fingerprint
from gateway.core.cache_feed import CacheFeed
from gateway.core.caching import CachePolicy, CacheWish, Caching
from gateway.core.embedding import Embedder
from gateway.core.images import (
    Caller,
    Delivery,
    Drawing,
    Drawn,
    Job,
    Outcome,
    PictureReview,
    RawPicture,
    State,
    StoredPicture,
)
from gateway.jobs.cache import SqlEntries
from gateway.jobs.database import Database
from gateway.jobs.migrations import migrate
from gateway.jobs.store import SqlJobs

CALLER = Caller(key_id="key_bench", tenant="default")
THINGS = ("house", "castle", "tree", "lighthouse", "boat", "fox", "owl", "bridge", "tower", "garden")
PLACES = ("on a hill", "by the sea", "in a forest", "in the city", "in the mountains", "in a desert")
TIMES = ("at noon", "at dawn", "at sunset", "at night")
MOODS = ("soft light", "heavy rain", "thin fog", "clear sky", "first snow")
PAINTS = ("red", "blue", "green", "yellow", "purple", "white", "black", "golden")


class Nothing:
    """Counts nothing, and knows one ruleset."""

    rulesets: ClassVar[dict[str, str]] = {"default": "1"}

    def cache_hit(self, tier: str, similarity: float, seconds: float) -> None: ...

    def cache_missed(self) -> None: ...

    def cache_refused(self, count: int) -> None: ...

    def cache_failed(self, cause: str) -> None: ...


def run(data: Path, *, rounds: int, entries: int = 1000, looks: int = 150) -> None:
    """Print a row for each kind of look-up."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    data.mkdir(parents=True, exist_ok=True)
    with server("bench.servers:echo") as (process, port):
        body = orjson.dumps({"action": "generate", "prompt": "a red house on a hill"})
        samples = [asyncio.run(measure(process, port, body, KEY, connections=32, seconds=2.0)) for _ in range(rounds)]
    bare = median(sample.cpu_us for sample in samples)
    rows = asyncio.run(_measure(data, rounds=rounds, entries=entries, looks=looks))
    encoder = rows["the encoder alone"]
    print(f"\nlooks into a cache of {entries} pictures, CPU us of all threads, medians of {rounds} rounds of {looks}")
    print(f"{'':<38}{'CPU us':>10}{'of a bare route':>18}{'of the encoder':>17}")
    for name, cpu in {"bare route": bare, **rows}.items():
        print(f"{name:<38}{cpu:>10.0f}{cpu / bare:>17.2f}x{cpu / encoder:>16.3f}x")


async def _measure(data: Path, *, rounds: int, entries: int, looks: int) -> dict[str, float]:
    url = f"sqlite:///{data / 'bench.db'}"
    await migrate(url)
    encoder = MiniLM.open(data / "encoder")
    database = Database(url)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(database.open())
        store, table = SqlJobs(database), SqlEntries(database)
        index = MemoryIndex(encoder.dimensions)
        await stack.enter_async_context(index.open())
        embedder = Embedder.ready(encoder, index)
        policy = CachePolicy()
        feed = CacheFeed(entries=table, embedder=embedder, policy=policy, now=time.time)
        drawings = [_drawing(prompt) for prompt in itertools.islice(_prompts(), entries)]
        for number, drawing in enumerate(drawings):
            await store.add(_job(number, drawing), lease="bench", until=0)
        await feed.fill()
        await feed.follow_all()
        caching = Caching(
            entries=table, jobs=store, embedder=Embedder.ready(encoder, index), compliance=Nothing(),  # type: ignore[arg-type]
            policy=policy, meter=Nothing(), now=time.time,
        )  # fmt: skip
        others = [_drawing(prompt) for prompt in itertools.islice(_prompts(), entries, entries + rounds * looks + 1)]
        ways: dict[str, Callable[[int], Awaitable[bool]]] = {
            "equal: a hit, asked a moment ago": lambda at: _find(caching, drawings[at % 8], exact=True),
            "equal: a hit": lambda at: _find(caching, drawings[at % entries], exact=True),
            "similar: a hit, words not seen before": lambda at: _find(
                Caching(
                    entries=table, jobs=store, embedder=Embedder.ready(encoder, index), compliance=Nothing(),  # type: ignore[arg-type]
                    policy=policy, meter=Nothing(), now=time.time,
                ),
                _drawing(_reworded(drawings[at % entries])), exact=False,
            ),
            "similar: a hit, words seen before": lambda at: _find(
                caching, _drawing(_reworded(drawings[at % 8])), exact=False
            ),
            "a miss, words not seen before": lambda at: _missed(caching, others[at]),
            "the encoder alone": lambda at: _encoded(encoder, _reworded(drawings[at % entries])),
        }  # fmt: skip
        taken: dict[str, list[float]] = {name: [] for name in ways}
        equal = [name for name in ways if name.startswith("equal")]
        words = [name for name in ways if name not in equal]
        for turn in range(rounds):
            # What embeds takes turns, so that a busy moment wrongs all of it alike; what does not, goes by itself.
            for names in (*([name] for name in equal), words):
                spent = dict.fromkeys(names, 0.0)
                for at in range(turn * looks, (turn + 1) * looks):
                    for name in names:
                        began = time.process_time()
                        assert await ways[name](at), name
                        spent[name] += time.process_time() - began
                for name, seconds in spent.items():
                    taken[name].append(seconds / looks * 1e6)
        return {name: median(each) for name, each in taken.items()}


async def _find(caching: Caching, drawing: Drawing, *, exact: bool) -> bool:
    found = await caching.find(CALLER, CacheWish(public_id="cache_0"), drawing, Delivery())
    return found.hit is not None and found.hit.exact is exact


async def _missed(caching: Caching, drawing: Drawing) -> bool:
    found = await caching.find(CALLER, CacheWish(public_id="cache_0"), drawing, Delivery())
    return found.hit is None and not found.notices


async def _encoded(encoder: Encoder, text: str) -> bool:
    return encoder.encode(text).shape == (encoder.dimensions,)


def _prompts() -> Iterator[str]:
    """Different prompts of about twelve words."""
    for mood, time_, place, thing, other, paint in itertools.product(MOODS, TIMES, PLACES, THINGS, THINGS, PAINTS):
        if thing != other:
            yield f"a {paint} {thing} and a {other} {place} {time_}, {mood}"


def _reworded(drawing: Drawing) -> str:
    """In other words that the guard takes for the same."""
    return f"The {drawing.text.removeprefix('a ')}"


def _drawing(prompt: str) -> Drawing:
    drawing = Drawing(
        prompt=prompt, positive=f"{prompt}, professional", negative="", model="eros", worker_model="builtin",
        style="professional", character="", width=1344, height=768, seed=1, text=prompt,
    )  # fmt: skip
    return replace(drawing, asked=fingerprint(drawing, optimize=False))


def _job(number: int, drawing: Drawing) -> Job:
    gen_id = f"{number:020d}"
    verdict = Verdict(safe=True, ruleset="default", ruleset_version="1")
    picture = StoredPicture(
        key=f"out/{gen_id}/{'0' * 64}.jpg", type="signed", index=0, filename="d.jpg", mime="image/jpeg", bytes=1,
        sha256="0" * 64, width=1344, height=768,
    )  # fmt: skip
    raw = RawPicture(index=0, seed=1, sha256="0" * 64, width=1344, height=768)
    return Job(
        gen_id=gen_id, public_id=f"run_{number}", surface="imgen", tenant="default", key_id="key_bench", request_id="",
        drawing=drawing, delivery=Delivery(), created_at=float(number), deadline_at=1e12, state=State.COMPLETED,
        started_at=1.0, drawn_at=3.0, finished_at=4.0,
        drawn=Drawn(pictures=(raw,), steps=14, guidance=3.5, sampler="s", family="f", revision="r"),
        outcome=Outcome(
            verdict=verdict, pictures=(picture, replace(picture, type="thumbnail")), quality=95,
            reviews=(PictureReview(index=0, verdict=verdict, key=f"master/{gen_id}/0.png"),),
        ),
    )  # fmt: skip
