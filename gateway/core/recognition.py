"""Where does this picture come from: what its manifest says, and which of ours it looks like when it has none.

A picture is known again by its bytes, by its manifest's label, by the id in its pixels, or by its image code, from the
surest to the vaguest. The last three are pointers to a manifest and prove nothing. Only pictures that were handed out
are ever told of, and of them nothing but what their manifests say to everybody.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
from PIL import Image

from compliance import binding
from compliance.errors import PictureRefused
from compliance.fingerprint import ISCC, code_of, fingerprint, image_code
from compliance.picture import pixels_of
from compliance.pixelmark import ALGORITHM, PixelMark
from compliance.reader import active_manifest
from compliance.verify import Report, verify
from gateway.core.images import Record, State
from gateway.core.ports import Jobs, Records

#: Bits of 64 that may differ between the image codes of a picture and its copy. Of `python -m bench recognition`: up to
#: here 4 % of recompressed, resized and framed copies are missed at most, and of two pictures of the same small world
#: one in ten thousand pairs is taken for a copy; at 6 bits it is four.
DISTANCE = 4
#: A picture of more pixels is not looked at: the largest of ours has 1.05 million.
MOST_PIXELS = 24_000_000
MOST_MATCHES = 10
#: Seconds between two looks for new codes, and codes that one look takes.
FRESH = 1.0
_PAGE = 20_000
_OVERLAP = 1000
#: So many records are looked up for one picture at most.
_MOST_LOOKS = 200

WATERMARKS, FINGERPRINTS = (ALGORITHM,), (ISCC,)


@dataclass(frozen=True, kw_only=True, slots=True)
class Match:
    """A picture of ours that this one is or looks like, and by what; ``distance`` is in bits of the image code."""

    record: Record
    model: str
    by: tuple[str, ...]
    distance: int | None = None
    mirrored: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Findings:
    """What a picture says of itself, and which of ours it was found to be or to look like, the surest first."""

    report: Report
    found: tuple[Match, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Seen:
    """What is left of a manifest in the pixels."""

    mark: int | None = None
    mirrored: bool = False
    codes: tuple[int, ...] = ()


class CodeIndex:
    """All image codes in memory, 8 bytes each, following the table by its numbers."""

    def __init__(self, records: Records, *, now: Callable[[], float]) -> None:
        self._records = records
        self._now = now
        self._labels: list[str] = []
        self._codes: npt.NDArray[np.uint64] = np.empty(1024, np.uint64)
        self._gone: set[int] = set()
        self._last = 0
        self._recent: dict[int, None] = {}
        self._looked_at = -FRESH
        self._lock = anyio.Lock()

    async def near(self, code: int, distance: int) -> list[tuple[int, int, str]]:
        """All labels at most so many bits away, the nearest first, as (bits, place, label)."""
        await self._follow()
        count = len(self._labels)
        bits = np.bitwise_count(self._codes[:count] ^ np.uint64(code))
        close = np.flatnonzero(bits <= distance)
        return sorted((int(bits[at]), int(at), self._labels[at]) for at in close if int(at) not in self._gone)

    def drop(self, place: int) -> None:
        """What lies there has been forgotten."""
        self._gone.add(place)

    async def _follow(self) -> None:
        async with self._lock:
            if self._now() - self._looked_at < FRESH:
                return
            # A number may be committed after one that is higher: the last ones are looked at again.
            after = max(0, self._last - _OVERLAP)
            while rows := await self._records.codes(after=after, limit=_PAGE):
                after = rows[-1][0]
                self._add([row for row in rows if row[0] not in self._recent])
                self._last = max(self._last, after)
                self._recent = {number: None for number in self._recent if number > self._last - _OVERLAP}
            self._looked_at = self._now()

    def _add(self, rows: Sequence[tuple[int, str, int]]) -> None:
        start, end = len(self._labels), len(self._labels) + len(rows)
        if end > len(self._codes):
            self._codes = np.resize(self._codes, 2 * end)
        self._codes[start:end] = [code for _, _, code in rows]
        self._labels += [label for _, label, _ in rows]
        self._recent.update((number, None) for number, _, _ in rows)


class Recognition:
    """Answers about pictures that anybody brings. Open it before use."""

    def __init__(
        self,
        *,
        records: Records,
        jobs: Jobs,
        pixel_mark: PixelMark | None,
        anchors: bytes,
        threads: int,
        now: Callable[[], float],
    ) -> None:
        """``anchors`` are the PEM roots that are trusted."""
        self._records = records
        self._jobs = jobs
        self._pixel_mark = pixel_mark
        self._anchors = anchors
        self._threads = threads
        self._index = CodeIndex(records, now=now)
        self._limiter: anyio.CapacityLimiter | None = None

    async def open(self) -> None:
        self._limiter = anyio.CapacityLimiter(self._threads)

    async def examine(self, data: bytes) -> Findings:
        """What a file says, whether it holds, and which of our pictures it is or looks like. For any bytes."""
        report = await anyio.to_thread.run_sync(verify, data, self._anchors, limiter=self._limiter)
        return Findings(report=report, found=tuple(await self._find(data, report)))

    async def similar(self, data: bytes, limit: int = MOST_MATCHES) -> list[Match]:
        """Which of our pictures these pixels were, by what is in them."""
        return (await self._look_up(await self._see(data)))[:limit]

    async def bound(self, algorithm: str, value: str, limit: int = MOST_MATCHES) -> list[Match]:
        """Those with this soft binding. ValueError for an algorithm that is not known here, or no value of it."""
        if algorithm == ALGORITHM and (mark := binding.mark_of(value)) is not None:
            return (await self._look_up(_Seen(mark=mark)))[:limit]
        if algorithm == ISCC and (code := code_of(value)) is not None:
            return (await self._look_up(_Seen(codes=(code,))))[:limit]
        raise ValueError(algorithm)

    async def manifest(self, label: str, *, active: bool = False) -> bytes | None:
        """The manifest store of a picture that was handed out, or the active manifest alone."""
        record = await self._records.get(label)
        if record is None or await self._model_of(record) is None:
            return None
        return active_manifest(record.manifest) if active else record.manifest

    # The steps

    async def _find(self, data: bytes, report: Report) -> list[Match]:
        sure = [replace(match, by=("sha256",)) for match in await self._told(await self._same(data))]
        if sure:
            return sure[:MOST_MATCHES]
        named = await self._told([record] if report.label and (record := await self._records.get(report.label)) else [])
        seen = await self._look_up(await self._see(data))
        matches = [replace(match, by=("manifest",)) for match in named]
        for match in seen:
            known = next((each for each in matches if each.record.label == match.record.label), None)
            if known is not None:
                matches[matches.index(known)] = replace(
                    match, by=(*known.by, *match.by), distance=match.distance, mirrored=match.mirrored
                )
            else:
                matches.append(match)
        return matches[:MOST_MATCHES]

    async def _same(self, data: bytes) -> Sequence[Record]:
        digest = await anyio.to_thread.run_sync(fingerprint, data, limiter=self._limiter)
        return await self._records.of_picture(digest)

    async def _see(self, data: bytes) -> _Seen:
        return await anyio.to_thread.run_sync(self._see_now, data, limiter=self._limiter)

    def _see_now(self, data: bytes) -> _Seen:
        try:
            pixels = pixels_of(data, max_pixels=MOST_PIXELS)
        except PictureRefused:
            return _Seen()
        found = self._pixel_mark.detect(pixels) if self._pixel_mark is not None else None
        mirror = pixels.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if found is not None:
            code = image_code(mirror if found.mirrored else pixels)
            return _Seen(mark=found.payload, mirrored=found.mirrored, codes=(code,))
        return _Seen(codes=(image_code(pixels), image_code(mirror)))

    async def _look_up(self, seen: _Seen) -> list[Match]:
        """By the id, where there is one; else by how the picture looks, and then also mirrored."""
        if seen.mark is not None:
            marked = await self._told(await self._records.of_mark(seen.mark))
            found = [self._by_mark(match, seen) for match in marked]
            if found:
                return found
        near = [
            (bits, number == 1, place, label)
            for number, code in enumerate(seen.codes)
            for bits, place, label in await self._index.near(code, DISTANCE)
        ]
        matches: dict[tuple[str, int], Match] = {}
        for bits, mirrored, place, label in heapq.nsmallest(_MOST_LOOKS, near):
            record = await self._records.get(label)
            if record is None:
                self._index.drop(place)
                continue
            # Each picture once: its thumbnail looks like it too, and where both do the full picture is told of.
            picture = record.gen_id, record.index
            known = matches.get(picture)
            if known is not None and known.record.type != "thumbnail":
                continue
            for match in await self._told([record]):
                near_by = replace(match, by=("image_code",), distance=bits, mirrored=mirrored)
                matches[picture] = replace(known, record=record) if known else near_by
            if len(matches) == MOST_MATCHES:
                break
        return list(matches.values())

    def _by_mark(self, match: Match, seen: _Seen) -> Match:
        known = match.record.code
        distance = None if known is None or not seen.codes else (seen.codes[0] ^ known).bit_count()
        by = ("pixel_mark", "image_code") if distance is not None and distance <= DISTANCE else ("pixel_mark",)
        return replace(match, by=by, distance=distance, mirrored=seen.mirrored)

    async def _told(self, records: Sequence[Record]) -> list[Match]:
        """Those of which anybody may be told, with the model that drew them."""
        told = []
        for record in records:
            model = await self._model_of(record)
            if model is not None:
                told.append(Match(record=record, model=model, by=()))
        return told

    async def _model_of(self, record: Record) -> str | None:
        """The model that drew a picture; None unless the picture was handed out and is still there."""
        job = await self._jobs.get(record.gen_id)
        if job is None or job.state is not State.COMPLETED or job.deleted_at is not None or job.outcome is None:
            return None
        handed_out = any(picture.label == record.label for picture in job.outcome.pictures)
        return job.drawing.model if handed_out else None
