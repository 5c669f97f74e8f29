"""Pixel art from a diffusion model: snap its picture to a palette and enlarge it by whole pixels.

A model that draws pixel art comes close to flat colours but never hits them. Snapping takes the one palette that fits
the picture best (a palette for each time of day, say), so that a night never borrows colours from a noon.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Palette = npt.NDArray[np.uint8]  # (colours, 3)


def read_palettes(path: Path) -> list[Palette]:
    """Palettes from a JSON file: a list of palettes, each a list of "rrggbb"."""
    rows: list[list[str]] = json.loads(path.read_text(encoding="utf-8"))
    return [np.array([tuple(bytes.fromhex(code)) for code in row], np.uint8) for row in rows]


def snap(image: Image.Image, palettes: Sequence[npt.ArrayLike], cell: int = 2) -> Image.Image:
    """The picture at art-pixel resolution in the colours of the one palette that fits it best.

    `cell` is the edge of one art pixel in the given picture. Pixels that agree with none of their eight neighbours are
    slips of the model and take the colour that most of the neighbours have.
    """
    art = _shrink(np.asarray(image.convert("RGB"), np.float32), cell)
    fits = [_fit(art, np.asarray(palette, np.uint8)) for palette in palettes]
    _, indices, palette = min(fits, key=lambda fit: fit[0])
    return Image.fromarray(palette[_without_odd_pixels(indices)])


def upscale(image: Image.Image, factor: int) -> Image.Image:
    """Each pixel becomes a square of `factor` x `factor` pixels."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _shrink(pixels: npt.NDArray[np.float32], cell: int) -> npt.NDArray[np.float32]:
    height, width = (length // cell for length in pixels.shape[:2])
    blocks = pixels[: height * cell, : width * cell].reshape(height, cell, width, cell, 3)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def _fit(art: npt.NDArray[np.float32], palette: Palette) -> tuple[float, npt.NDArray[np.intp], Palette]:
    """How far the picture is from the palette, and the nearest colour of each pixel."""
    errors = np.square(art[:, :, None] - palette.astype(np.float32)).sum(-1)
    return float(errors.min(-1).sum()), errors.argmin(-1), palette


def _without_odd_pixels(indices: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    height, width = indices.shape
    framed = np.pad(indices, 1, mode="constant", constant_values=-1)
    around = np.stack(
        [framed[y : y + height, x : x + width] for y in range(3) for x in range(3) if (y, x) != (1, 1)], axis=-1
    )
    votes = (around[..., :, None] == around[..., None, :]).sum(-1) * (around >= 0)
    common = np.take_along_axis(around, votes.argmax(-1)[..., None], -1)[..., 0]
    return np.where((around == indices[..., None]).any(-1), indices, common)
