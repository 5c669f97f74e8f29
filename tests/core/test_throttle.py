"""So many a minute for each, and a word when to come again."""

from __future__ import annotations

import pytest

from gateway.core.throttle import Throttle
from gateway.errors import TooManyRequests


def test_each_caller_has_a_bucket_of_its_own_that_fills_again():
    clock = [0.0]
    throttle = Throttle(per_minute=3, now=lambda: clock[0])
    for _ in range(3):
        throttle.take("one")
    with pytest.raises(TooManyRequests) as caught:
        throttle.take("one")
    assert caught.value.seconds == 20 and caught.value.retryable and "20 seconds" in caught.value.fix
    throttle.take("other")
    clock[0] = 20.0
    throttle.take("one")
    with pytest.raises(TooManyRequests):
        throttle.take("one")


def test_at_no_rate_nobody_comes_through():
    with pytest.raises(TooManyRequests):
        Throttle(per_minute=0, now=lambda: 0.0).take("one")


def test_many_callers_do_not_fill_the_memory():
    throttle = Throttle(per_minute=60, now=lambda: 0.0)
    for number in range(20_000):
        throttle.take(str(number))
    assert len(throttle._left) <= 10_000
