"""Which reference pictures steer a drawing, and through what. No torch in here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageOps

from handler.drawing import Guide

_SMALLEST = 64
"""Pixels of the shorter side."""

_LONGEST = 8
"""Times the shorter side."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reach:
    """What a model can do with reference pictures: ``edits`` them itself, ``starts`` from one, ``looks`` through an
    IP-Adapter."""

    edits: bool = False
    starts: bool = False
    looks: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Steering:
    """What an order's references come to. ``strength`` is how far the drawing goes away from ``start`` (0..1);
    ``weight`` how much each picture of ``looked_at`` counts. ``edited`` goes to the pipeline as it is."""

    edited: tuple[Image.Image, ...] = ()
    start: Image.Image | None = None
    strength: float = 1.0
    looked_at: tuple[Image.Image, ...] = ()
    weight: float = 0.0

    @property
    def used(self) -> int:
        """How many references have an effect."""
        return len(self.edited) + (self.start is not None) + len(self.looked_at)


def steer(guides: Sequence[Guide], reach: Reach, size: tuple[int, int]) -> Steering:
    """``size`` is the pipeline's width and height."""
    if reach.edits:
        return Steering(edited=tuple(_presentable(guide.image.convert("RGB")) for guide in guides))
    looked_at = [guide for guide in guides if reach.looks and guide.role == "guide"]
    others = [guide for guide in guides if guide not in looked_at]
    start = next((guide for guide in others if guide.role == "init"), others[0] if others else None)
    if start is None or not reach.starts:
        return _looking(looked_at)
    looking = _looking(looked_at)
    return Steering(
        start=cover(start.image.convert("RGB"), size),
        # A guide that counts much leaves little freedom: the two strengths are each other's opposite.
        strength=start.strength if start.role == "init" else 1 - start.strength,
        looked_at=looking.looked_at,
        weight=looking.weight,
    )


def _looking(guides: Sequence[Guide]) -> Steering:
    if not guides:
        return Steering()
    # One adapter has one strength.
    weight = sum(guide.strength for guide in guides) / len(guides)
    return Steering(looked_at=tuple(guide.image.convert("RGB") for guide in guides), weight=weight)


def _presentable(image: Image.Image) -> Image.Image:
    """Pipelines that edit refuse pictures that are tiny or very long."""
    width, height = (min(side, other * _LONGEST) for side, other in (image.size, image.size[::-1]))
    zoom = max(1.0, _SMALLEST / min(width, height))
    return cover(image, (round(width * zoom), round(height * zoom)))


def cover(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The middle of the picture at exactly this size; nothing is stretched."""
    return image if image.size == size else ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def warning(name: str, given: int, used: int) -> str | None:
    """What to say when not every reference has an effect."""
    if used >= given:
        return None
    if used == 0:
        return f"{name} can't look at reference pictures; {'it' if given == 1 else 'they'} had no effect"
    if used == 1:
        return f"{name} looks at one reference picture; the others had no effect"
    return f"{name} looks at {used} of the reference pictures; the others had no effect"


def workable(strength: float, steps: int) -> float:
    """The strength, raised where the drawing would have no step left: of ``steps``, ``steps * strength`` are drawn."""
    least = 1 / steps
    if least * steps < 1:
        # Pipelines round the product down.
        least = math.nextafter(least, 1)
    return min(1.0, max(strength, least))
