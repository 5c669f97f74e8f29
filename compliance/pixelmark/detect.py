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
_LOUDEST = 4.0
_DEEP_STEP, _DEEP_SPAN = 0.006, (0.45, 2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mark that was found.

    `score` says how clearly, in deviations of what chance does; below 10 there is no mark. `scale` is the width of the
    picture over the width that it had when it was marked, as far as the detector needed to know: a crop has 1.
    """

    payload: int
    score: float
    mirrored: bool
    scale: float


@dataclass(frozen=True, slots=True)
class _Fold:
    """A band of a picture in one tile: the spectrum (of a real tile, so u >= 0 only) and the power of its noise."""

    spectrum: npt.NDArray[np.complex64]
    noise: Floats


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
        folds = self._folds(pixels, size)
        return _score([_read(*pair, False) for pair in zip(self._patterns.bands, folds, strict=True)], coded)

    def _search(self, pixels: Pixels, size: Size, least: float) -> Found | None:
        """The mark of a picture that once had this size, as it is or mirrored."""
        folds = self._folds(pixels, size)
        for mirrored in (False, True):
            reads = [_read(*pair, mirrored) for pair in zip(self._patterns.bands, folds, strict=True)]
            if places := _places(_synchronisation(reads), least):
                turned = [[_turned(read, x, y) for read in reads] for x, y in places]
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

    def _folds(self, pixels: Pixels, size: Size) -> list[_Fold]:
        rgb = bands.half(pixels, size)
        grey = bands.luma(rgb)
        blue = bands.blue_difference(rgb, grey)
        return [_folded(blue if each.band.blue else grey, each.band) for each in self._patterns.bands]


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


def _folded(channel: Floats, band: Band) -> _Fold:
    """Take the picture out, weigh what is left by how quiet it is, fold it into one tile, and measure the noise there.

    The noise is what the tile shows when its repetitions are added with changing signs: the mark cancels out then.
    """
    rest = channel - bands.blur(channel, band.blurs[0])
    energy = bands.blur(np.square(rest), band.blurs[1])
    rest *= (np.float32(band.floor) + np.float32(band.gain) * np.sqrt(energy)) / (energy + 1)
    tiles = _tiles(rest)
    a, b = (tiles[0::2, column::2].sum((0, 1)) for column in (0, 1))
    c, d = (tiles[1::2, column::2].sum((0, 1)) for column in (0, 1))
    spectra = np.fft.rfft2(np.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]))
    noise = np.square(np.abs(spectra[1:])).mean(0).astype(np.float32)
    # Smooth over the frequencies, which go round in v: v = 0 comes to the middle and back.
    noise = np.roll(bands.blur(np.roll(noise, EDGE // 2, 0), 1.5), EDGE // 2, 0)
    return _Fold(spectra[0].astype(np.complex64), noise)


def _tiles(channel: Floats) -> Floats:
    """The channel as tiles, shape (rows, columns, 128, 128), filled up with zeros."""
    height, width = channel.shape
    rows, columns = -(-height // EDGE), -(-width // EDGE)
    padded = np.zeros((rows * EDGE, columns * EDGE), np.float32)
    padded[:height, :width] = channel
    return padded.reshape(rows, EDGE, columns, EDGE).swapaxes(1, 2)


def _read(pattern: Pattern, fold: _Fold, mirrored: bool) -> _Read:
    """The values at the pattern's frequencies.

    A mirrored tile has the spectrum of the tile at (-u, v), which for a real one is the conjugate of that at (u, -v).
    """
    v = -pattern.v if mirrored else pattern.v
    spectrum = fold.spectrum[v, pattern.u]
    values = (spectrum.conj() if mirrored else spectrum) / np.sqrt(fold.noise[v, pattern.u] / 2 + np.float32(1e-12))
    loudness = np.abs(values)
    values *= np.minimum(1, _LOUDEST / np.maximum(loudness, np.float32(1e-12)))
    # How much of a mark a ring of frequencies shows says how far to trust it: what an attack took away falls out.
    power = np.square(np.minimum(loudness, _LOUDEST))
    excess = np.bincount(pattern.ring, power) / np.maximum(np.bincount(pattern.ring), 1) / 2 - 1
    weight = np.sqrt(np.maximum(excess, 0.02))[pattern.ring].astype(np.float32)
    return _Read(pattern, values.astype(np.complex64), weight)


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
