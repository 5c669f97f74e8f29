"""A key's patterns: three bands of frequencies in a tile, in each of which every frequency says something.

Lengths are in pixels of the half-size copy ("half pixels") in which the detector works; the tile has 128 of them. A
frequency k = (u, v) / 128 has two degrees of freedom, the signs of its cosine and of its sine. The key gives each a
sign, makes a quarter of them the synchronisation, whose sign is all they say, and deals the code bits over the rest.
"""

import functools
import hashlib
import hmac
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from compliance.pixelmark.code import CODE_BITS, WORD_BITS, Floats

#: Edge of the tile in half pixels.
EDGE = 128
_SYNC_SHARE = 0.25
_VERSION = b"imgen pixel mark 1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Band:
    """A ring of frequencies, in cycles per half pixel, and how its part of the mark is made and found.

    The amplitude of the mark is `floor + gain * activity` levels, at most `most`. `blurs` are the deviations of the
    two Gaussians with which the detector takes the picture out and measures what is left, in half pixels. `slope` is
    the exponent of the spectrum, `rings` how many parts of the band are weighed apart. `blue` bands change the blue
    difference, the others luma. `trust` weighs the band while the place of the tile is looked for.
    """

    name: str
    low: float
    high: float
    floor: float
    gain: float
    most: float
    blurs: tuple[float, float]
    slope: float = 0.0
    rings: int = 4
    blue: bool = False
    trust: float = 1.0


#: Luma for all pictures, the blue difference, and fine luma where there is texture to hide it.
BANDS = (
    Band(name="y", low=0.04, high=0.18, floor=0.64, gain=0.06, most=2.0, blurs=(3.0, 3.0), slope=-0.4, rings=8),
    Band(name="c", low=0.02, high=0.10, floor=0.45, gain=0.07, most=2.2, blurs=(5.0, 4.0), blue=True),
    Band(name="h", low=0.18, high=0.30, floor=0.05, gain=0.10, most=2.0, blurs=(1.5, 2.5), trust=0.2),
)


@dataclass(frozen=True, slots=True)
class Pattern:
    """A band under a key. All arrays have one entry for each degree of freedom; the cosines come first.

    `u` and `v` are the frequencies in cycles per tile, one for each pair of a cosine and a sine. `bit` is the code bit
    that it carries, -1 for synchronisation. `ring` is the part of the band that the pair lies in.
    """

    band: Band
    u: npt.NDArray[np.intp]
    v: npt.NDArray[np.intp]
    amplitude: Floats
    ring: npt.NDArray[np.intp]
    sign: Floats
    bit: npt.NDArray[np.intp]

    @property
    def sync(self) -> npt.NDArray[np.bool_]:
        return self.bit < 0

    def values(self, code: Floats) -> Floats:
        """The sign of each degree of freedom in a tile that says these code bits."""
        return np.asarray(self.sign * np.where(self.sync, 1, code[self.bit]), np.float32)

    def spectrum(self, code: Floats) -> npt.NDArray[np.complex64]:
        """Its pairs as complex numbers: cosine minus i times sine."""
        cosines, sines = np.split(self.values(code), 2)
        return (self.amplitude * (cosines - 1j * sines)).astype(np.complex64)

    def tile(self, code: Floats) -> Floats:
        """The pattern at full size, shape (256, 256), with an RMS of 1.

        A half pixel covers two pixels, so its middle lies half a pixel to the right of the first: the phases say so.
        """
        spectrum = np.zeros((2 * EDGE, 2 * EDGE), np.complex64)
        shift = np.exp(-1j * np.pi * (self.u + self.v) / (2 * EDGE))
        spectrum[self.v, self.u] = self.spectrum(code) * shift
        tile = np.fft.ifft2(spectrum).real
        return np.asarray(tile / np.sqrt(np.square(tile).mean()), np.float32)


class Patterns:
    """Everything that a secret decides. The same on every machine and for ever: marks that are out there rely on it."""

    def __init__(self, secret: bytes) -> None:
        self._key = hmac.digest(secret, _VERSION, "sha256")
        self.bands = tuple(self._pattern(band) for band in BANDS)
        bits = np.unpackbits(np.frombuffer(self._stream("scrambler", WORD_BITS // 8), np.uint8))
        #: What a word is combined with, so that no simple word is a valid one.
        self.scrambler = bits
        noise = np.frombuffer(self._stream("dither", 4 * EDGE * EDGE), np.uint8)
        #: Shape (256, 256), -0.45 to 0.45: with it a mark of less than half a level survives the rounding.
        self.dither: Floats = np.asarray(((noise.reshape(2 * EDGE, -1) + 0.5) / 256 - 0.5) * 0.9, np.float32)

    def _pattern(self, band: Band) -> Pattern:
        u, v, radius = _ring(band.low, band.high)
        count = 2 * len(u)
        sign = 1 - 2 * (np.frombuffer(self._stream(f"{band.name} signs", count), np.uint8) & 1).astype(np.float32)
        order = self._order(f"{band.name} degrees", count)
        sync = round(_SYNC_SHARE * count)
        bit = np.full(count, -1, np.intp)
        bits = self._order(f"{band.name} bits", CODE_BITS)
        bit[order[sync:]] = bits[np.arange(count - sync) % CODE_BITS]
        ring = np.minimum((radius - band.low) / (band.high - band.low) * band.rings, band.rings - 1).astype(np.intp)
        amplitude = ((radius / band.low) ** band.slope).astype(np.float32)
        return Pattern(band, u, v, amplitude, ring, sign, bit)

    def _order(self, purpose: str, count: int) -> npt.NDArray[np.intp]:
        """A keyed permutation."""
        return np.argsort(np.frombuffer(self._stream(purpose, 8 * count), "<u8"), kind="stable")

    def _stream(self, purpose: str, count: int) -> bytes:
        return hashlib.shake_256(self._key + purpose.encode()).digest(count)


@functools.cache
def _ring(low: float, high: float) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """The frequencies of one half plane (u >= 0) whose radius is in the ring: u, v, and the radius."""
    line = np.arange(-EDGE // 2, EDGE // 2)
    u, v = np.meshgrid(line, line)
    radius = np.hypot(u, v) / EDGE
    chosen = (radius >= low) & (radius < high) & ((u > 0) | ((u == 0) & (v > 0)))
    return u[chosen], v[chosen], radius[chosen]
