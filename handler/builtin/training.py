"""What both parts of the training have in common: the budget, the steps, the averages, the checkpoints, the workers."""

import os
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from handler.builtin.muon import Muon, split
from handler.speed import prepare


@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What one part of the training needs to know: where, with what, its budget in samples or in minutes, and what is
    done of it.
    """

    out: Path
    device: torch.device
    workers: int  # that train
    drawers: int  # that draw for each of them; 0: it draws itself
    batch: int
    rate: float  # scales the learning rates
    seed: int
    samples: int = 0
    minutes: float = 0.0
    done: int = 0  # samples of earlier sittings
    seconds: float = 0.0  # of earlier sittings


def add_options(parser: ArgumentParser, *, batch: int, large_batch: int) -> None:
    """What `run_of` reads."""
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", type=torch.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, help="processes that train; 2 on a CPU")
    parser.add_argument("--drawers", type=int, help="processes that draw for each; on a GPU all cores but one")
    parser.add_argument("--batch", type=int, help=f"{batch} on a CPU, {large_batch} on a GPU")
    parser.add_argument("--rate", type=float, default=1.0, help="scales the learning rates")
    parser.add_argument("--seed", type=int, default=0)


def run_of(parser: ArgumentParser, given: Namespace, *, batch: int, large_batch: int) -> Run:
    """A run without a budget yet. Ends the program with a sentence for options that do not go together."""
    fast = given.device.type == "cuda"
    if fast and (given.workers or 1) > 1:
        parser.error("on a GPU one process trains: leave --workers out, and give it --drawers")
    given.out.mkdir(parents=True, exist_ok=True)
    idle = max(1, (os.cpu_count() or 1) - 1) if fast else 0
    return Run(
        out=given.out,
        device=given.device,
        workers=given.workers or (1 if fast else 2),
        drawers=idle if given.drawers is None else given.drawers,
        batch=given.batch or (large_batch if fast else batch),
        rate=given.rate,
        seed=given.seed,
    )


class Budget:
    """What all workers have done of it, told by one of them."""

    def __init__(self, run: Run, tally: Tensor, index: int) -> None:
        self.run, self.tally, self.index = run, tally, index
        self.start, self.steps = time.monotonic() - run.seconds, 0

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

    def count(self, samples: int) -> None:
        """After each step."""
        self.steps += 1
        self.tally[self.index] += samples


class Optimiser:
    """Muon and AdamW of one worker, with one schedule."""

    def __init__(self, module: nn.Module, budget: Budget, *, muon: float, adam: float, decay_from: float) -> None:
        matrices, rest = split(module)
        self.parameters = matrices + rest
        self.rates, self.decay_from, self.budget = (budget.run.rate * muon, budget.run.rate * adam), decay_from, budget
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, lr=self.rates[1], betas=(0.9, 0.99), weight_decay=0.0)

    def step(self, loss: Tensor, samples: int) -> None:
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        left = max(0.02, (1 - self.budget.progress) / (1 - self.decay_from))
        scale = min(1.0, (self.budget.steps + 1) / 100, left)
        self.muon.step(self.rates[0] * scale)
        for group in self.adam.param_groups:
            group["lr"] = self.rates[1] * scale
        self.adam.step()
        self.budget.count(samples)


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
    prepare(run.device.type, 1)
    torch.manual_seed(run.seed * 100 + index + run.done)
    work(index, run, parent, *arguments)


def orphaned(parent: int) -> bool:
    """Whether the process that started us is gone: a worker must not outlive it."""
    return os.getppid() != parent
