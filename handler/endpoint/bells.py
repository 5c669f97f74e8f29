"""Waking those who wait: a ring reaches everybody who listened before it."""

from __future__ import annotations

import asyncio


class Bells:
    """Named bells. Listen first, then look, then wait: so a ring between look and wait is not missed."""

    def __init__(self) -> None:
        self._bells: dict[str, asyncio.Future[None]] = {}

    def listen(self, name: str) -> asyncio.Future[None]:
        """A future that the next ring ends. It is shared: wait for it with `asyncio.wait`, never cancel it."""
        bell = self._bells.get(name)
        if bell is None or bell.done():
            bell = self._bells[name] = asyncio.get_running_loop().create_future()
        return bell

    def ring(self, name: str) -> None:
        bell = self._bells.pop(name, None)
        if bell is not None and not bell.done():
            bell.set_result(None)

    def ring_all(self) -> None:
        for name in list(self._bells):
            self.ring(name)
