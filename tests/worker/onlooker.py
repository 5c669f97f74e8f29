"""A `Watch` that keeps all it is told, and can stop the drawing."""

from __future__ import annotations

from PIL import Image


class Onlooker:
    """``stop_after`` so many steps; 0 stops before the first one."""

    def __init__(self, stop_after: int | None = None) -> None:
        self._stop_after = stop_after
        self.steps: list[tuple[int, int, int, int]] = []
        self.previews: list[tuple[int, Image.Image]] = []
        self.warnings: list[str] = []
        self.used: int | None = None

    def stopping(self) -> bool:
        return self._stop_after is not None and len(self.steps) >= self._stop_after

    def step(self, picture: int, at_once: int, step: int, steps: int) -> None:
        self.steps.append((picture, at_once, step, steps))

    def preview(self, picture: int, image: Image.Image) -> None:
        self.previews.append((picture, image))

    def warn(self, sentence: str) -> None:
        self.warnings.append(sentence)

    def used_references(self, count: int) -> None:
        assert self.used is None, "it is told once"
        assert not self.steps, "it is told before the first step"
        self.used = count
