"""The colours of the world: one small palette per time of day and style, far enough apart to snap to."""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

RGB = tuple[int, int, int]
Palette = Mapping[str, RGB]

TIMES = ("noon", "dawn", "sunset", "night")

# The letters of `sprites`.
LETTERS = {
    "k": "ink",
    "w": "white",
    "t": "timber",
    "s": "stone",
    "o": "orange",
    "n": "pink",
    "r": "red",
    "b": "blue",
    "u": "purple",
    "y": "yellow",
    "l": "light",
}
PAINTS = ("red", "blue", "green", "yellow", "purple", "white")

_OBJECTS = {
    "ink": "1c1a30",
    "white": "fbf7ec",
    "timber": "6b3f2a",
    "stone": "9a9bb0",
    "orange": "f58220",
    "pink": "ff9fc0",
    "red": "d9303a",
    "blue": "2a62dc",
    "green": "1c7c4c",
    "yellow": "ffd02e",
    "purple": "8a45cc",
}

# Sky from top to horizon, then the light in it, then the clouds.
_SKIES = {
    "noon": ("3f9bee", "69b7f5", "97d2fa", "c6ebfd", "fff07a", "fbf7ec", "a9bace"),
    "dawn": ("7a6fd0", "b184d6", "f3a3c4", "ffd3b8", "fff3b0", "fbf7ec", "c59bb8"),
    "sunset": ("5b2f82", "a63a86", "e85d5d", "ffa04d", "ffe36b", "f7b08f", "8f4f86"),
    "night": ("0c1238", "16205a", "22337a", "34509a", "fff0a8", "8794c8", "505468"),
}
_SKY_NAMES = ("sky1", "sky2", "sky3", "sky4", "light", "cloud", "cloud shade")

_LAND = {
    "land far": "b4dc6c",
    "land mid": "86c64e",
    "land near": "5aa83c",
    "rock": "8c86a4",
    "rock shade": "655f82",
    "sand": "f2d792",
    "sand shade": "d9ac62",
    "sea": "2fa6c8",
    "sea light": "7fdbe6",
    "fog": "d3dfea",
}
# How much each time of day pulls the land towards a colour of its own.
_TINTS = {"noon": ("000000", 0.0), "dawn": ("e07fb0", 0.27), "sunset": ("c8402c", 0.36), "night": ("0a1050", 0.58)}


# Dark ground under a vivid sky, in colours that the autoencoder can hold.
_NEON_SKIES = {
    "noon": ("f35ed5", "f7a6e0", "7fdbe6", "c6f2fb", "fff07a", "fbf7ec", "9080dc"),
    "dawn": ("5640c4", "a848e0", "e060dc", "f8b4e0", "fff3b0", "e8d0ff", "a890dc"),
    "sunset": ("742c86", "a8308c", "e04468", "ff9c50", "ffe36b", "ffc8cc", "d070a0"),
    "night": ("0c1238", "2a1c66", "4c2c94", "a04cc0", "fff0a8", "8794c8", "505468"),
}
_NEON_LAND = {
    "land far": "35749b",
    "land mid": "244a80",
    "land near": "223464",
    "rock": "8c68b0",
    "rock shade": "573684",
    "sand": "b46098",
    "sand shade": "7c3852",
    "sea": "2050b4",
    "sea light": "7ea8dc",
    "fog": "b4acdf",
}
_NEON_TINTS = {"noon": ("00c8c8", 0.0), "dawn": ("d050c0", 0.0), "sunset": ("c00030", 0.1), "night": ("08001c", 0.2)}


@cache
def palette(time: str, style: str = "") -> Palette:
    """Every colour that a picture of this time of day may hold, by name; the style `neon` has palettes of its own."""
    neon = style == "neon"
    skies, land, tints = (_NEON_SKIES, _NEON_LAND, _NEON_TINTS) if neon else (_SKIES, _LAND, _TINTS)
    tint, amount = tints[time]
    dim = 0.82 if time == "night" else 1.0
    colours = {name: _scale(_rgb(code), dim) for name, code in _OBJECTS.items()}
    colours |= {name: _rgb(code) for name, code in zip(_SKY_NAMES, skies[time], strict=True)}
    colours |= {name: _mix(_rgb(code), _rgb(tint), amount) for name, code in land.items()}
    return MappingProxyType(colours)


def palettes() -> list[npt.NDArray[np.uint8]]:
    """The palettes as arrays of (colours, 3), for snapping a drawn picture to one of them."""
    return [
        np.unique(np.array(list(palette(time, style).values()), np.uint8), axis=0)
        for style in ("", "neon")
        for time in TIMES
    ]


def _rgb(code: str) -> RGB:
    red, green, blue = bytes.fromhex(code)
    return red, green, blue


def _mix(a: RGB, b: RGB, amount: float) -> RGB:
    red, green, blue = (round(x + (y - x) * amount) for x, y in zip(a, b, strict=True))
    return red, green, blue


def _scale(colour: RGB, factor: float) -> RGB:
    return _mix((0, 0, 0), colour, factor)
