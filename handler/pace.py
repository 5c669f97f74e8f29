"""What happens before the SDK asks for a job: not too often, and never again once this process can't draw any more."""

from __future__ import annotations

import time
from collections.abc import Callable

_QUICK = 0.05
"""A poll that came back within so many seconds was not held by anybody."""

_ALLOWED = 3
"""So many quick polls in a row are nothing: a job was waiting."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0


class Pace:
    """The SDK's ``concurrency_modifier``: changes no concurrency, but is asked before every poll for a job.

    The SDK polls again at once after a refused connection or an error, which fills a disk with its complaints and keeps
    a core busy. To sleep here blocks the SDK's loop, and that is harmless: it polls only when it has no job.

    ``ended`` says that no further job may be taken; then ``end`` is called, which should not return. The SDK asks once
    a second while a job is drawn too, so ``ended`` must wait for the job's answer to be posted.
    """

    def __init__(
        self,
        *,
        ended: Callable[[], bool] = lambda: False,
        end: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._ended = ended
        self._end = end
        self._clock = clock
        self._sleep = sleep
        self._last = clock()
        self._quick = 0

    def __call__(self, concurrency: int) -> int:
        if self._ended():
            self._end()
        self._quick = self._quick + 1 if self._clock() - self._last < _QUICK else 0
        if self._quick > _ALLOWED:
            doublings = min(self._quick - _ALLOWED - 1, 10)
            self._sleep(min(_FIRST_PAUSE * 2**doublings, _LONGEST_PAUSE))
        self._last = self._clock()
        return concurrency
