"""`LocalCompliance`: the reviewers in this process. Reviews run in threads, so that none holds up the event loop."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import anyio
import anyio.to_thread

from compliance.panel import Panel
from compliance.picture import Raw
from compliance.review import Context
from compliance.verdict import Verdict
from gateway.core.images import Readiness

#: Characters of a prompt that are read on the spot: the way to a thread and back would cost more than the reading.
SHORT = 600


class LocalCompliance:
    """The port `Compliance` over a panel. Open it before use."""

    def __init__(self, panel: Panel, *, threads: int) -> None:
        self._panel = panel
        self._threads = threads
        self._limiter: anyio.CapacityLimiter | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        self._limiter = anyio.CapacityLimiter(self._threads)
        yield

    @property
    def rulesets(self) -> Mapping[str, str]:
        return {name: ruleset.version for name, ruleset in self._panel.rulesets.items()}

    async def gate(self, context: Context, ruleset: str) -> Verdict:
        if len(context.positive) + len(context.negative) <= SHORT:
            return self._panel.gate(context, ruleset)
        return await anyio.to_thread.run_sync(self._panel.gate, context, ruleset)

    async def upload(self, picture: Raw, ruleset: str) -> Verdict:
        return await anyio.to_thread.run_sync(self._panel.upload, picture, ruleset, limiter=self._limiter)

    async def review(self, picture: Raw, context: Context, ruleset: str) -> Verdict:
        return await anyio.to_thread.run_sync(self._panel.review, picture, context, ruleset, limiter=self._limiter)

    async def readiness(self) -> Readiness:
        reason = "; ".join(self._panel.troubles())
        return Readiness(ready=not reason, reason=reason)
