"""What moves a job forward: hand over, poll, finish. Idempotent; any replica may do any step, one at a time.

`advance` is the only way forward. It works under a lease, and its writes are fenced by that lease, so that a replica
which lost it changes nothing. It is called by whoever learns something first: the backend's webhook, or the sweeper,
which looks at every open job whether or not a client ever asks again.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial

import anyio
import anyio.abc
import structlog

from compliance.verdict import Verdict
from gateway.core.audit import Audit
from gateway.core.finishing import DrawAgain, Finisher, raw_key, raw_prefix
from gateway.core.images import Fault, Job, Outcome, RenderOrder, Report, State
from gateway.core.ports import Backend, Jobs, Storage
from gateway.core.safeguard import Safeguard
from gateway.errors import BackendRefused, BackendUnavailable, GatewayError, Unavailable

log = structlog.get_logger(__name__)

#: How often a job is handed to the backend, and how often a step may fail in a way that nobody foresaw.
MAX_ATTEMPTS = 2
MAX_STUMBLES = 12
#: Jobs that one replica moves at the same time.
AT_ONCE = 64
#: Seconds for removing what an ended job leaves over. Its lease is over then, which must not break that off.
TIDY = 30.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Times in seconds, where the name does not say days; see the settings of the same names."""

    execution_timeout: float = 300
    job_ttl: float = 330
    url_ttl: float = 3600
    unsafe_url_ttl: float = 300
    upload_ttl: float = 3600
    lease: float = 15
    sweep_interval: float = 1
    poll_interval: float = 2
    finish_deadline: float = 180
    retention_days: float = 0
    quarantine_days: float = 0
    master_days: float = 0


class Advancer:
    """Moves jobs to their end. Open it with `running` before use."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        backend: Backend,
        storage: Storage,
        finisher: Finisher,
        audit: Audit,
        safeguard: Safeguard,
        policy: Policy,
        now: Callable[[], float],
        webhook: Callable[[str, int], str | None] = lambda gen_id, attempt: None,
        remember: Callable[[Job], Awaitable[None]] | None = None,
    ) -> None:
        """``remember`` tells the cache of a job that is about to be completed."""
        self._jobs = jobs
        self._backend = backend
        self._storage = storage
        self._finisher = finisher
        self._audit = audit
        self._safeguard = safeguard
        self._policy = policy
        self._now = now
        self._webhook = webhook
        self._tell_cache = remember
        self._tasks: anyio.abc.TaskGroup | None = None
        #: The jobs in hand, and whether somebody asked for one again meanwhile.
        self._advancing: dict[str, bool] = {}

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Sweep and advance in the background while the block runs. What is in hand at the end is left to its lease."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            tasks.start_soon(self._sweep_for_ever)
            try:
                yield
            finally:
                self._tasks = None
                tasks.cancel_scope.cancel()

    async def hint(self, gen_id: str, attempt: int, backend_id: str) -> None:
        """Somebody says that the backend is done with an attempt. Only a hint: the backend itself is asked."""
        job = await self._jobs.get(gen_id)
        if job is None or not job.open or job.attempt != attempt:
            return
        if job.backend_id is None:
            await self._jobs.adopt(gen_id, backend_id)
        self.nudge(gen_id)

    async def advance(self, gen_id: str) -> None:
        """Move a job as far as it goes now. Does nothing when it has ended or when somebody else is at it."""
        lease = secrets.token_hex(16)
        now = self._now()
        job = await self._jobs.claim(gen_id, lease=lease, now=now, until=now + self._policy.lease)
        if job is None:
            return
        with structlog.contextvars.bound_contextvars(request_id=job.request_id):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._keep_lease, gen_id, lease, tasks.cancel_scope)
                try:
                    await self._step(job, lease)
                except Unavailable as exc:
                    log.warning("advance failed", job=gen_id, code=exc.code, error=exc.message)
                    await self._stumble(gen_id, lease)
                except Exception:
                    log.exception("advance failed", job=gen_id)
                    await self._stumble(gen_id, lease)
                tasks.cancel_scope.cancel()

    async def _step(self, job: Job, lease: str) -> None:
        if job.state is State.FINISHING:
            await self._finish(job, lease)
        elif job.backend_id is None:
            await self._hand_over_again(job, lease)
        else:
            await self._poll(job, lease)

    async def hand_over(self, job: Job, lease: str) -> Job:
        expires_at = self._now() + self._policy.upload_ttl
        order = RenderOrder(
            gen_id=job.gen_id,
            request_id=job.request_id,
            drawing=job.drawing,
            slots=tuple(
                self._storage.slot(raw_key(job, index), expires_at=expires_at) for index in range(job.drawing.n)
            ),
            loans=tuple(
                self._storage.loan(reference.key, expires_at=expires_at) for reference in job.drawing.references
            ),
            webhook=self._webhook(job.gen_id, job.attempt),
            execution_timeout=self._policy.execution_timeout,
            ttl=max(job.deadline_at - self._now(), 10),
            deadline_at=job.deadline_at,
        )
        backend_id = await self._backend.submit(order)
        submitted = replace(job, backend_id=backend_id, tries=0, next_at=self._now() + self._policy.poll_interval)
        log.info("job submitted", job=job.gen_id, backend_id=backend_id, attempt=job.attempt)
        if not await self._jobs.save(submitted, lease=lease, release=True):
            # Cancelled, or taken over, while the backend answered: what we started must not draw.
            await withdraw(self._backend, submitted)
        return submitted

    async def _hand_over_again(self, job: Job, lease: str) -> None:
        """The outbox rule: a row that never got a backend id is handed over by whoever finds it."""
        if self._now() >= job.deadline_at:
            await self.end(job, lease, State.TIMED_OUT, Fault(code="deadline"))
            return
        try:
            await self.hand_over(job, lease)
        except BackendUnavailable:
            await self._later(job, lease)
        except BackendRefused as exc:
            await self.end(job, lease, State.FAILED, Fault(code=exc.code))

    async def _poll(self, job: Job, lease: str) -> None:
        assert job.backend_id is not None
        try:
            report = await self._backend.poll(job.backend_id)
        except BackendUnavailable:
            if self._now() >= job.deadline_at + self._policy.execution_timeout:
                await self.end(job, lease, State.TIMED_OUT, Fault(code="backend_unavailable"))
            else:
                await self._later(job, lease)
            return
        await self._take(job, lease, report)

    async def _take(self, job: Job, lease: str, report: Report) -> None:
        now = self._now()
        match report.state:
            case "completed" if report.drawn is not None:
                await self._drawn(job, lease, report)
            case "queued" | "running":
                started = job.started_at or (now if report.state == "running" else None)
                open_job = replace(
                    job,
                    state=State.RUNNING if report.state == "running" else State.QUEUED,
                    started_at=started,
                    # A report can be late, or come from a worker that took the job over: numbers never fall.
                    step=max(job.step, report.step),
                    total_steps=max(job.total_steps, report.total_steps),
                    tries=0,
                    next_at=now + self._policy.poll_interval,
                )
                if now >= job.deadline_at + self._policy.execution_timeout:
                    await self.end(open_job, lease, State.TIMED_OUT, Fault(code="deadline"))
                    await withdraw(self._backend, open_job)
                else:
                    await self._jobs.save(open_job, lease=lease, release=True)
            case "timed_out":
                await self.end(job, lease, State.TIMED_OUT, Fault(code="execution_timeout"))
            case "cancelled":
                await self.end(job, lease, State.CANCELLED, Fault(code="cancelled"))
            case "gone":
                await self._again(job, lease, State.TIMED_OUT, Fault(code="backend_forgot_job"))
            case _:
                fault = report.fault or Fault(code="backend_failed")
                if report.retryable:
                    await self._again(job, lease, State.FAILED, fault)
                else:
                    await self.end(job, lease, State.FAILED, fault)

    async def _drawn(self, job: Job, lease: str, report: Report) -> None:
        """The picture is paid for: write down that it exists before anything else happens to it."""
        assert report.drawn is not None
        now = self._now()
        pictures = sorted(report.drawn.pictures, key=lambda picture: picture.index)
        if [picture.index for picture in pictures] != list(range(job.drawing.n)):
            log.error("worker drew other pictures than ordered", job=job.gen_id, ordered=job.drawing.n)
            await self.end(job, lease, State.FAILED, Fault(code="worker_contract"))
            return
        for picture in pictures:
            if picture.data is not None:
                await self._storage.keep(raw_key(job, picture.index), picture.data)
        drawn = replace(report.drawn, pictures=tuple(replace(picture, data=None) for picture in pictures))
        steps = job.total_steps or drawn.steps * job.drawing.n
        finishing = replace(
            job,
            state=State.FINISHING,
            drawn=drawn,
            step=steps,
            total_steps=steps,
            # The webhook often comes before a poll has seen it run; then the worker's own time tells when it began.
            started_at=job.started_at or max(now - report.execution_time, job.created_at),
            drawn_at=now,
            tries=0,
            next_at=now,
        )
        log.info("job drawn", job=job.gen_id, timings=drawn.timings)
        if await self._jobs.save(finishing, lease=lease, release=False):
            await self._finish(finishing, lease)

    async def _finish(self, job: Job, lease: str) -> None:
        record = partial(self._record, job)
        try:
            if job.source:
                finished = await self._finisher.copy(job, await self._jobs.get(job.source), record)
            elif job.release:
                finished = await self._finisher.release(job, record)
            else:
                finished = await self._finisher.finish(job, record)
        except DrawAgain as exc:
            log.warning("picture unusable", job=job.gen_id, code=exc.code, reason=str(exc))
            await self._again(job, lease, State.FAILED, Fault(code=exc.code))
            return
        except GatewayError as exc:
            await self._finish_later(job, lease, exc)
            return
        state = _state_of(finished)
        done = replace(job, state=state, outcome=finished, finished_at=self._now())
        # Before the commit, so that a crash between the two loses nothing: what points at an open job is no hit.
        await self._remember(done)
        if not await self._jobs.save(done, lease=lease, release=True):
            # Somebody else's result counts; ours must not lie around.
            await self._finisher.discard(finished)
            return
        log.info("job finished", job=job.gen_id, state=state, timings=finished.timings)
        with anyio.move_on_after(TIDY, shield=True):
            await self._finisher.tidy(done)

    async def _remember(self, done: Job) -> None:
        if self._tell_cache is not None and done.state is State.COMPLETED:
            await self._tell_cache(done)

    async def _record(self, job: Job, index: int, verdict: Verdict, sha256: str) -> None:
        """Every verdict goes into the audit, and one about minors has consequences, before any picture can be read.

        After a crash the job is finished again, and all of this is done over: each step of it counts once.
        """
        await self._audit.verdict(job, index, verdict, sha256)
        await self._safeguard.minors(job, verdict)

    async def _finish_later(self, job: Job, lease: str, exc: GatewayError) -> None:
        log.warning("finishing failed", job=job.gen_id, code=exc.code, error=exc.message, tries=job.tries + 1)
        if job.release and job.outcome and job.deleted_at is None:
            # A person waits for it, and there was an outcome before: nothing of that may be lost.
            if exc.retryable:
                await self._later(job, lease)
            else:
                await self._jobs.save(replace(job, state=_state_of(job.outcome)), lease=lease, release=True)
        elif not exc.retryable or self._now() >= max(job.drawn_at or 0, job.created_at) + self._policy.finish_deadline:
            await self.end(job, lease, State.FAILED, Fault(code=exc.code))
        else:
            await self._later(job, lease)

    # Small steps

    async def _later(self, job: Job, lease: str) -> None:
        """Give the job back and look at it again after a back-off with jitter."""
        delay = min(self._policy.poll_interval * 2**job.tries, 30.0) * random.uniform(0.5, 1.0)
        await self._jobs.save(replace(job, tries=job.tries + 1, next_at=self._now() + delay), lease=lease, release=True)

    async def _stumble(self, gen_id: str, lease: str) -> None:
        """After an unforeseen fault: try again later from the row as it stands, and give up when it keeps happening."""
        job = await self._jobs.get(gen_id)
        if job is None or not job.open:
            return
        # What a person let go had an outcome before, which must not be lost, unless its owner wants it no more.
        if job.tries >= MAX_STUMBLES and (not job.release or job.deleted_at is not None):
            await self.end(job, lease, State.FAILED, Fault(code="internal_error"))
        else:
            await self._later(job, lease)

    async def _again(self, job: Job, lease: str, state: State, fault: Fault) -> None:
        """Have it drawn once more, with fresh upload addresses; end it when that was the last attempt, or when nobody
        wants it any more.
        """
        if job.deleted_at is not None or job.attempt + 1 >= MAX_ATTEMPTS or self._now() >= job.deadline_at:
            await self.end(job, lease, state, fault)
            return
        log.warning("job handed over again", job=job.gen_id, code=fault.code, attempt=job.attempt + 1)
        fresh = replace(
            job,
            state=State.QUEUED,
            attempt=job.attempt + 1,
            backend_id=None,
            drawn=None,
            drawn_at=None,
            # It really begins anew, so its progress does too.
            step=0,
            total_steps=0,
            tries=0,
            next_at=self._now(),
        )
        if await self._jobs.save(fresh, lease=lease, release=False):
            await self._hand_over_again(fresh, lease)

    async def end(self, job: Job, lease: str, state: State, fault: Fault) -> None:
        ended = replace(job, state=state, fault=fault, finished_at=self._now())
        if await self._jobs.save(ended, lease=lease, release=True):
            log.warning("job ended", job=job.gen_id, state=state, code=fault.code)
            with anyio.move_on_after(TIDY, shield=True):
                await self._storage.purge(raw_prefix(job))

    async def _keep_lease(self, gen_id: str, lease: str, scope: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep(self._policy.lease / 3)
            if not await self._jobs.renew(gen_id, lease=lease, until=self._now() + self._policy.lease):
                scope.cancel()

    # In the background

    def let_go_soon(self, job: Job) -> None:
        """Stop the drawing of a cancelled job and remove what it kept, without waiting for it."""
        if self._tasks is not None:
            self._tasks.start_soon(let_go, self._backend, self._storage, job)

    def nudge(self, gen_id: str) -> None:
        """Advance a job soon. Asked while it is at it, it looks once more: the news may have come after the look."""
        if self._tasks is None:
            return
        if gen_id in self._advancing:
            self._advancing[gen_id] = True
            return
        self._advancing[gen_id] = False
        self._tasks.start_soon(self._advance_quietly, gen_id)

    async def _advance_quietly(self, gen_id: str) -> None:
        try:
            await self.advance(gen_id)
        except Exception:
            log.exception("advance failed", job=gen_id)
        finally:
            asked_again = self._advancing.pop(gen_id)
        if asked_again:
            self.nudge(gen_id)

    async def _sweep_for_ever(self) -> None:
        while True:
            room = AT_ONCE - len(self._advancing)
            try:
                for gen_id in await self._jobs.due(now=self._now(), limit=max(room, 0)):
                    if gen_id not in self._advancing:
                        self.nudge(gen_id)
            except Unavailable as exc:
                log.warning("sweep failed", error=exc.message)
            except Exception:
                # The sweeper is what keeps promises to clients that never ask again: it must outlive any fault.
                log.exception("sweep failed")
            await anyio.sleep(self._policy.sweep_interval)


async def withdraw(backend: Backend, job: Job) -> None:
    """Tell the backend to stop. Best effort: its own time limit ends the job otherwise."""
    if job.backend_id is None:
        return
    try:
        await backend.cancel(job.backend_id)
    except (BackendUnavailable, BackendRefused) as exc:
        log.warning("backend did not cancel", job=job.gen_id, error=exc.message)


async def let_go(backend: Backend, storage: Storage, job: Job) -> None:
    """Stop the drawing of a cancelled job and remove what it kept."""
    await withdraw(backend, job)
    try:
        await storage.purge(raw_prefix(job))
    except Unavailable as exc:
        # What stays is swept up with all that is old.
        log.warning("files of a cancelled job stay", job=job.gen_id, error=exc.message)


def _state_of(outcome: Outcome) -> State:
    """A job of which any picture may leave is completed."""
    return State.COMPLETED if outcome.pictures else State.BLOCKED
