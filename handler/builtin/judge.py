"""Reads a picture: what does it show, and is that what was asked?

The judge learns only from drawings of the world, never from what the model drew. Time of day and style are the palette
that fits (and the frame); terrain and weather are those of the empty drawing that agrees with most pixels; things, sun,
moon and stars are found by comparing their shapes with every place of the picture, so a second sun or a house on the
wrong side is seen. `evaluate` shows it held-out drawings too: the best that can be reached.
"""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt

from handler.builtin.colours import LETTERS, PAINTS, TIMES, palette
from handler.builtin.sprites import SPRITES
from handler.builtin.world import CELL, CHARACTERS, OBJECTS, TERRAINS, WEATHERS, Pixels, Scene, draw, sample

NAMES = tuple(name for name in palette("noon") if name != "cloud")  # at noon clouds are white
_INDEX = {name: index for index, name in enumerate(NAMES)} | {"cloud": NAMES.index("white")}
_ROWS = np.array([_INDEX[name] for name in palette("noon")])
# After how many steps the far and the near ridges of a land look the same again.
_PERIODS = {
    "hills": (12, 12), "mountains": (7, 12), "desert": (12, 10), "sea": (4, 8), "forest": (2, 12), "city": (6, 6)
}  # fmt: skip

Names = npt.NDArray[np.int64]  # a picture as indices into NAMES
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A thing that the judge saw."""

    name: str
    paint: str
    place: str
    fit: float  # the share of its pixels that are right


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What the judge saw."""

    time: str
    style: str
    terrain: str
    weather: str
    lights: tuple[str, ...]  # the side of each sun or moon
    stars: int
    things: tuple[Found, ...]


class Judge:
    """Knows the empty drawings of one size."""

    def __init__(self, size: Size) -> None:
        self.kinds, drawings = [], []
        for terrain, weather in product(TERRAINS, WEATHERS):
            fars, nears = _PERIODS[terrain]
            for phase in product(range(fars), range(nears)):
                self.kinds.append((terrain, weather))
                drawings.append(_inside(draw(Scene(terrain=terrain, weather=weather, phase=phase), size)))
        self.drawings = _names_at_noon(np.stack(drawings)).astype(np.uint8).reshape(len(drawings), -1)

    def look(self, pixels: Pixels) -> Sight:
        """Read a picture of art pixels."""
        time, style, names = names_of(pixels)
        agree = (self.drawings == _inside(names).astype(np.uint8).ravel()).sum(1)
        terrain, weather = self.kinds[int(agree.argmax())]
        return Sight(
            time=time,
            style=style,
            terrain=terrain,
            weather=weather,
            lights=lights(names),
            stars=stars(names) if time == "night" else 0,
            # White on snow is no shape.
            things=tuple(found for found in things(names) if (weather, found.paint) != ("snow", "white")),
        )


@cache
def judge_of(size: Size) -> Judge:
    return Judge(size)


def names_of(pixels: Pixels) -> tuple[str, str, Names]:
    """The time and the style whose palette fits best, and the name of each pixel's colour."""
    used, spots, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    fits: dict[tuple[str, str], tuple[float, Names]] = {}
    for kind in product(TIMES, ("", "neon")):
        colours = np.array(list(palette(*kind).values()), np.int64)
        errors = np.abs(used[:, None].astype(np.int64) - colours).sum(-1)
        fits[kind] = float(errors.min(-1) @ counts), errors.argmin(-1)
    time, style = min(fits, key=lambda kind: fits[kind][0])
    names = _ROWS[fits[time, style][1]][spots.reshape(pixels.shape[:2])]
    return time, style or ("postcard" if _framed(names) else ""), names


def _names_at_noon(pixels: Pixels) -> Names:
    """`names_of` for many true drawings of noon at once."""
    colours = np.array(list(palette("noon").values()), np.int64) @ (1 << 16, 1 << 8, 1)
    order = colours.argsort(kind="stable")
    return _ROWS[order[np.searchsorted(colours[order], pixels.astype(np.int64) @ (1 << 16, 1 << 8, 1))]]


def _framed(names: Names) -> bool:
    """Whether the outermost cells are white on all four sides: snow whitens the lower ones only."""
    white = names == _INDEX["white"]
    sides = white[:CELL], white[-CELL:], white[:, :CELL], white[:, -CELL:]
    return min(float(side.mean()) for side in sides) > 0.8


def _inside(names: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without the cells where a frame may be."""
    return names[CELL:-CELL, CELL:-CELL]


def things(names: Names) -> Iterable[Found]:
    """Every sprite in the picture. Of two that would stand in the same place only the better fit is there."""
    fits: list[tuple[float, float, Found]] = []
    for sprite in (*CHARACTERS, *OBJECTS):
        tall, wide = len(SPRITES[sprite]), len(SPRITES[sprite][0])
        for paint, fit, top, left in _matches(names, sprite):
            x, y = left + wide / 2, top + tall / 2
            fits.append((x, y, Found(name=sprite, paint=paint, place=_side(x / names.shape[1]), fit=fit)))
    taken: list[tuple[float, float]] = []
    for x, y, found in sorted(fits, key=lambda fit: -fit[2].fit):
        if all(abs(x - across) > 7 or abs(y - down) > 9 for across, down in taken):
            taken.append((x, y))
            yield found


def stars(names: Names) -> int:
    """Crosses of five white pixels with nothing white between their arms."""
    white = names == _INDEX["white"]
    height, width = names.shape
    views = {(y, x): white[y : y + height - 2, x : x + width - 2] for y in range(3) for x in range(3)}
    arms = [views[spot] for spot in ((0, 1), (1, 0), (1, 1), (1, 2), (2, 1))]
    gaps = [~views[spot] for spot in ((0, 0), (0, 2), (2, 0), (2, 2))]
    return int(np.all(arms + gaps, axis=0).sum())


def lights(names: Names) -> tuple[str, ...]:
    """The sides of the suns and moons: patches of their colour that are larger than a crumb."""
    patches = _patches(names == _INDEX["light"])
    return tuple(_side(float(xs.mean()) / names.shape[1]) for _, xs in patches if len(xs) >= 12)


def _side(middle: float) -> str:
    return "left" if middle < 0.36 else "right" if middle > 0.64 else "center"


Hits = npt.NDArray[np.int64]


def _matches(names: Names, sprite: str) -> list[tuple[str, float, int, int]]:
    """Where (paint, fit, top, left) the shape is: most of its pixels and half of each of its colours are right."""
    spots: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for y, row in enumerate(SPRITES[sprite]):
        for x, letter in enumerate(row):
            if letter != ".":
                spots[letter].append((y, x))
    whole, fixed = sum(map(len, spots.values())), set(spots) - {"C"}
    height = names.shape[0] - len(SPRITES[sprite]) + 1
    width = names.shape[1] - len(SPRITES[sprite][0]) + 1
    if height < 1 or width < 1:
        return []

    def hits(letter: str, name: str) -> Hits:
        mask = (names == _INDEX[name]).astype(np.int64)
        total: Hits = np.add.reduce([mask[y : y + height, x : x + width] for y, x in spots[letter]])
        return total

    known: dict[str, Hits] = {letter: hits(letter, LETTERS[letter]) for letter in sorted(fixed)}
    found = []
    for paint in PAINTS if "C" in spots else ("",):
        if paint and np.count_nonzero(names == _INDEX[paint]) < 0.5 * len(spots["C"]):
            continue
        parts = known | {"C": hits("C", paint)} if paint else known
        fit = np.sum(list(parts.values()), axis=0) / whole
        right = np.all([part >= 0.5 * len(spots[letter]) for letter, part in parts.items()], axis=0) & (fit >= 0.75)
        found += [(paint, float(fit[y, x]), int(y), int(x)) for y, x in np.argwhere(right)]
    return found


def _patches(mask: npt.NDArray[np.bool_]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]]:
    """Connected patches as rows and columns."""
    left = {(int(y), int(x)) for y, x in np.argwhere(mask)}
    patches = []
    while left:
        patch, todo = [], [left.pop()]
        while todo:
            y, x = todo.pop()
            patch.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            todo.extend(near)
        patches.append((np.array([y for y, _ in patch]), np.array([x for _, x in patch])))
    return patches


# Asking and counting


def explicit(scene: Scene) -> str:
    """A prompt that tells everything."""
    parts = [f"{thing.paint} {thing.name} {_where(thing.place)}".strip() for thing in scene.things]
    parts += [scene.terrain, scene.time, {"clear": "clear sky", "cloudy": "clouds"}.get(scene.weather, scene.weather)]
    if scene.light:
        parts.append(f"{'moon' if scene.time == 'night' else 'sun'} on the {scene.light}")
    if scene.stars:
        parts.append("stars")
    if scene.style:
        parts.append(scene.style)
    return ", ".join(parts)


def _where(place: str) -> str:
    return "in the center" if place == "center" else f"on the {place}"


def marks(scene: Scene, sight: Sight, sky: bool = True) -> dict[str, bool]:
    """What was asked and whether it is there; `sky` false leaves out what a short caption may not have told."""
    result = {name: getattr(scene, name) == getattr(sight, name) for name in ("time", "terrain", "weather", "style")}
    if sky and scene.light:
        result["light"] = sight.lights == (scene.light,)
    elif sky and scene.weather != "clear":  # a clear sky has its sun, moon and stars unasked
        result["light"] = not sight.lights
    if sky and scene.time == "night" and (scene.stars or scene.weather != "clear"):
        result["stars"] = (sight.stars >= 2) == scene.stars
    for thing in scene.things:
        seen = [found for found in sight.things if found.name == thing.name]
        result["one of each"] = result.get("one of each", True) and len(seen) == 1
        if seen:
            result["place"] = result.get("place", True) and seen[0].place == thing.place
        if seen and thing.paint:
            result["paint"] = result.get("paint", True) and seen[0].paint == thing.paint
    asked = {thing.name for thing in scene.things}
    result["nothing else"] = all(found.name in asked for found in sight.things)
    result["everything"] = all(result.values())
    return result


def exam(count: int, size: Size, seed: str = "exam") -> list[Scene]:
    """Held-out scenes in which no thing hides another and none is white on snow."""
    rng = Random(f"{seed} {size}")
    return [fair(sample(rng), size) for _ in range(count)]


def fair(scene: Scene, size: Size) -> Scene:
    """The same scene with every thing where it can be seen."""
    roomy = size[0] >= 1024
    apart = roomy or {thing.place for thing in scene.things} <= {"left", "right"}
    things = [*(scene.things if apart else scene.things[:1])]
    if scene.weather == "snow":
        things = [replace(thing, paint="red") if thing.paint == "white" else thing for thing in things]
    return replace(scene, things=tuple(things))
