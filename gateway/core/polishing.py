"""What is done to one picture between its review and the storage: mark → encode → sign. CPU work, for threads."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from compliance.binding import bound, code_in, coded, mark_in
from compliance.encode import THUMBNAIL_OPTIONS, EncodeOptions, encode, thumbnail
from compliance.errors import SigningUnavailable
from compliance.logo import Logo, badge
from compliance.picture import Blocked, Encoded, Marked, Reviewed, Signed
from compliance.pixelmark import PixelMark
from compliance.sign import Claims, Provenance, Signer, Source
from compliance.watermark import Placement, Position, VisibleMark, beside, mark, mark_blocked
from gateway.core.images import Credentials, Job, RawPicture
from gateway.core.ports import Meter


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """One signed picture and its thumbnail."""

    drawn: RawPicture
    signed: Signed
    thumb: Signed
    #: The id in the pixels of the picture, None where they carry none, and the image codes of both.
    mark: int | None
    code: int
    thumb_code: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What finishing a job needs beside its pictures."""

    logo: Logo | None = None
    #: The reference pictures that had an effect.
    sources: tuple[Source, ...] = ()


#: The built-in badge, as wide as it must be to be read on a small screen.
BADGE_SCALE = 6


class Polisher:
    """Makes a reviewed picture what the caller asked for. One object serves all threads."""

    def __init__(
        self,
        *,
        signer: Signer,
        defaults: Credentials,
        now: Callable[[], float],
        badge_at: Position | None = None,
        tell_prompts: bool = False,
        pixel_mark: PixelMark | None = None,
        meter: Meter | None = None,
    ) -> None:
        """``badge_at`` puts the badge "AI" on every picture; a caller's logo in the same place moves it beside.

        ``tell_prompts`` writes the prompt into the picture's XMP, for everybody who gets the picture. ``pixel_mark``
        lays an id into the pixels.
        """
        self._signer = signer
        self._defaults = defaults
        self._badge_at = badge_at
        self._tell_prompts = tell_prompts
        self._pixel_mark = pixel_mark
        self._meter = meter
        self._now = now

    @property
    def expires_at(self) -> float:
        """When the first certificate of the signing chain expires, in seconds since the epoch."""
        return self._signer.credentials.not_after.timestamp()

    def probe(self) -> None:
        """Raises `compliance.errors.ComplianceError` when what it signs would be trusted by nobody."""
        self._signer.probe()

    def polish(
        self, job: Job, drawn: RawPicture, passed: Reviewed | Blocked, material: Material, timings: dict[str, float]
    ) -> Finished:
        """The picture and its thumbnail. Raises `compliance.errors.ComplianceError`."""
        delivery = job.delivery
        with timed(timings, "mark"):
            visible = self._marked(passed, self._visible(job, material))
            marked = bound(visible, self._pixel_mark, mark_id(drawn_by(job), drawn.index))
            reduced = coded(thumbnail(marked))
        with timed(timings, "encode"):
            options = EncodeOptions(format=delivery.format, quality=delivery.quality, lossless=delivery.lossless)  # type: ignore[arg-type]
            provenance = self._provenance(job, material)
            xmp = self._signer.xmp(provenance)
            encoded = encode(marked, options, xmp)
            small = encode(reduced, THUMBNAIL_OPTIONS, xmp)
        with timed(timings, "sign"):
            signed = self._signed(encoded, provenance)
            thumb = self._signed(small, provenance, parent=signed)
        return Finished(
            drawn=drawn,
            signed=signed,
            thumb=thumb,
            mark=mark_in(marked),
            code=code_in(marked),
            thumb_code=code_in(reduced),
        )

    def _signed(self, encoded: Encoded, provenance: Provenance, parent: Signed | None = None) -> Signed:
        began = time.perf_counter()
        try:
            signed = self._signer.sign(encoded, provenance, parent=parent)
        except SigningUnavailable as exc:
            if self._meter is not None:
                self._meter.signing_failed(exc.code)
            raise
        if self._meter is not None:
            self._meter.signed(time.perf_counter() - began, signed.stamped)
        return signed

    def _marked(self, passed: Reviewed | Blocked, marks: list[VisibleMark]) -> Marked:
        return mark_blocked(passed, marks) if isinstance(passed, Blocked) else mark(passed, marks)

    def _visible(self, job: Job, material: Material) -> list[VisibleMark]:
        marks = []
        asked = job.delivery.watermark
        if asked is not None:
            assert material.logo is not None
            placement = Placement(
                position=asked.position,  # type: ignore[arg-type]
                scale=asked.scale,
                opacity=asked.opacity,
                rotation=asked.rotation,
                padding_x=asked.padding_x,
                padding_y=asked.padding_y,
            )
            marks.append(VisibleMark(logo=material.logo, placement=placement, what="Visible mark of the requester"))
        if self._badge_at is not None:
            taken = asked is not None and asked.opacity > 0 and asked.position == self._badge_at
            place = Placement(position=beside(self._badge_at) if taken else self._badge_at, scale=BADGE_SCALE)
            marks.append(VisibleMark(logo=badge(), placement=place, what='The badge "AI"'))
        return marks

    def _provenance(self, job: Job, material: Material) -> Provenance:
        asked, defaults = job.delivery.credentials, self._defaults
        return Provenance(
            gen_id=drawn_by(job),
            model=job.drawing.model,
            created=datetime.fromtimestamp(job.drawn_at or self._now(), UTC),
            claims=Claims(
                author=asked.author or defaults.author,
                title=asked.title or defaults.title,
                description=asked.description or defaults.description,
                organization=asked.organization or defaults.organization,
                vendor=asked.vendor or defaults.vendor,
            ),
            sources=material.sources,
            prompt=job.drawing.prompt if self._tell_prompts else "",
        )


def drawn_by(job: Job) -> str:
    """The generation that drew a job's pictures: another one's for a hit of the cache."""
    return job.source or job.gen_id


def mark_id(gen_id: str, index: int) -> int:
    """The 48 bits that a picture of a job carries: the same however often it is finished."""
    return int.from_bytes(hashlib.sha256(f"imgen mark 1\n{gen_id}\n{index}".encode()).digest()[:6], "big")


@contextmanager
def timed(timings: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to a stage's."""
    began = time.perf_counter()
    try:
        yield
    finally:
        timings[stage] = round(timings.get(stage, 0.0) + time.perf_counter() - began, 5)
