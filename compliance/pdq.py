"""PDQ, the perceptual hash that the industry shares lists of: 256 bits that change little when a picture does.

Written after Meta's description and reference (ThreatExchange, `pdq`): luminance, two box filters, 64 x 64 samples, the
lowest 16 x 16 cosine waves, each above or below their median. Filter and sampling are linear and the same for all
pictures of a size, so that both are one sum with weights, over rows and then over columns. A few bits next to the
median may fall otherwise than in the reference, whose sums are of single precision; lists are compared by distance
anyhow. The reference's own package has no wheel for Linux, and the gateway's image has no compiler.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS = 256
_SAMPLES, _WAVES = 64, 16
#: A picture with a shorter edge shows nothing, says the reference.
_SHORTEST = 5

Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]


def turned_hashes(image: Image.Image) -> tuple[Bytes, int]:
    """Eight hashes of 32 bytes, of the picture in each of its rotations and flips, itself first, and its quality 0-100.

    The quality says how much there is to go by: nothing below 50 should be compared.
    """
    red, green, blue = np.moveaxis(np.asarray(image.convert("RGB"), np.float32), -1, 0)
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    rows, columns = (_sampling(length) for length in luma.shape)
    # Turned before they are sampled, not after: the filter is not symmetric, and the hash of a picture that somebody
    # turned is then the very hash of the original.
    small = [
        across.of(down.of(luma).T).T for down in (rows, rows.reversed()) for across in (columns, columns.reversed())
    ]
    turned = [*small, *(each.T for each in small)]
    waves = np.stack([_WAVE @ each @ _WAVE.T for each in turned]).reshape(len(turned), BITS)
    median = np.partition(waves, BITS // 2 - 1, axis=1)[:, BITS // 2 - 1, None]
    # The first wave is the last bit.
    hashes = np.packbits((waves > median)[:, ::-1], axis=1)
    return hashes, _quality(small[0]) if min(image.size) >= _SHORTEST else 0


def _quality(small: npt.NDArray[np.float32]) -> int:
    """How steep the picture is: the whole steps between neighbours, in hundredths of the range."""
    steps = sum(int(np.abs(np.trunc(100 * np.diff(small, axis=axis) / 255)).sum()) for axis in (0, 1))
    return min(100, steps // 90)


@dataclass(frozen=True, slots=True)
class _Sampling:
    """The pixels that each sample of a line is made of, and their weights: two box filters and the sampling in one."""

    pixels: npt.NDArray[np.intp]
    weights: npt.NDArray[np.float32]
    length: int

    def of(self, lines: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The samples along the first axis. Without matrix products: their library's threads wait for each other."""
        return np.asarray(np.einsum("sp,spx->sx", self.weights, lines[self.pixels]), np.float32)

    def reversed(self) -> "_Sampling":
        return replace(self, pixels=self.length - 1 - self.pixels)


@lru_cache(maxsize=64)
def _sampling(length: int) -> _Sampling:
    window = (length + 2 * _SAMPLES - 1) // (2 * _SAMPLES)
    ahead = (window + 2) // 2
    pixels = np.arange(length)
    low, high = np.maximum(0, pixels - window + ahead), np.minimum(length, pixels + ahead)
    at = ((np.arange(_SAMPLES) + 0.5) * length / _SAMPLES).astype(int)
    once = (pixels >= low[at, None]) & (pixels < high[at, None])
    share = once / once.sum(1, keepdims=True) / (high - low)
    # The second filter spreads the share of each pixel over its own window: a sum over the starts and ends of all.
    edges = np.zeros((length + 1, _SAMPLES))
    np.add.at(edges, low, share.T)
    np.subtract.at(edges, high, share.T)
    weights = edges.cumsum(0)[:length].T
    band = np.maximum(0, at - 2 * window)[:, None] + np.arange(min(length, 4 * window + 1))
    inside = np.minimum(band, length - 1)
    return _Sampling(
        inside, np.where(band < length, np.take_along_axis(weights, inside, 1), 0).astype(np.float32), length
    )


def _waves() -> _Floats:
    wave, sample = np.arange(1, _WAVES + 1)[:, None], np.arange(_SAMPLES)[None, :]
    return np.asarray(np.sqrt(2 / _SAMPLES) * np.cos(np.pi / (2 * _SAMPLES) * wave * (2 * sample + 1)), np.float64)


_WAVE = _waves()
