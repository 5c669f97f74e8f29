"""Train the built-in model: `python -m handler.builtin.train --out DIR --minutes-vae 6 --minutes-unet 50 --workers 2`.

Each worker is one single-threaded process with an optimiser of its own, and all of them write to the same weights in
shared memory without waiting for each other (Hogwild): on a CPU that is much faster than threads. Time, not steps,
drives the schedules, so a run ends when it was told to, however busy the machine is.
"""

import argparse
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads of several workers would fight for the cores

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from handler.builtin import networks
from handler.builtin.captions import caption, words
from handler.builtin.colours import PAINTS, TIMES, palette
from handler.builtin.muon import Muon, split
from handler.builtin.world import CHARACTERS, SIZES, Pixels, Scene, Thing, draw, sample

SQUARE = (1024, 1024)


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one part of the training needs to know; `done` are the seconds of earlier sittings."""

    out: Path
    minutes: float
    workers: int
    seed: int
    done: float = 0.0


class Steps:
    """The optimiser of one worker and its clock."""

    def __init__(self, module: nn.Module, run: Run, *, muon: float, adam: float, decay_from: float) -> None:
        matrices, rest = split(module)
        self.parameters = matrices + rest
        self.muon, self.adam = Muon(matrices), torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.99), weight_decay=0.0)
        self.rates, self.decay_from, self.run = (muon, adam), decay_from, run
        self.start, self.count = time.monotonic() - run.done, 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def progress(self) -> float:
        return self.seconds / (60 * self.run.minutes)

    def step(self, loss: Tensor) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        scale = min(1.0, (self.count + 1) / 100, max(0.02, (1 - self.progress) / (1 - self.decay_from)))
        self.muon.step(self.rates[0] * scale)
        for group in self.adam.param_groups:
            group["lr"] = self.rates[1] * scale
        self.adam.step()
        self.count += 1


def copies(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@torch.no_grad()
def follow(average: dict[str, Tensor], module: nn.Module, keep: float) -> None:
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - keep)


def save(path: Path, content: dict[str, Any]) -> None:
    """Write beside and rename: a kill never leaves half a checkpoint."""
    fresh = path.with_suffix(".new")
    torch.save(content, fresh)
    fresh.replace(path)


def in_workers(work: Callable[..., None], run: Run, *arguments: Any) -> None:
    """Run `work(index, run, *arguments)` in `run.workers` processes and wait; an error in one ends all."""
    spawn(_quietly, (work, run, os.getpid(), *arguments), nprocs=run.workers)  # type: ignore[no-untyped-call]


def _quietly(index: int, work: Callable[..., None], run: Run, parent: int, *arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed * 100 + index)
    work(index, run, parent, *arguments)


def orphaned(parent: int) -> bool:
    """Whether the process that started us is gone: a worker must not outlive it."""
    return os.getppid() != parent


# The autoencoder


def train_vae(run: Run) -> Path:
    vae = networks.small_vae()
    vae.share_memory()
    in_workers(_vae_worker, run, vae)
    return run.out / "vae.pt"


def _vae_worker(index: int, run: Run, parent: int, vae: Any) -> None:
    rng = Random(run.seed * 1000 + index)
    steps = Steps(vae, run, muon=2e-3, adam=1e-3, decay_from=0.5)
    average = copies(vae)
    while steps.progress < 1 and not orphaned(parent):
        pictures = to_tensor(np.stack([_vae_picture(rng) for _ in range(8)]))
        noise = 0.1 * min(1.0, steps.progress * 5)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latents
            drawn = vae.decode(latents + noise * torch.randn_like(latents)).sample.float()
        loss = picture_loss(drawn, pictures) + 0.03 * moment_loss(latents.float())
        steps.step(loss)
        networks.pin_to_centre(vae)
        if index == 0:
            follow(average, vae, min(0.998, steps.count / (steps.count + 10)))
            if steps.count % 100 == 0:
                print(f"vae {steps.seconds:.0f}s step {steps.count} loss {loss.item():.4f}", flush=True)
    if index == 0:
        save(run.out / "vae.pt", {"vae": average})


def _vae_picture(rng: Random) -> Pixels:
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


def to_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def picture_loss(drawn: Tensor, true: Tensor) -> Tensor:
    error = drawn - true
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + 3 * error.square().mean() + 0.7 * edges


def moment_loss(latents: Tensor) -> Tensor:
    """Hold each latent channel near mean 0 and deviation 1, where the noise of the diffusion is at home."""
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
    return mean.square().mean() + (deviation - 1).square().mean()


# The denoiser and its text encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class Shelf:
    """The scenes of one picture size with their latents."""

    scenes: list[Scene]
    latents: Tensor


class Denoiser(nn.Module):
    """UNet and text encoder, trained together."""

    def __init__(self) -> None:
        super().__init__()
        self.words = networks.tokenizer(words())
        self.text = networks.text_encoder(len(self.words), self.words.bos_token_id, self.words.eos_token_id)
        self.unet = networks.unet()

    def forward(self, noisy: Tensor, times: Tensor, prompts: list[str]) -> Tensor:
        tokens = self.words(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids
        states = self.text(tokens).last_hidden_state
        guess: Tensor = self.unet(noisy, times, encoder_hidden_states=states).sample
        return guess.float()


def train_unet(run: Run, start: dict[str, Any] | None) -> None:
    """Train from a checkpoint of an earlier sitting or, with None, from nothing."""
    vae = load_vae(run.out)
    model = Denoiser()
    if start:
        model.load_state_dict(start["model"])
    model.share_memory()
    average = start["average"] if start else copies(model)
    in_workers(_unet_worker, run, vae, model, average)


def load_vae(out: Path) -> Any:
    vae = networks.small_vae()
    vae.load_state_dict(torch.load(out / "vae.pt")["vae"])
    return vae.requires_grad_(False)


def _unet_worker(index: int, run: Run, parent: int, vae: Any, model: Denoiser, average: dict[str, Tensor]) -> None:
    # A resumed sitting sees new scenes.
    rng = Random(f"{run.seed} {index} {run.done}")
    spread = _spread(vae)
    shelves = [shelve(vae, spread, size, _count(size, 15_000), rng) for size in SIZES]
    held = shelve(vae, spread, SQUARE, 128, Random("held out"))
    shares = [_count(size, 12) for size in SIZES]
    curve = networks.scheduler().alphas_cumprod
    steps = Steps(model, run, muon=1.5e-3, adam=1.5e-3, decay_from=0.5)
    saved = 0.0
    while steps.progress < 1 and not orphaned(parent):
        shelf = rng.choices(shelves, shares)[0]
        steps.step(denoising_loss(model, curve, *batch(shelf, rng, 32), pick_times(32)))
        if index:
            continue
        follow(average, model, 0.998 if run.done else min(0.998, steps.count / (steps.count + 20)))
        if steps.count % 250 == 0:
            print(f"unet {steps.seconds:.0f}s step {steps.count} {held_out(model, average, curve, held)}", flush=True)
        if steps.seconds - saved > 120:
            saved = steps.seconds
            _save_unet(run, model, average, saved, spread)
    if index == 0:
        _save_unet(run, model, average, steps.seconds, spread)


def _save_unet(run: Run, model: Denoiser, average: dict[str, Tensor], seconds: float, spread: float) -> None:
    content = {"model": model.state_dict(), "average": average, "seconds": seconds, "spread": spread}
    save(run.out / "unet.pt", content)


@torch.no_grad()
def _spread(vae: Any) -> float:
    """The deviation of the latents; the exported folder has its inverse as `scaling_factor`."""
    rng = Random("spread")
    pictures = np.stack([draw(sample(rng), SQUARE) for _ in range(64)])
    return float(vae.encode(to_tensor(pictures)).latents.std())


def _count(size: tuple[int, int], whole: int) -> int:
    """Half of everything is square, the other sizes share the rest."""
    return whole // 2 if size == SQUARE else whole // 12


@torch.no_grad()
def shelve(vae: Any, spread: float, size: tuple[int, int], count: int, rng: Random) -> Shelf:
    scenes = [sample(rng) for _ in range(count)]
    latents = []
    for first in range(0, count, 50):
        pictures = to_tensor(np.stack([draw(scene, size) for scene in scenes[first : first + 50]]))
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(pictures).latents.float() / spread)
    return Shelf(scenes=scenes, latents=torch.cat(latents))


def batch(shelf: Shelf, rng: Random, size: int) -> tuple[Tensor, list[str]]:
    picks = [rng.randrange(len(shelf.scenes)) for _ in range(size)]
    return shelf.latents[picks], [prompt(shelf.scenes[pick], rng) for pick in picks]


def prompt(scene: Scene, rng: Random) -> str:
    """A caption or nothing; pictures with stars, or a sun or moon in the usual place, seldom have nothing.

    The picture of the empty prompt is what guidance pushes away from: a bare "noon" then shows its sun.
    """
    usual = scene.weather == "clear" and (scene.light == "right" or scene.stars)
    return "" if rng.random() < (0.04 if usual else 0.2) else caption(scene, rng)


def pick_times(count: int) -> Tensor:
    """Evenly spread, with a third more from the noisy end, where the layout is decided."""
    layout = count // 3
    even = (torch.arange(count - layout) + torch.rand(count - layout)) / (count - layout) * 1000
    noisy = 550 + torch.rand(layout) * 450
    return torch.cat([even, noisy]).long().clamp_(0, 999)


def denoising_loss(model: Denoiser, curve: Tensor, latents: Tensor, prompts: list[str], times: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    signal = curve[times].sqrt().view(-1, 1, 1, 1)
    dark = (1 - curve[times]).sqrt().view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        guess = model(signal * latents + dark * noise, times, prompts)
    loss: Tensor = (guess - (signal * noise - dark * latents)).square().mean()
    return loss


@torch.no_grad()
def held_out(model: Denoiser, average: dict[str, Tensor], curve: Tensor, shelf: Shelf) -> str:
    """The loss of the averaged weights on scenes never trained on, all noise levels and the noisy end alone."""
    judge = Denoiser()
    judge.load_state_dict(average)
    prompts = [caption(scene, Random(index)) for index, scene in enumerate(shelf.scenes)]
    state = torch.get_rng_state()
    torch.manual_seed(0)
    even = denoising_loss(judge, curve, shelf.latents, prompts, torch.linspace(0, 999, len(prompts)).long())
    noisy = denoising_loss(judge, curve, shelf.latents, prompts, torch.linspace(550, 999, len(prompts)).long())
    torch.set_rng_state(state)
    return f"held out {even:.4f} noisy {noisy:.4f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes-vae", type=float, default=6)
    parser.add_argument("--minutes-unet", type=float, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --out")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(out=options.out, minutes=options.minutes_vae, workers=options.workers, seed=options.seed)
    if not (options.resume and (options.out / "vae.pt").exists()):
        train_vae(run)
    path = options.out / "unet.pt"
    start = torch.load(path) if options.resume and path.exists() else None
    done = start["seconds"] if start else 0.0
    train_unet(replace(run, minutes=options.minutes_unet, done=done), start)


if __name__ == "__main__":
    main()
