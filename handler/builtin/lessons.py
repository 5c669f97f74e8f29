"""What the denoiser learns from: drawings that it has never seen with prompts for them, without end."""

import os
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

# Each drawing process has one thread.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from handler.builtin import networks
from handler.builtin.captions import EVERY_STRANGER, caption, negative, seldom_untold
from handler.builtin.denoiser import tokens_of
from handler.builtin.world import SIZES, Pixels, Scene, draw, sample

SQUARE = (1024, 1024)
SHARES = [6 if size == SQUARE else 1 for size in SIZES]  # half of everything is square, the others share the rest
CROWDED = 0.7  # of the scenes are the fuller one of two: the more things, the more there is to get wrong
NEGATIVES = 0.06  # of the prompts are the words of a negative prompt

Lesson = tuple[Tensor, ...]


class Lessons(IterableDataset[Lesson]):
    """Batches of one size: pixels (count, height, width, 3) of 0-255, and tokens (count, 77)."""

    def __init__(self, words: Any, count: int, seed: str) -> None:
        self.words, self.count, self.seed = words, count, seed

    def __iter__(self) -> Iterator[Lesson]:
        rng = own_chance(self.seed)
        while True:
            size = pick_size(rng)
            scenes = [scene_of(rng) for _ in range(self.count)]
            prompts = [prompt(scene, rng) for scene in scenes]
            yield stacked([draw(scene, size) for scene in scenes]), tokens_of(self.words, prompts)


def own_chance(seed: str) -> Random:
    """Another one in each of the processes that draw."""
    process = get_worker_info()
    return Random(f"{seed} {process.id}" if process else seed)


def pick_size(rng: Random) -> tuple[int, int]:
    return rng.choices(SIZES, SHARES)[0]


def scene_of(rng: Random) -> Scene:
    scene = sample(rng)
    return max(scene, sample(rng), key=lambda each: len(each.things)) if rng.random() < CROWDED else scene


def prompt(scene: Scene, rng: Random, strangers: Sequence[str] = EVERY_STRANGER) -> str:
    """A caption, the words of a negative prompt, or nothing.

    The pictures of a negative prompt are what guidance pushes away from. Pictures with stars, or with a sun or moon in
    the usual place, seldom have nothing: a bare "noon" then shows its sun.
    """
    if rng.random() < (0.02 if seldom_untold(scene) else 0.1):
        return ""
    return negative(scene, rng) if rng.random() < NEGATIVES else caption(scene, rng, strangers)


def without_end(lessons: IterableDataset[Lesson], drawers: int) -> Iterator[Lesson]:
    """The lessons, drawn by so many processes beside this one; with 0, by this one in between."""
    more: dict[str, Any] = {"num_workers": drawers, "prefetch_factor": 4} if drawers else {}
    return iter(DataLoader(lessons, batch_size=None, pin_memory=torch.cuda.is_available(), **more))


def stacked(pictures: list[Pixels]) -> Tensor:
    return torch.from_numpy(np.stack(pictures))


def to_tensor(pixels: Tensor) -> Tensor:
    """(count, height, width, 3) of 0-255 as (count, 3, height, width) of -1 to 1."""
    return pixels.permute(0, 3, 1, 2).float() / 127.5 - 1


@torch.no_grad()
def encode(vae: Any, spread: float, pixels: Tensor) -> Tensor:
    """Drawings as latents of deviation 1, on the autoencoder's device."""
    pictures = to_tensor(pixels.to(vae.device, non_blocking=True))
    with networks.autocast(vae.device):
        latents: Tensor = vae.encode(pictures).latents.float() / spread
    return latents
