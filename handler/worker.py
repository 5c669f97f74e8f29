"""A job in, pictures out: the SDK's handler, with no torch and no SDK in it.

The drawing runs in the worker's one thread, while the SDK's event loop goes on answering. When the SDK cancels the
job (its stop channel said so), the thread is told to stop and waited for, so that the next job never meets this one.

The codes of a `Failure`, with a plus where the same job can succeed later:

``bad_job``             the job breaks the contract, or asks for something that can't be drawn; the message says what
``unknown_model``       ``models.toml`` has no such name; the message lists those it has
``unknown_lora``        the same for a LoRA
``lora_unfit``          the LoRA is for another family, damaged, or of a kind that can't be worn
``reference_failed`` +  a reference can't be fetched (without the plus if it is not what was ordered, or no picture)
``too_large``           the pictures don't fit an answer and the job has no upload addresses
``deadline``            the job's deadline passed
``out_of_memory`` +     the device has not enough memory for this picture, even alone and with all parts saved
``device_lost`` +       the GPU's context is broken; this process ends and another one takes the job
``upload_failed`` +     a picture could not be delivered (without the plus if its address is malformed)
``internal`` +          anything else; the reason is in the log, under the job's id

An input that asks for the inventory (`handler.contract.ask_inventory`) is answered with names and draws nothing.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import aiohttp
from PIL import Image

from handler import references
from handler.contract import (
    INLINE_LIMIT,
    ContractError,
    Failure,
    Inventory,
    Job,
    Picture,
    Result,
    asks_inventory,
    failure_to_wire,
    inventory_to_wire,
    job_from_wire,
    result_to_wire,
)
from handler.drawing import DeviceLost, LoraUnfit, Order, OutOfMemory, Renderer, Stopped
from handler.log import fields, log
from handler.models import Model, Models
from handler.plan import Plan, Refused, plan
from handler.progress import Reporter
from handler.references import ReferenceFailed
from handler.uploads import PATIENCE, UploadFailed, put_picture

T = TypeVar("T")
Report = Callable[[dict[str, Any], dict[str, Any]], object]
"""Posts (the SDK's job, a `Progress` on the wire); called in the thread that draws. The SDK's ``progress_update``."""


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


class _Watch:
    """Looks on for one job: passes progress on, says when to stop, keeps what there is to say about the pictures."""

    def __init__(self, reporter: Reporter, stop: _Stop) -> None:
        self._stop = stop
        self.step = reporter.drawing
        self.preview = reporter.preview
        self.warnings: list[str] = []
        self.references = 0

    def stopping(self) -> bool:
        return self._stop()

    def warn(self, sentence: str) -> None:
        if sentence not in self.warnings:
            self.warnings.append(sentence)

    def used_references(self, count: int) -> None:
        self.references = count


@dataclass(slots=True)
class _Timings:
    """Seconds per phase."""

    fetch: float = 0.0
    load: float = 0.0
    draw: float = 0.0
    encode: float = 0.0
    upload: float = 0.0

    def rounded(self) -> dict[str, float]:
        phases = {name: round(getattr(self, name), 4) for name in ("fetch", "load", "draw", "encode", "upload")}
        # Most jobs have no references to fetch.
        return phases if phases["fetch"] else {name: seconds for name, seconds in phases.items() if name != "fetch"}


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
        #: The GPU's context is broken: this process can draw nothing more and should end.
        self.lost = False

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
            wire = _input(sdk_job)
            if asks_inventory(wire):
                return inventory_to_wire(_inventory(self._models))
            job = job_from_wire(wire)
            about |= {"job": job.id, "request_id": job.request_id, "model": job.model}
            log.info("job started", extra=fields(**about, n=job.n, size=f"{job.width}x{job.height}"))
            log.debug("job prompt", extra=fields(**about, positive=job.positive, negative=job.negative))
            result = await self._run(sdk_job, job)
        except asyncio.CancelledError:
            log.info("job cancelled", extra=fields(**about, seconds=_since(started)))
            raise
        except DeviceLost as exc:
            self.lost = True
            log.error("device lost", extra=fields(**about, reason=str(exc.__cause__ or exc), seconds=_since(started)))
            return {**_answer(_DEVICE_LOST), "refresh_worker": True}
        except (Refused, ContractError, OutOfMemory, LoraUnfit, ReferenceFailed) as exc:
            failure = _failure(exc)
            about |= {"code": failure.code, "reason": failure.message}
            log.warning("job failed", extra=fields(**about, seconds=_since(started)))
            return _answer(failure)
        except Exception:  # noqa: BLE001 - the SDK would send the client our traceback, with its paths
            log.exception("job failed", extra=fields(**about, code=_INTERNAL.code, seconds=_since(started)))
            return _answer(_INTERNAL)
        log.info("job finished", extra=fields(**about, seconds=_since(started), timings=dict(result.timings)))
        return result_to_wire(result)

    async def _run(self, sdk_job: dict[str, Any], job: Job) -> Result:
        if self.lost:
            raise DeviceLost
        planned = plan(job, self._models)
        stop = _Stop(job.deadline, self._now)
        if stop.late():
            raise Refused("deadline", _LATE)
        timings = _Timings()
        reporter = Reporter(
            lambda progress: self._report and self._report(sdk_job, progress),
            pictures=job.n,
            # Counts on across attempts too: a job that lost its worker is started again by another one, later.
            first=int(self._now() * 1000),
        )
        watch = _Watch(reporter, stop)
        pictures: list[Picture] = []
        try:
            async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as uploads:
                order = await self._order(session, planned, stop, timings)
                renderer = await self._in_thread(partial(self._renderer, planned.model, reporter, timings), stop)
                loop = asyncio.get_running_loop()

                def start_upload(index: int, png: bytes) -> None:
                    # After a failed upload the group takes no more, and nothing more is wanted.
                    if not stop.told.is_set():
                        uploads.create_task(self._upload(session, job, index, png, stop, timings))

                def deliver(index: int, png: bytes) -> None:
                    """Called in the drawing thread: the next picture is drawn while this one travels."""
                    if job.uploads:
                        loop.call_soon_threadsafe(start_upload, index, png)
                        pictures.append(_picture(job, index, png))
                    else:
                        data = base64.b64encode(png).decode("ascii")
                        if sum(len(each.data or "") for each in pictures) + len(data) > INLINE_LIMIT:
                            raise Refused("too_large", _TOO_LARGE)
                        pictures.append(_picture(job, index, png, data))

                await self._in_thread(partial(_draw, renderer, order, watch, stop, timings, deliver), stop)
        except ExceptionGroup as group:
            # The first fault ended the others; it alone is worth telling.
            raise group.exceptions[0] from None
        return Result(
            pictures=tuple(pictures),
            steps=planned.steps,
            guidance=planned.guidance,
            sampler=renderer.sampler,
            family=planned.model.family.name,
            revision=renderer.revision,
            negative_used=planned.negative is not None,
            loras=planned.loras,
            references=watch.references,
            timings=timings.rounded(),
            warnings=(*planned.warnings, *watch.warnings, *_cut(renderer, planned)),
        )

    async def _order(self, session: aiohttp.ClientSession, planned: Plan, stop: _Stop, timings: _Timings) -> Order:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(stop.seconds_left()):
                guides = await references.fetch(session, planned.job.references)
        except TimeoutError:
            raise Refused("deadline", _LATE) from None
        timings.fetch = time.perf_counter() - begun if guides else 0.0
        return planned.order(guides)

    def _renderer(self, model: Model, reporter: Reporter, timings: _Timings) -> Renderer:
        begun = time.perf_counter()
        if model.name not in self._shelf:
            reporter.loading()
        renderer = self._shelf.take(model)
        timings.load = time.perf_counter() - begun
        return renderer

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
        self, session: aiohttp.ClientSession, job: Job, index: int, png: bytes, stop: _Stop, timings: _Timings
    ) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(stop.seconds_left()):
                await put_picture(session, job.uploads[index], png, patience=self._upload_patience)
        except UploadFailed as exc:
            stop.told.set()
            raise Refused("upload_failed", f"picture {index}: {exc}", retryable=exc.retryable) from exc
        except TimeoutError:
            stop.told.set()
            raise Refused("deadline", _LATE) from None
        timings.upload += time.perf_counter() - begun


_LATE = "the job's deadline passed before the picture was delivered"
#: Of an unexpected fault the client is told nothing: its message can hold paths.
_INTERNAL = Failure(code="internal", message="the worker failed; its log has the reason", retryable=True)
_DEVICE_LOST = Failure(
    code="device_lost", message="the worker's GPU failed; another worker can draw this", retryable=True
)
_TOO_LARGE = (
    f"the pictures are larger than the {INLINE_LIMIT // 1_000_000} MB that an answer may carry;"
    " send one upload address per picture"
)


def _inventory(models: Models) -> Inventory:
    return Inventory(
        models={name: model.family.name for name, model in models.by_name.items()},
        loras={name: lora.family.name for name, lora in models.loras.items()},
    )


def _cut(renderer: Renderer, planned: Plan) -> tuple[str, ...]:
    prompts = {"prompt": planned.job.positive, "negative prompt": planned.negative or ""}
    return tuple(
        f"the {which} is longer than {planned.model.name} reads; its end had no effect"
        for which, prompt in prompts.items()
        if renderer.cuts(prompt)
    )


def _draw(
    renderer: Renderer,
    order: Order,
    watch: _Watch,
    stop: _Stop,
    timings: _Timings,
    deliver: Callable[[int, bytes], None],
) -> None:
    """All pictures, each delivered as a PNG as soon as it is there. Runs in the drawing thread, to its end."""
    mark = time.perf_counter()
    try:
        for index, image in enumerate(renderer.draw(order, watch)):
            drawn = time.perf_counter()
            png = _png(image)
            timings.draw += drawn - mark
            mark = time.perf_counter()
            timings.encode += mark - drawn
            deliver(index, png)
    except Stopped:
        if stop.late():
            raise Refused("deadline", _LATE) from None
        raise


def _png(image: Image.Image) -> bytes:
    """Lossless, and quick rather than small: it travels once, to be encoded again as what the client asked for."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _picture(job: Job, index: int, png: bytes, data: str | None = None) -> Picture:
    return Picture(
        index=index,
        seed=job.seed + index,
        sha256=hashlib.sha256(png).hexdigest(),
        width=job.width,
        height=job.height,
        bytes=len(png),
        data=data,
    )


def _answer(failure: Failure) -> dict[str, Any]:
    return {"error": failure.message, "failure": failure_to_wire(failure)}


def _failure(exc: Refused | ContractError | OutOfMemory | LoraUnfit | ReferenceFailed) -> Failure:
    match exc:
        case Refused():
            return exc.failure
        case ContractError():
            return Failure(code="bad_job", message=str(exc))
        case LoraUnfit():
            return Failure(code="lora_unfit", message=str(exc))
        case ReferenceFailed():
            return Failure(code="reference_failed", message=str(exc), retryable=exc.retryable)
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


def _since(started: float) -> float:
    return round(time.perf_counter() - started, 3)
