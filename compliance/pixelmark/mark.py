"""`PixelMark`: lays a key's mark over a picture, and finds it again in what became of the picture."""

import io
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from compliance.pixelmark import code
from compliance.pixelmark.code import Floats
from compliance.pixelmark.tile import EDGE, Pattern, Patterns

_Pixels = npt.NDArray[np.uint8]

ALGORITHM = "com.efficientstack.imgen.pixelmark.1"
#: The sizes in which pictures leave, in pixels; a copy of another size is looked at as if it were made from these.
SIZES = ((1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152))
_ASPECT = 0.02
#: A tile must fit.
_LEAST = 2 * EDGE
#: A mark that is too faint for the check is made this much stronger, one after the other.
_GAINS = (1.0, 1.25, 1.6, 2.0)
_STEADY = 1.4  # the gain of the part that does not follow the texture
_ENOUGH = 16.0
_LEAST_PSNR = 40.2
#: What a change of the blue difference does to green (less) and to blue.
_GREEN, _BLUE = np.float32(0.344), np.float32(1.772)
_SYNC, _DEEP_SYNC, _SCORE = 5.0, 5.5, 10.0
_CANDIDATES = 8
_TRIMS = (1, 2, 3, 4)
_LOUDEST = 4.0
_DEEP_STEP, _DEEP_SPAN = 0.006, (0.45, 2.2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A mark that was found: its id, how clearly (the score of a mark that is not there is below 10), whether the
    picture is mirrored, and the size in pixels that it once had.
    """

    payload: int
    score: float
    mirrored: bool
    size: tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Read:
    """What a band says: a complex value for each pair, its noise of deviation 1, and a weight for each pair."""

    pattern: Pattern
    values: npt.NDArray[np.complex64]
    weight: Floats


class PixelMark:
    """Marks under one secret. One object serves all threads; it takes some milliseconds to build.

    False accepts: a search tries at most 8 places, and each passes the checksum by chance once in 17 million tries,
    and only where the synchronisation stands out by 5 deviations. Together that is below 1e-7 for a picture.
    """

    def __init__(self, secret: bytes) -> None:
        self._patterns = Patterns(secret)

    def carries(self, size: tuple[int, int]) -> bool:
        """Whether a picture of this size is large enough to be marked."""
        return min(size) >= _LEAST

    def embed(self, pixels: Image.Image, payload: int) -> Image.Image:
        """A copy of an RGB picture that carries the id; one that is too small to carry any is left as it is.

        The mark is as strong as it must be to be found in a copy of 512 pixels at JPEG quality 75, and never so strong
        that the PSNR falls below 40 dB. ValueError for an id of more than 48 bits.
        """
        bits = code.word(payload)
        if not self.carries(pixels.size):
            return pixels
        coded = code.encode(bits ^ self._patterns.scrambler)
        tiles = [pattern.tile(coded) for pattern in self._patterns.bands]
        before = np.asarray(pixels.convert("RGB"))
        activity = _activity(_half(before, _half_size(pixels.size)))
        after = before
        for gain in _GAINS:
            after = self._laid(before, activity, tiles, gain)
            if self._check(after, coded) >= _ENOUGH:
                break
        return Image.fromarray(after)

    def detect(self, pixels: Image.Image, *, deep: bool = False) -> Found | None:
        """The mark of an RGB picture, of any size and whatever became of it; None when there is none.

        Tries the picture's own size and those that it may have had, then the same mirrored and with a border of up to
        4 pixels cut off. `deep` goes on with every other size, which takes seconds.
        """
        whole = np.asarray(pixels.convert("RGB"))
        if min(whole.shape[:2]) < 32:
            return None
        for trim in (0, *_TRIMS):
            cut = whole[trim : whole.shape[0] - trim, trim : whole.shape[1] - trim]
            if min(cut.shape[:2]) < 32:
                break
            for mirrored in (False, True) if not trim else (False,):
                for size in _sizes(cut):
                    if found := self._search(cut, size, mirrored, _SYNC):
                        return found
        if deep:
            for size in _every_size(whole):
                if found := self._search(whole, size, False, _DEEP_SYNC):
                    return found
        return None

    # Laying it

    def _laid(self, before: _Pixels, activity: Floats, tiles: list[Floats], gain: float) -> _Pixels:
        height, width = before.shape[:2]
        parts = []
        for pattern, tile in zip(self._patterns.bands, tiles, strict=True):
            band = pattern.band
            amplitude = np.minimum(band.floor * min(gain, _STEADY) + band.gain * gain * activity, band.most * gain)
            full = cv2.resize(amplitude, (width, height), interpolation=cv2.INTER_LINEAR)
            parts.append(np.asarray(full * _spread(tile, height, width), np.float32))
        luma, blue = parts[0] + parts[2], parts[1]
        # The mean square over red, green and blue of the three changes below, without making them.
        both = 2 * (_BLUE - _GREEN) * float(np.vdot(luma, blue))
        square = cv2.norm(luma) ** 2 + ((_GREEN**2 + _BLUE**2) * cv2.norm(blue) ** 2 + both) / 3
        quieter = min(1.0, 255 * 10 ** (-_LEAST_PSNR / 20) / math.sqrt(square / luma.size + 1e-12))
        luma = quieter * luma + _spread(self._patterns.dither, height, width)
        blue *= quieter
        change = cv2.merge([luma, luma - _GREEN * blue, luma + _BLUE * blue])
        return np.asarray(cv2.add(before, change, dtype=cv2.CV_8U))

    def _check(self, after: _Pixels, coded: Floats) -> float:
        """How clearly the mark is seen in a copy of 512 pixels at JPEG quality 75."""
        height, width = after.shape[:2]
        scale = min(1.0, 512 / max(height, width))
        small = cv2.resize(after, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)
        out = io.BytesIO()
        Image.fromarray(small).save(out, "JPEG", quality=75)
        copy = np.asarray(Image.open(out))
        return _score(self._read(_half(copy, _half_size((width, height)))), coded)

    # Finding it

    def _search(self, whole: _Pixels, size: tuple[int, int], mirrored: bool, least: float) -> Found | None:
        """The mark of a picture that once had this size."""
        half = _half(whole[:, ::-1] if mirrored else whole, _half_size(size))
        reads = self._read(half)
        peaks = _peaks(_synchronise(reads))
        if not peaks or peaks[0][0] < least:
            return None
        peaks = [peak for peak in peaks if peak[0] >= least]
        turned = [[_turned(read, x, y) for read in reads] for _, x, y in peaks]
        words = code.decode(np.stack([_likelihoods(reads) for reads in turned])) ^ self._patterns.scrambler
        for candidate, bits in zip(turned, words, strict=True):
            payload = code.payload_of(bits)
            if payload is None:
                continue
            score = _score(candidate, code.encode(bits ^ self._patterns.scrambler))
            if score >= _SCORE:
                return Found(payload=payload, score=round(score, 1), mirrored=mirrored, size=size)
        return None

    def _read(self, half: Floats) -> list[_Read]:
        luma, blue = _channels(half)
        return [_read_band(pattern, blue if pattern.band.name == "c" else luma) for pattern in self._patterns.bands]


def _half_size(size: tuple[int, int]) -> tuple[int, int]:
    return size[0] // 2, size[1] // 2


def _half(pixels: _Pixels, size: tuple[int, int]) -> Floats:
    """The half-size copy, RGB floats of 0-255."""
    height, width = pixels.shape[:2]
    if (width // 2, height // 2) == size:
        pixels = pixels[: 2 * size[1], : 2 * size[0]]
    shrinks = size[0] < width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    resized = cv2.resize(np.ascontiguousarray(pixels).astype(np.float32), size, interpolation=method)
    return np.asarray(resized, np.float32)


def _channels(half: Floats) -> tuple[Floats, Floats]:
    """Luma and the blue difference (ITU-R BT.601)."""
    red, green, blue = half[..., 0], half[..., 1], half[..., 2]
    luma = 0.299 * red + 0.587 * green + 0.114 * blue
    return luma, (blue - luma) * np.float32(0.564)


def _blur(channel: Floats, deviation: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(channel, (0, 0), deviation, borderType=cv2.BORDER_REFLECT), np.float32)


def _activity(half: Floats) -> Floats:
    """How much texture there is to hide a mark in, in levels. An edge that stands alone is none: it is eroded away."""
    luma, _ = _channels(half)
    detail = luma - _blur(luma, 2.5)
    activity = np.sqrt(_blur(np.square(detail), 3.0))
    eroded = cv2.erode(activity, np.ones((15, 15), np.uint8), borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.blur(eroded, (7, 7), borderType=cv2.BORDER_REFLECT), np.float32)


def _spread(tile: Floats, height: int, width: int) -> Floats:
    """The tile, repeated over a picture."""
    edge = len(tile)
    return np.tile(tile, (-(-height // edge), -(-width // edge)))[:height, :width]


def _read_band(pattern: Pattern, channel: Floats) -> _Read:
    """Take the picture out, weigh what is left by how quiet it is, fold it into one tile, and measure the noise there.

    The noise is what the tile shows when its repetitions are added with changing signs: the mark cancels out then.
    """
    band = pattern.band
    rest = channel - _blur(channel, band.blurs[0])
    energy = _blur(np.square(rest), band.blurs[1])
    tiles = _tiles(np.asarray(rest * (band.floor + band.gain * np.sqrt(energy)) / (energy + 1), np.float32))
    even = [tiles[0::2, column::2].sum((0, 1)) for column in (0, 1)]
    odd = [tiles[1::2, column::2].sum((0, 1)) for column in (0, 1)]
    (a, b), (c, d) = even, odd
    spectra = np.fft.fft2(np.stack([a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]))
    noise = np.square(np.abs(spectra[1:])).mean(0).astype(np.float32)
    noise = np.roll(noise, (EDGE // 2, EDGE // 2), (0, 1))
    noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), 1.5, borderType=cv2.BORDER_REFLECT), np.float32)
    noise = np.roll(noise, (EDGE // 2, EDGE // 2), (0, 1))
    values = spectra[0][pattern.v, pattern.u] / np.sqrt(noise[pattern.v, pattern.u] / 2 + 1e-12)
    values = (values * np.minimum(1, _LOUDEST / np.maximum(np.abs(values), 1e-12))).astype(np.complex64)
    power = np.square(np.abs(values))
    counts = np.maximum(np.bincount(pattern.ring, minlength=band.rings), 1)
    excess = np.bincount(pattern.ring, power, minlength=band.rings) / counts / 2 - 1
    weight = np.sqrt(np.maximum(excess, 0.02))[pattern.ring].astype(np.float32)
    return _Read(pattern, values, weight)


def _tiles(channel: Floats) -> Floats:
    """The channel as tiles, shape (rows, columns, 128, 128), filled up with zeros."""
    height, width = channel.shape
    rows, columns = -(-height // EDGE), -(-width // EDGE)
    padded = np.zeros((rows * EDGE, columns * EDGE), np.float32)
    padded[:height, :width] = channel
    return padded.reshape(rows, EDGE, columns, EDGE).swapaxes(1, 2)


def _synchronise(reads: list[_Read]) -> Floats:
    """For each offset of the tile in whole pixels, shape (256, 256): how clearly the synchronisation is seen there, in
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


def _peaks(seen: Floats) -> list[tuple[float, int, int]]:
    """The clearest offsets as (deviations, x, y), each the best of its neighbourhood."""
    padded = np.pad(seen, 1, mode="wrap")
    best = np.asarray(cv2.dilate(padded, np.ones((3, 3), np.uint8)))[1:-1, 1:-1]
    alone = np.where(seen >= best, seen, -np.inf).ravel()
    top = np.argpartition(alone, -_CANDIDATES)[-_CANDIDATES:]
    ordered = top[np.argsort(-alone[top])]
    return [(float(alone[at]), int(at % (2 * EDGE)), int(at // (2 * EDGE))) for at in ordered]


def _turned(read: _Read, x: int, y: int) -> _Read:
    """The values as they were with the tile at its place."""
    phase = np.exp(1j * np.pi * (read.pattern.u * x + read.pattern.v * y) / EDGE)
    return replace(read, values=(read.values * phase).astype(np.complex64))


def _degrees(read: _Read) -> tuple[Floats, Floats]:
    """Value and weight of each degree of freedom, the cosines first."""
    values = np.concatenate([read.values.real, -read.values.imag])
    return values, np.concatenate([read.weight, read.weight])


def _likelihoods(reads: list[_Read]) -> Floats:
    """For each code bit how much speaks for a zero."""
    total = np.zeros(code.CODE_BITS, np.float32)
    for read in reads:
        values, weight = _degrees(read)
        carries = ~read.pattern.sync
        spoken = (weight * values * read.pattern.sign)[carries]
        total += np.bincount(read.pattern.bit[carries], spoken, minlength=code.CODE_BITS).astype(np.float32)
    return total


def _score(reads: list[_Read], coded: Floats) -> float:
    """How clearly a whole mark is seen, in deviations of what chance does."""
    seen = variance = 0.0
    for read in reads:
        values, weight = _degrees(read)
        seen += float((weight * values * read.pattern.values(coded)).sum())
        variance += float(np.square(read.weight * np.abs(read.values)).sum())
    return seen / math.sqrt(variance + 1e-12)


def _sizes(pixels: _Pixels) -> Iterator[tuple[int, int]]:
    """The sizes that a picture may once have had: its own, and those of nearly its shape."""
    height, width = pixels.shape[:2]
    if min(width, height) >= _LEAST // 2:
        yield width, height
    for size in SIZES:
        if size != (width, height) and abs(size[0] / size[1] * height / width - 1) <= _ASPECT:
            yield size


def _every_size(pixels: _Pixels) -> Iterator[tuple[int, int]]:
    """A fine net of sizes, the likeliest first."""
    height, width = pixels.shape[:2]
    least, most = (math.log(edge) / _DEEP_STEP for edge in _DEEP_SPAN)
    steps = sorted(range(math.ceil(least), math.floor(most) + 1), key=abs)
    for step in itertools.islice(steps, 1, None):
        scale = math.exp(step * _DEEP_STEP)
        size = round(width * scale), round(height * scale)
        if min(size) >= _LEAST and max(size) <= 4096:
            yield size
