"""From the worker's pixels to what may be handed out: one straight road, one type per stage.

    fetch raw → decode → review → watermark → encode → sign → store

A blocked picture leaves the road after the review, to the quarantine, and takes all pictures of its job with it:
nothing is published before each of them has its verdict and its signature.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

import anyio
import anyio.to_thread

from compliance import watermark
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import BrokenRender, ComplianceError, PictureRefused
from compliance.picture import Blocked, Signed, decode
from compliance.review import Case, Reviewer, Ruleset, review
from compliance.sign import Claims, Provenance, Signer
from compliance.verdict import Verdict
from gateway.core import prompts
from gateway.core.images import Credentials, Job, Outcome, RawPicture, Readiness, StoredPicture
from gateway.core.ports import Storage
from gateway.errors import FinishingFailed


class DrawAgain(Exception):
    """What the worker delivered is no usable picture: lost, other bytes than reported, or a broken render."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """One picture that may leave, and its thumbnail."""

    verdict: Verdict
    signed: Signed
    thumb: Signed


def raw_prefix(job: Job) -> str:
    """Where the worker's pictures of a job lie, of every attempt."""
    return f"raw/{job.gen_id}"


def raw_key(job: Job, index: int) -> str:
    """Where the worker puts a picture of the present attempt."""
    return f"{raw_prefix(job)}/{job.attempt}/{index}.png"


def reference_key(gen_id: str, index: int) -> str:
    """Where a reference picture lies as long as its job is open: it goes with the raw pictures."""
    return f"raw/{gen_id}/references/{index}.png"


class Finisher:
    """Makes the `Outcome` of a drawn job. Open it before use: it proves that what it signs is trusted."""

    def __init__(
        self,
        *,
        storage: Storage,
        reviewers: Sequence[Reviewer],
        rulesets: Mapping[str, Ruleset],
        signer: Signer,
        defaults: Credentials,
        threads: int,
        now: Callable[[], float],
    ) -> None:
        self._storage = storage
        self._reviewers = reviewers
        self._rulesets = rulesets
        self._signer = signer
        self._defaults = defaults
        self._threads = threads
        self._now = now
        self._limiter: anyio.CapacityLimiter | None = None
        self._readiness = Readiness(ready=False, reason="the signer has not been tried yet")

    async def open(self) -> None:
        """Sign a probe. A signer that no reader would trust keeps the gateway from being ready, and says why."""
        self._limiter = anyio.CapacityLimiter(self._threads)
        try:
            await anyio.to_thread.run_sync(self._signer.probe)
        except ComplianceError as exc:
            self._readiness = Readiness(ready=False, reason=f"signing: {exc}")
        else:
            self._readiness = Readiness(ready=True)

    def readiness(self) -> Readiness:
        return self._readiness

    async def finish(self, job: Job) -> Outcome:
        """Everything that was drawn, reviewed, signed and stored; nothing is visible before the caller commits it.

        Raises `DrawAgain`, and `FinishingFailed` or `StorageUnavailable` when a stage does not answer.
        """
        assert job.drawn is not None
        if not self._readiness.ready:
            raise FinishingFailed("signing_unavailable", self._readiness.reason, retryable=True)
        timings: dict[str, float] = {}
        finished: list[tuple[RawPicture, Finished]] = []
        masters: list[str] = []
        for raw in job.drawn.pictures:
            with _timed(timings, "fetch"):
                data = await self._storage.read(raw_key(job, raw.index))
            if data is None:
                raise DrawAgain("raw_picture_lost", f"picture {raw.index} is not in the storage")
            polished = await anyio.to_thread.run_sync(
                self._polish, job, raw, data, timings, abandon_on_cancel=False, limiter=self._limiter
            )
            blocked = isinstance(polished, Blocked)
            key = f"{'quarantine' if blocked else 'master'}/{job.gen_id}/{raw.index}.png"
            with _timed(timings, "store"):
                await self._storage.keep(key, data)
            if isinstance(polished, Blocked):
                return Outcome(verdict=polished.verdict, masters=(key,), timings=timings)
            masters.append(key)
            finished.append((raw, polished))
        if not finished:
            raise DrawAgain("raw_picture_lost", "the worker drew nothing")
        with _timed(timings, "store"):
            pictures = [picture for raw, each in finished for picture in await self._publish(job, raw, each)]
        first = finished[0][1]
        return Outcome(
            verdict=first.verdict,
            pictures=tuple(pictures),
            masters=tuple(masters),
            quality=first.signed.quality,
            lossless=first.signed.lossless,
            timings=timings,
        )

    async def tidy(self, job: Job) -> None:
        """After the commit: remove the worker's uploads, and files that are no part of what was committed."""
        assert job.outcome is not None
        await self._storage.purge(raw_prefix(job))
        kept = frozenset(picture.key for picture in job.outcome.pictures)
        await self._storage.purge(f"out/{job.gen_id}", keep=kept)
        await self._storage.purge(f"master/{job.gen_id}", keep=frozenset(job.outcome.masters))

    async def discard(self, outcome: Outcome) -> None:
        """Remove the files of a result that did not count. Masters stay: the result that counted has the same ones."""
        for picture in outcome.pictures:
            await self._storage.purge(picture.key)

    def _polish(self, job: Job, raw: RawPicture, data: bytes, timings: dict[str, float]) -> Finished | Blocked:
        """The road itself. CPU work: runs in a thread."""
        assert job.drawn is not None
        drawing, delivery = job.drawing, job.delivery
        positive, negative = prompts.as_drawn(drawing.positive, drawing.negative, job.drawn.guidance)
        try:
            with _timed(timings, "decode"):
                decoded = decode(data, raw.sha256)
            with _timed(timings, "review"):
                case = Case(
                    raw=decoded,
                    positive=positive,
                    negative=negative,
                    width=drawing.width,
                    height=drawing.height,
                    ruleset=self._rulesets[delivery.ruleset],
                    precompliance=delivery.precompliance,
                )
                reviewed = review(case, self._reviewers)
            if isinstance(reviewed, Blocked):
                return reviewed
            marked = watermark.mark(reviewed)
            with _timed(timings, "encode"):
                options = EncodeOptions(format=delivery.format, quality=delivery.quality, lossless=delivery.lossless)  # type: ignore[arg-type]
                encoded = encode(marked, options)
                small = encode(thumbnail(marked), THUMBNAIL_OPTIONS)
            with _timed(timings, "sign"):
                provenance = self._provenance(job)
                signed = self._signer.sign(encoded, provenance)
                thumb = self._signer.sign(small, provenance, parent=signed)
        except (PictureRefused, BrokenRender) as exc:
            code = "broken_render" if isinstance(exc, BrokenRender) else "raw_picture_lost"
            raise DrawAgain(code, exc.message) from exc
        except ComplianceError as exc:
            raise FinishingFailed(exc.code, str(exc), retryable=exc.retryable) from exc
        return Finished(verdict=reviewed.verdict, signed=signed, thumb=thumb)

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

    async def _publish(self, job: Job, raw: RawPicture, finished: Finished) -> tuple[StoredPicture, StoredPicture]:
        return (
            await self._store(job, raw, "signed", finished.signed),
            await self._store(job, raw, "thumbnail", finished.thumb),
        )

    async def _store(self, job: Job, raw: RawPicture, kind: str, signed: Signed) -> StoredPicture:
        """Store under a name that follows from the content, so that two tries never overwrite each other."""
        key = f"out/{job.gen_id}/{signed.sha256}.{signed.extension}"
        await self._storage.publish(key, signed)
        number = "" if job.drawing.n == 1 else f"_{raw.index + 1}"
        return StoredPicture(
            key=key,
            type=kind,
            index=raw.index,
            filename=f"{job.gen_id}{number}{'_thumb' if kind == 'thumbnail' else ''}.{signed.extension}",
            mime=signed.mime,
            bytes=len(signed.data),
            sha256=signed.sha256,
            width=signed.width,
            height=signed.height,
        )


@contextmanager
def _timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to a stage's."""
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = round(timings.get(stage, 0.0) + time.perf_counter() - began, 5)
