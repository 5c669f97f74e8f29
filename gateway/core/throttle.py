"""A token bucket for each caller: so many requests a minute, and as many at once."""

from __future__ import annotations

import ipaddress
import math
from collections import OrderedDict
from collections.abc import Callable

from gateway.errors import TooManyRequests

_MOST_REMEMBERED = 10_000


def _network(address: str) -> str:
    """Who a network address belongs to: of IPv6 everybody has 64 bits of them."""
    try:
        given = ipaddress.ip_address(address)
    except ValueError:
        return address
    return address if given.version == 4 else str(ipaddress.ip_network((given, 64), strict=False))


class Throttle:
    """Lets each caller through ``per_minute`` times a minute. In this process: each replica counts for itself."""

    def __init__(self, *, per_minute: float, now: Callable[[], float]) -> None:
        self._rate = per_minute / 60
        self._most = max(per_minute, 1.0) if per_minute else 0.0
        self._now = now
        #: Tokens that were left, and when. Whoever is forgotten has a full bucket, so the longest away go first.
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> None:
        """Raises `TooManyRequests`, which says when to come again."""
        now = self._now()
        caller = _network(address)
        left, when = self._left.get(caller, (self._most, now))
        left = min(self._most, left + (now - when) * self._rate)
        if left < 1:
            raise TooManyRequests(math.ceil((1 - left) / self._rate) if self._rate else 3600)
        self._left[caller] = (left - 1, now)
        self._left.move_to_end(caller)
        if len(self._left) > _MOST_REMEMBERED:
            self._left.popitem(last=False)
