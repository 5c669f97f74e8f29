"""Telling the operator: events wait in the job store until the operator's webhook has taken them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import structlog

from gateway.core.images import Event
from gateway.core.ports import Events, Notifier
from gateway.errors import NotifierUnavailable, Unavailable

log = structlog.get_logger(__name__)

#: Seconds from one try to the next; the last one holds for ever, for such an event is never given up.
BACK_OFF = (5, 60, 300, 1800, 7200, 18000, 36000)
#: Seconds between two looks at what is due, and how many events one look takes.
LOOK_EVERY = 2.0
AT_ONCE = 16


class OperatorEvents:
    """Delivers events, at least once each, whichever replica gets to it."""

    def __init__(
        self, events: Events, notifier: Notifier, *, now: Callable[[], float], look_every: float = LOOK_EVERY
    ) -> None:
        self._events = events
        self._notifier = notifier
        self._now = now
        self._look_every = look_every

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Deliver in the background while the block runs. What is under way at the end is tried again later."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._deliver_for_ever)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def deliver_due(self) -> None:
        """Try each event whose time has come, once."""
        for event in await self._events.due(now=self._now(), limit=AT_ONCE):
            pause = BACK_OFF[min(event.tries, len(BACK_OFF) - 1)] * random.uniform(0.8, 1.2)
            # Written before the try: a replica that dies on the way leaves it to the next one, after the pause.
            if await self._events.later(event, next_at=self._now() + pause):
                await self._deliver(event, pause)

    async def _deliver(self, event: Event, pause: float) -> None:
        try:
            await self._notifier.send(event)
        except NotifierUnavailable as exc:
            again = round(pause)
            log.warning("event not delivered", event_id=event.id, tries=event.tries + 1, error=str(exc), again_s=again)
            return
        await self._events.delivered(event.id, now=self._now())
        log.info("event delivered", event_id=event.id, kind=event.kind)

    async def _deliver_for_ever(self) -> None:
        while True:
            try:
                await self.deliver_due()
            except Unavailable as exc:
                log.warning("events wait", error=exc.message)
            except Exception:
                # Whatever goes wrong with one event, the others must still be told.
                log.exception("events wait")
            await anyio.sleep(self._look_every)
