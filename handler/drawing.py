"""What the worker asks of a renderer. No torch in here, so that the worker can be tested and read without it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

OnStep = Callable[[int, int], None]
"""Called after each step with (steps done, steps in all), in the thread that draws."""


class Stopped(Exception):
    """The drawing was told to stop and did so between two steps."""


class OutOfMemory(Exception):
    """The device has not enough memory for this picture."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One picture. ``negative`` is None where the model has no use for one."""

    positive: str
    negative: str | None
    width: int
    height: int
    seed: int
    steps: int
    guidance: float


class Renderer(Protocol):
    """A loaded model. It is not safe for two threads: one picture at a time."""

    @property
    def sampler(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def cuts(self, prompt: str) -> bool:
        """Whether the prompt is longer than the model reads: it never sees the end."""
        ...

    def draw(self, order: Order, on_step: OnStep, stopping: Callable[[], bool]) -> Image.Image:
        """Blocks. Asks ``stopping`` before the first and after every step; raises `Stopped` or `OutOfMemory`."""
        ...

    def close(self) -> None:
        """Give the memory back. The renderer is of no use afterwards."""
        ...
