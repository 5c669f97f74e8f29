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
    palette, indices = _fit(art, [np.asarray(palette, np.uint8) for palette in palettes])
    return Image.fromarray(palette[_without_odd_pixels(indices)])


def upscale(image: Image.Image, factor: int) -> Image.Image:
    """Each pixel becomes a square of `factor` x `factor` pixels."""
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _shrink(pixels: npt.NDArray[np.float32], cell: int) -> npt.NDArray[np.float32]:
    height, width = (length // cell for length in pixels.shape[:2])
    blocks = pixels[: height * cell, : width * cell].reshape(height, cell, width, cell, 3)
    return np.asarray(blocks.mean((1, 3)), np.float32)


def _fit(art: npt.NDArray[np.float32], palettes: Sequence[Palette]) -> tuple[Palette, npt.NDArray[np.intp]]:
    """The palette that is nearest to the picture as a whole, and the index of each pixel's nearest colour in it.

    Of |a - p|² the part |a|² is the same for all colours and left out. Colours are the rows, so that the least of each
    pixel is found along memory.
    """
    pixels = art.reshape(-1, 3).T
    errors = []
    for palette in palettes:
        colours = palette.astype(np.float32)
        errors.append((-2 * colours) @ pixels + np.square(colours).sum(-1, keepdims=True))
    best = int(np.argmin([error.min(0).sum(dtype=np.float64) for error in errors]))
    return palettes[best], errors[best].argmin(0).reshape(art.shape[:2])


def _without_odd_pixels(indices: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    height, width = indices.shape
    framed = np.pad(indices, 1, mode="constant", constant_values=-1)
    around = np.stack([framed[y : y + height, x : x + width] for y in range(3) for x in range(3) if (y, x) != (1, 1)])
    odd = (around != indices).all(0)
    neighbours = around[:, odd]
    votes = (neighbours[:, None] == neighbours[None]).sum(1) * (neighbours >= 0)
    cleaned = indices.copy()
    cleaned[odd] = np.take_along_axis(neighbours, votes.argmax(0)[None], 0)[0]
    return cleaned
