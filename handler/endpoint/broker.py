"""What clients do with jobs, and how everybody who waits hears of it."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass

from handler.endpoint import queries
from handler.endpoint.bells import Bells
from handler.endpoint.job import CANCELLED, FAILED, IN_PROGRESS, IN_QUEUE, TIMED_OUT, Job, Submission
from handler.endpoint.store import Store
from handler.endpoint.workers import Workers

log = logging.getLogger("imgen.endpoint")


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """The newest progress of one attempt: kept in memory only, for the next one replaces it soon."""

    attempt: int
    sequence: int | None
    output: str


class Broker:
    """The queue as clients see it."""

    def __init__(
        self, *, store: Store, workers: Workers, bells: Bells, now: Callable[[], float], new_id: Callable[[], str]
    ) -> None:
        self.store = store
        self.workers = workers
        self.bells = bells
        self.now = now
        self.progress: dict[str, Progress] = {}
        self.closing = False
        self._new_id = new_id

    def close(self) -> None:
        """Let go of everybody who waits: the process ends."""
        self.closing = True
        self.bells.ring_all()

    def announce(self, job: Job, event: str) -> None:
        """Tell everybody who waits for this job what just became of it."""
        log.info(event, extra=job.about())
        if job.status != IN_PROGRESS:
            self.progress.pop(job.id, None)
        if job.status == IN_QUEUE:
            self.bells.ring("take")
        if job.finished:
            self.bells.ring(f"job:{job.id}")
            if job.webhook is not None:
                self.bells.ring("webhooks")
            if job.worker is not None and job.status in {CANCELLED, TIMED_OUT}:
                self.bells.ring(f"stop:{job.worker}")

    async def submit(self, given: Submission) -> str:
        """Queue a job; it is on the disk when this returns."""
        job_id = ("sync-" if given.sync else "") + self._new_id()
        await self.store.transact(queries.insert, job_id, given, self.now())
        log.info("job queued", extra={"job": job_id, "request_id": given.request_id})
        self.bells.ring("take")
        return job_id

    async def get(self, job_id: str) -> Job | None:
        return await self.store.transact(queries.get, job_id)

    def wire(self, job: Job) -> bytes:
        """The status JSON; a running job shows its newest progress as output."""
        progress = self.progress.get(job.id)
        current = progress is not None and progress.attempt == job.attempt
        return job.wire(self.now(), progress.output if progress is not None and current else None)

    async def wait(self, job_id: str, seconds: float) -> Job | None:
        """The job as soon as it has ended, or as it is when the time is up."""
        deadline = asyncio.get_running_loop().time() + seconds
        while True:
            bell = self.bells.listen(f"job:{job_id}")
            job = await self.get(job_id)
            left = deadline - asyncio.get_running_loop().time()
            if job is None or job.finished or left <= 0 or self.closing:
                return job
            await asyncio.wait({bell}, timeout=left)

    async def cancel(self, job_id: str) -> Job | None:
        """Cancel a job that has not ended; one that has keeps its end."""
        job, changed = await self.store.transact(_cancel, job_id, self.now())
        if job is not None and changed:
            self.announce(job, "job cancelled")
        return job

    async def retry(self, job_id: str) -> tuple[Job | None, bool]:
        """Queue a job again that failed or timed out. The flag says whether it was one of these."""
        job, changed = await self.store.transact(_retry, job_id, self.now())
        if job is not None and changed:
            self.announce(job, "job retried")
        return job, changed

    async def purge(self) -> int:
        """Remove every queued job."""
        removed = await self.store.transact(queries.purge)
        log.info("queue purged", extra={"removed": len(removed)})
        for job_id in removed:
            self.bells.ring(f"job:{job_id}")
        return len(removed)

    async def stream(self, job_id: str) -> tuple[Job | None, list[str]]:
        """The job and the streamed parts that were not read yet."""
        return await self.store.transact(lambda db: (queries.get(db, job_id), queries.take_chunks(db, job_id)))

    async def health(self) -> dict[str, dict[str, int]]:
        counts = await self.store.transact(queries.counts)
        holders = {job.worker for job in await self.store.transact(queries.held)}
        up = [worker for worker in self.workers if worker.want() != "kill"]
        running = sum(worker.id in holders for worker in up)
        ready = [worker for worker in up if worker.may_take() and worker.id not in holders]
        return {
            "jobs": {
                "completed": counts.get("COMPLETED", 0),
                "failed": counts.get("FAILED", 0) + counts.get("TIMED_OUT", 0),
                "inProgress": counts.get(IN_PROGRESS, 0),
                "inQueue": counts.get(IN_QUEUE, 0),
                "retried": counts["retried"],
            },
            "workers": {
                "idle": len(ready),
                "initializing": 0,
                "ready": len(ready),
                "running": running,
                "throttled": 0,
                "unhealthy": sum(worker.want() == "kill" for worker in self.workers),
            },
        }


def message(text: str) -> str:
    """An error of the endpoint itself, as the JSON text that a job row holds."""
    return json.dumps(text)


def _cancel(db: sqlite3.Connection, job_id: str, now: float) -> tuple[Job | None, bool]:
    job = queries.get(db, job_id)
    if job is None or job.finished:
        return job, False
    queries.finish(db, job, CANCELLED, now)
    return queries.get(db, job_id), True


def _retry(db: sqlite3.Connection, job_id: str, now: float) -> tuple[Job | None, bool]:
    job = queries.get(db, job_id)
    if job is None or job.status not in {FAILED, TIMED_OUT}:
        return job, False
    queries.retry(db, job, now)
    return queries.get(db, job_id), True
