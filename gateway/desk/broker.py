"""The side door of the local endpoint: what the supervisor of its workers tells it and asks it."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Self

import httpx

from gateway.desk.claim import DeskError


class EndpointSilent(DeskError):
    """The local endpoint does not answer"""

    code = "endpoint_silent"
    retryable = True


@dataclass(frozen=True, kw_only=True, slots=True)
class Worker:
    """What the endpoint says of a worker. ``want`` is ``run``, or what should be done before it is replaced."""

    want: str
    busy: bool


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

    async def workers(self) -> dict[str, Worker]:
        """Every worker that the endpoint has heard of, by its id."""
        listed = await self._call("GET", "/desk/workers")
        return {str(entry["id"]): Worker(want=str(entry["want"]), busy=bool(entry["job"])) for entry in listed.json()}

    async def drain(self, worker: str) -> bool:
        """Give it no more jobs; whether it still holds one. To be said before it is asked to end: a job that it takes
        after that is lost."""
        await self._call("POST", f"/desk/workers/{worker}/drain")
        known = (await self.workers()).get(worker)
        return known is not None and known.busy

    async def gone(self, worker: str) -> None:
        """It and all its processes are dead: what it held goes back to the queue at once."""
        await self._call("POST", f"/desk/workers/{worker}/gone")

    async def _call(self, method: str, path: str) -> httpx.Response:
        try:
            return (await self._http.request(method, path)).raise_for_status()
        except httpx.HTTPError as exc:
            raise EndpointSilent from exc
