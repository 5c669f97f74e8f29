"""The visible marks. They come after the review and before the encoder, so that the types keep them in their place.

A mark touches the pixels of its own box and no others. The box is measured after the rotation, keeps its distance from
the edges that its position names, and never leaves the picture: what would not fit is made smaller.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from PIL import Image

from compliance.logo import Logo
from compliance.picture import Blocked, Edit, Marked, Reviewed

Position = Literal["top-left", "top-right", "center", "bottom-left", "bottom-right"]
POSITIONS: tuple[Position, ...] = get_args(Position)
_BESIDE: dict[Position, Position] = {
    "top-left": "top-right",
    "top-right": "top-left",
    "center": "bottom-right",
    "bottom-left": "bottom-right",
    "bottom-right": "bottom-left",
}
_Box = tuple[int, int, int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where a logo goes: `scale` is its width in percent of the picture's, `opacity` percent, `rotation` degrees
    clockwise, paddings pixels from the edges that `position` names (none in the centre). ValueError on a bad value.
    """

    position: Position = "bottom-right"
    scale: int = 5
    opacity: int = 100
    rotation: int = 0
    padding_x: int = 10
    padding_y: int = 10

    def __post_init__(self) -> None:
        if self.position not in POSITIONS:
            raise ValueError(f"position must be one of {', '.join(POSITIONS)}, not {self.position!r}")
        if not (1 <= self.scale <= 100 and 0 <= self.opacity <= 100 and min(self.padding_x, self.padding_y) >= 0):
            raise ValueError("scale must be 1-100, opacity 0-100, paddings not negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class VisibleMark:
    """A logo in its place, and in a few words whose it is: that ends up in the manifest."""

    logo: Logo
    placement: Placement
    what: str


def beside(position: Position) -> Position:
    """Where a second mark goes when the first has this place."""
    return _BESIDE[position]


def mark(reviewed: Reviewed, marks: Sequence[VisibleMark] = ()) -> Marked:
    """The picture with its visible marks, the first at the bottom. One that can't be seen is none."""
    return _marked(reviewed.pixels, marks)


def mark_blocked(blocked: Blocked, marks: Sequence[VisibleMark] = ()) -> Marked:
    """A blocked picture on its way to those who may see such pictures: it is marked and signed too, whoever sees it.

    Raises ValueError for a verdict that is not releasable: such a picture is handed out in no form.
    """
    if not blocked.verdict.releasable:
        raise ValueError("a picture that is not releasable has no way out")
    return _marked(blocked.raw.pixels, marks)


def _marked(pixels: Image.Image, marks: Sequence[VisibleMark]) -> Marked:
    seen = [each for each in marks if each.placement.opacity]
    if not seen:
        return Marked(pixels=pixels)
    pixels = pixels.copy()
    for each in seen:
        layer, box = laid(each.logo, each.placement, pixels.size)
        pixels.paste(layer.convert("RGB"), box, layer.getchannel("A"))
    edits = [Edit(action="c2pa.edited", description=f"{each.what}, {each.placement.position}") for each in seen]
    return Marked(pixels=pixels, edits=tuple(edits))


@functools.lru_cache(maxsize=16)  # a layer may be as large as the picture
def laid(logo: Logo, placement: Placement, frame: tuple[int, int]) -> tuple[Image.Image, _Box]:
    """The logo as it is laid over a picture of the size `frame`, and its box there: left, top, right, bottom."""
    width, height = _size(logo.pixels.size, placement, frame)
    # Pillow weighs colours with their opacity in both steps: no fringes.
    layer = logo.pixels.resize((width, height), Image.Resampling.LANCZOS, reducing_gap=3.0)
    if placement.rotation % 360:
        layer = layer.rotate(-placement.rotation, Image.Resampling.BICUBIC, expand=True)
        # Rounding may have made it a pixel too large.
        layer = layer.crop((0, 0, min(layer.width, frame[0]), min(layer.height, frame[1])))
    if placement.opacity < 100:
        layer.putalpha(layer.getchannel("A").point([round(a * placement.opacity / 100) for a in range(256)]))
    left, top = _corner(layer.size, placement, frame)
    return layer, (left, top, left + layer.width, top + layer.height)


def _size(logo: tuple[int, int], placement: Placement, frame: tuple[int, int]) -> tuple[int, int]:
    """Width and height before the rotation, such that the box after it fits the frame."""
    width = frame[0] * placement.scale / 100
    height = width * logo[1] / logo[0]
    cosine = abs(math.cos(math.radians(placement.rotation)))
    sine = abs(math.sin(math.radians(placement.rotation)))
    box = (width * cosine + height * sine, width * sine + height * cosine)
    fit = min(1.0, frame[0] / box[0], frame[1] / box[1])
    return max(1, int(width * fit + 0.5)), max(1, int(height * fit + 0.5))


def _corner(box: tuple[int, int], placement: Placement, frame: tuple[int, int]) -> tuple[int, int]:
    """Left and top of the box. A padding that would push it out of the frame gives way."""
    room_x, room_y = frame[0] - box[0], frame[1] - box[1]
    if placement.position == "center":
        return room_x // 2, room_y // 2
    x, y = min(placement.padding_x, room_x), min(placement.padding_y, room_y)
    right, bottom = placement.position.endswith("right"), placement.position.startswith("bottom")
    return (room_x - x if right else x), (room_y - y if bottom else y)
