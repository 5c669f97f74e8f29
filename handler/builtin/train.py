"""Train the built-in model: `python -m handler.builtin.train --out DIR --samples-unet 300000 --workers 2`.

Each worker is one single-threaded process with an optimiser of its own, and all of them write to the same weights in
shared memory without waiting for each other (Hogwild): on a CPU that is much faster than threads, and no two runs are
the same to the bit. With one worker they are, if the budget is given in samples: these drive the schedules. A budget in
minutes ends when it was told to, however busy the machine is.
"""

import argparse
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads of several workers would fight for the cores

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from handler.builtin import networks
from handler.builtin.captions import EVERY_STRANGER, caption, negative, seldom_untold, words
from handler.builtin.colours import PAINTS, TIMES, palette
from handler.builtin.muon import Muon, split
from handler.builtin.world import CHARACTERS, SIZES, Pixels, Scene, Thing, draw, sample

SQUARE = (1024, 1024)
BATCH = 40


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one part of the training needs to know: its budget, in samples or in minutes, and what is done of it."""

    out: Path
    workers: int
    seed: int
    samples: int = 0
    minutes: float = 0.0
    pictures: int = 15_000  # that each worker draws for itself, and sees again and again with other words
    done: int = 0  # samples of earlier sittings
    seconds: float = 0.0  # of earlier sittings


class Steps:
    """The optimiser of one worker and what all of them have done of the budget."""

    def __init__(
        self, module: nn.Module, run: Run, tally: Tensor, index: int, *, muon: float, adam: float, decay_from: float
    ) -> None:
        matrices, rest = split(module)
        self.parameters = matrices + rest
        self.muon, self.adam = Muon(matrices), torch.optim.AdamW(rest, lr=adam, betas=(0.9, 0.99), weight_decay=0.0)
        self.rates, self.decay_from, self.run = (muon, adam), decay_from, run
        self.tally, self.index = tally, index
        self.start, self.count = time.monotonic() - run.seconds, 0

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.start

    @property
    def samples(self) -> int:
        return self.run.done + int(self.tally.sum())

    @property
    def progress(self) -> float:
        if self.run.minutes:
            return self.seconds / (60 * self.run.minutes)
        return self.samples / self.run.samples

    def step(self, loss: Tensor, samples: int) -> None:
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
        self.tally[self.index] += samples


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
    """Run `work` in `run.workers` processes, or here if one is enough, and wait; an error in one ends all."""
    tally = torch.zeros(run.workers, dtype=torch.int64)  # the samples of each worker
    tally.share_memory_()  # type: ignore[no-untyped-call]
    if run.workers == 1:
        _quietly(0, work, run, os.getppid(), tally, *arguments)
        return
    spawn(_quietly, (work, run, os.getpid(), tally, *arguments), nprocs=run.workers)  # type: ignore[no-untyped-call]


def _quietly(index: int, work: Callable[..., None], run: Run, parent: int, *arguments: Any) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(run.seed * 100 + index + run.done)
    work(index, run, parent, *arguments)


def orphaned(parent: int) -> bool:
    """Whether the process that started us is gone: a worker must not outlive it."""
    return os.getppid() != parent


# The autoencoder


def train_vae(run: Run) -> Path:
    torch.manual_seed(run.seed)
    vae = networks.small_vae()
    vae.share_memory()
    in_workers(_vae_worker, run, vae)
    return run.out / "vae.pt"


def _vae_worker(index: int, run: Run, parent: int, tally: Tensor, vae: Any) -> None:
    rng = Random(run.seed * 1000 + index)
    steps = Steps(vae, run, tally, index, muon=2e-3, adam=1e-3, decay_from=0.5)
    average = copies(vae)
    while steps.progress < 1 and not orphaned(parent):
        pictures = to_tensor(np.stack([_vae_picture(rng) for _ in range(8)]))
        noise = 0.1 * min(1.0, steps.progress * 5)
        with torch.autocast("cpu", torch.bfloat16):
            latents = vae.encode(pictures).latents
            drawn = vae.decode(latents + noise * torch.randn_like(latents)).sample.float()
        loss = picture_loss(drawn, pictures) + 0.03 * moment_loss(latents.float())
        steps.step(loss, len(pictures))
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
    torch.manual_seed(run.seed)
    model = Denoiser()
    if start:
        model.load_state_dict(start["model"])
    model.share_memory()
    average = start["average"] if start else copies(model)
    in_workers(_unet_worker, run, vae, model, average, start["spread"] if start else _spread(vae))


def load_vae(out: Path) -> Any:
    vae = networks.small_vae()
    vae.load_state_dict(torch.load(out / "vae.pt")["vae"])
    return vae.requires_grad_(False)


def _unet_worker(
    index: int,
    run: Run,
    parent: int,
    tally: Tensor,
    vae: Any,
    model: Denoiser,
    average: dict[str, Tensor],
    spread: float,
) -> None:
    # A resumed sitting sees new scenes.
    rng = Random(f"{run.seed} {index} {run.done}")
    shelves = [shelve(vae, spread, size, count_of(size, run.pictures), rng) for size in SIZES]
    held = shelve(vae, spread, SQUARE, 128, Random("held out"))
    shares = [count_of(size, 12) for size in SIZES]
    curve = networks.scheduler().alphas_cumprod
    steps = Steps(model, run, tally, index, muon=1.5e-3, adam=1.5e-3, decay_from=0.5)
    saved = run.seconds
    while steps.progress < 1 and not orphaned(parent):
        shelf = rng.choices(shelves, shares)[0]
        steps.step(denoising_loss(model, curve, *batch(shelf, rng, BATCH), pick_times(BATCH)), BATCH)
        if index:
            continue
        follow(average, model, 0.998 if run.done else min(0.998, steps.count / (steps.count + 20)))
        if steps.count % 250 == 0:
            loss = held_out(average, curve, held)
            print(f"unet {steps.seconds:.0f}s {steps.samples} samples, {loss}", flush=True)
        if steps.seconds - saved > 120:
            saved = steps.seconds
            _save_unet(steps, model, average, spread)
    if index == 0:
        _save_unet(steps, model, average, spread)


def _save_unet(steps: Steps, model: Denoiser, average: dict[str, Tensor], spread: float) -> None:
    content = {"model": model.state_dict(), "average": average, "spread": spread}
    save(steps.run.out / "unet.pt", content | {"samples": steps.samples, "seconds": steps.seconds})


@torch.no_grad()
def _spread(vae: Any) -> float:
    """The deviation of the latents; the exported folder has its inverse as `scaling_factor`."""
    rng = Random("spread")
    pictures = np.stack([draw(sample(rng), SQUARE) for _ in range(64)])
    return float(vae.encode(to_tensor(pictures)).latents.std())


def count_of(size: tuple[int, int], whole: int) -> int:
    """Half of everything is square, the other sizes share the rest."""
    return whole // 2 if size == SQUARE else whole // 12


def shelve(vae: Any, spread: float, size: tuple[int, int], count: int, rng: Random) -> Shelf:
    scenes = [sample(rng) for _ in range(count)]
    return Shelf(scenes=scenes, latents=encode(vae, spread, [draw(scene, size) for scene in scenes]))


@torch.no_grad()
def encode(vae: Any, spread: float, pictures: list[Pixels]) -> Tensor:
    """Drawings as latents of deviation 1."""
    latents = []
    for first in range(0, len(pictures), 50):
        with torch.autocast("cpu", torch.bfloat16):
            latents.append(vae.encode(to_tensor(np.stack(pictures[first : first + 50]))).latents.float() / spread)
    return torch.cat(latents)


def batch(shelf: Shelf, rng: Random, size: int) -> tuple[Tensor, list[str]]:
    picks = [rng.randrange(len(shelf.scenes)) for _ in range(size)]
    return shelf.latents[picks], [prompt(shelf.scenes[pick], rng) for pick in picks]


def prompt(scene: Scene, rng: Random, strangers: Sequence[str] = EVERY_STRANGER) -> str:
    """A caption, the words of a negative prompt, or nothing.

    The pictures of a negative prompt are what guidance pushes away from. Pictures with stars, or with a sun or moon in
    the usual place, seldom have nothing: a bare "noon" then shows its sun.
    """
    if rng.random() < (0.02 if seldom_untold(scene) else 0.1):
        return ""
    return negative(scene, rng) if rng.random() < 0.15 else caption(scene, rng, strangers)


def pick_times(count: int) -> Tensor:
    """Evenly spread, with a third more from the noisy end, where the layout is decided."""
    layout = count // 3
    even = (torch.arange(count - layout) + torch.rand(count - layout)) / (count - layout) * 1000
    noisy = 550 + torch.rand(layout) * 450
    return torch.cat([even, noisy]).long().clamp_(0, 999)


def denoising_loss(model: Denoiser, curve: Tensor, latents: Tensor, prompts: list[str], times: Tensor) -> Tensor:
    return squared_errors(model, curve, latents, prompts, times).mean()


def squared_errors(model: Denoiser, curve: Tensor, latents: Tensor, prompts: list[str], times: Tensor) -> Tensor:
    noise = torch.randn_like(latents)
    signal = curve[times].sqrt().view(-1, 1, 1, 1)
    dark = (1 - curve[times]).sqrt().view(-1, 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        guess = model(signal * latents + dark * noise, times, prompts)
    errors: Tensor = (guess - (signal * noise - dark * latents)).square()
    return errors


@torch.no_grad()
def held_out(average: dict[str, Tensor], curve: Tensor, shelf: Shelf) -> str:
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


def from_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """An exported folder as the checkpoints of the autoencoder and of the denoiser; new words get new embeddings."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
    model = Denoiser()
    model.unet.load_state_dict(pipeline.unet.state_dict())
    weights = pipeline.text_encoder.state_dict()
    (embedding,) = [name for name in weights if name.endswith("token_embedding.weight")]
    mixed = model.text.state_dict()[embedding].clone()
    old, new = pipeline.tokenizer.get_vocab(), model.words.get_vocab()
    for word, row in new.items():
        if word in old:
            mixed[row] = weights[embedding][old[word]]
    model.text.load_state_dict(weights | {embedding: mixed})
    spread = 1 / pipeline.vae.config.scaling_factor
    content = {"model": copies(model), "average": copies(model), "spread": spread, "samples": 0, "seconds": 0.0}
    return {"vae": networks.without_graft(pipeline.vae).state_dict()}, content


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples-vae", type=int, default=40_000)
    parser.add_argument("--samples-unet", type=int, default=500_000)
    parser.add_argument("--minutes-vae", type=float, default=0, help="a budget in minutes in place of samples")
    parser.add_argument("--minutes-unet", type=float, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=15_000, help="drawings for each worker")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --out")
    parser.add_argument("--start", type=Path, help="begin with the weights of an exported folder")
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(out=options.out, workers=options.workers, seed=options.seed, pictures=options.pictures)
    path = options.out / "unet.pt"
    start: dict[str, Any] | None
    if options.start and not (options.resume and path.exists()):
        vae, start = from_folder(options.start)
        save(options.out / "vae.pt", vae)
    else:
        if not (options.resume and (options.out / "vae.pt").exists()):
            train_vae(replace(run, samples=options.samples_vae, minutes=options.minutes_vae))
        start = torch.load(path) if options.resume and path.exists() else None
    done, seconds = (start["samples"], start["seconds"]) if start else (0, 0.0)
    budget = {"samples": options.samples_unet, "minutes": options.minutes_unet, "done": done, "seconds": seconds}
    train_unet(replace(run, **budget), start)


if __name__ == "__main__":
    main()
