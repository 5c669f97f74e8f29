"""One picture that nobody gets: what a model does only the first time, it does before the first job."""

from __future__ import annotations

from PIL import Image

from handler.drawing import Order, Renderer
from handler.models import Model

_PROMPT = "a lighthouse on a hill at sunset"
_STEPS = 4


def draw_once(renderer: Renderer, model: Model, size: tuple[int, int]) -> None:
    """A few steps at the size that jobs will ask for, since ``torch.compile`` compiles for a size.

    Raises what drawing raises.
    """
    width, height = (max(model.grid, side // model.grid * model.grid) for side in size)
    order = Order(
        positive=_PROMPT,
        negative="" if model.negative and model.guidance > model.family.negative_above else None,
        width=width,
        height=height,
        seeds=(0,),
        steps=min(_STEPS, model.steps),
        guidance=model.guidance,
    )
    for _ in renderer.draw(order, _Nobody()):
        pass


class _Nobody:
    """Follows `Watch` and looks away."""

    def stopping(self) -> bool:
        return False

    def step(self, picture: int, at_once: int, step: int, steps: int) -> None:
        pass

    def preview(self, picture: int, image: Image.Image) -> None:
        pass

    def warn(self, sentence: str) -> None:
        pass

    def used_references(self, count: int) -> None:
        pass
