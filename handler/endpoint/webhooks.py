"""Telling a client's webhook that its job has ended. What is due is on the disk, so a restart forgets nothing."""

from __future__ import annotations

import asyncio
import logging
import sqlite3

import httpx

from handler.endpoint import queries
from handler.endpoint.broker import Broker
from handler.endpoint.settings import Settings

log = logging.getLogger("imgen.endpoint")

TRIES = 3
AT_ONCE = 16


class Webhooks:
    """Posts the status JSON of each ended job; only a plain 200 counts, and no redirect is followed."""

    def __init__(self, broker: Broker, settings: Settings, transport: httpx.AsyncBaseTransport | None = None) -> None:
        self._broker = broker
        self._settings = settings
        self._transport = transport
        self._under_way: dict[str, asyncio.Task[None]] = {}

    async def run(self) -> None:
        """Deliver for ever; cancel to end. A delivery that is cut short is tried again after the next start."""
        timeout = self._settings.webhook_timeout_s
        async with httpx.AsyncClient(
            transport=self._transport, timeout=timeout, follow_redirects=False, trust_env=False
        ) as client:
            try:
                while True:
                    bell = self._broker.bells.listen("webhooks")
                    try:
                        left = await self._start_due(client)
                    except sqlite3.Error:
                        log.exception("the job store failed; webhooks wait")
                        left = self._settings.webhook_retry_s
                    await asyncio.wait(
                        {bell, *self._under_way.values()}, timeout=left, return_when=asyncio.FIRST_COMPLETED
                    )
            finally:
                for task in self._under_way.values():
                    task.cancel()
                await asyncio.gather(*self._under_way.values(), return_exceptions=True)

    async def _start_due(self, client: httpx.AsyncClient) -> float | None:
        """Start what is due and return the seconds until something else is, None when nothing is."""
        self._under_way = {job: task for job, task in self._under_way.items() if not task.done()}
        now = self._broker.now()
        left: float | None = None
        for job_id, attempts, due_at in await self._broker.store.transact(queries.webhooks):
            if job_id in self._under_way:
                continue
            if len(self._under_way) >= AT_ONCE:
                break
            if due_at > now:
                left = due_at - now
                break
            self._under_way[job_id] = asyncio.create_task(self._deliver(client, job_id, attempts + 1))
        return left

    async def _deliver(self, client: httpx.AsyncClient, job_id: str, attempt: int) -> None:
        try:
            await self._try(client, job_id, attempt)
        except sqlite3.Error:
            log.exception("the job store failed; the webhook is tried again", extra={"job": job_id})
            await asyncio.sleep(self._settings.webhook_retry_s)

    async def _try(self, client: httpx.AsyncClient, job_id: str, attempt: int) -> None:
        job = await self._broker.get(job_id)
        if job is None or job.webhook is None or not job.finished:
            return
        outcome: str | int
        try:
            body = self._broker.wire(job)
            answer = await client.post(job.webhook, content=body, headers={"Content-Type": "application/json"})
            outcome = answer.status_code
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as exc:
            outcome = type(exc).__name__
        again = outcome != 200 and attempt < TRIES
        due_at = self._broker.now() + self._settings.webhook_retry_s if again else None
        await self._broker.store.transact(queries.webhook_tried, job_id, attempt, due_at)
        level = logging.INFO if outcome == 200 else logging.WARNING
        log.log(level, "webhook posted", extra={**job.about(), "try": attempt, "outcome": outcome, "again": again})
