"""What a monitoring system reads at ``GET /metrics``, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.process_collector import ProcessCollector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_SIMILAR = (0.5, 0.8, 0.9, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 1)
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """The figures of one process. ``expires_at`` is when the signing certificate does, in seconds since the epoch."""

    def __init__(self, *, expires_at: float, now: Callable[[], float] = time.time) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        self._signed = Counter(
            "imgen_pictures_signed",
            "Files signed, thumbnails among them; stamped is yes, no (the authority did not answer) or off",
            ["stamped"],
            registry=self._registry,
        )
        self._failed = Counter(
            "imgen_pictures_signing_failed", "Files that could not be signed", ["code"], registry=self._registry
        )
        self._seconds = Histogram(
            "imgen_signing_seconds", "Seconds to sign one file", buckets=_SECONDS, registry=self._registry
        )
        expiry = Gauge(
            "imgen_signing_certificate_expiry_seconds",
            "Seconds until the first certificate of the signing chain expires; below zero it has",
            registry=self._registry,
        )
        expiry.set_function(lambda: expires_at - now())
        for stamped in _WORDS.values():
            self._signed.labels(stamped)
        self._cache = Counter(
            "imgen_cache_lookups",
            "Requests that asked the cache: exact, semantic or miss",
            ["result"],
            registry=self._registry,
        )
        self._cache_failed = Counter(
            "imgen_cache_failures",
            "Requests for which the cache could not be asked whole",
            ["cause"],
            registry=self._registry,
        )
        self._cache_refused = Counter(
            "imgen_cache_guard_refusals", "Entries above the floor that the guard refused", registry=self._registry
        )
        self._similarity = Histogram(
            "imgen_cache_similarity", "Similarity of what was found", buckets=_SIMILAR, registry=self._registry
        )
        self._cache_saved = Counter(
            "imgen_cache_saved_seconds", "Seconds of drawing that hits saved", registry=self._registry
        )
        for result in ("exact", "semantic", "miss"):
            self._cache.labels(result)

    def signed(self, seconds: float, stamped: bool | None) -> None:
        self._signed.labels(_WORDS[stamped]).inc()
        self._seconds.observe(seconds)

    def signing_failed(self, code: str) -> None:
        self._failed.labels(code).inc()

    def cache_hit(self, tier: str, similarity: float, seconds: float) -> None:
        self._cache.labels(tier).inc()
        self._similarity.observe(similarity)
        self._cache_saved.inc(seconds)

    def cache_missed(self) -> None:
        self._cache.labels("miss").inc()

    def cache_refused(self, count: int) -> None:
        self._cache_refused.inc(count)

    def cache_failed(self, cause: str) -> None:
        self._cache_failed.labels(cause).inc()

    def routes(self) -> list[Route]:
        async def serve(request: Request) -> Response:
            return Response(generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST})

        return [Route("/metrics", serve)]


_WORDS = {True: "yes", False: "no", None: "off"}
