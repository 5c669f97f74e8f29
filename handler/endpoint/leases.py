"""What workers do with jobs: who holds which, whose word counts, and what happens to the jobs of a worker that is lost.

A job in progress is leased to one worker process. Only that process may end it; whatever comes from another, or too
late, is ignored. The lease ends by a result, by the supervisor's word, by silence, or by pings without the job.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from handler.endpoint import queries
from handler.endpoint.broker import Broker, Progress, message
from handler.endpoint.job import COMPLETED, FAILED, IN_PROGRESS, TIMED_OUT, Assignment, Job
from handler.endpoint.settings import Settings
from handler.endpoint.workers import Worker

log = logging.getLogger("imgen.endpoint")

LOST = "the worker was lost while it ran the job, {times} times; the endpoint gave up"
MISSED_PINGS = 2
DAY_S = 86400.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What a worker posted as the end of a job. `output` and `error` are JSON texts; `size` is that of the body."""

    output: str | None
    error: str | None
    stop_pod: bool
    size: int


class Leases:
    """The queue as workers and their supervisor see it."""

    def __init__(self, broker: Broker, settings: Settings) -> None:
        self._broker = broker
        self._store = broker.store
        self._workers = broker.workers
        self._settings = settings
        self._swept_at: float | None = None

    async def recover(self) -> None:
        """After a start: whoever holds a job gets a fresh lease, and those that retired stay so."""
        now = self._broker.now()
        for worker_id, gone in await self._store.transact(queries.retired):
            if gone:
                self._workers.mark_gone(worker_id)
            else:
                self._workers.get(worker_id, now).draining = True
        for job in await self._store.transact(queries.held):
            self._workers.get(job.worker or "", now)
            log.info("job still leased", extra=job.about())

    # -- what a worker asks -----------------------------------------------------------------------------------------

    async def polls(self, worker: Worker, *, holds_nothing: bool) -> None:
        """A worker's main process asks for work, and says whether it has any."""
        worker.heard_main(self._broker.now())
        if holds_nothing:
            await self._store.transact(queries.settle_stops, worker.id)
            worker.stuck = False

    async def take(self, worker: Worker, count: int) -> list[Assignment]:
        """Lease up to `count` jobs to the worker."""
        if not worker.may_take() or self._broker.closing:
            return []
        assigned = await self._store.transact(queries.assign, worker.id, count, self._broker.now())
        if assigned and not worker.may_take():
            await self.release(assigned)
            return []
        for each in assigned:
            worker.missing.pop(each.job.id, None)
            self._broker.announce(each.job, "job assigned")
        return assigned

    async def release(self, assigned: Sequence[Assignment]) -> None:
        """Take back what could not be handed over."""
        await self._store.transact(queries.release, [each.job for each in assigned])
        for each in assigned:
            log.info("job taken back before it reached the worker", extra=each.job.about())
        self._broker.bells.ring("take")

    async def stops(self, worker: Worker) -> list[str]:
        """The jobs that the worker shall stop and was not told of yet."""
        return await self._store.transact(queries.deliver_stops, worker.id, self._broker.now())

    async def undeliver(self, worker: Worker, jobs: Sequence[str]) -> None:
        await self._store.transact(queries.undeliver_stops, worker.id, jobs)

    # -- what a worker tells ----------------------------------------------------------------------------------------

    async def report(self, worker: Worker, job_id: str, output: str, sequence: int | None) -> None:
        """Keep the progress of a running job, unless it is late: posts overtake each other, and the result too."""
        worker.heard(self._broker.now())
        job = await self._broker.get(job_id)
        if (
            job is None
            or job.status != IN_PROGRESS
            or job.worker != worker.id
            or len(output) > self._settings.run_bytes
        ):
            log.debug("progress ignored", extra={"job": job_id, "worker": worker.id})
            return
        last = self._broker.progress.get(job_id)
        newest = last.sequence if last is not None and last.attempt == job.attempt else None
        if newest is not None and (sequence is None or sequence <= newest):
            return
        self._broker.progress[job_id] = Progress(attempt=job.attempt, sequence=sequence, output=output)

    async def chunk(self, worker: Worker, job_id: str, output: str) -> None:
        """Keep one streamed part of a running job."""
        worker.heard(self._broker.now())
        if not await self._store.transact(queries.add_chunk, job_id, worker.id, output):
            log.debug("stream part ignored", extra={"job": job_id, "worker": worker.id})

    async def done(self, worker: Worker, job_id: str, result: Result) -> None:
        """End a job, if this worker holds it. Anything else is a duplicate, or from a worker that lost the job."""
        worker.heard(self._broker.now())
        if result.stop_pod:
            # First, so that nothing is assigned to it between the result and the drain.
            await self.drain(worker.id)
        job = await self._store.transact(_done, worker.id, job_id, result, self._broker.now(), self._settings)
        if job is None:
            log.info("result ignored", extra={"job": job_id, "worker": worker.id})
        else:
            self._broker.announce(job, "job ended")

    async def ping(self, worker: Worker, named: Collection[str]) -> None:
        """Compare what the worker says it runs with what it should run. A job that it keeps not naming is lost."""
        now = self._broker.now()
        worker.heard(now)
        held = await self._store.transact(_ping, worker.id, sorted(named), now)
        worker.missing = {job.id: worker.missing.get(job.id, 0) for job in held}
        for job in held:
            if job.id in named:
                worker.missing[job.id] = 0
            elif now - (job.started_at or now) > self._settings.grace_s:
                worker.missing[job.id] += 1
        lost = [job for job in held if worker.missing[job.id] >= MISSED_PINGS]
        if lost:
            await self._requeue(lost, "the worker does not name the job in its pings")

    # -- what the supervisor tells ----------------------------------------------------------------------------------

    async def drain(self, worker_id: str) -> None:
        """Give the worker nothing any more and send its parked polls home. What it holds, it may finish."""
        self._workers.get(worker_id, self._broker.now()).draining = True
        self._broker.bells.ring("take")
        self._broker.bells.ring(f"stop:{worker_id}")
        await self._store.transact(queries.retire, worker_id, False, self._broker.now())
        log.info("worker draining", extra={"worker": worker_id})

    async def gone(self, worker_id: str) -> list[str]:
        """The worker's process has ended: queue what it held again, now."""
        self._workers.mark_gone(worker_id)
        held = await self._store.transact(_gone, worker_id, self._broker.now())
        log.info("worker gone", extra={"worker": worker_id, "held": len(held)})
        await self._requeue(held, "the worker is gone")
        self._broker.bells.ring_all()
        return [job.id for job in held]

    async def fleet(self) -> list[dict[str, object]]:
        """Every worker, what it does, and what should be done with it."""
        holds: dict[str, list[str]] = {}
        for job in await self._store.transact(queries.held):
            holds.setdefault(job.worker or "", []).append(job.id)
        listed: list[dict[str, object]] = []
        for worker in self._workers:
            jobs = holds.get(worker.id, [])
            listed.append(
                {
                    "id": worker.id,
                    "state": "draining" if worker.draining else "running" if jobs else "idle",
                    "job": jobs[0] if jobs else None,
                    "jobs": jobs,
                    "last_seen": round(worker.seen, 3),
                    "want": worker.want(),
                }
            )
        return listed

    # -- what time tells --------------------------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Look at timeouts, leases and retention once."""
        now = self._broker.now()
        asleep = now - self._swept_at - 2 * self._settings.sweep_s if self._swept_at is not None else 0.0
        self._swept_at = now
        if asleep > self._settings.grace_s / 2:
            log.warning("the endpoint did not run; leases are extended", extra={"seconds": round(asleep, 1)})
            self._workers.excuse(asleep)
        for worker in self._workers:
            if not worker.lost and worker.silent(now, self._settings.lease_s, self._settings.grace_s):
                worker.lost = True
                log.warning("worker lost", extra={"worker": worker.id})

        timed_out, held, deleted, stops = await self._store.transact(_sweep, now, self._settings)
        for job in timed_out:
            self._broker.announce(job, "job timed out")
        for job in deleted:
            log.info("job deleted: its time to live is over", extra=job.about())
            self._broker.bells.ring(f"job:{job.id}")
        for worker in self._workers:
            worker.stuck = now - stops.get(worker.id, now) > self._settings.kill_grace_s
        for worker_id in stops:
            self._broker.bells.ring(f"stop:{worker_id}")
        # Asked again, for a worker may have come back while the store was at work.
        lost = {worker.id for worker in self._workers if worker.lost}
        await self._requeue([job for job in held if job.worker in lost], "the worker is silent", stop=True)
        self._workers.forget_idle(now, {job.worker or "" for job in held})
        for job_id in set(self._broker.progress) - {job.id for job in held}:
            del self._broker.progress[job_id]

    async def _requeue(self, jobs: Sequence[Job], reason: str, *, stop: bool = False) -> None:
        limit = self._settings.requeues
        error = message(LOST.format(times=limit + 1))
        for job in jobs:
            now_is = await self._store.transact(queries.requeue, job, self._broker.now(), limit, error, stop=stop)
            if now_is is not None:
                log.warning(reason, extra=job.about())
                self._broker.announce(now_is, "job ended" if now_is.finished else "job queued again")


def _done(
    db: sqlite3.Connection, worker_id: str, job_id: str, result: Result, now: float, settings: Settings
) -> Job | None:
    queries.settle_stop(db, worker_id, job_id)
    job = queries.get(db, job_id)
    if job is None or job.status != IN_PROGRESS or job.worker != worker_id:
        return None
    output, error = result.output, result.error
    limit = settings.runsync_bytes if job.sync else settings.run_bytes
    if result.size > limit:
        output, error = (
            None,
            message(f"the result has {result.size} bytes, the limit is {limit}; upload it and return a link"),
        )
    queries.finish(db, job, COMPLETED if error is None else FAILED, now, output=output, error=error)
    return queries.get(db, job_id)


def _ping(db: sqlite3.Connection, worker_id: str, named: Sequence[str], now: float) -> list[Job]:
    # A ping may have left just before the worker heard of the stop, so a fresh stop is not settled by it.
    queries.settle_stops(db, worker_id, still=named, due_before=now - queries.START_S)
    return queries.held(db, worker_id)


def _gone(db: sqlite3.Connection, worker_id: str, now: float) -> list[Job]:
    queries.retire(db, worker_id, True, now)
    queries.settle_stops(db, worker_id)
    return queries.held(db, worker_id)


def _sweep(
    db: sqlite3.Connection, now: float, settings: Settings
) -> tuple[list[Job], list[Job], list[Job], dict[str, float]]:
    timed_out = []
    for job in queries.held(db):
        if now - (job.started_at or now) >= job.execution_timeout:
            text = f"the job ran longer than its executionTimeout of {round(job.execution_timeout * 1000)} ms"
            queries.finish(db, job, TIMED_OUT, now, error=message(text))
            timed_out.append(queries.get(db, job.id) or job)
    deleted = queries.expired(db, now)
    queries.forget(db, now, settings.keep_run_s, settings.keep_runsync_s)
    queries.forget_retired(db, now - DAY_S)
    return timed_out, queries.held(db), deleted, dict(queries.open_stops(db))
