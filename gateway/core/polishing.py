"""What is done to one picture between its review and the storage: mark → encode → sign. CPU work, for threads."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from compliance import watermark
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.picture import Blocked, Reviewed, Signed
from compliance.sign import Claims, Provenance, Signer
from gateway.core.images import Credentials, Job, RawPicture


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """One signed picture and its thumbnail."""

    drawn: RawPicture
    signed: Signed
    thumb: Signed


class Polisher:
    """Makes a reviewed picture what the caller asked for. One object serves all threads."""

    def __init__(self, *, signer: Signer, defaults: Credentials, now: Callable[[], float]) -> None:
        self._signer = signer
        self._defaults = defaults
        self._now = now

    def probe(self) -> None:
        """Raises `compliance.errors.ComplianceError` when what it signs would be trusted by nobody."""
        self._signer.probe()

    def polish(self, job: Job, drawn: RawPicture, passed: Reviewed | Blocked, timings: dict[str, float]) -> Finished:
        """The picture and its thumbnail. Raises `compliance.errors.ComplianceError`."""
        delivery = job.delivery
        with timed(timings, "mark"):
            marked = watermark.mark_blocked(passed) if isinstance(passed, Blocked) else watermark.mark(passed)
        with timed(timings, "encode"):
            options = EncodeOptions(format=delivery.format, quality=delivery.quality, lossless=delivery.lossless)  # type: ignore[arg-type]
            encoded = encode(marked, options)
            small = encode(thumbnail(marked), THUMBNAIL_OPTIONS)
        with timed(timings, "sign"):
            provenance = self._provenance(job)
            signed = self._signer.sign(encoded, provenance)
            thumb = self._signer.sign(small, provenance, parent=signed)
        return Finished(drawn=drawn, signed=signed, thumb=thumb)

    def _provenance(self, job: Job) -> Provenance:
        asked, defaults = job.delivery.credentials, self._defaults
        return Provenance(
            gen_id=job.gen_id,
            model=job.drawing.model,
            created=datetime.fromtimestamp(job.drawn_at or self._now(), UTC),
            claims=Claims(
                author=asked.author or defaults.author,
                title=asked.title or defaults.title,
                description=asked.description or defaults.description,
                organization=asked.organization or defaults.organization,
                vendor=asked.vendor or defaults.vendor,
            ),
        )


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to a stage's."""
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = round(timings.get(stage, 0.0) + time.perf_counter() - began, 5)
