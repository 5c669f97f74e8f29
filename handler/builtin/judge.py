"""How well the model does what it is told: `python -m handler.builtin.judge [--each 32] [--sizes 1024x1024 ...]`.

The judge learns only from drawings of the world, never from what the model drew. Time of day is the palette that fits;
terrain and weather are those of the most similar drawing (colours by height); things, sun, moon and stars are found by
comparing their shapes with every place of the picture, so a second sun or a house on the wrong side is seen.
`Judge.look` is checked on held-out drawings in the same run: the line "drawings" is the best that can be reached.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
import numpy.typing as npt

from handler.builtin.captions import caption
from handler.builtin.colours import LETTERS, PAINTS, TIMES, palette
from handler.builtin.sprites import SPRITES
from handler.builtin.world import CHARACTERS, OBJECTS, SIZES, Pixels, Scene, draw, sample

NAMES = tuple(palette("noon"))
_INDEX = {name: index for index, name in enumerate(NAMES)}
_BANDS = 12

Names = npt.NDArray[np.int64]  # a picture as indices into NAMES
Size = tuple[int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """A thing that the judge saw."""

    name: str
    paint: str
    place: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Sight:
    """What the judge saw."""

    time: str
    terrain: str
    weather: str
    lights: tuple[str, ...]  # the side of each sun or moon
    stars: int
    things: tuple[Found, ...]


class Judge:
    """Knows drawings of one size."""

    def __init__(self, size: Size, drawings: int = 1500) -> None:
        rng = Random("the judge's own drawings")
        self.scenes = [sample(rng) for _ in range(drawings)]
        self.features = np.stack([_feature(names_of(draw(scene, size))[1]) for scene in self.scenes])

    def look(self, pixels: Pixels) -> Sight:
        """Read a picture of art pixels."""
        time, names = names_of(pixels)
        near = np.abs(self.features - _feature(names)).sum(1).argsort()[:5]
        neighbours = [self.scenes[index] for index in near]
        return Sight(
            time=time,
            terrain=_majority([scene.terrain for scene in neighbours]),
            weather=_majority([scene.weather for scene in neighbours]),
            lights=lights(names),
            stars=stars(names) if time == "night" else 0,
            things=tuple(things(names)),
        )


def names_of(pixels: Pixels) -> tuple[str, Names]:
    """The time whose palette fits best, and the name of each pixel's colour."""
    used, spots, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True, return_counts=True)
    fits: dict[str, tuple[float, Names]] = {}
    for time in TIMES:
        colours = np.array(list(palette(time).values()), np.int64)
        errors = np.abs(used[:, None].astype(np.int64) - colours).sum(-1)
        fits[time] = float(errors.min(-1) @ counts), errors.argmin(-1)
    best = min(TIMES, key=lambda time: fits[time][0])
    return best, fits[best][1][spots.reshape(pixels.shape[:2])]


def things(names: Names) -> Iterable[Found]:
    """Every sprite in the picture. Of two that would stand in the same place only the better fit is there."""
    fits: list[tuple[float, float, float, Found]] = []
    for sprite in (*CHARACTERS, *OBJECTS):
        tall, wide = len(SPRITES[sprite]), len(SPRITES[sprite][0])
        for paint in ("",) if sprite in CHARACTERS else PAINTS:
            for fit, top, left in _matches(names, _spots(sprite, paint)):
                x, y = left + wide / 2, top + tall / 2
                fits.append((fit, x, y, Found(name=sprite, paint=paint, place=_side(x / names.shape[1]))))
    taken: list[tuple[float, float]] = []
    for _, x, y, found in sorted(fits, key=lambda fit: -fit[0]):
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


def _feature(names: Names) -> npt.NDArray[np.float64]:
    """The shares of the colours in each of a dozen bands from top to bottom."""
    bands = np.array_split(names, _BANDS)
    counts = [np.bincount(band.ravel(), minlength=len(NAMES)) / band.size for band in bands]
    return np.concatenate(counts)


Spot = tuple[int, int, str]  # row, column, name of the colour


def _spots(sprite: str, paint: str) -> tuple[Spot, ...]:
    return tuple(
        (y, x, paint if letter == "C" else LETTERS[letter])
        for y, row in enumerate(SPRITES[sprite])
        for x, letter in enumerate(row)
        if letter != "."
    )


def _matches(names: Names, spots: tuple[Spot, ...]) -> list[tuple[float, int, int]]:
    """Where (fit, top, left) the shape is: most of its pixels, and half of each of its colours, must be right."""
    height = names.shape[0] - max(y for y, _, _ in spots)
    width = names.shape[1] - max(x for _, x, _ in spots)
    hits: dict[str, npt.NDArray[np.int64]] = defaultdict(lambda: np.zeros((height, width), np.int64))
    sizes: dict[str, int] = defaultdict(int)
    for y, x, name in spots:
        hits[name] += names[y : y + height, x : x + width] == _INDEX[name]
        sizes[name] += 1
    whole = np.sum(list(hits.values()), axis=0) / len(spots)
    fits = (whole >= 0.75) & np.all([hit >= 0.5 * sizes[name] for name, hit in hits.items()], axis=0)
    return [(float(whole[y, x]), int(y), int(x)) for y, x in np.argwhere(fits)]


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


def _majority(values: list[str]) -> str:
    return max(dict.fromkeys(values), key=values.count)


# Asking and counting


def explicit(scene: Scene) -> str:
    """A prompt that tells everything."""
    parts = [f"{thing.paint} {thing.name} on the {thing.place}".strip() for thing in scene.things]
    parts += [scene.terrain, scene.time, {"clear": "clear sky", "cloudy": "clouds"}.get(scene.weather, scene.weather)]
    if scene.light:
        parts.append(f"{'moon' if scene.time == 'night' else 'sun'} on the {scene.light}")
    if scene.stars:
        parts.append("stars")
    return ", ".join(parts)


def marks(scene: Scene, sight: Sight, sky: bool = True) -> dict[str, bool]:
    """What was asked and whether it is there; `sky` false leaves out what a short caption may not have told."""
    result = {name: getattr(scene, name) == getattr(sight, name) for name in ("time", "terrain", "weather")}
    if sky and scene.light:
        result["one light, side"] = sight.lights == (scene.light,)
    elif sky and scene.weather != "clear":  # a clear sky has its sun, moon and stars unasked
        result["no light"] = not sight.lights
    if sky and scene.time == "night" and (scene.stars or scene.weather != "clear"):
        result["stars" if scene.stars else "no stars"] = (sight.stars >= 2) == scene.stars
    for thing in scene.things:
        kind = "character" if thing.name in CHARACTERS else "object"
        seen = [found for found in sight.things if found.name == thing.name]
        result[f"{kind} there"] = result.get(f"{kind} there", True) and bool(seen)
        result[f"{kind} once"] = result.get(f"{kind} once", True) and len(seen) <= 1
        if seen:
            result[f"{kind} place"] = result.get(f"{kind} place", True) and seen[0].place == thing.place
            result[f"{kind} paint"] = result.get(f"{kind} paint", True) and seen[0].paint == thing.paint
    asked = {thing.name for thing in scene.things}
    result["nothing else"] = all(found.name in asked for found in sight.things)
    result["everything"] = all(result.values())
    return result


def exam(count: int, size: Size) -> list[Scene]:
    """Held-out scenes in which no thing hides another."""
    rng = Random(f"exam {size}")
    scenes = [sample(rng) for _ in range(count)]
    roomy = size[0] >= 1024
    return [
        scene
        if roomy or {thing.place for thing in scene.things} <= {"left", "right"}
        else replace(scene, things=scene.things[:1])
        for scene in scenes
    ]


class Table:
    """Shares of right answers, a row for each kind of picture."""

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, list[bool]]] = {}

    def add(self, row: str, marks: dict[str, bool]) -> None:
        for name, right in marks.items():
            self.rows.setdefault(row, {}).setdefault(name, []).append(right)

    def __str__(self) -> str:
        columns = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        lines = ["| pictures | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for title, row in self.rows.items():
            cells = [f"{np.mean(row[name]):.2f}" if name in row else "" for name in columns]
            lines.append(f"| {title} | " + " | ".join(cells) + " |")
        return "\n".join(lines)


def main() -> None:
    from handler.builtin.studio import GUIDANCE, MODEL, STEPS, Studio  # the rest of the judge needs no torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--each", type=int, default=32, help="pictures for each row")
    parser.add_argument("--sizes", nargs="+", default=[f"{width}x{height}" for width, height in SIZES])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    studio, table = Studio(options.model), Table()
    for text in options.sizes:
        width, height = map(int, text.split("x"))
        size = width, height
        judge, scenes = Judge(size), exam(options.each, size)
        for scene in scenes:
            table.add(f"{text} drawings", marks(scene, judge.look(draw(scene, size))))
        seeds = range(options.seed, options.seed + len(scenes))
        for title, prompts in (
            ("all told", [explicit(scene) for scene in scenes]),
            ("as people write", [caption(scene, Random(index)) for index, scene in enumerate(scenes)]),
        ):
            pictures = studio.draw(prompts, size, seeds, steps=options.steps, guidance=options.guidance)
            for scene, picture in zip(scenes, pictures, strict=True):
                sight = judge.look(np.asarray(picture))
                table.add(f"{text} {title}", marks(scene, sight, sky=title == "all told"))
    print(table)


if __name__ == "__main__":
    main()
