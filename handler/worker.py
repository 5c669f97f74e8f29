"""A job in, pictures out: the SDK's handler, with no torch and no SDK in it.

The drawing runs in the worker's one thread, while the SDK's event loop goes on answering. When the SDK cancels the
job (its stop channel said so), the thread is told to stop and waited for, so that the next job never meets this one.

The codes of a `Failure`, with a plus where the same job can succeed later:

``bad_job``          the job breaks the contract, or asks for a size, seed, step count or guidance that can't be drawn
``unknown_model``    ``models.toml`` has no such name; the message lists those it has
``unknown_lora``     the same for a LoRA
``unsupported``      the worker can't do this yet: references
``too_large``        the pictures don't fit an answer and the job has no upload addresses
``deadline``         the job's deadline passed
``out_of_memory`` +  the device has not enough memory for this picture
``upload_failed`` +  a picture could not be delivered (without the plus if its address is malformed)
``internal`` +       anything else; the reason is in the log, under the job's id
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import itertools
import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import aiohttp
from PIL import Image

from handler.contract import (
    INLINE_LIMIT,
    ContractError,
    Failure,
    Job,
    Picture,
    Progress,
    Result,
    failure_to_wire,
    job_from_wire,
    progress_to_wire,
    result_to_wire,
)
from handler.drawing import Order, OutOfMemory, Renderer, Stopped
from handler.log import fields, log
from handler.models import Model, Models
from handler.uploads import PATIENCE, UploadFailed, put_picture

T = TypeVar("T")
Report = Callable[[dict[str, Any], dict[str, Any]], object]
"""Posts (the SDK's job, a `Progress` on the wire); called in the thread that draws. The SDK's ``progress_update``."""

_REPORT_EVERY = 0.25
"""Seconds between two progress posts: the SDK starts a thread and a connection for each."""

_LARGEST_SEED = 2**63 - 1


class Refused(Exception):
    """The job ends here, for a reason that the client is told."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message, retryable=retryable)


class Shelf:
    """The loaded models: the most recently used ``keep`` of them. For the drawing thread alone."""

    def __init__(self, load: Callable[[Model], Renderer], *, keep: int) -> None:
        self._load = load
        self._keep = keep
        self._loaded: dict[str, Renderer] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._loaded

    def take(self, model: Model) -> Renderer:
        """Loads the model if it is not there, after the one that waited longest has made room for it."""
        renderer = self._loaded.pop(model.name, None)
        if renderer is None:
            while len(self._loaded) >= self._keep:
                self._loaded.pop(next(iter(self._loaded))).close()
            started = time.perf_counter()
            renderer = self._load(model)
            seconds = round(time.perf_counter() - started, 3)
            log.info("model loaded", extra=fields(model=model.name, revision=renderer.revision, seconds=seconds))
        self._loaded[model.name] = renderer
        return renderer


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What a job comes to with its model's defaults and limits."""

    job: Job
    model: Model
    steps: int
    guidance: float
    negative: str | None
    warnings: tuple[str, ...]

    def order(self, index: int) -> Order:
        return Order(
            positive=self.job.positive,
            negative=self.negative,
            width=self.job.width,
            height=self.job.height,
            seed=self.job.seed + index,
            steps=self.steps,
            guidance=self.guidance,
        )


@dataclass(slots=True)
class _Stop:
    """Says to the drawing thread, between two steps, whether to go on."""

    deadline: float | None
    now: Callable[[], float]
    told: threading.Event = field(default_factory=threading.Event)

    def __call__(self) -> bool:
        return self.told.is_set() or self.late()

    def late(self) -> bool:
        return self.deadline is not None and self.now() >= self.deadline

    def seconds_left(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - self.now())


class _Reporter:
    """Posts progress: the first step, the last one, and a few a second between them."""

    def __init__(self, post: Callable[[dict[str, Any]], object], *, pictures: int, first: int) -> None:
        self._post = post
        self._pictures = pictures
        self._sequence = itertools.count(first)
        self._last = -math.inf

    def __call__(self, phase: str, *, picture: int = 0, step: int = 0, total: int = 0) -> None:
        is_last = picture == self._pictures - 1 and step == total
        if time.monotonic() - self._last < _REPORT_EVERY and not is_last:
            return
        self._last = time.monotonic()
        progress = Progress(
            sequence=next(self._sequence),
            phase=phase,
            picture=picture,
            pictures=self._pictures,
            step=step,
            total_steps=total,
        )
        self._post(progress_to_wire(progress))


class Worker:
    """The handler of one process. Jobs may come at once; they are drawn one after the other."""

    def __init__(
        self,
        models: Models,
        load: Callable[[Model], Renderer],
        *,
        report: Report | None = None,
        now: Callable[[], float] = time.time,
        upload_patience: float = PATIENCE,
    ) -> None:
        self._models = models
        self._shelf = Shelf(load, keep=models.keep_loaded)
        self._report = report
        self._now = now
        self._upload_patience = upload_patience
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="draw")

    def warm(self) -> None:
        """Load the models that must be there before the first job. Raises what the loader raises."""
        for name in self._models.warm:
            self._thread.submit(self._shelf.take, self._models.by_name[name]).result()

    def close(self) -> None:
        self._thread.shutdown()

    async def handle(self, sdk_job: dict[str, Any]) -> dict[str, Any]:
        """A `Result` on the wire, or ``{"error": sentence, "failure": Failure on the wire}``.

        Raises nothing but `asyncio.CancelledError`, and that only once the drawing thread is idle again.
        """
        started = time.perf_counter()
        about = {"requestId": str(sdk_job.get("id", ""))}
        try:
            job = job_from_wire(_input(sdk_job))
            about |= {"job": job.id, "request_id": job.request_id, "model": job.model}
            log.info("job started", extra=fields(**about, n=job.n, size=f"{job.width}x{job.height}"))
            log.debug("job prompt", extra=fields(**about, positive=job.positive, negative=job.negative))
            result = await self._run(sdk_job, job)
        except asyncio.CancelledError:
            log.info("job cancelled", extra=fields(**about, seconds=_since(started)))
            raise
        except (Refused, ContractError, OutOfMemory) as exc:
            failure = _failure(exc)
            about |= {"code": failure.code, "reason": failure.message}
            log.warning("job failed", extra=fields(**about, seconds=_since(started)))
            return {"error": failure.message, "failure": failure_to_wire(failure)}
        except Exception:  # noqa: BLE001 - the SDK would send the client our traceback, with its paths
            log.exception("job failed", extra=fields(**about, code=_INTERNAL.code, seconds=_since(started)))
            return {"error": _INTERNAL.message, "failure": failure_to_wire(_INTERNAL)}
        log.info("job finished", extra=fields(**about, seconds=_since(started), timings=dict(result.timings)))
        return result_to_wire(result)

    async def _run(self, sdk_job: dict[str, Any], job: Job) -> Result:
        plan = _plan(job, self._models.by_name)
        stop = _Stop(job.deadline, self._now)
        if stop.late():
            raise Refused("deadline", _LATE)
        timings = {"load": 0.0, "draw": 0.0, "encode": 0.0, "upload": 0.0}
        reporter = _Reporter(
            lambda progress: self._report and self._report(sdk_job, progress),
            pictures=job.n,
            # Counts on across attempts too: a job that lost its worker is started again by another one, later.
            first=int(self._now() * 1000),
        )
        pictures: list[Picture] = []
        inline = 0
        begun = time.perf_counter()
        renderer = await self._in_thread(partial(self._renderer, plan.model, reporter), stop)
        timings["load"] = time.perf_counter() - begun
        try:
            async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as uploads:
                for index in range(job.n):
                    draw = partial(_draw, renderer, plan, index, reporter, stop, timings)
                    png = await self._in_thread(draw, stop)
                    data = None
                    if job.uploads:
                        # The next picture is drawn while this one travels.
                        uploads.create_task(self._upload(session, job, index, png, stop, timings))
                    else:
                        data = base64.b64encode(png).decode("ascii")
                        inline += len(data)
                        if inline > INLINE_LIMIT:
                            raise Refused("too_large", _TOO_LARGE)
                    pictures.append(_picture(job, index, png, data))
        except ExceptionGroup as group:
            # The first fault ended the others; it alone is worth telling.
            raise group.exceptions[0] from None
        return Result(
            pictures=tuple(pictures),
            steps=plan.steps,
            guidance=plan.guidance,
            sampler=renderer.sampler,
            family=plan.model.family,
            revision=renderer.revision,
            negative_used=plan.negative is not None,
            timings={phase: round(seconds, 4) for phase, seconds in timings.items()},
            warnings=plan.warnings + _cut(renderer, plan),
        )

    def _renderer(self, model: Model, report: _Reporter) -> Renderer:
        if model.name not in self._shelf:
            report("loading")
        return self._shelf.take(model)

    async def _in_thread(self, work: Callable[[], T], stop: _Stop) -> T:
        """Does the work in the drawing thread, which is stopped and waited for if this task is cancelled."""
        future = asyncio.get_running_loop().run_in_executor(self._thread, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            stop.told.set()
            while not future.done():
                try:
                    await asyncio.wait({future})
                except asyncio.CancelledError:
                    # Told twice. The thread still has to end before anything else may draw.
                    continue
            future.exception()
            raise

    async def _upload(
        self, session: aiohttp.ClientSession, job: Job, index: int, png: bytes, stop: _Stop, timings: dict[str, float]
    ) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(stop.seconds_left()):
                await put_picture(session, job.uploads[index], png, patience=self._upload_patience)
        except UploadFailed as exc:
            raise Refused("upload_failed", f"picture {index}: {exc}", retryable=exc.retryable) from exc
        except TimeoutError:
            raise Refused("deadline", _LATE) from None
        timings["upload"] += time.perf_counter() - begun


_LATE = "the job's deadline passed before the picture was delivered"
#: Of an unexpected fault the client is told nothing: its message can hold paths.
_INTERNAL = Failure(code="internal", message="the worker failed; its log has the reason", retryable=True)
_TOO_LARGE = (
    f"the pictures are larger than the {INLINE_LIMIT // 1_000_000} MB that an answer may carry;"
    " send one upload address per picture"
)


def _cut(renderer: Renderer, plan: _Plan) -> tuple[str, ...]:
    prompts = {"prompt": plan.job.positive, "negative prompt": plan.negative or ""}
    return tuple(
        f"the {which} is longer than {plan.model.name} reads; its end had no effect"
        for which, prompt in prompts.items()
        if renderer.cuts(prompt)
    )


def _draw(
    renderer: Renderer, plan: _Plan, index: int, reporter: _Reporter, stop: _Stop, timings: dict[str, float]
) -> bytes:
    """One picture as a PNG. Runs in the drawing thread."""
    begun = time.perf_counter()
    try:
        image = renderer.draw(
            plan.order(index),
            lambda step, total: reporter("drawing", picture=index, step=step, total=total),
            stop,
        )
    except Stopped:
        if stop.late():
            raise Refused("deadline", _LATE) from None
        raise
    drawn = time.perf_counter()
    png = _png(image)
    timings["draw"] += drawn - begun
    timings["encode"] += time.perf_counter() - drawn
    return png


def _png(image: Image.Image) -> bytes:
    """Lossless, and quick rather than small: it travels once, to be encoded again as what the client asked for."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _picture(job: Job, index: int, png: bytes, data: str | None) -> Picture:
    return Picture(
        index=index,
        seed=job.seed + index,
        sha256=hashlib.sha256(png).hexdigest(),
        width=job.width,
        height=job.height,
        bytes=len(png),
        data=data,
    )


def _plan(job: Job, models: Mapping[str, Model]) -> _Plan:
    """Raises `Refused` for everything that can be known before a step is drawn."""
    model = models.get(job.model)
    if model is None:
        raise Refused("unknown_model", f"no model named {job.model!r} on this worker; it has: {_names(models)}")
    if job.loras:
        raise Refused("unknown_lora", f"no LoRA named {job.loras[0].name!r} on this worker; it has none")
    if job.references:
        raise Refused("unsupported", "this worker draws from text alone; send the job without references")
    if job.width % model.grid or job.height % model.grid:
        raise Refused(
            "bad_job",
            f"{model.name} draws sizes in multiples of {model.grid}; {job.width}x{job.height} is not one,"
            f" the nearest is {_nearest(job.width, model.grid)}x{_nearest(job.height, model.grid)}",
        )
    if not 0 <= job.seed <= _LARGEST_SEED - job.n:
        raise Refused("bad_job", f"'seed' must be 0 to 2**63 - 1, not {job.seed}")
    warnings = []
    steps = model.steps if job.steps is None else job.steps
    if steps < 1:
        raise Refused("bad_job", f"'steps' must be 1 or more, not {steps}")
    if steps > model.max_steps:
        warnings.append(f"{model.name} draws with at most {model.max_steps} steps; {steps} were asked for")
        steps = model.max_steps
    guidance = model.guidance if job.guidance is None else job.guidance
    if not (math.isfinite(guidance) and guidance >= 0):
        raise Refused("bad_job", f"'guidance' must be a number of 0 or more, not {guidance}")
    # Without guidance a pipeline never looks at the negative prompt.
    heeds = model.negative and guidance > 1
    if job.negative and not heeds:
        why = "with a guidance of 1 or less" if model.negative else "at all"
        warnings.append(f"{model.name} heeds no negative prompt {why}; it was left out")
    return _Plan(
        job=job,
        model=model,
        steps=steps,
        guidance=guidance,
        negative=job.negative if heeds else None,
        warnings=tuple(warnings),
    )


def _failure(exc: Refused | ContractError | OutOfMemory) -> Failure:
    match exc:
        case Refused():
            return exc.failure
        case ContractError():
            return Failure(code="bad_job", message=str(exc))
        case OutOfMemory():
            return Failure(
                code="out_of_memory",
                message="the worker has not enough memory for this picture now; try a smaller size or try again",
                retryable=True,
            )


def _input(sdk_job: Mapping[str, Any]) -> Mapping[str, Any]:
    given = sdk_job.get("input")
    if not isinstance(given, Mapping):
        raise ContractError(f"'input' must be an object, not {type(given).__name__}")
    return given


def _nearest(length: int, grid: int) -> int:
    """The nearest multiple that is no picture of nothing."""
    return max(grid, (length + grid // 2) // grid * grid)


def _names(models: Iterable[str]) -> str:
    return ", ".join(sorted(models))


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
