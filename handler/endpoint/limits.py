"""RunPod's documented request limits, as windows in this process."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping

# Requests per ten seconds and operation.
DOCUMENTED: Mapping[str, int] = {
    "run": 1000,
    "runsync": 2000,
    "status": 2000,
    "stream": 2000,
    "cancel": 100,
    "purge-queue": 2,
}
WINDOW_S = 10.0


class RateLimits:
    """A sliding window per operation; an operation without a limit is always admitted."""

    def __init__(self, limits: Mapping[str, int], *, now: Callable[[], float]) -> None:
        self._limits = limits
        self._now = now
        self._seen: dict[str, deque[float]] = {name: deque() for name in limits}

    def admit(self, operation: str) -> float | None:
        """None when the request may pass, else the seconds after which it may."""
        limit = self._limits.get(operation)
        if limit is None:
            return None
        now, seen = self._now(), self._seen[operation]
        while seen and not now - WINDOW_S < seen[0] <= now:
            seen.popleft()
        if len(seen) >= limit:
            return seen[0] + WINDOW_S - now
        seen.append(now)
        return None
