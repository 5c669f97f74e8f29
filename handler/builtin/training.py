"""What both parts of the training have in common: the budget, the steps, the averages, the checkpoints, the workers."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn

from handler.builtin.muon import Muon, split


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


class Steps:
    """The optimiser of one worker and what all of them have done of the budget."""

    def __init__(
        self, module: nn.Module, run: Run, tally: Tensor, index: int, *, muon: float, adam: float, decay_from: float
    ) -> None:
        matrices, rest = split(module)
        self.parameters = matrices + rest
        self.rates, self.decay_from, self.run = (run.rate * muon, run.rate * adam), decay_from, run
        self.muon = Muon(matrices)
        self.adam = torch.optim.AdamW(rest, lr=self.rates[1], betas=(0.9, 0.99), weight_decay=0.0)
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
