"""The side door of the local endpoint: what the supervisor of its workers tells it and asks it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import httpx

from gateway.desk.claim import DeskError


class EndpointSilent(DeskError):
    """The local endpoint does not answer"""

    code = "endpoint_silent"
    retryable = True


class Broker:
    """Open it as a context. Every call raises `EndpointSilent` when the endpoint is down, as it is for moments."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url
        self._key = key

    async def __aenter__(self) -> Self:
        # Loopback never goes through a proxy.
        self._http = httpx.AsyncClient(
            base_url=self._url, headers={"Authorization": f"Bearer {self._key}"}, timeout=2, trust_env=False
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def wants(self) -> dict[str, str]:
        """What should become of each worker that the endpoint knows: ``run``, ``drain`` or ``kill``."""
        listed = await self._call("GET", "/desk/workers")
        return {str(worker["id"]): str(worker["want"]) for worker in listed.json()}

    async def drain(self, worker: str) -> None:
        """Give it no more jobs. To be said before it is asked to end, or a job that it takes meanwhile is lost."""
        await self._call("POST", f"/desk/workers/{worker}/drain")

    async def gone(self, worker: str) -> None:
        """It and all its processes are dead: what it held goes back to the queue at once."""
        await self._call("POST", f"/desk/workers/{worker}/gone")

    async def _call(self, method: str, path: str) -> httpx.Response:
        try:
            return (await self._http.request(method, path)).raise_for_status()
        except httpx.HTTPError as exc:
            raise EndpointSilent from exc
