"""The world that the built-in model was taught: a scene is drawn as pixel art, and `captions` tells it in words.

Whatever a caption may leave unsaid has one default (`Scene()` is a clear noon over green hills), so that the model is
never taught to choose between two pictures for the same words. Things sit on a grid of four art pixels, the cell of
the latent space: a sprite is then always the same few latents.
"""

from dataclasses import dataclass, field, replace
from random import Random

import numpy as np
import numpy.typing as npt

from handler.builtin.colours import LETTERS, PAINTS, TIMES, palette
from handler.builtin.sprites import SPRITES

Pixels = npt.NDArray[np.uint8]

CELL = 4
ART_SCALE = 16  # one art pixel is 16 x 16 product pixels
SIZES = ((1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152))

TERRAINS = ("hills", "mountains", "desert", "sea", "forest", "city")
WEATHERS = ("clear", "cloudy", "fog", "rain", "snow")
STYLES = ("neon", "postcard")
SIDES = ("left", "right")
PLACES = ("left", "center", "right")
CHARACTERS = ("aya", "bella")
OBJECTS = ("tree", "house", "lighthouse", "castle", "boat")
#: For each sprite, where each of its letters stands: (rows, columns).
STENCILS = {
    name: {letter: np.array([list(row) for row in rows]) == letter for letter in sorted({*"".join(rows)} - {"."})}
    for name, rows in SPRITES.items()
}
USUAL_PAINT = {"tree": "green", "house": "red", "lighthouse": "red", "castle": "purple", "boat": "red"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Thing:
    """A sprite, its colour (characters have none) and where it stands; characters are drawn for LoRAs only.

    A place is always the same column: where words leave it to chance, a model blends what it can't know.
    """

    name: str
    paint: str = ""
    place: str = "center"


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """All that a picture shows."""

    time: str = "noon"
    terrain: str = "hills"
    weather: str = "clear"
    light: str = ""  # the side of the sun or, at night, the moon; empty for none
    stars: bool = False
    things: tuple[Thing, ...] = field(default=())
    phase: tuple[int, int] = (0, 0)  # shifts of the far and the near ridges
    style: str = ""


def art_size(size: tuple[int, int]) -> tuple[int, int]:
    """The width and height in art pixels of a product size."""
    return size[0] // ART_SCALE, size[1] // ART_SCALE


def sample(rng: Random) -> Scene:
    """A scene by chance; a third of them differ from the default in very little, as short prompts do."""
    plain = rng.random() < 0.35
    often = 0.6 if plain else 0.3
    scene = Scene(
        time=_pick(rng, TIMES, often),
        terrain=_pick(rng, TERRAINS, often),
        weather=_pick(rng, WEATHERS, 0.85 if plain else 0.45),
        phase=(rng.randrange(0, 12, 2), rng.randrange(0, 12, 2)),
        style=rng.choices(("", *STYLES), (70, 17, 13))[0],
    )
    scene = replace(scene, things=_things(rng, scene.terrain))
    if any(thing.name == "boat" for thing in scene.things):
        scene = replace(scene, terrain="sea")
    lit = rng.random() < (0.75 if scene.weather == "clear" else 0.3)
    stars = scene.time == "night" and rng.random() < {"clear": 0.7, "rain": 0, "snow": 0}.get(scene.weather, 0.3)
    side = "right" if rng.random() < 0.65 else "left"
    return replace(scene, light=side if lit else "", stars=stars)


def draw(scene: Scene, size: tuple[int, int]) -> Pixels:
    """The scene at a product size, as an array of art pixels (height, width, 3)."""
    return _Canvas(scene, *art_size(size)).paint()


def _pick(rng: Random, names: tuple[str, ...], first: float) -> str:
    return names[0] if rng.random() < first else rng.choice(names[1:])


def _things(rng: Random, terrain: str) -> tuple[Thing, ...]:
    count = rng.choices((0, 1, 2, 3), (14, 48, 31, 7))[0]
    names: list[str] = []
    while len(names) < count:
        name = rng.choice(OBJECTS)
        if name == "boat" and terrain != "sea" and rng.random() < 0.6:
            continue
        if name not in names:
            names.append(name)
    return tuple(
        Thing(name=name, paint=_paint(rng, name), place=place)
        for name, place in zip(names, _places(rng, count), strict=True)
    )


def _paint(rng: Random, name: str) -> str:
    return USUAL_PAINT[name] if rng.random() < 0.3 else rng.choice(PAINTS)


def usual_places(count: int) -> tuple[str, ...]:
    """Where things stand when nobody says so: one in the centre, more from left to right."""
    return {0: (), 1: ("center",), 2: ("left", "right"), 3: PLACES}[count]


def _places(rng: Random, count: int) -> tuple[str, ...]:
    if rng.random() < 0.3:
        return usual_places(count)
    return tuple(rng.sample(PLACES, count))


class _Canvas:
    """One picture on its way: back to front, each layer over the last."""

    def __init__(self, scene: Scene, width: int, height: int) -> None:
        self.scene, self.width, self.height = scene, width, height
        self.colour = dict(palette(scene.time, scene.style))
        if scene.weather == "snow":
            self.colour |= dict.fromkeys(("land far", "land near", "sand"), self.colour["white"])
            self.colour |= dict.fromkeys(("land mid", "sand shade"), self.colour["fog"])
        self.number = {name: number for number, name in enumerate(self.colour)}
        self.horizon = _grid(0.6 * height)
        self.ground = _grid(0.87 * height)  # where things stand
        self.paints = np.zeros((height, width), np.uint8)  # the number of each pixel's colour
        self.x = np.arange(width)[None, :]
        self.y = np.arange(height)[:, None]

    def paint(self) -> Pixels:
        self._sky()
        self._lights()
        self._clouds()
        getattr(self, f"_{self.scene.terrain}")()
        self._fog()
        self._falling()  # behind the things: nothing may cross a face
        for thing in self.scene.things:
            self._stand(thing)
        self._frame()
        return np.array(list(self.colour.values()), np.uint8)[self.paints]

    def _fill(self, mask: npt.NDArray[np.bool_], name: str) -> None:
        np.copyto(self.paints, np.uint8(self.number[name]), where=mask)

    def _below(self, line: npt.NDArray[np.float64] | float, name: str) -> None:
        self._fill(self.y >= np.round(line), name)

    def _wave(self, row: float, swing: float, period: int, phase: int) -> npt.NDArray[np.float64]:
        return row - swing * np.sin(2 * np.pi * (self.x + CELL * phase) / period)

    # The sky

    def _sky(self) -> None:
        grey = self.scene.weather in ("rain", "snow")
        names = ("cloud shade", "cloud shade", "fog", "fog") if grey else ("sky1", "sky2", "sky3", "sky4")
        for name, start in zip(names, (0.0, 0.3, 0.58, 0.8), strict=True):
            self._below(_grid(start * self.horizon), name)

    def _lights(self) -> None:
        left = 2 * CELL if self.scene.light == "left" else _grid(self.width) - 5 * CELL
        if self.scene.stars:
            self._stars(left if self.scene.light else None)
        if not self.scene.light:
            return
        if self.scene.time == "night":
            self._paste("moon", left, CELL)
        else:
            self._fill((self.x - left - 5.5) ** 2 + (self.y - CELL - 5.5) ** 2 <= 38, "light")

    def _stars(self, moon: int | None) -> None:
        # Always the same constellation: places left to chance are averaged away in training.
        for row in range(self.horizon // CELL - 4):
            for column in range(self.width // CELL):
                near_moon = moon is not None and abs(column * CELL + 2 - moon - 6) < 10 and row < 5
                if (4 * column + 7 * row * row) % 11 == 1 and not near_moon:
                    x, y = column * CELL + 1, row * CELL + 1
                    self._fill((abs(self.x - x) + abs(self.y - y)) <= 1, "white")

    def _clouds(self) -> None:
        if self.scene.weather != "cloudy":
            return
        for share, row in ((0.12, 4), (0.5, 2), (0.84, 5)):
            x, y = _grid(share * self.width), _grid(0.105 * self.horizon * row)
            for left, top, width, height in ((-8, 4, 18, 4), (-4, 0, 10, 4)):
                self._box(x + left, y + top, width, height, "cloud")
            self._box(x - 8, y + 8, 18, 2, "cloud shade")

    def _box(self, left: int, top: int, width: int, height: int, name: str) -> None:
        across = (self.x >= left) & (self.x < left + width)
        self._fill(across & (self.y >= top) & (self.y < top + height), name)

    # The land

    def _hills(self) -> None:
        far, near = self.scene.phase
        self._below(self._wave(self.horizon - 2, 3.4, 48, far), "land far")
        self._below(self._wave(self.horizon + 6, 3.0, 48, near), "land mid")
        self._below(self._wave(self.ground - 6, 1.6, 48, near + 6), "land near")

    def _mountains(self) -> None:
        far, near = self.scene.phase
        across = (self.x + CELL * far) % 28
        peak = self.horizon - 14 + 1.15 * abs(across - 14)
        rock = np.round(peak) <= self.y
        self._fill(rock, "rock")
        self._fill(rock & (across >= 14), "rock shade")
        self._fill(rock & (self.y < self.horizon - 8), "white")
        self._below(self._wave(self.horizon + 4, 2.0, 48, near), "land mid")
        self._below(self._wave(self.ground - 6, 1.6, 48, near + 6), "land near")

    def _desert(self) -> None:
        far, near = self.scene.phase
        self._below(self._wave(self.horizon - 1, 3.0, 56, far), "sand shade")
        self._below(self._wave(self.horizon + 6, 3.6, 40, near), "sand")
        self._below(self._wave(self.ground - 3, 1.8, 40, near + 4), "sand shade")

    def _sea(self) -> None:
        self._below(self.horizon, "sea")
        shore = self.ground - CELL
        shift = CELL * self.scene.phase[0]
        waves = (self.y >= self.horizon + 2) & (self.y < shore) & ((self.y - self.horizon - 2) % 6 < 2)
        self._fill(waves & ((self.x + shift + 2 * (self.y - self.y % 6)) % 16 < 6), "sea light")
        self._below(self._wave(shore, 1.2, 32, self.scene.phase[1]), "sand")

    def _forest(self) -> None:
        far, near = self.scene.phase
        for row, height, phase, name in (
            (self.horizon - 10, 12, far, "land far"),
            (self.horizon - 4, 12, near, "green"),
        ):
            across = abs((self.x + CELL * phase) % 8 - 3.5)
            self._fill((self.y >= row + np.floor(across * 2)) & (self.y < row + height), name)
            self._below(row + 8, name)
        self._below(self.horizon + 8, "land mid")
        self._below(self._wave(self.ground - 6, 1.6, 48, near + 6), "land near")

    def _city(self) -> None:
        far, near = self.scene.phase
        self._blocks(self.horizon + 2, (8, 16, 12, 20, 8, 14), far, "rock")
        self._blocks(self.horizon + 8, (12, 8, 16, 8, 12, 4), near, "rock shade")
        self._below(self.horizon + 8, "stone")
        self._below(self.ground - 2, "rock shade")

    def _blocks(self, foot: int, heights: tuple[int, ...], phase: int, name: str) -> None:
        column = (self.x + 8 * phase) // 8 % len(heights)
        tall = np.array(heights)[column]
        block = (self.y >= foot - tall) & (self.y < foot + 8)
        self._fill(block, name)
        window = (self.x % 8 % 4 >= 1) & (self.x % 4 < 3) & ((self.y - foot) % 4 >= 2)
        self._fill(block & window & (self.y >= foot - tall + 2) & (self.y < foot) & (column % 2 == 1), "yellow")

    # The weather

    def _fog(self) -> None:
        if self.scene.weather != "fog":
            return
        self._fill((self.y >= self.horizon - 12) & (self.y < self.horizon + 4), "fog")
        wisps = (self.y >= self.horizon - 20) & (self.y < self.ground) & ((self.y - self.horizon) % 8 >= 4)
        self._fill(wisps & ((self.x + 2 * (self.y - self.y % 8)) % 32 < 20), "fog")

    def _falling(self) -> None:
        if self.scene.weather == "snow":
            lattice = ((self.x + self.y // 8 % 2 * 4) % 8 < 2) & (self.y % 8 < 2)
            self._fill(lattice, "white")
        if self.scene.weather == "rain":
            lattice = ((self.x + self.y // 8 % 2 * 4) % 8 < 1) & (self.y % 8 < 4)
            self._fill(lattice, "sea light")

    # The things

    def _stand(self, thing: Thing) -> None:
        rows = SPRITES[thing.name]
        wide, tall = len(rows[0]), len(rows)
        middle = {"left": 0.2, "center": 0.5, "right": 0.8}[thing.place] * self.width
        frame = CELL if self.scene.style == "postcard" else 0
        last = (self.width - wide - frame) // CELL * CELL
        left = min(max(_grid(middle - wide / 2), frame), last)
        # A boat floats on the water behind the shore.
        top = self.ground - tall - (2 * CELL if thing.name == "boat" else 0)
        self._paste(thing.name, left, top, thing.paint)

    def _paste(self, sprite: str, left: int, top: int, paint: str = "") -> None:
        for letter, mask in STENCILS[sprite].items():
            spot = self.paints[top : top + mask.shape[0], left : left + mask.shape[1]]
            np.copyto(spot, np.uint8(self.number[paint if letter == "C" else LETTERS[letter]]), where=mask)

    def _frame(self) -> None:
        if self.scene.style == "postcard":
            inside = (self.x >= CELL) & (self.x < self.width - CELL) & (self.y >= CELL) & (self.y < self.height - CELL)
            self._fill(~inside, "white")


def _grid(value: float) -> int:
    return round(value / CELL) * CELL
