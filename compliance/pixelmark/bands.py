"""What embedder and detector both look at: luma and blue difference of the picture at half its size."""

import cv2
import numpy as np
import numpy.typing as npt

from compliance.pixelmark.code import Floats

Pixels = npt.NDArray[np.uint8]
Size = tuple[int, int]


def half_size(size: Size) -> Size:
    """Of a width and height in pixels."""
    return size[0] // 2, size[1] // 2


def half(pixels: Pixels, size: Size) -> Floats:
    """An RGB picture at the half of `size`, which it once had, as floats of 0-255."""
    width, height = half_size(size)
    if pixels.shape[1::-1] == size:
        # An odd last row or column goes, so that two pixels always become one.
        pixels = pixels[: 2 * height, : 2 * width]
    method = cv2.INTER_AREA if width < pixels.shape[1] else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(pixels.astype(np.float32), (width, height), interpolation=method), np.float32)


def luma(rgb: Floats) -> Floats:
    """ITU-R BT.601, in levels."""
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.float32)


def blue_difference(rgb: Floats, grey: Floats) -> Floats:
    """Cb of ITU-R BT.601 without its offset, in levels."""
    return np.float32(0.564) * (rgb[..., 2] - grey)


def blur(channel: Floats, deviation: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(channel, (0, 0), deviation, borderType=cv2.BORDER_REFLECT), np.float32)
