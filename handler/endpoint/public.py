"""RunPod's public endpoint API, as clients see it."""

from __future__ import annotations

import json
import math
from collections.abc import Awaitable, Callable

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handler.endpoint.broker import Broker
from handler.endpoint.http import identifier, json_bytes, read_body, require_key
from handler.endpoint.job import IN_QUEUE, Job, splice
from handler.endpoint.limits import RateLimits
from handler.endpoint.settings import Settings
from handler.endpoint.submission import BadSubmission, read_submission, read_wait

Answer = Callable[[Request], Awaitable[Response]]


class PublicApi:
    """One method per operation; each gets a request whose key, endpoint id and rate are already checked."""

    def __init__(self, broker: Broker, limits: RateLimits, settings: Settings) -> None:
        self._broker = broker
        self._limits = limits
        self._settings = settings

    def routes(self) -> list[Route]:
        base = "/v2/{endpoint}"
        return [
            Route(f"{base}/run", self._door("run", self.run), methods=["POST"]),
            Route(f"{base}/runsync", self._door("runsync", self.runsync), methods=["POST"]),
            Route(f"{base}/status/{{job}}", self._door("status", self.status), methods=["GET"]),
            Route(f"{base}/stream/{{job}}", self._door("stream", self.stream), methods=["GET"]),
            Route(f"{base}/cancel/{{job}}", self._door("cancel", self.cancel), methods=["POST"]),
            Route(f"{base}/retry/{{job}}", self._door("retry", self.retry), methods=["POST"]),
            Route(f"{base}/purge-queue", self._door("purge-queue", self.purge), methods=["POST"]),
            Route(f"{base}/health", self._door("health", self.health), methods=["GET"]),
        ]

    def _door(self, operation: str, answer: Answer) -> Answer:
        async def endpoint(request: Request) -> Response:
            require_key(request, self._settings.client_key)
            if request.path_params["endpoint"] != self._settings.endpoint_id:
                raise HTTPException(404, "there is no such endpoint")
            wait = self._limits.admit(operation)
            if wait is not None:
                retry_after = {"Retry-After": str(max(1, math.ceil(wait)))}
                raise HTTPException(429, f"too many {operation} requests within 10 seconds", headers=retry_after)
            return await answer(request)

        return endpoint

    async def run(self, request: Request) -> Response:
        job_id = await self._submit(request, sync=False)
        return JSONResponse({"id": job_id, "status": IN_QUEUE})

    async def runsync(self, request: Request) -> Response:
        try:
            seconds = read_wait(request.query_params.get("wait"))
        except BadSubmission as exc:
            raise HTTPException(400, str(exc)) from exc
        job_id = await self._submit(request, sync=True)
        return self._show(await self._broker.wait(job_id, seconds))

    async def status(self, request: Request) -> Response:
        return self._show(await self._broker.get(_job_id(request)))

    async def stream(self, request: Request) -> Response:
        job, parts = await self._broker.stream(_job_id(request))
        if job is None:
            raise _unknown_job()
        outputs = ",".join(f'{{"output":{part}}}' for part in parts)
        return json_bytes(splice({"status": json.dumps(job.status), "stream": f"[{outputs}]"}))

    async def cancel(self, request: Request) -> Response:
        return self._show(await self._broker.cancel(_job_id(request)))

    async def retry(self, request: Request) -> Response:
        job, changed = await self._broker.retry(_job_id(request))
        if job is None:
            raise _unknown_job()
        if not changed:
            raise HTTPException(400, f"only a FAILED or TIMED_OUT job can be retried, this one is {job.status}")
        return JSONResponse({"id": job.id, "status": job.status})

    async def purge(self, request: Request) -> Response:
        return JSONResponse({"removed": await self._broker.purge(), "status": "completed"})

    async def health(self, request: Request) -> Response:
        return JSONResponse(await self._broker.health())

    async def _submit(self, request: Request, *, sync: bool) -> str:
        limit = self._settings.runsync_bytes if sync else self._settings.run_bytes
        body, size = await read_body(request, limit)
        if size > limit:
            raise HTTPException(400, f"the body has {size} bytes, the limit is {limit}; send links instead of contents")
        try:
            return await self._broker.submit(read_submission(body, sync=sync))
        except BadSubmission as exc:
            raise HTTPException(400, str(exc)) from exc

    def _show(self, job: Job | None) -> Response:
        if job is None:
            raise _unknown_job()
        return json_bytes(self._broker.wire(job))


def _job_id(request: Request) -> str:
    job_id = identifier(request, "job")
    if job_id is None:
        raise _unknown_job()
    return job_id


def _unknown_job() -> HTTPException:
    return HTTPException(404, "there is no such job; it is unknown, past its ttl, or its result was forgotten")
