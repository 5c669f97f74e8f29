"""A reviewer that may fail, made bearable: asked again for a while, never by too many at once, and left alone when it
is down. Without an answer there is no verdict, so nothing here ever answers in its place.
"""

import random
import threading
import time
from collections.abc import Callable

from compliance.errors import BrokenRender, ReviewUnavailable
from compliance.picture import Raw
from compliance.review import Context, Opinion, Reviewer
from compliance.rulesets import Ruleset


class Guarded:
    """The reviewer with a limit of calls at once, retries within a deadline, and a circuit breaker. Thread-safe.

    A policy refusal is an opinion and a broken render an answer too: neither is asked again, nor counted as a failure.
    """

    def __init__(
        self,
        reviewer: Reviewer,
        *,
        at_once: int = 4,
        attempts: int = 4,
        patience: float = 60.0,
        first_wait: float = 0.5,
        longest_wait: float = 10.0,
        trips_after: int = 5,
        rest: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        chance: Callable[[], float] = random.random,
    ) -> None:
        """At most `at_once` calls run together; who finds no place waits for one at most for the rest of its patience.

        A review asks at most `attempts` times and begins no call later than `patience` seconds after its start; the
        last one may still take the reviewer's own time-out. Between two calls it waits `first_wait` seconds, then twice
        as long each time, up to `longest_wait`, give or take by `chance`, and never less than the reviewer asks for.
        After `trips_after` failures in a row, of any review, nobody asks for `rest` seconds; then one call is let
        through, and whether it fails decides.
        """
        self.name = reviewer.name
        self.labels = reviewer.labels
        self.always = reviewer.always
        self._reviewer = reviewer
        self._places = threading.BoundedSemaphore(at_once)
        self._attempts = attempts
        self._patience = patience
        self._first_wait = first_wait
        self._longest_wait = longest_wait
        self._breaker = _Breaker(reviewer.name, trips_after, rest, clock)
        self._clock = clock
        self._sleep = sleep
        self._chance = chance

    @property
    def version(self) -> str:
        return self._reviewer.version

    @property
    def trouble(self) -> str:
        """Why nobody asks it at the moment, for people; empty when it is asked, if only to see whether it is back.

        Who is sent no work while there is trouble would never find out.
        """
        return self._breaker.trouble

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        until = self._clock() + self._patience
        attempt = 1
        while True:
            try:
                return self._once(picture, context, ruleset, until)
            except ReviewUnavailable as exc:
                wait = max(exc.after, self._back_off(attempt))
                if not exc.again or attempt >= self._attempts or self._clock() + wait > until:
                    raise
            self._sleep(wait)
            attempt += 1

    def _once(self, picture: Raw, context: Context, ruleset: Ruleset, until: float) -> Opinion:
        trial = self._breaker.enter()
        if not self._places.acquire(timeout=max(0.0, until - self._clock())):
            self._breaker.leave(trial)
            raise ReviewUnavailable(f"The reviewer {self.name} has too much to do.", again=False, outage=False)
        try:
            opinion = self._reviewer.review(picture, context, ruleset)
        except ReviewUnavailable as exc:
            if exc.outage:
                self._breaker.failed(exc)
            else:
                self._breaker.leave(trial)
            raise
        except BrokenRender:
            self._breaker.leave(trial)
            raise
        except BaseException as exc:
            self._breaker.failed(ReviewUnavailable(f"It raised {type(exc).__name__}."))
            raise
        finally:
            self._places.release()
        self._breaker.answered()
        return opinion

    def _back_off(self, attempt: int) -> float:
        return min(self._longest_wait, self._first_wait * 2.0 ** (attempt - 1)) * (0.5 + self._chance() / 2)


class _Breaker:
    """Counts failures in a row. Once they are too many it is open until a time, then lets a single call try."""

    def __init__(self, name: str, trips_after: int, rest: float, clock: Callable[[], float]) -> None:
        self._name = name
        self._trips_after = trips_after
        self._rest = rest
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._until = 0.0
        self._trying = False
        self._last = ReviewUnavailable()

    @property
    def trouble(self) -> str:
        with self._lock:
            resting = self._failures >= self._trips_after and self._clock() < self._until
            return str(self._last) if resting else ""

    def enter(self) -> bool:
        """Raises ReviewUnavailable while it is open, and is true for the call that may try.

        Each call that gets in ends with one of the three below.
        """
        with self._lock:
            if self._failures < self._trips_after:
                return False
            left = self._until - self._clock()
            if left > 0 or self._trying:
                raise ReviewUnavailable(
                    f"The reviewer {self._name} is left alone after {self._failures} failures. {self._last.message}",
                    fix=self._last.fix,
                    again=False,
                    after=max(0.0, left),
                )
            self._trying = True
            return True

    def leave(self, trial: bool) -> None:
        """The call showed nothing about the reviewer."""
        with self._lock:
            self._trying = self._trying and not trial

    def answered(self) -> None:
        with self._lock:
            self._failures = 0
            self._trying = False

    def failed(self, why: ReviewUnavailable) -> None:
        with self._lock:
            self._failures += 1
            self._trying = False
            self._last = why
            if self._failures >= self._trips_after:
                self._until = self._clock() + self._rest
