"""The composition root of the local endpoint."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette

from handler.endpoint.bells import Bells
from handler.endpoint.broker import Broker
from handler.endpoint.desk import DeskApi
from handler.endpoint.http import EXCEPTION_HANDLERS
from handler.endpoint.leases import Leases
from handler.endpoint.limits import DOCUMENTED, RateLimits
from handler.endpoint.public import PublicApi
from handler.endpoint.settings import Settings
from handler.endpoint.store import Store
from handler.endpoint.webhooks import Webhooks
from handler.endpoint.worker_api import WorkerApi
from handler.endpoint.workers import Workers

log = logging.getLogger("imgen.endpoint")


def new_job_id() -> str:
    return f"{uuid.uuid4()}-e1"


class LocalEndpoint:
    """All parts of one endpoint. Building it does no I/O; `running` opens it."""

    def __init__(
        self,
        settings: Settings,
        *,
        now: Callable[[], float] = time.time,
        new_id: Callable[[], str] = new_job_id,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._settings = settings
        self.store = Store(settings.data)
        self.broker = Broker(store=self.store, workers=Workers(), bells=Bells(), now=now, new_id=new_id)
        self.leases = Leases(self.broker, settings)
        self._webhooks = Webhooks(self.broker, settings, transport)
        limits = RateLimits(DOCUMENTED if settings.rate_limits else {}, now=time.monotonic)
        self.app = Starlette(
            routes=[
                *PublicApi(self.broker, limits, settings).routes(),
                *WorkerApi(self.broker, self.leases, settings).routes(),
                *DeskApi(self.leases, settings).routes(),
            ],
            exception_handlers=EXCEPTION_HANDLERS,
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the store, take up what an earlier process left, and keep watch until the end."""
        async with self.store.open():
            await self.leases.recover()
            chores = [asyncio.create_task(self._sweep()), asyncio.create_task(self._webhooks.run())]
            try:
                yield
            finally:
                self.broker.close()
                for chore in chores:
                    chore.cancel()
                await asyncio.gather(*chores, return_exceptions=True)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        async with self.running():
            yield

    async def _sweep(self) -> None:
        while True:
            try:
                await self.leases.sweep()
            except Exception:
                # A sweep that fails once, as on a full disk, must not be the last one.
                log.exception("sweep failed")
            await asyncio.sleep(self._settings.sweep_s)
