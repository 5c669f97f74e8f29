"""PDQ, the perceptual hash that the industry shares lists of: 256 bits that change little when a picture does.

Written after Meta's description and reference (ThreatExchange, `pdq`): luminance, two box filters, 64 x 64 samples, the
lowest 16 x 16 cosine waves, each above or below their median. Filter and sampling are linear and the same for each
picture size, so that both are one matrix for the rows and one for the columns. A few bits next to the median may fall
otherwise than in the reference, whose sums are of single precision; lists are compared by distance anyhow.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from PIL import Image

BITS = 256
_SAMPLES, _WAVES = 64, 16
#: A picture with a shorter edge shows nothing, says the reference.
_SHORTEST = 5
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)

Bytes = npt.NDArray[np.uint8]
_Floats = npt.NDArray[np.float64]


def turned_hashes(image: Image.Image) -> tuple[Bytes, int]:
    """Eight hashes of 32 bytes, of the picture in each of its rotations and flips, itself first, and its quality 0-100.

    The quality says how much there is to go by: nothing below 50 should be compared.
    """
    luma = np.asarray(image.convert("RGB"), np.float32) @ _LUMA
    height, width = luma.shape
    small = _sampling(height) @ luma @ _sampling(width).T
    turned = [np.rot90(flipped, turns) for flipped in (small, small[:, ::-1]) for turns in range(4)]
    waves = np.stack([_WAVE @ each @ _WAVE.T for each in turned]).reshape(len(turned), BITS)
    median = np.partition(waves, BITS // 2 - 1, axis=1)[:, BITS // 2 - 1, None]
    # The first wave is the last bit.
    return np.packbits((waves > median)[:, ::-1], axis=1), _quality(small) if min(image.size) >= _SHORTEST else 0


def _quality(small: npt.NDArray[np.float32]) -> int:
    """How steep the picture is: the whole steps between neighbours, in hundredths of the range."""
    steps = sum(int(np.abs(np.trunc(100 * np.diff(small, axis=axis) / 255)).sum()) for axis in (0, 1))
    return min(100, steps // 90)


@lru_cache(maxsize=32)
def _sampling(length: int) -> npt.NDArray[np.float32]:
    """The matrix that filters a line of so many pixels twice and takes its samples."""
    window = (length + 2 * _SAMPLES - 1) // (2 * _SAMPLES)
    ahead = (window + 2) // 2
    pixels = np.arange(length)
    low, high = np.maximum(0, pixels - window + ahead), np.minimum(length, pixels + ahead)
    at = ((np.arange(_SAMPLES) + 0.5) * length / _SAMPLES).astype(int)
    once = (pixels >= low[at, None]) & (pixels < high[at, None])
    weights = once / once.sum(1, keepdims=True)
    # The second filter spreads the weight of each pixel over its own window: a sum over the starts and ends of all.
    edges = np.zeros((length + 1, _SAMPLES))
    share = (weights / (high - low)).T
    np.add.at(edges, low, share)
    np.subtract.at(edges, high, share)
    return edges.cumsum(0)[:length].T.astype(np.float32)


def _waves() -> _Floats:
    wave, sample = np.arange(1, _WAVES + 1)[:, None], np.arange(_SAMPLES)[None, :]
    return np.asarray(np.sqrt(2 / _SAMPLES) * np.cos(np.pi / (2 * _SAMPLES) * wave * (2 * sample + 1)), np.float64)


_WAVE = _waves()
