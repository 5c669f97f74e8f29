"""How well the mark in the pixels is read back from what becomes of pictures, and what it costs them.

Pictures that the built-in model drew are kept under `var/pixelmark`, in a folder for the model's weights, at the size
of their art: a run that was stopped goes on where it was. Where more are asked for than are drawn, the rest are landscapes
of the world that the model was taught, painted without it; the first line says how many of each there are.
"""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from handler.builtin.captions import caption
from handler.builtin.judge import fair
from handler.builtin.world import ART_SCALE, SIZES, sample
from handler.builtin.world import draw as paint
from handler.pixelart import upscale

FOLDER = Path("var/pixelmark")


def draw(count: int, folder: Path) -> None:
    """`count` pictures of the built-in model, every size in turn, as `0000.png` and so on; those there are kept."""
    import torch

    from handler.builtin.studio import Studio

    missing = [number for number in range(count) if not (folder / f"{number:04}.png").exists()]
    if not missing:
        return
    folder.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries announce their next versions
        studio = Studio()
        for number in missing:
            rng, size = Random(f"pixelmark {number}"), SIZES[number % len(SIZES)]
            (art,) = studio.draw([caption(fair(sample(rng), size), rng)], size, [number])
            half_done = folder / f"{number:04}.part"
            art.save(half_done, "PNG")
            half_done.rename(folder / f"{number:04}.png")


def gallery() -> Path:
    """Where the pictures of the shipped weights are kept."""
    from handler.builtin.studio import MODEL

    weights = (MODEL / "unet" / "diffusion_pytorch_model.safetensors").read_bytes()
    return FOLDER / hashlib.sha256(weights).hexdigest()[:12]


def picture(number: int, folder: Path) -> Image.Image:
    """One that the model drew, or else a landscape."""
    drawn = folder / f"{number:04}.png"
    if drawn.exists():
        return upscale(Image.open(drawn).convert("RGB"), ART_SCALE)
    rng, size = Random(f"landscape {number}"), SIZES[number % len(SIZES)]
    return upscale(Image.fromarray(np.asarray(paint(fair(sample(rng), size), size))), ART_SCALE)
