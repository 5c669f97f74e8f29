"""Lossless originals that are kept for less long than their jobs: those of delivered pictures, and the blocked ones.

Walks through the ended jobs, oldest first and a few at a time, and once in a while from the beginning, for what had to
be left. Each job is taken under a lease; each step can be done again.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import structlog

from gateway.core.advance import Policy
from gateway.core.audit import Audit
from gateway.core.images import Job, Outcome, State
from gateway.core.ports import AppealStore, KeptOriginals, Storage
from gateway.errors import Unavailable

log = structlog.get_logger(__name__)

#: Rows that one look passes over, and how many of them it purges at most.
LOOK = 200
BATCH = 16
#: Seconds from one walk from the beginning to the next, and those after a part that does not answer.
ROUND = 6 * 3600.0
PAUSE = 60.0
_DAY = 86400.0
_START = (0.0, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Term:
    """How long a folder of originals is kept, and what goes with it."""

    folder: str
    days: float
    with_it: tuple[str, ...] = ()


class Originals:
    """Purges originals whose time is over. Open it with `running` before use."""

    def __init__(
        self,
        *,
        store: KeptOriginals,
        storage: Storage,
        appeals: AppealStore,
        audit: Audit,
        policy: Policy,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._storage = storage
        self._appeals = appeals
        self._audit = audit
        self._policy = policy
        self._now = now
        terms = (
            Term(folder="master", days=policy.master_days),
            Term(folder="quarantine", days=policy.quarantine_days, with_it=("unsafe",)),
        )
        self._terms = tuple(term for term in terms if term.days)
        #: How far each walk has come: (next_at, gen_id) of the last row.
        self._walks = {(term, state): _START for term in self._terms for state in (State.COMPLETED, State.BLOCKED)}
        self._began = now()
        self._not_before = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Purge in the background while the block runs. What is in hand at the end is left to its lease."""
        async with anyio.create_task_group() as tasks:
            if self._terms:
                tasks.start_soon(self._walk_for_ever)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def step(self) -> None:
        """Go a few rows further on each walk."""
        now = self._now()
        if now < self._not_before:
            return
        if now >= self._began + ROUND:
            self._began = now
            self._walks = dict.fromkeys(self._walks, _START)
        try:
            for term, state in self._walks:
                await self._walk(term, state)
        except Unavailable as exc:
            log.warning("originals wait", error=exc.message)
            self._not_before = self._now() + PAUSE

    async def _walk(self, term: Term, state: State) -> None:
        purged = 0
        before, after = self._now() - term.days * _DAY, self._walks[term, state]
        for place, holds in await self._store.ended(state, holding=term.folder, before=before, after=after, limit=LOOK):
            if holds:
                await self._purge(place[1], term)
                purged += 1
            self._walks[term, state] = place
            if purged == BATCH:
                return

    async def _purge(self, gen_id: str, term: Term) -> None:
        lease = secrets.token_hex(16)
        now = self._now()
        job = await self._store.claim(gen_id, lease=lease, now=now, until=now + self._policy.lease)
        if job is None or job.outcome is None:
            return
        if await self._is_needed(job, term):
            await self._store.put(job, lease=lease)
            return
        for folder in (term.folder, *term.with_it):
            await self._storage.purge(f"{folder}/{gen_id}")
        if await self._store.renew(gen_id, lease=lease, until=self._now() + self._policy.lease):
            await self._audit.originals_purged(job, folder=term.folder)
            await self._store.put(replace(job, outcome=without(job.outcome, term.folder)), lease=lease)
            log.info("originals purged", job=gen_id, folder=term.folder)

    async def _is_needed(self, job: Job, term: Term) -> bool:
        """What a person has yet to decide about stays, and so does evidence."""
        if term.folder != "quarantine":
            return False
        appeal = await self._appeals.latest(job.gen_id)
        return (appeal is not None and appeal.state == "open") or await self._audit.is_evidence(job.gen_id)

    async def _walk_for_ever(self) -> None:
        while True:
            try:
                await self.step()
            except Exception:
                # Whatever goes wrong with one job, the others must still be looked at.
                log.exception("originals wait")
                self._not_before = self._now() + PAUSE
            await anyio.sleep(self._policy.sweep_interval)


def without(outcome: Outcome, folder: str) -> Outcome:
    """An outcome whose originals in a folder are gone, and the copies that were made of blocked ones with them."""
    reviews = tuple(
        replace(review, key="", unsafe=None) if review.key.startswith(f"{folder}/") else review
        for review in outcome.reviews
    )
    masters = tuple(key for key in outcome.masters if not key.startswith(f"{folder}/"))
    return replace(outcome, reviews=reviews, masters=masters)
