"""The life of a generation: submit, advance, status, cancel, list. Idempotent; any replica may do any step.

The row is written before the backend hears of the job, and `advance` is the only way forward. It works under a lease,
so that one replica at a time moves a job, and writes are fenced by that lease, so that a replica which lost it changes
nothing.
"""

from __future__ import annotations

import random
import secrets
import string
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import anyio
import anyio.abc
import structlog

from compliance.rules import PromptGate
from gateway.core import prompts
from gateway.core.catalog import Catalog
from gateway.core.finishing import DrawAgain, Finisher, raw_key, raw_prefix
from gateway.core.images import (
    Caller,
    Delivery,
    Drawing,
    Fault,
    Job,
    Notice,
    Readiness,
    RenderOrder,
    Report,
    State,
    StoredPicture,
)
from gateway.core.ports import Backend, Jobs, Storage
from gateway.errors import (
    BackendRefused,
    BackendUnavailable,
    GatewayError,
    JobNotFound,
    JobNotOpen,
    PromptBlocked,
    Unavailable,
)

log = structlog.get_logger(__name__)

GEN_ID_ALPHABET = string.ascii_lowercase + string.digits
MAX_ATTEMPTS = 2
MAX_STUMBLES = 12
_SWEEP_BATCH = 64
_ADVANCING_AT_ONCE = 16
_REMEMBERED_OPEN = 0.25
_REMEMBERED_ENDED = 30.0
_MOST_REMEMBERED = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a dialect asks for, its own syntax already read and its own fallbacks already taken."""

    surface: str
    public_id: str
    request_id: str
    prompt: str
    text: str
    model: str
    style: str
    character: str
    negatives: tuple[str, ...]
    explicit_negative: str
    width: int
    height: int
    delivery: Delivery
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Policy:
    """Times in seconds; see the settings of the same names."""

    execution_timeout: float = 300
    job_ttl: float = 330
    url_ttl: float = 3600
    upload_ttl: float = 3600
    lease: float = 15
    sweep_interval: float = 1
    poll_interval: float = 2
    finish_deadline: float = 180


def new_gen_id() -> str:
    return "".join(secrets.choice(GEN_ID_ALPHABET) for _ in range(20))


class GenerationService:
    """Everything that a surface can ask for. Open it with `running` before use."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        backend: Backend,
        storage: Storage,
        catalog: Catalog,
        gate: PromptGate,
        finisher: Finisher,
        policy: Policy,
        now: Callable[[], float],
        webhook: Callable[[str, int], str | None] = lambda gen_id, attempt: None,
        new_id: Callable[[], str] = new_gen_id,
    ) -> None:
        self.catalog = catalog
        self._jobs = jobs
        self._backend = backend
        self._storage = storage
        self._gate = gate
        self._finisher = finisher
        self._policy = policy
        self._now = now
        self._webhook = webhook
        self._new_id = new_id
        self._tasks: anyio.abc.TaskGroup | None = None
        self._advancing: set[str] = set()
        self._recent: OrderedDict[tuple[str, str], tuple[float, Job]] = OrderedDict()

    # What a surface calls

    async def submit(self, caller: Caller, wish: Wish) -> Job:
        """Accept a job: gate, compose, write it down, hand it over.

        Raises `PromptBlocked`; `BackendUnavailable` or `BackendRefused` when the backend did not take it, and then the
        job has ended as failed and costs nothing.
        """
        drawing = self._compose(wish)
        await self._refuse(caller, drawing)
        now = self._now()
        job = Job(
            gen_id=self._new_id(),
            public_id=wish.public_id,
            surface=wish.surface,
            tenant=caller.tenant,
            key_id=caller.key_id,
            request_id=wish.request_id,
            drawing=drawing,
            delivery=wish.delivery,
            created_at=now,
            deadline_at=now + self._policy.job_ttl,
            next_at=now,
            notices=wish.notices,
        )
        lease = secrets.token_hex(16)
        await self._jobs.add(job, lease=lease, until=now + self._policy.lease)
        log.info("job accepted", job=job.gen_id, id=job.public_id, tenant=job.tenant, model=drawing.model)
        try:
            return await self._hand_over(job, lease)
        except (BackendUnavailable, BackendRefused) as exc:
            await self._end(job, lease, State.FAILED, Fault(code=exc.code))
            raise

    async def find(self, caller: Caller, surface: str, public_id: str) -> Job:
        """The caller's job, as it stands. Raises `JobNotFound`, the same for an unknown id and for another tenant's."""
        job = await self._find(surface, public_id)
        if job is None or job.tenant != caller.tenant:
            raise JobNotFound
        return job

    async def cancel(self, caller: Caller, surface: str, public_id: str) -> Job:
        """End the caller's job. Idempotent; raises `JobNotOpen` once it is being finished or has ended otherwise."""
        job = await self.find(caller, surface, public_id)
        ended = await self._jobs.cancel(job.gen_id, now=self._now())
        self._recent.pop((surface, public_id), None)
        if ended is None:
            current = await self._jobs.get(job.gen_id)
            if current is not None and current.state is State.CANCELLED:
                return current
            raise JobNotOpen
        log.info("job cancelled", job=job.gen_id)
        self._start(self._withdraw, ended)
        return ended

    async def page(self, caller: Caller, *, limit: int, before: tuple[float, str] | None) -> list[Job]:
        """The tenant's jobs, newest first."""
        return await self._jobs.page(caller.tenant, limit=limit, before=before)

    def link(self, picture: StoredPicture) -> tuple[str, float]:
        """A fresh signed address of a picture, and when it expires."""
        expires_at = float(int(self._now() + self._policy.url_ttl))
        return self._storage.link(picture.key, filename=picture.filename, expires_at=expires_at), expires_at

    async def readiness(self) -> list[Readiness]:
        """What is needed to make a picture now, one entry per part."""
        try:
            await self._jobs.counts()
            store = Readiness(ready=True)
        except Unavailable as exc:
            store = Readiness(ready=False, reason=exc.message)
        return [store, await self._backend.readiness(), await self._storage.readiness(), self._finisher.readiness()]

    async def _refuse(self, caller: Caller, drawing: Drawing) -> None:
        """The prompt gate: what the words alone forbid, whatever ruleset, tier or key asks."""
        positive, negative = drawing.positive, drawing.negative
        if drawing.guidance is not None and drawing.guidance <= 1:
            # Below guidance 1 a model draws what it should leave out.
            positive, negative = f"{positive}, {negative}", ""
        found = await anyio.to_thread.run_sync(self._gate.check, positive, negative)
        refused = [violation for violation in found if violation.refuse]
        if refused:
            log.warning("prompt refused", rules=[v.rule for v in refused], tenant=caller.tenant)
            raise PromptBlocked([v.rule for v in refused], [v.name for v in refused])

    # What moves a job forward

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
        self._nudge(gen_id)

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

    async def _hand_over(self, job: Job, lease: str) -> Job:
        expires_at = self._now() + self._policy.upload_ttl
        order = RenderOrder(
            gen_id=job.gen_id,
            request_id=job.request_id,
            drawing=job.drawing,
            slots=tuple(
                self._storage.slot(raw_key(job, index), expires_at=expires_at) for index in range(job.drawing.n)
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
            await self._withdraw(submitted)
        return submitted

    async def _hand_over_again(self, job: Job, lease: str) -> None:
        """The outbox rule: a row that never got a backend id is handed over by whoever finds it."""
        if self._now() >= job.deadline_at:
            await self._end(job, lease, State.TIMED_OUT, Fault(code="deadline"))
            return
        try:
            await self._hand_over(job, lease)
        except BackendUnavailable:
            await self._later(job, lease)
        except BackendRefused as exc:
            await self._end(job, lease, State.FAILED, Fault(code=exc.code))

    async def _poll(self, job: Job, lease: str) -> None:
        assert job.backend_id is not None
        try:
            report = await self._backend.poll(job.backend_id)
        except BackendUnavailable:
            if self._now() >= job.deadline_at + self._policy.execution_timeout:
                await self._end(job, lease, State.TIMED_OUT, Fault(code="backend_unavailable"))
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
                    step=max(job.step, report.step),
                    total_steps=report.total_steps or job.total_steps,
                    tries=0,
                    next_at=now + self._policy.poll_interval,
                )
                if now >= job.deadline_at + self._policy.execution_timeout:
                    await self._end(open_job, lease, State.TIMED_OUT, Fault(code="deadline"))
                    await self._withdraw(open_job)
                else:
                    await self._jobs.save(open_job, lease=lease, release=True)
            case "timed_out":
                await self._end(job, lease, State.TIMED_OUT, Fault(code="execution_timeout"))
            case "cancelled":
                await self._end(job, lease, State.CANCELLED, Fault(code="cancelled"))
            case "gone":
                await self._again(job, lease, State.TIMED_OUT, Fault(code="backend_forgot_job"))
            case _:
                fault = report.fault or Fault(code="backend_failed")
                if report.retryable:
                    await self._again(job, lease, State.FAILED, fault)
                else:
                    await self._end(job, lease, State.FAILED, fault)

    async def _drawn(self, job: Job, lease: str, report: Report) -> None:
        """The picture is paid for: write down that it exists before anything else happens to it."""
        assert report.drawn is not None
        now = self._now()
        for picture in report.drawn.pictures:
            if picture.data is not None:
                await self._storage.keep(raw_key(job, picture.index), picture.data)
        drawn = replace(report.drawn, pictures=tuple(replace(picture, data=None) for picture in report.drawn.pictures))
        finishing = replace(
            job,
            state=State.FINISHING,
            drawn=drawn,
            step=drawn.steps,
            total_steps=drawn.steps,
            started_at=job.started_at or now,
            drawn_at=now,
            tries=0,
            next_at=now,
        )
        log.info("job drawn", job=job.gen_id, timings=drawn.timings)
        if await self._jobs.save(finishing, lease=lease, release=False):
            await self._finish(finishing, lease)

    async def _finish(self, job: Job, lease: str) -> None:
        try:
            finished = await self._finisher.finish(job)
        except DrawAgain as exc:
            log.warning("picture unusable", job=job.gen_id, code=exc.code, reason=str(exc))
            await self._again(job, lease, State.FAILED, Fault(code=exc.code))
            return
        except GatewayError as exc:
            await self._finish_later(job, lease, exc)
            return
        state = State.COMPLETED if finished.verdict.safe else State.BLOCKED
        done = replace(job, state=state, outcome=finished, finished_at=self._now())
        if not await self._jobs.save(done, lease=lease, release=True):
            # Somebody else's result counts; ours must not lie around.
            await self._finisher.discard(finished)
            return
        self._recent.pop((job.surface, job.public_id), None)
        log.info("job finished", job=job.gen_id, state=state, timings=finished.timings)
        await self._finisher.tidy(done)

    async def _finish_later(self, job: Job, lease: str, exc: GatewayError) -> None:
        log.warning("finishing failed", job=job.gen_id, code=exc.code, error=exc.message, tries=job.tries + 1)
        if not exc.retryable or self._now() >= (job.drawn_at or 0) + self._policy.finish_deadline:
            await self._end(job, lease, State.FAILED, Fault(code=exc.code))
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
        if job.tries >= MAX_STUMBLES:
            await self._end(job, lease, State.FAILED, Fault(code="internal_error"))
        else:
            await self._later(job, lease)

    async def _again(self, job: Job, lease: str, state: State, fault: Fault) -> None:
        """Have it drawn once more, with fresh upload addresses; end it when that was the last attempt."""
        if job.attempt + 1 >= MAX_ATTEMPTS or self._now() >= job.deadline_at:
            await self._end(job, lease, state, fault)
            return
        log.warning("job handed over again", job=job.gen_id, code=fault.code, attempt=job.attempt + 1)
        fresh = replace(
            job,
            state=State.QUEUED,
            attempt=job.attempt + 1,
            backend_id=None,
            drawn=None,
            drawn_at=None,
            step=0,
            tries=0,
            next_at=self._now(),
        )
        if await self._jobs.save(fresh, lease=lease, release=False):
            await self._hand_over_again(fresh, lease)

    async def _end(self, job: Job, lease: str, state: State, fault: Fault) -> None:
        ended = replace(job, state=state, fault=fault, finished_at=self._now())
        if await self._jobs.save(ended, lease=lease, release=True):
            self._recent.pop((job.surface, job.public_id), None)
            log.warning("job ended", job=job.gen_id, state=state, code=fault.code)
            await self._storage.purge(raw_prefix(job))

    async def _withdraw(self, job: Job) -> None:
        """Tell the backend to stop. Best effort: its own time limit ends the job otherwise."""
        if job.backend_id is None:
            return
        try:
            await self._backend.cancel(job.backend_id)
        except (BackendUnavailable, BackendRefused) as exc:
            log.warning("backend did not cancel", job=job.gen_id, error=exc.message)

    async def _keep_lease(self, gen_id: str, lease: str, scope: anyio.CancelScope) -> None:
        while True:
            await anyio.sleep(self._policy.lease / 3)
            if not await self._jobs.renew(gen_id, lease=lease, until=self._now() + self._policy.lease):
                scope.cancel()

    async def _find(self, surface: str, public_id: str) -> Job | None:
        """Read through a small memory: an ended job never changes, an open one is read again after a quarter second."""
        now = self._now()
        known = self._recent.get((surface, public_id))
        if known is not None and now - known[0] < (_REMEMBERED_OPEN if known[1].open else _REMEMBERED_ENDED):
            return known[1]
        job = await self._jobs.find(surface, public_id)
        if job is not None:
            self._recent[surface, public_id] = (now, job)
            self._recent.move_to_end((surface, public_id))
            if len(self._recent) > _MOST_REMEMBERED:
                self._recent.popitem(last=False)
        return job

    def _compose(self, wish: Wish) -> Drawing:
        model = self.catalog.models[wish.model]
        style = model.styles.get(wish.style)
        character = self.catalog.characters.get(wish.character)
        return Drawing(
            prompt=wish.prompt,
            positive=prompts.compose_positive(
                trigger=character.trigger if character else "",
                character=character.positive if character else "",
                prompt=wish.text,
                style=style.tags if style else "",
            ),
            negative=prompts.compose_negative(
                base=model.base_negative,
                style=style.negative if style else "",
                character=character.negative if character else "",
                terms=wish.negatives,
                explicit=wish.explicit_negative,
            ),
            model=wish.model,
            worker_model=model.worker,
            style=wish.style,
            character=wish.character,
            width=wish.width,
            height=wish.height,
            seed=secrets.randbelow(2**31) if wish.seed is None else wish.seed,
            steps=wish.steps if wish.steps is not None else model.steps,
            guidance=wish.guidance if wish.guidance is not None else model.guidance,
        )

    # Background work

    def _start(self, func: Callable[[Job], object], job: Job) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(func, job)  # type: ignore[arg-type]

    def _nudge(self, gen_id: str) -> None:
        if self._tasks is not None and gen_id not in self._advancing:
            self._advancing.add(gen_id)
            self._tasks.start_soon(self._advance_quietly, gen_id)

    async def _advance_quietly(self, gen_id: str) -> None:
        try:
            await self.advance(gen_id)
        except Exception:
            log.exception("advance failed", job=gen_id)
        finally:
            self._advancing.discard(gen_id)

    async def _sweep_for_ever(self) -> None:
        while True:
            room = _SWEEP_BATCH - len(self._advancing)
            try:
                for gen_id in await self._jobs.due(now=self._now(), limit=max(room, 0)):
                    self._nudge(gen_id)
            except Unavailable as exc:
                log.warning("sweep failed", error=exc.message)
            await anyio.sleep(self._policy.sweep_interval)
