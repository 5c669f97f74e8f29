"""The semantic cache: which completed job's originals may stand for what is asked now.

Two tiers. *Exact*: everything that was asked is equal; one look-up in the table of entries. *Semantic*: similarity
proposes among the jobs of one scope, the guard disposes (see `cache.guard`). Whatever an index says, the rows of the
job store decide: only a completed job of the same tenant that is not deleted, and that was cleared under the same
ruleset and version for the same tier, is ever a hit. Nothing here fails a request: what does not answer is a miss.
"""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

import anyio
import structlog

from cache.encoder import Encoder, Vector
from cache.errors import CacheError
from cache.guard import Level
from cache.index import Near
from gateway.core.cache_entries import (
    also,
    entry_of,
    fit,
    form_at,
    handed_out,
    index_scope,
    key_of,
    scope_of,
    seconds_of,
    size_of,
    words_of,
)
from gateway.core.embedding import Embedder
from gateway.core.images import Caller, Delivery, Drawing, Entry, Hit, Job, Notice, State
from gateway.core.ports import CacheMeter, Compliance, Entries, Jobs
from gateway.errors import CacheUnavailable, Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)
V = TypeVar("V")

#: Points that one look takes from the index.
PROPOSED = 64
#: Points of an index in memory up to which near misses are counted: without a form all of a scope are compared.
_COUNTED = 20_000
#: Entries of one key that are looked at: the newest.
_OF_KEY = 16
#: Seconds without a question to an index that did not answer.
REST = 5.0
#: Seconds that rows are remembered, as long as a job that was deleted through another replica may still be found by
#: this one; and how many.
_REMEMBERED = 1.0
_MOST_REMEMBERED = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheWish:
    """What a caller wants of the cache. ``pick`` is the size of the pool that one is chosen from by chance."""

    public_id: str
    only: bool = False
    force: bool = False
    pick: int = 5
    match: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePolicy:
    """The settings of the same names."""

    cache_guard: Level = "ordered"
    cache_floor: float = 0.95
    cache_force_floor: float = 0.0
    cache_timeout: float = 0.5
    cache_days: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A job whose originals may be handed out anew, those of its pictures that will be, and why; or what was amiss."""

    source: Job | None = None
    indexes: tuple[int, ...] = ()
    hit: Hit | None = None
    notices: tuple[Notice, ...] = ()


class Caching:
    """Looks jobs up and writes them down. `gateway.core.cache_feed` keeps the index up to date."""

    def __init__(
        self,
        *,
        entries: Entries,
        jobs: Jobs,
        embedder: Embedder,
        compliance: Compliance,
        policy: CachePolicy,
        meter: CacheMeter,
        now: Callable[[], float],
        shared: bool = False,
        chance: random.Random | None = None,
    ) -> None:
        """``shared`` says that other replicas use the index too, so that it outlives this process."""
        self._entries = entries
        self._jobs = jobs
        self._embedder = embedder
        self._compliance = compliance
        self._policy = policy
        self._meter = meter
        self._now = now
        self._shared = shared
        self._chance = chance or random.SystemRandom()
        self._rests_until = 0.0
        self._of_key: _Recent[tuple[str, int | None], list[Entry]] = _Recent(now)
        self._rows: _Recent[str, Job | None] = _Recent(now)
        #: Called when there is something new to index.
        self.on_new: Callable[[], None] = lambda: None

    async def find(self, caller: Caller, wish: CacheWish, drawing: Drawing, delivery: Delivery) -> Found:
        """A hit, or none; in both cases with what the caller must know. Never raises for the cache's own faults.

        The drawing is the one that would be drawn, before anything optimises its prompt.
        """
        ask = _Ask(
            caller=caller,
            wish=wish,
            drawing=drawing,
            delivery=delivery,
            version=self._compliance.rulesets.get(delivery.ruleset, ""),
        )
        try:
            found = await self._exact(ask) or await self._semantic(ask)
        except Unavailable as exc:
            log.warning("cache not asked", code=exc.code, error=exc.message)
            return self._missed("store", Found(notices=(_notice("cache_unavailable", "the job store did not answer"),)))
        if found.hit is None:
            self._meter.cache_missed()
        else:
            self._meter.cache_hit("exact" if found.hit.exact else "semantic", found.hit.similarity, found.hit.saved)
            log.info("cache hit", job=found.hit.gen_id, exact=found.hit.exact, similarity=found.hit.similarity)
        return found

    async def remember(self, job: Job) -> None:
        """Write down a job that is about to be completed. Best effort: what is missing is filled in later."""
        entry = entry_of(job, self._policy.cache_days)
        if entry is None:
            return
        try:
            await self._entries.add(entry)
        except Unavailable as exc:
            log.warning("cache not written", job=job.gen_id, error=exc.message)
            return
        self.on_new()

    async def forget(self, gen_id: str) -> None:
        """Take a job out of the cache. Raises `StoreUnavailable`, and `CacheUnavailable` for an index that is away."""
        await self._entries.remove(gen_id)
        if self._embedder.index is None:
            if self._shared:
                raise CacheUnavailable
            return
        try:
            await self._embedder.index.remove([gen_id])
        except CacheError as exc:
            raise CacheUnavailable from exc

    def deleted(self, gen_id: str) -> None:
        """A job was deleted here: from now on it is no hit of this replica."""
        self._rows.drop(gen_id)

    # The tiers

    async def _exact(self, ask: _Ask) -> Found | None:
        if ask.wish.force:
            return None  # the whole scope is the pool, by the caller's own wish
        asked = await self._of_key.get(
            (ask.key, ask.seed),
            lambda: self._entries.of_key(ask.key, seed=ask.seed, now=self._now(), limit=_OF_KEY),
        )
        pool = [each for each in asked if each.pictures >= ask.drawing.n][: ask.wish.pick]
        return await self._first([(each.gen_id, 1.0) for each in ask.shuffled(pool, self._chance)], ask, exact=True)

    async def _semantic(self, ask: _Ask) -> Found:
        if not ask.drawing.text:
            return Found()
        if self._embedder.index is None:
            return self._missed("loading", _UNANSWERED)
        if self._now() < self._rests_until:
            return self._missed("resting", _UNANSWERED)
        try:
            with anyio.fail_after(self._policy.cache_timeout):
                encoder, vector = await self._embedder.embed(ask.drawing.text)
                near = await self._propose(ask, encoder, vector)
        except (CacheError, TimeoutError) as exc:
            self._rests_until = self._now() + REST
            log.warning("cache not asked", error=str(exc) or type(exc).__name__)
            return self._missed("timeout" if isinstance(exc, TimeoutError) else "error", _UNANSWERED)
        size = size_of(ask.drawing)
        same_size = [each for each in near if each.forms.get("dimensions") == size]
        pool = (same_size or near)[: ask.wish.pick]
        chosen = [(each.id, min(each.similarity, 1.0)) for each in ask.shuffled(pool, self._chance)]
        return await self._first(chosen, ask, exact=False) or Found()

    async def _propose(self, ask: _Ask, encoder: Encoder, vector: Vector) -> list[Near]:
        """What may stand for the words, the nearest first: above the floor, and passed by the guard."""
        policy, wish = self._policy, ask.wish
        level: Level = "off" if wish.force else policy.cache_guard
        floor = policy.cache_force_floor if wish.force else policy.cache_floor

        index = self._embedder.index
        assert index is not None

        async def search(form: tuple[str, str] | None) -> list[Near]:
            return await index.search(
                vector,
                scope=index_scope(ask.scope, encoder),
                floor=floor,
                limit=PROPOSED,
                now=self._now(),
                form=form,
            )

        if level == "off":
            passed = await search(None)
        else:
            # The guard first: an index can look for equal forms, and finds among a million what it may hand out.
            passed = await search((level, form_at(level, *words_of(ask.drawing))))
            if not passed and (self._shared or await index.count() <= _COUNTED):
                self._meter.cache_refused(len(await search(None)))
        matching = {name: value for name, value in also(ask.drawing).items() if name in wish.match}
        return [
            each
            for each in passed
            if int(each.forms.get("pictures", 1)) >= ask.drawing.n
            and all(each.forms.get(name) == value for name, value in matching.items())
        ]

    async def _first(self, chosen: Sequence[tuple[str, float]], ask: _Ask, *, exact: bool) -> Found | None:
        """The first of these that may really be handed out."""
        for gen_id, similarity in chosen:
            # An index may still have what the operator purged.
            known = exact or self._lives(await self._entries.get(gen_id))
            job = await self._rows.get(gen_id, partial(self._jobs.get, gen_id)) if known else None
            indexes = handed_out(job) if job is not None and self._may(job, ask) else ()
            if job is None or len(indexes) < ask.drawing.n:
                await self._doubt(gen_id, job)
                continue
            return Found(
                source=job,
                indexes=indexes[: ask.drawing.n],
                hit=Hit(
                    gen_id=gen_id,
                    exact=exact,
                    similarity=round(similarity, 4),
                    matched=job.drawing.prompt,
                    prompt=ask.drawing.prompt,
                    saved=seconds_of(job),
                ),
                notices=_other_size(job, ask.drawing),
            )
        return None

    def _lives(self, entry: Entry | None) -> bool:
        return entry is not None and (entry.expires_at is None or entry.expires_at > self._now())

    def _may(self, job: Job, ask: _Ask) -> bool:
        """Whether the row says what the entry said, and whether it is still true."""
        if job.state is not State.COMPLETED or not fit(job) or job.outcome is None:
            return False
        verdict = job.outcome.verdict
        of = (job.tenant, job.delivery.tier, verdict.ruleset, verdict.ruleset_version)
        return scope_of(job.drawing, *of) == ask.scope

    async def _doubt(self, gen_id: str, job: Job | None) -> None:
        """Forget what points at nothing any more. An open job may yet be completed, and then it is to be found."""
        if job is not None and job.open:
            self._rows.drop(gen_id)
            return
        if job is not None and job.state is State.COMPLETED and fit(job):
            return
        try:
            await self.forget(gen_id)
        except Unavailable as exc:
            log.warning("cache not tidied", job=gen_id, error=exc.message)

    def _missed(self, cause: str, found: Found) -> Found:
        self._meter.cache_failed(cause)
        return found


class _Recent(Generic[K, V]):
    """What was read a moment ago: a prompt that everybody asks for costs one read a second."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._known: OrderedDict[K, tuple[float, V]] = OrderedDict()

    async def get(self, key: K, read: Callable[[], Awaitable[V]]) -> V:
        now = self._now()
        known = self._known.get(key)
        if known is not None and now - known[0] < _REMEMBERED:
            return known[1]
        value = await read()
        if not value:
            return value  # it may be there in the next moment
        self._known[key] = now, value
        self._known.move_to_end(key)
        if len(self._known) > _MOST_REMEMBERED:
            self._known.popitem(last=False)
        return value

    def drop(self, key: K) -> None:
        self._known.pop(key, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Ask:
    """One question, with the words by which it is looked up."""

    caller: Caller
    wish: CacheWish
    drawing: Drawing
    delivery: Delivery
    version: str
    key: str = field(init=False)
    scope: str = field(init=False)

    def __post_init__(self) -> None:
        of = (self.caller.tenant, self.caller.tier, self.delivery.ruleset, self.version)
        object.__setattr__(self, "key", key_of(self.drawing.asked, *of))
        object.__setattr__(self, "scope", scope_of(self.drawing, *of))

    @property
    def seed(self) -> int | None:
        """The seed that was asked for, None where chance chose it."""
        return self.drawing.seed if self.drawing.seeded else None

    def shuffled(self, pool: Sequence[T], chance: random.Random) -> list[T]:
        """In an order by chance; the same one each time for a caller who names a seed (resolution I17)."""
        by = random.Random(f"{self.drawing.seed}") if self.drawing.seeded else chance
        return by.sample(pool, len(pool))


def _other_size(job: Job, drawing: Drawing) -> tuple[Notice, ...]:
    have, want = size_of(job.drawing), size_of(drawing)
    return (Notice(code="cache_size", field="width,height", given=want, used=have),) if have != want else ()


def _notice(code: str, used: str) -> Notice:
    return Notice(code=code, field="use_cache", given="true", used=used)


#: What a caller is told who sends pictures, or asks where there is no cache.
WITH_REFERENCES = Found(notices=(_notice("cache_skipped", "requests with references are always drawn"),))
SWITCHED_OFF = Found(notices=(_notice("cache_off", "the cache is switched off here"),))
_UNANSWERED = Found(notices=(_notice("cache_unavailable", "only equal requests were looked for"),))
