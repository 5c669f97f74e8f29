"""From the worker's pixels to what may be handed out: one straight road, one type per stage.

    fetch raw → decode → review → polish (mark → encode → sign) → store

Each picture of a job has its own verdict: a blocked one leaves the road after the review, to the quarantine, and the
others go on. Only a verdict about minors takes all of them with it. Nothing is published before every picture of the
job has its verdict.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import anyio
import anyio.to_thread
import structlog

from compliance.errors import BrokenRender, ComplianceError, LogoRefused, PictureRefused, SigningUnavailable
from compliance.fingerprint import fingerprint
from compliance.logo import Logo, kept_logo
from compliance.picture import Blocked, Raw, Reviewed, decode
from compliance.review import Context, judged
from compliance.sign import Source
from compliance.verdict import Verdict
from gateway.core import prompts
from gateway.core.images import Job, Outcome, PictureReview, RawPicture, Readiness, Record, Reference, StoredPicture
from gateway.core.polishing import Finished, Material, Polisher, timed
from gateway.core.ports import Compliance, Records, Storage
from gateway.errors import FinishingFailed

log = structlog.get_logger(__name__)


class DrawAgain(Exception):
    """What the worker delivered is no usable picture: lost, other bytes than reported, or a broken render."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """A picture with its verdict: the bytes that the worker delivered, and their pixels."""

    drawn: RawPicture
    raw: Raw
    verdict: Verdict


#: Takes the index of a picture, its verdict, and the SHA-256 of its original.
Recorder = Callable[[int, Verdict, str], Awaitable[None]]
_MOST_VERDICTS = 4096
#: Seconds between two probes of a signer that works, and of one that does not.
PROBE_EVERY = 300.0
PROBE_AGAIN = 5.0
#: Seconds before a certificate of the signing chain expires, from which on it is said every day.
EXPIRY_WARNING = 30 * 86_400.0
#: What the file names of the kinds end in.
_ENDINGS = {"signed": "", "thumbnail": "_thumb", "unsafe": "_unsafe"}


def raw_prefix(job: Job) -> str:
    """Where the worker's pictures of a job lie, of every attempt."""
    return f"raw/{job.gen_id}"


def raw_key(job: Job, index: int) -> str:
    """Where the worker puts a picture of the present attempt."""
    return f"{raw_prefix(job)}/{job.attempt}/{index}.png"


def reference_key(gen_id: str, index: int) -> str:
    """Where a reference picture lies as long as its job is open: it goes with the raw pictures."""
    return f"raw/{gen_id}/references/{index}.png"


def signed_reference_key(folder: str, gen_id: str, index: int) -> str:
    """Where a reference picture that came with content credentials lies, as it was sent.

    In ``raw`` as long as its job is open, and in ``quarantine`` as long as a person may let go what was blocked.
    """
    return f"{folder}/{gen_id}/references/{index}.signed"


class Finisher:
    """Makes the `Outcome` of a drawn job. Open it before use: it proves that what it signs is trusted."""

    def __init__(
        self,
        *,
        storage: Storage,
        records: Records,
        compliance: Compliance,
        polisher: Polisher,
        threads: int,
        now: Callable[[], float],
        probe_again: float = PROBE_AGAIN,
    ) -> None:
        self._storage = storage
        self._records = records
        self._now = now
        self._compliance = compliance
        self._polisher = polisher
        self._threads = threads
        self._limiter: anyio.CapacityLimiter | None = None
        #: Verdicts of jobs that are being tried again: a reviewer that has spoken is not asked, and paid, twice.
        self._verdicts: OrderedDict[tuple[str, int, str], Verdict] = OrderedDict()
        self._readiness = Readiness(ready=False, reason="the signer has not been tried yet")
        self._probe_again = probe_again
        #: Set when a signing fails: then the signer is looked at soon.
        self._doubted = False
        self._warned_at = -math.inf

    async def open(self) -> None:
        """Sign a probe. A signer that no reader would trust keeps the gateway from being ready, and says why."""
        self._limiter = anyio.CapacityLimiter(self._threads)
        await self._probe()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Go on probing while the block runs: what breaks is seen, and what was mended needs no restart."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._probe_for_ever)
            try:
                yield
            finally:
                tasks.cancel_scope.cancel()

    async def _probe_for_ever(self) -> None:
        waited = 0.0
        while True:
            await anyio.sleep(self._probe_again)
            waited += self._probe_again
            if waited >= PROBE_EVERY or self._doubted or not self._readiness.ready:
                await self._probe()
                waited = 0.0

    async def _probe(self) -> None:
        self._doubted = False
        before = self._readiness
        try:
            # A key elsewhere that hangs must not hold up the end of the process.
            await anyio.to_thread.run_sync(self._polisher.probe, abandon_on_cancel=True)
        except ComplianceError as exc:
            self._readiness = Readiness(ready=False, reason=f"signing: {exc}")
        else:
            self._readiness = Readiness(ready=True)
        if self._readiness != before:
            log.info("signer probed", ready=self._readiness.ready, reason=self._readiness.reason)
        self._warn_of_expiry()

    def _warn_of_expiry(self) -> None:
        """Once a day, from `EXPIRY_WARNING` before the end on."""
        now = self._now()
        left = self._polisher.expires_at - now
        if left < EXPIRY_WARNING and now - self._warned_at >= 86_400:
            self._warned_at = now
            log.warning("signing certificate expires soon", days=round(left / 86_400, 1))

    def readiness(self) -> Readiness:
        return self._readiness

    async def finish(self, job: Job, record: Recorder) -> Outcome:
        """Everything that was drawn, reviewed, signed and stored; nothing is visible before the caller commits it.

        Each verdict goes to ``record`` as soon as it is there: it counts even when the job comes to nothing.

        Raises `DrawAgain`, and `FinishingFailed` or `StorageUnavailable` when a stage does not answer.
        """
        assert job.drawn is not None
        self._check_ready()
        timings: dict[str, float] = {}
        looked = [await self._look(job, drawn, record, timings) for drawn in job.drawn.pictures]
        if not looked:
            raise DrawAgain("raw_picture_lost", "the worker drew nothing")
        minors = next((each.verdict for each in looked if each.verdict.minors), None)
        material = await self._material(job, "raw")
        if any(not each.verdict.safe and each.verdict.releasable for each in looked):
            await self._keep_sources(job, material)
        reviews: list[PictureReview] = []
        finished: list[Finished] = []
        for each in looked:
            passed = judged(each.raw, each.verdict)
            if minors is None and isinstance(passed, Reviewed):
                reviews.append(await self._keep(job, each, "master", timings))
                finished.append(await self._polish(job, each.drawn, passed, material, timings))
            else:
                kept = await self._keep(job, each, "quarantine", timings)
                reviews.append(
                    kept if minors else await self._with_copy(job, kept, each.drawn, passed, material, timings)
                )
        pictures = [picture for each in finished for picture in await self._publish(job, each, timings)]
        safe = next((review.verdict for review in reviews if review.verdict.safe and finished), None)
        return Outcome(
            verdict=safe or minors or looked[0].verdict,
            pictures=tuple(pictures),
            masters=tuple(review.key for review in reviews),
            reviews=tuple(reviews),
            quality=finished[0].signed.quality if finished else None,
            lossless=finished[0].signed.lossless if finished else False,
            timings=timings,
        )

    async def release(self, job: Job, record: Recorder) -> Outcome:
        """The outcome of a job with the pictures that a person has let go, finished like any other.

        What left before stays as it is. Raises `FinishingFailed` or `StorageUnavailable`.
        """
        assert job.outcome is not None and job.release is not None and job.drawn is not None
        self._check_ready()
        timings = dict(job.outcome.timings)
        drawn = {picture.index: picture for picture in job.drawn.pictures}
        reviews: list[PictureReview] = []
        finished: list[Finished] = []
        material = await self._material(job, "quarantine")
        for review in job.outcome.each:
            if review.index not in job.release.indexes or review.verdict.safe:
                reviews.append(review)
                continue
            try:
                raw = await self._fetch(review.key, drawn[review.index], timings)
            except DrawAgain as exc:
                raise FinishingFailed(exc.code, str(exc), retryable=False) from exc
            each = Looked(drawn=drawn[review.index], raw=raw, verdict=review.verdict.released(job.release.by))
            await record(review.index, each.verdict, raw.sha256)
            reviews.append(await self._keep(job, each, "master", timings))
            reviewed = Reviewed(pixels=raw.pixels, verdict=each.verdict)
            finished.append(await self._polish(job, each.drawn, reviewed, material, timings))
        fresh = [picture for each in finished for picture in await self._publish(job, each, timings)]
        pictures = sorted((*job.outcome.pictures, *fresh), key=lambda picture: (picture.index, picture.type))
        return replace(
            job.outcome,
            verdict=next(review.verdict for review in reviews if review.verdict.safe),
            pictures=tuple(pictures),
            masters=tuple(review.key for review in reviews),
            reviews=tuple(reviews),
            quality=finished[0].signed.quality if finished else job.outcome.quality,
            lossless=finished[0].signed.lossless if finished else job.outcome.lossless,
            timings=timings,
        )

    async def copy(self, job: Job, source: Job | None, record: Recorder) -> Outcome:
        """The outcome of a hit of the cache: the originals of ``source``, finished as this job asks for it.

        What the review said of them then is what is true of them now: the cache answers under the same ruleset only.
        Raises `FinishingFailed`, not retryable where the originals are gone, or `StorageUnavailable`.
        """
        assert job.drawn is not None
        self._check_ready()
        if source is None or source.outcome is None or source.deleted_at is not None or source.tenant != job.tenant:
            raise FinishingFailed("cached_picture_gone", "what the cache had was deleted", retryable=False)
        known = {review.index: review for review in source.outcome.each}
        timings: dict[str, float] = {}
        reviews: list[PictureReview] = []
        finished: list[Finished] = []
        material = Material(logo=await self._logo(job))
        for drawn in job.drawn.pictures:
            review = known.get(drawn.index)
            if review is None or not review.verdict.safe or not review.key:
                raise FinishingFailed("cached_picture_gone", "an original is gone", retryable=False)
            try:
                raw = await self._fetch(review.key, drawn, timings)
            except DrawAgain as exc:
                raise FinishingFailed("cached_picture_gone", str(exc), retryable=False) from exc
            await record(drawn.index, review.verdict, raw.sha256)
            # The original stays the source's: this job has none to keep or to purge.
            reviews.append(PictureReview(index=drawn.index, verdict=review.verdict, key=""))
            reviewed = Reviewed(pixels=raw.pixels, verdict=review.verdict)
            finished.append(await self._polish(job, drawn, reviewed, material, timings))
        pictures = [picture for each in finished for picture in await self._publish(job, each, timings)]
        return Outcome(
            verdict=reviews[0].verdict,
            pictures=tuple(pictures),
            reviews=tuple(reviews),
            quality=finished[0].signed.quality,
            lossless=finished[0].signed.lossless,
            timings=timings,
        )

    async def tidy(self, job: Job) -> None:
        """After the commit: remove the worker's uploads, and files that are no part of what was committed."""
        outcome = job.outcome
        assert outcome is not None
        originals = frozenset(outcome.masters)
        await self._storage.purge(raw_prefix(job))
        await self._storage.purge(f"out/{job.gen_id}", keep=frozenset(picture.key for picture in outcome.pictures))
        await self._storage.purge(f"master/{job.gen_id}", keep=originals)
        await self._storage.purge(f"quarantine/{job.gen_id}", keep=originals | _kept_sources(job, outcome))
        copies = frozenset(review.unsafe.key for review in outcome.reviews if review.unsafe)
        await self._storage.purge(f"unsafe/{job.gen_id}", keep=copies)
        await self._records.purge(job.gen_id, keep=frozenset(picture.label for picture in _signed_files(outcome)))

    async def discard(self, outcome: Outcome) -> None:
        """Remove the files of a result that did not count. Originals stay: the result that counted has the same."""
        files = _signed_files(outcome)
        await self._records.forget([picture.label for picture in files])
        for picture in files:
            await self._storage.purge(picture.key)

    # The stages

    async def _look(self, job: Job, drawn: RawPicture, record: Recorder, timings: dict[str, float]) -> Looked:
        """Fetch, decode and review one picture."""
        assert job.drawn is not None
        raw = await self._fetch(raw_key(job, drawn.index), drawn, timings)
        positive, negative = prompts.as_drawn(job.drawing.positive, job.drawing.negative, job.drawn.guidance)
        context = Context(
            positive=positive,
            negative=negative,
            width=job.drawing.width,
            height=job.drawing.height,
            tier=job.delivery.tier,
            precompliance=job.delivery.precompliance,
        )
        known = (job.gen_id, drawn.index, raw.sha256)
        verdict = self._verdicts.get(known)
        if verdict is None:
            with timed(timings, "review"), _translated():
                verdict = await self._compliance.review(raw, context, job.delivery.ruleset)
            self._verdicts[known] = verdict
            if len(self._verdicts) > _MOST_VERDICTS:
                self._verdicts.popitem(last=False)
        await record(drawn.index, verdict, raw.sha256)
        looked = Looked(drawn=drawn, raw=raw, verdict=verdict)
        if verdict.minors:
            # Evidence, whatever becomes of the rest of its job: raw pictures go when it fails.
            await self._keep(job, looked, "quarantine", timings)
        return looked

    async def _fetch(self, key: str, drawn: RawPicture, timings: dict[str, float]) -> Raw:
        with timed(timings, "fetch"):
            data = await self._storage.read(key)
        if data is None:
            raise DrawAgain("raw_picture_lost", f"picture {drawn.index} is not in the storage")
        with timed(timings, "decode"), _translated():
            return await anyio.to_thread.run_sync(decode, data, drawn.sha256, limiter=self._limiter)

    async def _keep(self, job: Job, looked: Looked, folder: str, timings: dict[str, float]) -> PictureReview:
        """The original, in private."""
        key = f"{folder}/{job.gen_id}/{looked.drawn.index}.png"
        with timed(timings, "store"):
            await self._storage.keep(key, looked.raw.data)
        return PictureReview(index=looked.drawn.index, verdict=looked.verdict, key=key)

    async def _with_copy(
        self,
        job: Job,
        review: PictureReview,
        drawn: RawPicture,
        blocked: Reviewed | Blocked,
        material: Material,
        timings: dict[str, float],
    ) -> PictureReview:
        """With the signed copy of a blocked picture, where anybody may ever see it."""
        if not isinstance(blocked, Blocked) or not blocked.verdict.releasable:
            return review
        finished = await self._polish(job, drawn, blocked, material, timings)
        return replace(review, unsafe=await self._store(job, finished, "unsafe", timings))

    async def _polish(
        self,
        job: Job,
        drawn: RawPicture,
        passed: Reviewed | Blocked,
        material: Material,
        timings: dict[str, float],
    ) -> Finished:
        """Mark, encode and sign. CPU work: runs in a thread."""
        polish = partial(self._polisher.polish, job, drawn, passed, material, timings)
        with _translated():
            try:
                return await anyio.to_thread.run_sync(polish, limiter=self._limiter)
            except SigningUnavailable as exc:
                self._doubted = True
                if not exc.retryable:
                    # Jobs that come now wait until it is mended, and this one is the last that fails.
                    self._readiness = Readiness(ready=False, reason=f"signing: {exc}")
                raise

    async def _material(self, job: Job, folder: str) -> Material:
        """What the caller sent beside the prompt, as it was kept; references with credentials lie in ``folder``."""
        return Material(logo=await self._logo(job), sources=await self._sources(job, folder))

    async def _logo(self, job: Job) -> Logo | None:
        asked = job.delivery.watermark
        if asked is None:
            return None
        data = await self._storage.read(asked.key)
        if data is None:
            raise FinishingFailed("watermark_lost", "the logo is not in the storage", retryable=False)
        try:
            return await anyio.to_thread.run_sync(kept_logo, data, asked.sha256, limiter=self._limiter)
        except LogoRefused as exc:
            raise FinishingFailed("watermark_lost", "the logo is damaged", retryable=False) from exc

    async def _sources(self, job: Job, folder: str) -> tuple[Source, ...]:
        """The references that had an effect. One whose file is gone is still known by its hash."""
        sources = []
        for index, reference in _used(job):
            data = None
            if reference.signed:
                data = await self._storage.read(signed_reference_key(folder, job.gen_id, index))
            role: Literal["init", "guide"] = "guide" if reference.role == "guide" else "init"
            sha256 = reference.sent_sha256 or reference.sha256
            if data is not None and fingerprint(data) != sha256:
                raise FinishingFailed("reference_lost", "a reference is not the one that was sent", retryable=False)
            sources.append(Source(role=role, sha256=sha256, data=data or b""))
        return tuple(sources)

    async def _keep_sources(self, job: Job, material: Material) -> None:
        """For the day when a person lets go what was blocked: the raw files are gone by then."""
        for (index, _), source in zip(_used(job), material.sources, strict=True):
            if source.data:
                await self._storage.keep(signed_reference_key("quarantine", job.gen_id, index), source.data)

    def _check_ready(self) -> None:
        if not self._readiness.ready:
            raise FinishingFailed("signing_unavailable", self._readiness.reason, retryable=True)

    async def _publish(
        self, job: Job, finished: Finished, timings: dict[str, float]
    ) -> tuple[StoredPicture, StoredPicture]:
        return (
            await self._store(job, finished, "signed", timings),
            await self._store(job, finished, "thumbnail", timings),
        )

    async def _store(self, job: Job, finished: Finished, kind: str, timings: dict[str, float]) -> StoredPicture:
        """Store under a name that follows from the content, so that two tries never overwrite each other, and put on
        record how it is found again.
        """
        small = kind == "thumbnail"
        drawn, signed = finished.drawn, finished.thumb if small else finished.signed
        key = f"{'unsafe' if kind == 'unsafe' else 'out'}/{job.gen_id}/{signed.sha256}.{signed.extension}"
        record = Record(
            label=signed.label,
            gen_id=job.gen_id,
            index=drawn.index,
            type=kind,
            tenant=job.tenant,
            key=key,
            sha256=signed.sha256,
            mime=signed.mime,
            width=signed.width,
            height=signed.height,
            created_at=job.drawn_at or self._now(),
            manifest=signed.manifest,
            mark=None if small else finished.mark,
            code=finished.thumb_code if small else finished.code,
        )
        with timed(timings, "store"):
            await self._storage.publish(key, signed)
            await self._records.add(record)
        number = "" if job.drawing.n == 1 else f"_{drawn.index + 1}"
        return StoredPicture(
            key=key,
            type=kind,
            index=drawn.index,
            filename=f"{job.gen_id}{number}{_ENDINGS[kind]}.{signed.extension}",
            mime=signed.mime,
            bytes=len(signed.data),
            sha256=signed.sha256,
            width=signed.width,
            height=signed.height,
            label=signed.label,
            stamped=signed.stamped,
        )


def _signed_files(outcome: Outcome) -> list[StoredPicture]:
    """Every file of an outcome that carries a manifest."""
    return [*outcome.pictures, *(review.unsafe for review in outcome.reviews if review.unsafe)]


def _used(job: Job) -> list[tuple[int, Reference]]:
    """The references that had an effect, with their index. The worker says how many; those to begin with come first."""
    assert job.drawn is not None
    given = sorted(enumerate(job.drawing.references), key=lambda each: each[1].role == "guide")
    return given[: job.drawn.references]


def _kept_sources(job: Job, outcome: Outcome) -> frozenset[str]:
    """What `Finisher.release` will need of the references, if anything can still be let go."""
    if not any(not review.verdict.safe and review.verdict.releasable for review in outcome.each):
        return frozenset()
    return frozenset(signed_reference_key("quarantine", job.gen_id, index) for index, _ in _used(job))


@contextmanager
def _translated() -> Iterator[None]:
    """What goes wrong in compliance, in the words of the core."""
    try:
        yield
    except (PictureRefused, BrokenRender) as exc:
        code = "broken_render" if isinstance(exc, BrokenRender) else "raw_picture_lost"
        raise DrawAgain(code, exc.message) from exc
    except ComplianceError as exc:
        raise FinishingFailed(exc.code, str(exc), retryable=exc.retryable) from exc
