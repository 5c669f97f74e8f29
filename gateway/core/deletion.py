"""Taking jobs away: by their callers, by the end of their time, by the operator. Marked first, purged after.

The mark is one durable write, and from it on nobody finds the job. All that follows is done by whichever replica gets
to it, under a lease, and each step can be done again: after a crash the purge begins anew and ends the same way.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import structlog

from gateway.core.advance import Policy
from gateway.core.audit import Audit
from gateway.core.images import HANDLE_TTL, Caller, Credentials, Delivery, Drawing, Job, State
from gateway.core.ports import AppealStore, Deletions, Records, Storage
from gateway.errors import InvalidField, JobNotFound, Unavailable

log = structlog.get_logger(__name__)

#: What a job may have in the storage; first that which has addresses.
FOLDERS = ("out", "unsafe", "raw", "master", "quarantine")
#: Where the originals lie that a review blocked: those of a rule about minors are evidence.
EVIDENCE = "quarantine"
#: Jobs that one look takes, and how many of them are purged at the same time.
BATCH = 32
AT_ONCE = 4
#: Seconds: the least time until a purged job is looked at once more, the longest back-off, and a time that never comes
#: (the end of the year 9999).
LOOK_AGAIN = 30.0
LONGEST_BACK_OFF = 300.0
NEVER = 253402300799.0
_DAY = 86400.0


class Deletion:
    """Marks jobs as deleted and purges them. Open it with `running` before use."""

    def __init__(
        self,
        *,
        store: Deletions,
        storage: Storage,
        records: Records,
        appeals: AppealStore,
        audit: Audit,
        forget: Callable[[str], Awaitable[None]],
        withdraw: Callable[[Job], Awaitable[None]],
        policy: Policy,
        now: Callable[[], float],
    ) -> None:
        """``forget`` takes the job of a ``gen_id`` out of the cache; ``withdraw`` tells the backend to stop one."""
        self._store = store
        self._storage = storage
        self._records = records
        self._appeals = appeals
        self._audit = audit
        self._forget = forget
        self._withdraw = withdraw
        self._policy = policy
        self._now = now
        self._wake: anyio.Event | None = None
        self._copies_at = 0.0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Purge in the background while the block runs. What is in hand at the end is left to its lease."""
        async with anyio.create_task_group() as tasks:
            self._wake = anyio.Event()
            tasks.start_soon(self._sweep_for_ever)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def delete(self, caller: Caller, job: Job) -> Job:
        """Take a job away from everybody; durable when it returns. The job as it stood at that moment.

        A queued or running one is cancelled by it. One that is being finished goes on to its end, for what the review
        says of it counts; its pictures are handed out to nobody and purged like all others.

        Raises `JobNotFound` when it was deleted already, and `StoreUnavailable`: then nothing has changed.
        """
        await self._audit.deleted(job, by=caller.key_id)
        deleted = await self._store.mark(job.gen_id, now=self._now())
        if deleted is None:
            raise JobNotFound
        log.info("job deleted", job=job.gen_id, key=caller.key_id, state=deleted.state)
        if self._wake is not None:
            self._wake.set()
        return deleted

    async def sweep(self) -> None:
        """Take away what is too old, a batch at a time, and purge what is due."""
        now = self._now()
        if self._policy.retention_days:
            before = now - self._policy.retention_days * _DAY
            for gen_id in await self._store.expire(ended_before=before, now=now, limit=BATCH):
                log.info("job deleted", job=gen_id, days=self._policy.retention_days)
        if now >= self._copies_at:
            # As long as an address that was given at the last moment still opens.
            before = now - HANDLE_TTL - self._policy.url_ttl
            gone = await self._store.expire_copies(created_before=before, now=now, limit=BATCH)
            self._copies_at = now if len(gone) == BATCH else now + LOOK_AGAIN
        room = anyio.Semaphore(AT_ONCE)
        async with anyio.create_task_group() as tasks:
            for gen_id in await self._store.due(now=now, limit=BATCH):
                tasks.start_soon(self._purge_quietly, gen_id, room)

    async def purge(self, gen_id: str) -> None:
        """Purge a deleted job. Does nothing when it is not due, or when somebody else is at it."""
        lease = secrets.token_hex(16)
        now = self._now()
        job = await self._store.claim(gen_id, lease=lease, now=now, until=now + self._policy.lease)
        if job is None:
            return
        try:
            await self._purge(job, lease)
        except Unavailable as exc:
            log.warning("purge failed", job=gen_id, code=exc.code, error=exc.message)
            await self._later(job, lease)
        except Exception:
            log.exception("purge failed", job=gen_id)
            await self._later(job, lease)

    async def _purge(self, job: Job, lease: str) -> None:
        await self._audit.expired(job)
        evidence = await self._audit.is_evidence(job.gen_id)
        kept = (EVIDENCE,) if evidence else ()
        for folder in FOLDERS:
            if folder not in kept:
                await self._storage.purge(f"{folder}/{job.gen_id}")
        await self._records.purge(job.gen_id)
        await self._forget(job.gen_id)
        await self._appeals.forget(job.gen_id, keep_words=evidence, now=self._now())
        now = self._now()
        # Until then a worker can still upload, or a replica that was thought dead may still store: look again, at
        # growing intervals.
        quiet_at = (job.finished_at or job.created_at) + self._policy.upload_ttl
        if job.state is State.CANCELLED and now < quiet_at:
            # Best effort, and never so long that the lease runs out over it.
            with anyio.move_on_after(self._policy.lease / 3):
                await self._withdraw(job)
        if not await self._store.renew(job.gen_id, lease=lease, until=self._now() + self._policy.lease):
            return
        await self._audit.purged(job, kept=kept)
        left = job if evidence else bare(job)
        if now < quiet_at:
            pause = max(LOOK_AGAIN, now - (job.deleted_at or now))
            await self._store.put_away(left, lease=lease, purged_at=None, next_at=min(now + pause, quiet_at))
        else:
            await self._store.put_away(left, lease=lease, purged_at=now, next_at=NEVER)
        log.info("job purged", job=job.gen_id, kept=kept)

    async def _later(self, job: Job, lease: str) -> None:
        """After a back-off with jitter; the mark holds meanwhile."""
        pause = min(2.0**job.tries, LONGEST_BACK_OFF) * random.uniform(0.5, 1.0)
        await self._store.later(job.gen_id, lease=lease, tries=job.tries + 1, next_at=self._now() + pause)

    async def _purge_quietly(self, gen_id: str, room: anyio.Semaphore) -> None:
        async with room:
            try:
                await self.purge(gen_id)
            except Unavailable as exc:
                log.warning("purge failed", job=gen_id, code=exc.code, error=exc.message)
            except Exception:
                log.exception("purge failed", job=gen_id)

    async def _sweep_for_ever(self) -> None:
        assert self._wake is not None
        while True:
            try:
                await self.sweep()
            except Unavailable as exc:
                log.warning("sweep of the deleted failed", error=exc.message)
            except Exception:
                # Whatever goes wrong with one job, the others must still go.
                log.exception("sweep of the deleted failed")
            with anyio.move_on_after(self._policy.sweep_interval):
                await self._wake.wait()
            self._wake = anyio.Event()


async def order_purge(store: Deletions, audit: Audit, job: Job, *, by: str, note: str, now: float) -> None:
    """The operator has a job purged with all that is evidence; the running gateway does it at its next look.

    On record before anything goes. Idempotent; raises `InvalidField` where nobody says who or why.
    """
    for field, text in (("by", by), ("note", note)):
        if not text.strip():
            raise InvalidField(field, "has no text", fix="Say who decides so and why: it stands in the audit.")
    await audit.purge_ordered(job, by=by.strip(), note=note.strip())
    await store.mark(job.gen_id, now=now)
    await store.reopen(job.gen_id, now=now)


def bare(job: Job) -> Job:
    """What stays of a purged job: whose it was, its ids, states, times, model, size and number, for bills and audit.

    No words, no names, no seeds, no fingerprints. Named one by one, so that what is added to a job goes by itself.
    """
    drawing, delivery = job.drawing, job.delivery
    return Job(
        gen_id=job.gen_id,
        public_id=job.public_id,
        surface=job.surface,
        tenant=job.tenant,
        key_id=job.key_id,
        request_id=job.request_id,
        drawing=Drawing(
            prompt="",
            positive="",
            negative="",
            model=drawing.model,
            worker_model=drawing.worker_model,
            style="",
            character="",
            width=drawing.width,
            height=drawing.height,
            seed=0,
            steps=drawing.steps,
            n=drawing.n,
        ),
        delivery=Delivery(
            format=delivery.format,
            quality=delivery.quality,
            lossless=delivery.lossless,
            ruleset=delivery.ruleset,
            credentials=Credentials(),
            tier=delivery.tier,
        ),
        created_at=job.created_at,
        deadline_at=job.deadline_at,
        state=job.state,
        backend_id=job.backend_id,
        attempt=job.attempt,
        step=job.step,
        total_steps=job.total_steps,
        started_at=job.started_at,
        drawn_at=job.drawn_at,
        finished_at=job.finished_at,
        fault=job.fault,
        deleted_at=job.deleted_at,
        source=job.source,
    )
