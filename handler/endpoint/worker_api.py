"""RunPod's worker protocol, as the unmodified SDK worker speaks it.

The worker polls again without a pause after every answer but 429, so a poll is always held; and it never learns why a
result was refused, so results are answered with 200 even when they are ignored.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handler.endpoint.broker import Broker, message
from handler.endpoint.http import identifier, json_bytes, json_text, parse_json, read_body, require_key
from handler.endpoint.job import Assignment
from handler.endpoint.leases import Leases, Result
from handler.endpoint.settings import Settings
from handler.endpoint.workers import Worker

log = logging.getLogger("imgen.endpoint")
T = TypeVar("T")

# A worker that gets nothing any more is held shortly: after SIGTERM the SDK exits only when its polls are answered.
SHORT_HOLD_S = 1.0
PARKED_TAKES = 4
CHUNK_BYTES = 1_000_000


class WorkerApi:
    """One method per route of the protocol."""

    def __init__(self, broker: Broker, leases: Leases, settings: Settings) -> None:
        self._broker = broker
        self._leases = leases
        self._settings = settings

    def routes(self) -> list[Route]:
        base = "/v2/{endpoint}"
        return [
            Route(f"{base}/job-take/{{worker}}", self._door(self.take), methods=["GET"]),
            Route(f"{base}/job-take-batch/{{worker}}", self._door(self.take_batch), methods=["GET"]),
            Route(f"{base}/job-stop/{{worker}}", self._door(self.stop), methods=["GET"]),
            Route(f"{base}/job-done/{{worker}}/{{job}}", self._door(self.done), methods=["POST"]),
            Route(f"{base}/job-stream/{{worker}}/{{job}}", self._door(self.stream), methods=["POST"]),
            Route(f"{base}/ping/{{worker}}", self._door(self.ping), methods=["GET"]),
        ]

    def _door(
        self, answer: Callable[[Request, Worker], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def endpoint(request: Request) -> Response:
            require_key(request, self._settings.worker_key)
            worker_id = identifier(request, "worker")
            if request.path_params["endpoint"] != self._settings.endpoint_id or worker_id is None:
                raise HTTPException(404, "there is no such endpoint or worker")
            worker = self._broker.workers.get(worker_id, self._broker.now())
            return await answer(request, worker)

        return endpoint

    # -- polls ------------------------------------------------------------------------------------------------------

    async def take(self, request: Request, worker: Worker) -> Response:
        assigned = await self._take(request, worker, 1)
        return json_bytes(assigned[0].wire()) if assigned else Response(status_code=204)

    async def take_batch(self, request: Request, worker: Worker) -> Response:
        text = request.query_params.get("batch_size", "1")
        count = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 1
        assigned = await self._take(request, worker, max(1, count))
        if not assigned:
            return Response(status_code=204)
        return json_bytes(b"[" + b",".join(each.wire() for each in assigned) + b"]")

    async def stop(self, request: Request, worker: Worker) -> Response:
        worker.heard_main(self._broker.now())
        leases = self._leases
        jobs = await self._park(
            request, worker, f"stop:{worker.id}", lambda: leases.stops(worker), lambda j: leases.undeliver(worker, j)
        )
        return JSONResponse({"jobsToStop": jobs}) if jobs else Response(status_code=204)

    async def _take(self, request: Request, worker: Worker, count: int) -> list[Assignment] | None:
        if worker.parked_takes >= PARKED_TAKES:
            raise HTTPException(429, "this worker has too many parked polls")
        holds_nothing = request.query_params.get("job_in_progress") == "0"
        worker.parked_takes += 1
        try:
            await self._leases.polls(worker, holds_nothing=holds_nothing)
            return await self._park(
                request, worker, "take", lambda: self._leases.take(worker, count), self._leases.release
            )
        except sqlite3.Error as exc:
            log.error("the job store failed", exc_info=exc)
            raise HTTPException(429, "the job store failed") from exc
        finally:
            worker.parked_takes -= 1

    async def _park(
        self,
        request: Request,
        worker: Worker,
        bell_name: str,
        look: Callable[[], Awaitable[list[T]]],
        put_back: Callable[[list[T]], Awaitable[None]],
    ) -> list[T] | None:
        """Hold a poll until `look` finds something, the time is up, or the other side hangs up.

        Nothing is given to a connection that is known to be cut, and what was found while it was cut is put back.
        """
        clock = asyncio.get_running_loop().time
        start = clock()
        # Reading on is how one learns that the other side hung up; a GET has nothing else to say.
        cut = asyncio.create_task(_hung_up(request))
        worker.parked += 1
        try:
            while not cut.done():
                bell = self._broker.bells.listen(bell_name)
                found = await look()
                if found:
                    if not cut.done():
                        return found
                    await put_back(found)
                    break
                if self._broker.closing:
                    # The SDK waits five seconds after a 429; after anything else it would spin on a closed port.
                    raise HTTPException(429, "the endpoint is shutting down")
                left = start + self._hold(worker) - clock()
                if left <= 0:
                    return None
                await asyncio.wait({bell, cut}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            return None
        finally:
            worker.parked -= 1
            now = self._broker.now()
            if not cut.done():
                worker.heard(now)
            elif not worker.parked and not self._broker.closing:
                worker.cut_at = now
            cut.cancel()

    def _hold(self, worker: Worker) -> float:
        return self._settings.hold_s if worker.may_take() else min(SHORT_HOLD_S, self._settings.hold_s)

    # -- reports ----------------------------------------------------------------------------------------------------

    async def done(self, request: Request, worker: Worker) -> Response:
        """A result or, with `"status": "IN_PROGRESS"`, a progress report. The declared form encoding is not one."""
        body, size = await read_body(request, self._settings.runsync_bytes + 100_000)
        job_id = identifier(request, "job")
        if job_id is None:
            return JSONResponse({"ignored": "unknown job"})
        if size and not body:
            await self._leases.done(worker, job_id, Result(output=None, error=None, stop_pod=False, size=size))
            return JSONResponse({})
        try:
            given = parse_json(body)
            if not isinstance(given, dict):
                raise ValueError("not an object")
            output = json_text(given["output"]) if "output" in given else None
            error = json_text(given["error"]) if given.get("error") else None
        except ValueError as exc:
            problem = message(f"the worker posted a result that is not JSON: {exc}")
            await self._leases.done(worker, job_id, Result(output=None, error=problem, stop_pod=False, size=size))
            return JSONResponse({})
        if given.get("status") == "IN_PROGRESS" and error is None:
            await self._leases.report(worker, job_id, output or "null", _sequence(given.get("output")))
        else:
            stop_pod = given.get("stopPod") is True
            await self._leases.done(worker, job_id, Result(output=output, error=error, stop_pod=stop_pod, size=size))
        return JSONResponse({})

    async def stream(self, request: Request, worker: Worker) -> Response:
        body, size = await read_body(request, CHUNK_BYTES)
        job_id = identifier(request, "job")
        try:
            given = parse_json(body) if size <= CHUNK_BYTES else None
            output = json_text(given.get("output")) if isinstance(given, dict) else None
        except ValueError:
            output = None
        if job_id is None or output is None:
            log.warning("stream part ignored: larger than 1 MB or not JSON", extra={"job": job_id, "worker": worker.id})
        else:
            await self._leases.chunk(worker, job_id, output)
        return JSONResponse({})

    async def ping(self, request: Request, worker: Worker) -> Response:
        if request.query_params.get("status") == "unhealthy":
            reason = {name: request.query_params.get(name, "")[:500] for name in ("check", "reason")}
            log.error("worker unhealthy", extra={"worker": worker.id, **reason})
        named = {job for text in request.query_params.getlist("job_id") for job in text.split(",") if job}
        await self._leases.ping(worker, named)
        return JSONResponse({})


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _sequence(output: Any) -> int | None:
    value = output.get("sequence") if isinstance(output, dict) else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None
