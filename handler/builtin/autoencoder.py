"""Training the autoencoder of the built-in model: the world, its characters, and sprites that nobody has designed."""

from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from handler.builtin import networks
from handler.builtin.colours import PAINTS, TIMES, palette
from handler.builtin.denoiser import copies
from handler.builtin.lessons import SQUARE, Lesson, own_chance, stacked, to_tensor, without_end
from handler.builtin.training import Budget, Optimiser, Run, follow, in_workers, orphaned, save
from handler.builtin.world import CHARACTERS, Pixels, Scene, Thing, draw, sample

BATCH = 8


class Pictures(IterableDataset[Lesson]):
    """Batches of pixels (count, height, width, 3) of 0-255."""

    def __init__(self, count: int, seed: str) -> None:
        self.count, self.seed = count, seed

    def __iter__(self) -> Iterator[Lesson]:
        rng = own_chance(self.seed)
        while True:
            yield (stacked([_picture(rng) for _ in range(self.count)]),)


def train(run: Run) -> None:
    """Writes `vae.pt`."""
    torch.manual_seed(run.seed)
    vae = networks.small_vae().to(run.device)
    vae.share_memory()
    in_workers(_worker, run, vae)


def load(out: Path) -> Any:
    """The frozen autoencoder of `vae.pt`, on the CPU."""
    vae = networks.small_vae()
    vae.load_state_dict(torch.load(out / "vae.pt", map_location="cpu")["vae"])
    return vae.requires_grad_(False)


def _worker(index: int, run: Run, parent: int, tally: Tensor, vae: Any) -> None:
    lessons = without_end(Pictures(BATCH, f"{run.seed} {index} pictures"), run.drawers)
    budget = Budget(run, tally, index)
    optimiser = Optimiser(vae, budget, muon=2e-3, adam=1e-3, decay_from=0.5)
    average = copies(vae)
    while budget.progress < 1 and not orphaned(parent):
        (pixels,) = next(lessons)
        pictures = to_tensor(pixels.to(run.device))
        noise = 0.1 * min(1.0, budget.progress * 5)
        with networks.autocast(run.device):
            latents = vae.encode(pictures).latents
            drawn = vae.decode(latents + noise * torch.randn_like(latents)).sample.float()
        loss = picture_loss(drawn, pictures) + 0.03 * moment_loss(latents.float())
        optimiser.step(loss, len(pictures))
        networks.pin_to_centre(vae)
        if index == 0:
            follow(average, vae, min(0.998, budget.steps / (budget.steps + 10)))
            if budget.steps % 100 == 0:
                print(f"vae {budget.seconds:.0f}s step {budget.steps} loss {loss.item():.4f}", flush=True)
    if index == 0:
        save(run.out / "vae.pt", {"vae": average})


def _picture(rng: Random) -> Pixels:
    """A picture of the world, often with characters, sometimes with sprites that nobody has designed."""
    scene = sample(rng)
    chance = rng.random()
    if chance < 0.22:
        places = rng.sample(("left", "center", "right"), 2)
        scene = Scene(
            time=rng.choice(TIMES),
            terrain=scene.terrain,
            weather=scene.weather,
            things=tuple(Thing(name=n, place=p) for n, p in zip(CHARACTERS, places, strict=True)),
        )
    pixels = draw(scene, SQUARE)
    if chance > 0.8:
        for _ in range(rng.randint(1, 4)):
            _stamp(pixels, rng)
    if rng.random() < 0.12:
        pixels = pixels[..., rng.sample(range(3), 3)]
    if rng.random() < 0.3:
        pixels = np.roll(pixels, (rng.randrange(4), rng.randrange(4)), (0, 1))
    if rng.random() < 0.3:
        pixels = pixels[:, ::-1]
    return pixels


def _stamp(pixels: Pixels, rng: Random) -> None:
    """A symmetric creature of random blocks: the autoencoder has to hold faces that it has never seen."""
    colours = np.array([palette(rng.choice(TIMES))[n] for n in (*PAINTS, "orange", "pink", "ink", "timber")], np.uint8)
    chance = np.random.default_rng(rng.getrandbits(32))
    coarse = chance.integers(0, 4, (rng.randint(6, 12), rng.randint(3, 5)))
    half = np.kron(chance.permutation(colours)[coarse], np.ones((2, 2, 1), np.uint8))
    whole = np.concatenate([half, half[:, ::-1]], 1)
    top, left = rng.randrange(64 - whole.shape[0]), rng.randrange(64 - whole.shape[1])
    pixels[top : top + whole.shape[0], left : left + whole.shape[1]] = whole


def picture_loss(drawn: Tensor, true: Tensor) -> Tensor:
    error = drawn - true
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.7 * edges


def moment_loss(latents: Tensor) -> Tensor:
    """Hold each latent channel near mean 0 and deviation 1, where the noise of the diffusion is at home."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()
