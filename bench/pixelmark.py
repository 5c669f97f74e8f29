"""How well the mark in the pixels is read back from what becomes of pictures, and what it costs them.

Pictures that the built-in model drew are kept under `var/pixelmark`, in a folder for the model's weights, at the size
of their art: a run that was stopped goes on where it was. Where more are asked for than are drawn, the rest are
landscapes of the world that the model was taught, painted without it; the first line says how many of each there are.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from random import Random

import cv2
import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from compliance.pixelmark import PixelMark
from handler.builtin.captions import caption
from handler.builtin.judge import fair
from handler.builtin.world import ART_SCALE, SIZES, sample
from handler.builtin.world import draw as paint
from handler.pixelart import upscale

FOLDER = Path("var/pixelmark")


Attack = Callable[[Image.Image], Image.Image]


@dataclass(kw_only=True, slots=True)
class Figures:
    """What one picture, or all together, showed. Times are CPU milliseconds of one thread."""

    found: dict[str, list[float]] = field(default_factory=dict)  # scores of the right id, by attack
    wrong: int = 0
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    embed_ms: list[float] = field(default_factory=list)
    plain_ms: list[float] = field(default_factory=list)
    detect_ms: list[float] = field(default_factory=list)
    unmarked_ms: list[float] = field(default_factory=list)
    accepted: int = 0

    def add(self, other: Figures) -> None:
        for name, scores in other.found.items():
            self.found.setdefault(name, []).extend(scores)
        for name in ("psnr", "ssim", "embed_ms", "plain_ms", "detect_ms", "unmarked_ms"):
            getattr(self, name).extend(getattr(other, name))
        self.wrong += other.wrong
        self.accepted += other.accepted


def run(*, marked: int = 500, unmarked: int = 2000, drawn: int = 70, pictures: Path | None = None) -> None:
    """Draws what is missing of `drawn` pictures, or takes those of a folder as they are, and prints the table."""
    folder = pictures or gallery()
    if not pictures:
        draw(drawn, folder)
    real = len(list(folder.glob("*.png")))
    total = Figures()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for figures in pool.map(_marked, range(marked), [folder] * marked, chunksize=5):
            total.add(figures)
        for figures in pool.map(_unmarked, range(unmarked), [folder] * unmarked, chunksize=20):
            total.add(figures)
    different = len({hashlib.sha256(picture(number, folder).tobytes()).digest() for number in range(marked)})
    print(
        f"\n{marked} marked pictures, {different} different ones: {min(real, marked)} drawn by the built-in model, "
        f"{max(0, marked - real)} painted landscapes; {unmarked} unmarked, {min(real, unmarked)} of them drawn"
    )
    table(total, marked, unmarked)


def table(total: Figures, marked: int, unmarked: int) -> None:
    print(f"{'attack':<28}{'right id':>12}{'share':>9}{'score median':>14}{'least':>7}")
    for name in attacks():
        scores = total.found.get(name, [])
        middle, least = (np.median(scores), min(scores)) if scores else (0, 0)
        right = f"{len(scores)}/{marked}"
        print(f"{name:<28}{right:>12}{100 * len(scores) / marked:>8.1f}%{middle:>14.1f}{least:>7.1f}")
    print(f"wrong ids: {total.wrong}; false accepts: {total.accepted} of {unmarked} unmarked")
    for name, values, unit in (("PSNR", total.psnr, " dB"), ("SSIM of luma", total.ssim, "")):
        print(
            f"{name:<28}mean {np.mean(values):.4g}{unit}, 5 % {np.quantile(values, 0.05):.4g}, least {min(values):.4g}"
        )
    print("CPU milliseconds of one thread (median, 95 %)")
    for name, spent in (
        ("embed", total.embed_ms),
        ("detect, the picture itself", total.plain_ms),
        ("detect, after an attack", total.detect_ms),
        ("detect, nothing there", total.unmarked_ms),
    ):
        print(f"{name:<28}{np.median(spent):>8.1f}{np.quantile(spent, 0.95):>8.1f}")


def attacks() -> dict[str, Attack]:
    """What is done to a marked picture, by name."""
    return {
        "none": lambda image: image,
        "JPEG 75": lambda image: recoded(image, "JPEG", 75),
        "JPEG 50": lambda image: recoded(image, "JPEG", 50),
        "WebP 75": lambda image: recoded(image, "WEBP", 75),
        "half size, JPEG 75": lambda image: recoded(resized(image, max(image.size) // 2), "JPEG", 75),
        "512 px": lambda image: resized(image, 512),
        "512 px, JPEG 75": lambda image: recoded(resized(image, 512), "JPEG", 75),
        "crop 5 %": lambda image: cropped(image, 0.05),
        "crop 20 %": lambda image: cropped(image, 0.2),
        "crop 20 %, JPEG 75": lambda image: recoded(cropped(image, 0.2), "JPEG", 75),
        "brightness +20 %": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
        "brightness -20 %": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
        "contrast 0.8": lambda image: ImageEnhance.Contrast(image).enhance(0.8),
        "contrast 1.2": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
        "gamma 0.7": lambda image: curved(image, 0.7),
        "gamma 1.4": lambda image: curved(image, 1.4),
        "blur 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
        "noise 4": lambda image: noisy(image, 4),
        "border 2 px": lambda image: ImageOps.expand(image, 2, "black"),
        "512 px, border 2 px, JPEG 75": lambda image: recoded(
            ImageOps.expand(resized(image, 512), 2, "black"), "JPEG", 75
        ),
        "mirror": ImageOps.mirror,
    }


def recoded(image: Image.Image, name: str, quality: int) -> Image.Image:
    out = io.BytesIO()
    image.save(out, name, quality=quality)
    return Image.open(out).convert("RGB")


def resized(image: Image.Image, edge: int) -> Image.Image:
    scale = edge / max(image.size)
    size = round(image.width * scale), round(image.height * scale)
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    """Without this share of the width and of the height, more of it on the left and above."""
    left, top = round(0.6 * share * image.width), round(0.7 * share * image.height)
    width, height = round(image.width * (1 - share)), round(image.height * (1 - share))
    return image.crop((left, top, left + width, top + height))


def curved(image: Image.Image, gamma: float) -> Image.Image:
    return image.point([round(255 * (level / 255) ** gamma) for level in range(256)] * 3)


def noisy(image: Image.Image, deviation: float) -> Image.Image:
    pixels = np.asarray(image, np.float32)
    grain = np.random.default_rng(pixels.size).normal(0, deviation, pixels.shape)
    return Image.fromarray(np.clip(np.rint(pixels + grain), 0, 255).astype(np.uint8))


def psnr(one: Image.Image, other: Image.Image) -> float:
    """Over red, green and blue, in dB; infinite for the same picture."""
    error = np.square(np.asarray(one, np.float64) - np.asarray(other, np.float64)).mean()
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(one: Image.Image, other: Image.Image) -> float:
    """The mean structural similarity of luma (Wang et al. 2004: Gaussian window of deviation 1.5)."""
    x, y = (np.asarray(image.convert("L"), np.float64) for image in (one, other))

    def local(values: np.ndarray) -> np.ndarray:
        return np.asarray(cv2.GaussianBlur(values, (11, 11), 1.5))

    mean_x, mean_y = local(x), local(y)
    both = 2 * (local(x * y) - mean_x * mean_y) + (0.03 * 255) ** 2
    spread = local(x * x) - mean_x**2 + local(y * y) - mean_y**2 + (0.03 * 255) ** 2
    bright = (2 * mean_x * mean_y + (0.01 * 255) ** 2) / (mean_x**2 + mean_y**2 + (0.01 * 255) ** 2)
    return float((bright * both / spread).mean())


@cache
def _mark() -> PixelMark:
    cv2.setNumThreads(1)
    return PixelMark(b"the secret of the measurements")


def _marked(number: int, folder: Path) -> Figures:
    mark, image, figures = _mark(), picture(number, folder), Figures()
    payload = int.from_bytes(hashlib.sha256(b"%d" % number).digest()[:6], "big")
    began = time.thread_time()
    marked = mark.embed(image, payload)
    figures.embed_ms.append(1000 * (time.thread_time() - began))
    figures.psnr.append(psnr(image, marked))
    figures.ssim.append(ssim(image, marked))
    for name, attack in attacks().items():
        attacked = attack(marked)
        began = time.thread_time()
        found = mark.detect(attacked)
        spent = figures.detect_ms if name != "none" else figures.plain_ms
        spent.append(1000 * (time.thread_time() - began))
        if found and found.payload == payload:
            figures.found.setdefault(name, []).append(found.score)
        figures.wrong += found is not None and found.payload != payload
    return figures


def _unmarked(number: int, folder: Path) -> Figures:
    """Every other one at JPEG 75, every fourth resized too: small copies are tried at more sizes."""
    mark, image, figures = _mark(), picture(number, folder), Figures()
    if number % 4 == 3:
        image = resized(image, 512)
    if number % 2:
        image = recoded(image, "JPEG", 75)
    began = time.thread_time()
    figures.accepted += mark.detect(image) is not None
    figures.unmarked_ms.append(1000 * (time.thread_time() - began))
    return figures


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
