"""Lays a mark over a picture: stronger where there is texture to hide it, and as strong as a small copy needs it."""

import io
import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from compliance.pixelmark import bands, code
from compliance.pixelmark.bands import Pixels
from compliance.pixelmark.code import Floats
from compliance.pixelmark.detect import Detector
from compliance.pixelmark.tile import EDGE, Patterns

#: Edge in pixels of the smallest picture that is marked: one tile, which a detector reads when little was done to it.
LEAST = 2 * EDGE
#: A mark that is too faint for the check is made this much stronger, one after the other.
_GAINS = (1.0, 1.25, 1.6, 2.0)
_STEADY = 1.4  # the most gain of the part that does not follow the texture
_ENOUGH = 16.0
_COPY, _QUALITY = 512, 75
_LEAST_PSNR = 40.2
#: What a change of the blue difference does to green (less) and to blue.
_GREEN, _BLUE = 0.344, 1.772


class Embedder:
    """Marks pictures under one key."""

    def __init__(self, patterns: Patterns, detector: Detector) -> None:
        self._patterns, self._detector = patterns, detector

    def mark(self, before: Pixels, payload: int) -> Pixels:
        """The pixels with the id in them. ValueError for an id of more than 48 bits."""
        coded = code.encode(code.word(payload) ^ self._patterns.scrambler)
        tiles = [pattern.tile(coded) for pattern in self._patterns.bands]
        size = before.shape[1], before.shape[0]
        activity = _activity(bands.half(before, size))
        after = before
        for gain in _GAINS:
            after = self._laid(before, activity, tiles, gain)
            if self._detector.clearness(_small_copy(after), size, coded) >= _ENOUGH:
                break
        return after

    def _laid(self, before: Pixels, activity: Floats, tiles: Sequence[Floats], gain: float) -> Pixels:
        """The mark at this gain over a picture.

        Most of the time of such sums goes into fresh memory, so it goes by rows of tiles wherever it can.
        """
        height, width = before.shape[:2]
        parts = np.empty((len(tiles), height, width), np.float32)
        for part, pattern, tile in zip(parts, self._patterns.bands, tiles, strict=True):
            band = pattern.band
            amplitude = np.minimum(band.floor * min(gain, _STEADY) + band.gain * gain * activity, band.most * gain)
            cv2.resize(amplitude.astype(np.float32), (width, height), dst=part, interpolation=cv2.INTER_LINEAR)
            row = _row(tile, width)
            for rows in _rows(height):
                part[rows] *= row[: len(part[rows])]
        luma, blue, fine = parts  # in the order of `tile.BANDS`
        luma += fine
        quieter = min(1.0, _largest_change() / _change(luma, blue))
        dither, after = _row(self._patterns.dither, width), np.empty_like(before)
        for rows in _rows(height):
            bright, tint = cv2.scaleAdd(luma[rows], quieter, dither[: len(luma[rows])]), blue[rows]
            changes = bright, cv2.scaleAdd(tint, -_GREEN * quieter, bright), cv2.scaleAdd(tint, _BLUE * quieter, bright)
            colours = zip(cv2.split(before[rows]), changes, strict=True)
            cv2.merge([cv2.add(colour, change, dtype=cv2.CV_8U) for colour, change in colours], dst=after[rows])
        return after


def _largest_change() -> float:
    """The root mean square, in levels, at the least PSNR. Rounding and dither take the rest of the way to 40 dB."""
    return 255 * 10 ** (-_LEAST_PSNR / 20)


def _change(luma: Floats, blue: Floats) -> float:
    """The root mean square over red, green and blue of a change of these two, in levels."""
    both = 2 * (_BLUE - _GREEN) * float(np.einsum("yx,yx->", luma, blue))
    square = cv2.norm(luma) ** 2 + ((_GREEN**2 + _BLUE**2) * cv2.norm(blue) ** 2 + both) / 3
    return math.sqrt(square / luma.size + 1e-12)


def _activity(half: Floats) -> Floats:
    """How much texture there is to hide a mark in, in levels. An edge that stands alone is none: it is eroded away."""
    grey = bands.luma(half)
    activity = np.sqrt(bands.blur(np.square(grey - bands.blur(grey, 2.5)), 3.0))
    eroded = cv2.erode(activity, np.ones((15, 15), np.uint8), borderType=cv2.BORDER_REFLECT)
    return np.asarray(cv2.blur(eroded, (7, 7), borderType=cv2.BORDER_REFLECT), np.float32)


def _row(tile: Floats, width: int) -> Floats:
    """A row of tiles over the whole width."""
    return np.ascontiguousarray(np.tile(tile, -(-width // len(tile)))[:, :width])


def _rows(height: int) -> list[slice]:
    """The pixels of each row of tiles."""
    return [slice(top, min(top + 2 * EDGE, height)) for top in range(0, height, 2 * EDGE)]


def _small_copy(pixels: Pixels) -> Pixels:
    """What a social network makes of a picture: 512 pixels, JPEG quality 75. The hardest of what a mark must bear."""
    scale = min(1.0, _COPY / max(pixels.shape[:2]))
    size = round(pixels.shape[1] * scale), round(pixels.shape[0] * scale)
    out = io.BytesIO()
    Image.fromarray(np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA))).save(
        out, "JPEG", quality=_QUALITY
    )
    return np.asarray(Image.open(out))
