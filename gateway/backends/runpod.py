"""RunPod serverless, and everything that speaks its endpoint API, such as the local endpoint of a desk.

Public API as documented: ``POST /run``, ``GET /status/{id}``, ``POST /cancel/{id}``, ``GET /health``. The webhook that
RunPod calls is unsigned, so its address carries a token per job and attempt, and what it says is only a hint: the
result is read from the endpoint itself.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import orjson
import stamina
import structlog
from httpx_aiohttp import AiohttpTransport
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gateway.core.images import Drawn, Fault, Lora, RawPicture, Readiness, RenderOrder, Report
from gateway.errors import BackendRefused, BackendUnavailable
from handler import contract

log = structlog.get_logger(__name__)

#: RunPod's documented limits of a request's policy, in milliseconds.
_EXECUTION_TIMEOUT_MS = (5_000, 7 * 86_400_000)
_TTL_MS = (10_000, 7 * 86_400_000)
_MAX_BODY = 10_000_000
#: Bytes of an answer that are parsed on the spot.
_SHORT = 256 * 1024
#: Seconds between two looks at a job that somebody waits for.
_ASK_EVERY = 0.5
_TIMEOUT = httpx.Timeout(connect=3, read=10, write=10, pool=10)
_LIMITS = httpx.Limits(max_connections=512, max_keepalive_connections=128, keepalive_expiry=30)

_QUEUED = frozenset({"IN_QUEUE"})
_RUNNING = frozenset({"IN_PROGRESS", "RUNNING"})


class _TryAgain(Exception):
    """The endpoint did not take the request; sending it once more does no harm."""


class RunPodBackend:
    """`Backend` over one endpoint. Open it with `open` before use."""

    def __init__(
        self,
        url: str,
        key: str,
        *,
        secret: bytes,
        webhook_url: str | None,
        min_workers: int = 0,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url
        self._key = key
        self._secret = hmac.digest(secret, b"imgen webhook", hashlib.sha256)
        self._webhook_url = webhook_url
        self._min_workers = min_workers
        self._transport = transport
        self._client: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        # httpx's own transport costs 16 times the CPU at 32 calls in flight; aiohttp's does not.
        transport = self._transport or AiohttpTransport(limits=_LIMITS, trust_env=False)
        async with httpx.AsyncClient(
            transport=transport,
            headers={"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"},
            timeout=_TIMEOUT,
            follow_redirects=False,
            trust_env=False,
        ) as client:
            self._client = client
            yield
            self._client = None

    # The port

    async def submit(self, order: RenderOrder) -> str:
        body = orjson.dumps(
            {
                "input": contract.job_to_wire(_job(order)),
                "policy": {
                    "executionTimeout": _milliseconds(order.execution_timeout, _EXECUTION_TIMEOUT_MS),
                    "ttl": _milliseconds(order.ttl, _TTL_MS),
                },
                **({"webhook": order.webhook} if order.webhook else {}),
            }
        )
        return await self._run(body)

    async def poll(self, backend_id: str) -> Report:
        try:
            answer = await self._call("GET", f"/status/{backend_id}")
        except _Gone:
            return Report(state="gone")
        # Pixels may travel inline, as megabytes of Base64.
        done = answer.get("status") == "COMPLETED"
        return await anyio.to_thread.run_sync(_report, answer) if done else _report(answer)

    async def cancel(self, backend_id: str) -> None:
        try:
            await self._call("POST", f"/cancel/{backend_id}")
        except _Gone:
            return

    async def readiness(self) -> Readiness:
        try:
            answer = await self._call("GET", "/health")
        except (BackendUnavailable, BackendRefused, _Gone):
            return Readiness(ready=False, reason="the GPU endpoint does not answer")
        workers = answer.get("workers")
        counts = workers if isinstance(workers, Mapping) else {}
        up = sum(int(counts.get(state) or 0) for state in ("idle", "running"))
        if up < self._min_workers:
            return Readiness(ready=False, reason="no worker has loaded its model yet")
        return Readiness(ready=True)

    # Beside the port

    async def inventory(self, patience: float) -> contract.Inventory | None:
        """What a worker has, by a job that draws nothing; it may start one. None when the worker is too old to say.

        Raises `BackendUnavailable` when nobody answers within so many seconds, `BackendRefused` when it is no worker of
        ours.
        """
        limits = {
            "executionTimeout": _milliseconds(patience, _EXECUTION_TIMEOUT_MS),
            "ttl": _milliseconds(patience, _TTL_MS),
        }
        backend_id = await self._run(orjson.dumps({"input": contract.ask_inventory(), "policy": limits}))
        with anyio.move_on_after(patience):
            while True:
                answer = await self._look(backend_id)
                if answer.get("status") not in _QUEUED | _RUNNING:
                    return _inventory(answer)
                await anyio.sleep(_ASK_EVERY)
        await self.cancel(backend_id)
        raise BackendUnavailable(
            f"no worker answered within {patience:g} seconds.",
            fix="One may still be starting, or all are busy: ask again, and see the endpoint's own page.",
        )

    # The webhook

    def webhook(self, gen_id: str, attempt: int) -> str | None:
        """The address that RunPod calls when this attempt has ended; None when the gateway cannot be reached."""
        if self._webhook_url is None:
            return None
        return f"{self._webhook_url}/hooks/runpod/{gen_id}/{attempt}/{self._token(gen_id, attempt)}"

    def routes(self, hint: Callable[[str, int, str], Awaitable[None]]) -> list[Route]:
        """``hint(gen_id, attempt, backend_id)`` is called for every well-signed call."""

        async def called(request: Request) -> Response:
            gen_id, attempt = request.path_params["gen_id"], request.path_params["attempt"]
            if not hmac.compare_digest(request.path_params["token"].encode(), self._token(gen_id, attempt).encode()):
                return Response(status_code=404)
            try:
                backend_id = _parse(await _read(request, 2 * _MAX_BODY + 1024)).get("id")
            except ValueError:
                return Response(status_code=400)
            if isinstance(backend_id, str) and backend_id:
                await hint(gen_id, attempt, backend_id)
            return Response(status_code=200)

        return [Route("/hooks/runpod/{gen_id:str}/{attempt:int}/{token:str}", called, methods=["POST"])]

    def _token(self, gen_id: str, attempt: int) -> str:
        return hmac.new(self._secret, f"{gen_id}/{attempt}".encode(), hashlib.sha256).hexdigest()

    # The wire

    async def _run(self, body: bytes) -> str:
        if len(body) > _MAX_BODY:
            raise BackendRefused("The job is larger than the endpoint's 10 MB")
        answer = await self._call("POST", "/run", content=body, safe=False)
        backend_id = answer.get("id")
        if not isinstance(backend_id, str) or not backend_id:
            raise BackendUnavailable
        return backend_id

    async def _look(self, backend_id: str) -> Mapping[str, Any]:
        try:
            return await self._call("GET", f"/status/{backend_id}")
        except _Gone as exc:
            raise BackendUnavailable("the endpoint has forgotten the question.", fix="Ask again.") from exc

    async def _call(
        self, method: str, path: str, *, content: bytes | None = None, safe: bool = True
    ) -> Mapping[str, Any]:
        """One request with retries; ``safe`` says that it may be sent twice.

        Raises `BackendUnavailable`, `BackendRefused` and `_Gone`.
        """
        assert self._client is not None, "open() comes first"
        again: tuple[type[Exception], ...] = (_TryAgain, httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
        if safe:
            again = (*again, httpx.TransportError)
        try:
            async for attempt in stamina.retry_context(on=again, attempts=3, timeout=8, wait_initial=0.2, wait_max=2):
                with attempt:
                    return await self._send(method, path, content)
        except (_TryAgain, httpx.HTTPError) as exc:
            log.warning("endpoint unavailable", method=method, path=path.split("/")[1], error=type(exc).__name__)
            raise BackendUnavailable from exc
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, content: bytes | None) -> Mapping[str, Any]:
        assert self._client is not None
        response = await self._client.request(method, self._url + path, content=content)
        status = response.status_code
        if status == 429 or status >= 500:
            raise _TryAgain(str(status))
        if status == 404 and path != "/run":
            raise _Gone
        if status >= 300:
            log.error("endpoint refused", method=method, path=path.split("/")[1], status=status)
            # A wrong key or address can be mended while the job waits; a job that is not accepted as such cannot.
            if path == "/run":
                raise BackendRefused
            raise BackendUnavailable
        try:
            body = response.content
            return _parse(body) if len(body) <= _SHORT else await anyio.to_thread.run_sync(_parse, body)
        except ValueError as exc:
            raise _TryAgain("not JSON") from exc


class _Gone(Exception):
    """The endpoint does not know the job, or no longer."""


def _job(order: RenderOrder) -> contract.Job:
    drawing = order.drawing
    return contract.Job(
        id=order.gen_id,
        request_id=order.request_id,
        model=drawing.worker_model,
        positive=drawing.positive,
        negative=drawing.negative,
        width=drawing.width,
        height=drawing.height,
        seed=drawing.seed,
        steps=drawing.steps,
        guidance=drawing.guidance,
        n=drawing.n,
        loras=tuple(contract.Lora(name=lora.name, strength=lora.strength) for lora in drawing.loras),
        references=tuple(
            contract.Reference(url=loan, sha256=r.sha256, role=r.role, strength=r.strength)
            for loan, r in zip(order.loans, drawing.references, strict=True)
        ),
        uploads=tuple(contract.Upload(url=slot.url, headers=slot.headers) for slot in order.slots),
        deadline=order.deadline_at + order.execution_timeout,
    )


def _report(answer: Mapping[str, Any]) -> Report:
    status = answer.get("status")
    output = answer.get("output")
    wire = output if isinstance(output, Mapping) else {}
    if status in _QUEUED:
        return Report(state="queued")
    if status in _RUNNING:
        return _progress(wire)
    if status == "COMPLETED":
        milliseconds = answer.get("executionTime")
        seconds = milliseconds / 1000 if isinstance(milliseconds, int | float) else 0.0
        return replace(_completed(wire), execution_time=max(seconds, 0.0))
    if status == "FAILED":
        return _failed(wire)
    if status == "TIMED_OUT":
        return Report(state="timed_out")
    if status == "CANCELLED":
        return Report(state="cancelled")
    raise BackendUnavailable


def _progress(wire: Mapping[str, Any]) -> Report:
    try:
        progress = contract.progress_from_wire(wire)
    except (contract.ContractError, TypeError, ValueError):
        return Report(state="running")
    return Report(state="running", step=_bounded(progress.step), total_steps=_bounded(progress.total_steps))


def _bounded(count: int) -> int:
    """A number that every database can hold, whatever a worker says."""
    return min(max(count, 0), 1_000_000)


def _completed(wire: Mapping[str, Any]) -> Report:
    if isinstance(wire.get("failure"), Mapping):
        return _failed(wire)
    try:
        result = contract.result_from_wire(wire)
        pictures = tuple(
            RawPicture(
                index=p.index,
                seed=p.seed,
                sha256=p.sha256,
                width=p.width,
                height=p.height,
                data=None if p.data is None else base64.b64decode(p.data, validate=True),
            )
            for p in result.pictures
        )
    except (contract.ContractError, binascii.Error, TypeError, ValueError) as exc:
        log.error("worker answered against the contract", error=str(exc))
        return Report(state="failed", fault=Fault(code="worker_contract"))
    return Report(
        state="completed",
        drawn=Drawn(
            pictures=pictures,
            steps=_bounded(result.steps),
            guidance=result.guidance,
            sampler=result.sampler,
            family=result.family,
            revision=result.revision,
            negative_used=result.negative_used,
            timings=dict(result.timings),
            warnings=result.warnings,
            loras=tuple(Lora(name=lora.name, strength=lora.strength) for lora in result.loras),
            references=_bounded(result.references),
        ),
    )


def _failed(wire: Mapping[str, Any]) -> Report:
    try:
        failure = contract.failure_from_wire(wire.get("failure") or {})
    except contract.ContractError:
        return Report(state="failed", fault=Fault(code="worker_failed"), retryable=True)
    log.warning("worker failed", code=failure.code, error=failure.message)
    return Report(state="failed", fault=Fault(code=failure.code), retryable=failure.retryable)


def _inventory(answer: Mapping[str, Any]) -> contract.Inventory | None:
    output = answer.get("output")
    wire = output if isinstance(output, Mapping) else {}
    failure = wire.get("failure")
    # A worker of before 1.1 reads the question as a job that lacks everything.
    if isinstance(failure, Mapping) and failure.get("code") == "bad_job":
        return None
    try:
        return contract.inventory_from_wire(wire)
    except contract.ContractError as exc:
        said = failure.get("code") if isinstance(failure, Mapping) else answer.get("status")
        raise BackendRefused(
            f"the worker did not say what it has ({str(said)[:60]}).", fix="Its log has the reason."
        ) from exc


def _milliseconds(seconds: float, bounds: tuple[int, int]) -> int:
    return min(max(int(seconds * 1000), bounds[0]), bounds[1])


def _parse(body: bytes) -> Mapping[str, Any]:
    value = orjson.loads(body)
    if not isinstance(value, dict):
        raise ValueError("not an object")
    return value


async def _read(request: Request, limit: int) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise ValueError("too large")
    return bytes(body)
