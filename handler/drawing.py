"""What the worker asks of a renderer. No torch in here, so that the worker can be tested and read without it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from PIL import Image

from handler.contract import Lora


class Stopped(Exception):
    """The drawing was told to stop and did so between two steps."""


class OutOfMemory(Exception):
    """The device has not enough memory for this picture, alone and with everything saved that can be."""


class DeviceLost(Exception):
    """The GPU's context is broken: nothing can be drawn by this process any more."""


class LoraUnfit(Exception):
    """A LoRA can't be put on this model. The message names the LoRA and the fix, and no path."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Guide:
    """A reference picture, decoded. As ``init`` the drawing starts from it and goes ``strength`` (0..1) of the way
    away from it; as ``guide`` the model looks at it with that strength."""

    image: Image.Image
    role: str
    strength: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Pictures that differ in nothing but their seed, one for each of ``seeds``.

    ``negative`` is None where the model has no use for one. ``preview_every`` is in steps; 0 asks for no previews.
    """

    positive: str
    negative: str | None
    width: int
    height: int
    seeds: tuple[int, ...]
    steps: int
    guidance: float
    loras: tuple[Lora, ...] = ()
    guides: tuple[Guide, ...] = ()
    preview_every: int = 0


class Watch(Protocol):
    """Who looks on while a renderer draws. Called in the thread that draws."""

    def stopping(self) -> bool:
        """Asked before the first step and after every one; at True the renderer raises `Stopped`."""
        ...

    def step(self, picture: int, at_once: int, step: int, steps: int) -> None:
        """So many steps are done of the batch of ``at_once`` pictures that begins with ``picture``."""
        ...

    def preview(self, picture: int, image: Image.Image) -> None:
        """What the picture looks like so far, small. Nobody has reviewed it."""
        ...

    def warn(self, sentence: str) -> None:
        """Something was done otherwise than it was asked for."""
        ...

    def used_references(self, count: int) -> None:
        """So many of the order's guides have an effect. Called once, before the first step, if there are guides."""
        ...


class Renderer(Protocol):
    """A loaded model. It is not safe for two threads: one order at a time."""

    @property
    def sampler(self) -> str: ...

    @property
    def revision(self) -> str: ...

    def cuts(self, prompt: str) -> bool:
        """Whether the prompt is longer than the model reads: it never sees the end."""
        ...

    def draw(self, order: Order, watch: Watch) -> Iterator[Image.Image]:
        """The pictures in the order of their seeds, each as soon as it is there; a step is done by ``next`` alone.

        Every picture is the one that its seed gives alone, up to the rounding of a batch. After the last picture, a
        fault or ``close`` of the iterator the weights are what they were or are put right before the next order.
        Raises `Stopped`, `OutOfMemory`, `DeviceLost` or `LoraUnfit`.
        """
        ...

    def close(self) -> None:
        """Give the memory back. The renderer is of no use afterwards."""
        ...
