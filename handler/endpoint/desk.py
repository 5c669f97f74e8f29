"""What the supervisor of the desk tells the endpoint about its workers, and asks."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from handler.endpoint.http import identifier, require_key
from handler.endpoint.leases import Leases
from handler.endpoint.settings import Settings


class DeskApi:
    """The few routes that RunPod does not have, because there it is itself the supervisor."""

    def __init__(self, leases: Leases, settings: Settings) -> None:
        self._leases = leases
        self._settings = settings

    def routes(self) -> list[Route]:
        return [
            Route("/healthz", self.alive, methods=["GET"]),
            Route("/desk/workers", self.list, methods=["GET"]),
            Route("/desk/workers/{worker}/gone", self.gone, methods=["POST"]),
            Route("/desk/workers/{worker}/drain", self.drain, methods=["POST"]),
        ]

    async def alive(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def list(self, request: Request) -> Response:
        require_key(request, self._settings.worker_key)
        return JSONResponse(await self._leases.fleet())

    async def gone(self, request: Request) -> Response:
        """The worker's process has ended. Idempotent; its id is never used again."""
        worker_id = self._worker(request)
        return JSONResponse({"id": worker_id, "requeued": await self._leases.gone(worker_id)})

    async def drain(self, request: Request) -> Response:
        """Give the worker no further job. When this has answered, the worker may get its SIGTERM."""
        worker_id = self._worker(request)
        await self._leases.drain(worker_id)
        return JSONResponse({"id": worker_id, "state": "draining"})

    def _worker(self, request: Request) -> str:
        require_key(request, self._settings.worker_key)
        worker_id = identifier(request, "worker")
        if worker_id is None:
            raise HTTPException(404, "there is no such worker")
        return worker_id
