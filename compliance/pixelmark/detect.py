"""Finds a mark: the size that the picture once had, the place of its tile, and what the tile says.

A picture of that size is folded into one tile. Synchronisation is a correlation over all places at once; the code bits
at the few clearest places go to the decoder, and the checksum says whether there was a mark.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from compliance.pixelmark import bands, code
from compliance.pixelmark.bands import Pixels, Size
from compliance.pixelmark.code import Floats
from compliance.pixelmark.tile import EDGE, Band, Pattern, Patterns

#: The sizes in which pictures leave, in pixels; a copy of another size is looked at as if it were made from these.
SIZES: tuple[Size, ...] = ((1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152))
_ASPECT = 0.02
#: What is smaller shows nothing.
_SHORTEST = 64
_LONGEST = 4096
#: Pixels that are cut off each edge of a resized copy, one after the other: a border makes its scale wrong.
_TRIMS = (0, 1, 2, 3, 4)
_SYNC, _DEEP_SYNC, _SCORE = 5.0, 5.5, 10.0
_CANDIDATES = 8
#: Over how many frequencies the power around one is taken, and how loud one may be in its deviations.
_AROUND, _LOUDEST = 3.0, 4.0
_LEAST_GAIN = 0.01
_DEEP_STEP, _DEEP_SPAN = 0.006, (0.45, 2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mark that was found.

    `score` says how clearly, in deviations of what chance does; below 10 there is no mark. `scale` is the width of the
    picture over the width that it had when it was marked, to within 2 %; what was only cropped has 1.
    """

    payload: int
    score: float
    mirrored: bool
    scale: float


@dataclass(frozen=True, slots=True)
class _Read:
    """What a band says: a complex value for each pair, with noise of deviation 1, and a weight for each pair."""

    pattern: Pattern
    values: npt.NDArray[np.complex64]
    weight: Floats


class Detector:
    """Looks for marks under one key."""

    def __init__(self, patterns: Patterns) -> None:
        self._patterns = patterns

    def find(self, pixels: Pixels, *, deep: bool) -> Found | None:
        """As `PixelMark.detect` has it, of an array (height, width, 3)."""
        if min(pixels.shape[:2]) < _SHORTEST:
            return None
        height, width = pixels.shape[:2]
        if found := self._search(pixels, (width, height), _SYNC):
            return found
        for size in _near_sizes((width, height)):
            for trim in _TRIMS:
                cut = pixels[trim : height - trim, trim : width - trim]
                if found := self._search(cut, size, _SYNC):
                    return found
        for size in _every_size((width, height)) if deep else ():
            if found := self._search(pixels, size, _DEEP_SYNC):
                return found
        return None

    def clearness(self, pixels: Pixels, size: Size, coded: Floats) -> float:
        """The score of a mark that is known to say these code bits, from the first pixel on."""
        spectra = self._spectra(pixels, size)
        reads = [_read(*pair, False) for pair in zip(self._patterns.bands, spectra, strict=True)]
        return _score([_weighed(read) for read in reads], coded)

    def _search(self, pixels: Pixels, size: Size, least: float) -> Found | None:
        """The mark of a picture that once had this size, as it is or mirrored."""
        spectra = self._spectra(pixels, size)
        for mirrored in (False, True):
            reads = [_read(*pair, mirrored) for pair in zip(self._patterns.bands, spectra, strict=True)]
            if places := _places(_synchronisation(reads), least):
                turned = [[_weighed(_turned(read, x, y)) for read in reads] for x, y in places]
                if decoded := self._decoded(turned):
                    payload, score = decoded
                    scale = pixels.shape[1] / size[0]
                    return Found(payload=payload, score=round(score, 2), mirrored=mirrored, scale=round(scale, 4))
        return None

    def _decoded(self, candidates: Sequence[list[_Read]]) -> tuple[int, float] | None:
        """The id and the score of the first that says anything."""
        words = code.decode(np.stack([_likelihoods(reads) for reads in candidates])) ^ self._patterns.scrambler
        for reads, word in zip(candidates, words, strict=True):
            payload = code.payload_of(word)
            if payload is None:
                continue
            score = _score(reads, code.encode(word ^ self._patterns.scrambler))
            if score >= _SCORE:
                return payload, score
        return None

    def _spectra(self, pixels: Pixels, size: Size) -> list[npt.NDArray[np.complex64]]:
        rgb = bands.half(pixels, size)
        grey = bands.luma(rgb)
        blue = bands.blue_difference(rgb, grey)
        return [_spectrum(blue if each.band.blue else grey, each.band) for each in self._patterns.bands]


def _near_sizes(size: Size) -> Iterator[Size]:
    """The other sizes of nearly this shape that a picture may once have had."""
    for each in SIZES:
        if each != size and abs(each[0] / each[1] * size[1] / size[0] - 1) <= _ASPECT:
            yield each


def _every_size(size: Size) -> Iterator[Size]:
    """A fine net of sizes of this shape, the nearest first."""
    least, most = (math.log(edge) / _DEEP_STEP for edge in _DEEP_SPAN)
    for step in sorted(range(math.ceil(least), math.floor(most) + 1), key=abs):
        scale = math.exp(step * _DEEP_STEP)
        tried = round(size[0] * scale), round(size[1] * scale)
        if step and min(tried) >= _SHORTEST and max(tried) <= _LONGEST:
            yield tried


def _spectrum(channel: Floats, band: Band) -> npt.NDArray[np.complex64]:
    """Take the picture out, weigh what is left by how quiet it is, fold it into one tile, and whiten its spectrum.

    Each frequency (u >= 0 only, as the tile is real) is measured by the power around it: most of that is picture.
    """
    rest = channel - bands.blur(channel, band.blurs[0])
    energy = bands.blur(np.square(rest), band.blurs[1])
    rest *= (np.float32(band.floor) + np.float32(band.gain) * np.sqrt(energy)) / (energy + 1)
    spectrum = np.fft.rfft2(_folded(rest)).astype(np.complex64)
    power = np.square(np.abs(spectrum))
    # The frequencies go round in v: for the blur, v = 0 comes to the middle.
    power = np.roll(bands.blur(np.roll(power, EDGE // 2, 0), _AROUND), EDGE // 2, 0)
    spectrum /= np.sqrt(power / 2 + np.float32(1e-12))
    return spectrum * np.minimum(1, _LOUDEST / np.maximum(np.abs(spectrum), np.float32(1e-12)))


def _folded(channel: Floats) -> Floats:
    """The sum of the tiles of a channel, shape (128, 128)."""
    height, width = channel.shape
    rows, columns = -(-height // EDGE), -(-width // EDGE)
    padded = np.zeros((rows * EDGE, columns * EDGE), np.float32)
    padded[:height, :width] = channel
    return np.asarray(padded.reshape(rows, EDGE, columns, EDGE).sum((0, 2)), np.float32)


def _read(pattern: Pattern, spectrum: npt.NDArray[np.complex64], mirrored: bool) -> _Read:
    """The values at the pattern's frequencies, weighed as the band is trusted as long as no place is known.

    A mirrored tile has the spectrum of the tile at (-u, v), which for a real one is the conjugate of that at (u, -v).
    """
    values = spectrum[-pattern.v, pattern.u].conj() if mirrored else spectrum[pattern.v, pattern.u]
    return _Read(pattern, values, np.full(len(values), pattern.band.trust, np.float32))


def _weighed(read: _Read) -> _Read:
    """Weighed by how well each ring of frequencies says the synchronisation: what an attack took away falls out."""
    pattern = read.pattern
    ring, known = np.concatenate([pattern.ring, pattern.ring]), pattern.sync
    values, _ = _degrees(read)
    said = np.bincount(ring[known], (values * pattern.sign)[known], minlength=pattern.band.rings)
    gain = np.maximum(said / np.maximum(np.bincount(ring[known], minlength=pattern.band.rings), 1), _LEAST_GAIN)
    return replace(read, weight=gain[pattern.ring].astype(np.float32))


def _synchronisation(reads: Sequence[_Read]) -> Floats:
    """For each place of the tile in whole pixels, shape (256, 256): how clearly the synchronisation is seen there, in
    deviations of what chance does.
    """
    spectrum = np.zeros((2 * EDGE, 2 * EDGE), np.complex64)
    variance = 0.0
    for read in reads:
        cosines, sines = np.split(np.where(read.pattern.sync, read.pattern.sign, 0), 2)
        spectrum[read.pattern.v, read.pattern.u] += read.weight * read.values * (cosines + 1j * sines)
        known = np.abs(cosines) + np.abs(sines)
        variance += float((known * np.square(read.weight * np.abs(read.values))).sum()) / 2
    seen = np.fft.ifft2(spectrum).real * spectrum.size
    return np.asarray(seen / math.sqrt(variance + 1e-12), np.float32)


def _places(seen: Floats, least: float) -> list[tuple[int, int]]:
    """The clearest places as (x, y), each the best of its neighbourhood."""
    if seen.max() < least:
        return []
    around = np.asarray(cv2.dilate(np.pad(seen, 1, mode="wrap"), np.ones((3, 3), np.uint8)))[1:-1, 1:-1]
    y, x = np.nonzero((seen >= around) & (seen >= least))
    clearest = np.argsort(-seen[y, x], kind="stable")[:_CANDIDATES]
    return [(int(x[each]), int(y[each])) for each in clearest]


def _turned(read: _Read, x: int, y: int) -> _Read:
    """The values as they were with the tile at its place."""
    phase = np.exp(1j * np.pi * (read.pattern.u * x + read.pattern.v * y) / EDGE)
    return replace(read, values=(read.values * phase).astype(np.complex64))


def _degrees(read: _Read) -> tuple[Floats, Floats]:
    """Value and weight of each degree of freedom, the cosines first."""
    return np.concatenate([read.values.real, -read.values.imag]), np.concatenate([read.weight, read.weight])


def _likelihoods(reads: Sequence[_Read]) -> Floats:
    """For each code bit how much speaks for a zero."""
    total = np.zeros(code.CODE_BITS, np.float32)
    for read in reads:
        values, weight = _degrees(read)
        carries = ~read.pattern.sync
        spoken = (weight * values * read.pattern.sign)[carries]
        total += np.bincount(read.pattern.bit[carries], spoken, minlength=code.CODE_BITS).astype(np.float32)
    return total


def _score(reads: Sequence[_Read], coded: Floats) -> float:
    """How clearly a whole mark is seen, in deviations of what chance does."""
    seen = variance = 0.0
    for read in reads:
        values, weight = _degrees(read)
        seen += float((weight * values * read.pattern.values(coded)).sum())
        variance += float(np.square(read.weight * np.abs(read.values)).sum())
    return seen / math.sqrt(variance + 1e-12)
