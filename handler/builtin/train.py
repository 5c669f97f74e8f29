"""Train the built-in model: `python -m handler.builtin.train --out DIR`.

On a GPU, one process trains and all other cores draw for it. On a CPU each worker is one single-threaded process with
an optimiser of its own that draws for itself, and all of them write to the same weights in shared memory without
waiting for each other (Hogwild): that is much faster than threads, and no two runs are the same to the bit. With one
worker on a CPU they are, if the budget is given in samples: these drive the schedules. A budget in minutes ends when it
was told to, however busy the machine is.
"""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # spinning threads of several workers would fight for the cores

import torch
from torch import Tensor

from handler.builtin import autoencoder, networks
from handler.builtin.captions import caption
from handler.builtin.denoiser import Denoiser, copies, from_folder, squared_errors, tokens_of
from handler.builtin.lessons import SQUARE, Lessons, encode, stacked, without_end
from handler.builtin.training import Budget, Optimiser, Run, add_options, follow, in_workers, orphaned, run_of, save
from handler.builtin.world import draw, sample

BATCH, LARGE_BATCH = 40, 512  # for a core and for a GPU
REPORT = 60  # seconds


def train(run: Run, start: dict[str, Any] | None) -> None:
    """Writes `unet.pt`, begun with a checkpoint of an earlier sitting or, with None, from nothing."""
    vae = autoencoder.load(run.out).to(run.device)
    spread = start["spread"] if start else _spread(vae)
    torch.manual_seed(run.seed)
    model = Denoiser()
    if start:
        model.load_state_dict(start["model"])
    model.to(run.device)
    model.share_memory()
    average = {name: value.to(run.device) for name, value in (start["average"] if start else copies(model)).items()}
    in_workers(_worker, run, vae, model, average, spread)


def _worker(
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
    lessons = without_end(Lessons(model.words, run.batch, f"{run.seed} {index} {run.done}"), run.drawers)
    held = _held_out(vae, spread, model.words)
    curve = networks.scheduler().alphas_cumprod.to(run.device)
    budget = Budget(run, tally, index)
    optimiser = Optimiser(model, budget, muon=1.5e-3, adam=1.5e-3, decay_from=0.3)
    told = saved = budget.seconds
    while budget.progress < 1 and not orphaned(parent):
        pixels, tokens = next(lessons)
        latents, times = encode(vae, spread, pixels), pick_times(len(pixels))
        errors = squared_errors(
            model, curve, latents, tokens.to(run.device, non_blocking=True), times.to(run.device, non_blocking=True)
        )
        optimiser.step(errors.mean(), len(pixels))
        if index:
            continue
        follow(average, model, 0.998 if run.done else min(0.998, budget.steps / (budget.steps + 20)))
        if budget.seconds - told > REPORT:
            told = budget.seconds
            print(f"unet {told:.0f}s {budget.samples} samples, {_loss(average, curve, *held)}", flush=True)
        if budget.seconds - saved > 2 * REPORT:
            saved = budget.seconds
            _save(budget, model, average, spread)
    if index == 0:
        print(f"unet {budget.seconds:.0f}s {budget.samples} samples, {_loss(average, curve, *held)}", flush=True)
        _save(budget, model, average, spread)


def _save(budget: Budget, model: Denoiser, average: dict[str, Tensor], spread: float) -> None:
    content = {"model": model.state_dict(), "average": average, "spread": spread}
    save(budget.run.out / "unet.pt", content | {"samples": budget.samples, "seconds": budget.seconds})


@torch.no_grad()
def _spread(vae: Any) -> float:
    """The deviation of the latents; the exported folder has its inverse as `scaling_factor`."""
    rng = Random("spread")
    return float(encode(vae, 1.0, stacked([draw(sample(rng), SQUARE) for _ in range(64)])).std())


def pick_times(count: int) -> Tensor:
    """Evenly spread, with a third more from the noisy end, where the layout is decided."""
    layout = count // 3
    even = (torch.arange(count - layout) + torch.rand(count - layout)) / (count - layout) * 1000
    noisy = 550 + torch.rand(layout) * 450
    return torch.cat([even, noisy]).long().clamp_(0, 999)


def _held_out(vae: Any, spread: float, words: Any) -> tuple[Tensor, Tensor]:
    """Latents and tokens of scenes that are never trained on."""
    rng = Random("held out")
    scenes = [sample(rng) for _ in range(128)]
    prompts = [caption(scene, Random(index)) for index, scene in enumerate(scenes)]
    latents = encode(vae, spread, stacked([draw(scene, SQUARE) for scene in scenes]))
    return latents, tokens_of(words, prompts).to(latents.device)


@torch.no_grad()
def _loss(average: dict[str, Tensor], curve: Tensor, latents: Tensor, tokens: Tensor) -> str:
    """Of the averaged weights on the held-out scenes, over all noise levels and at the noisy end alone."""
    told = []
    with torch.random.fork_rng():
        judge = Denoiser().to(latents.device)
        judge.load_state_dict(average)
        for lowest in (0, 550):
            torch.manual_seed(0)
            times = torch.linspace(lowest, 999, len(latents)).long().to(latents.device)
            told.append(squared_errors(judge, curve, latents, tokens, times).mean().item())
    return f"held out {told[0]:.4f} noisy {told[1]:.4f}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    batches = {"batch": BATCH, "large_batch": LARGE_BATCH}
    add_options(parser, **batches)
    parser.add_argument("--samples-vae", type=int, default=40_000)
    parser.add_argument("--samples-unet", type=int, default=500_000)
    parser.add_argument("--minutes-vae", type=float, default=0, help="a budget in minutes in place of samples")
    parser.add_argument("--minutes-unet", type=float, default=0)
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoints in --out")
    parser.add_argument("--start", type=Path, help="begin with the weights of an exported folder")
    given = parser.parse_args(arguments)
    run = run_of(parser, given, **batches)
    path = given.out / "unet.pt"
    start: dict[str, Any] | None
    if given.start and not (given.resume and path.exists()):
        vae, start = from_folder(given.start)
        save(given.out / "vae.pt", vae)
    else:
        if not (given.resume and (given.out / "vae.pt").exists()):
            autoencoder.train(replace(run, samples=given.samples_vae, minutes=given.minutes_vae))
        start = torch.load(path, map_location="cpu") if given.resume and path.exists() else None
    done, seconds = (start["samples"], start["seconds"]) if start else (0, 0.0)
    train(
        replace(run, samples=given.samples_unet, minutes=given.minutes_unet, done=done, seconds=seconds),
        start,
    )


if __name__ == "__main__":
    main()
