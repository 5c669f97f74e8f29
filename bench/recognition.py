"""How far image codes of copies are from those of their pictures, and how near those of other pictures come.

The pictures are those of `bench pixelmark`: what the built-in model drew as far as it is drawn, and landscapes of its
world. They resemble each other more than a gateway's pictures do: same palettes, same horizon, same things.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.pixelmark import attacks, gallery, picture
from compliance.fingerprint import image_code
from gateway.core.recognition import DISTANCE

#: Copies that are looked up: all of them for a part of the pictures.
EVERY = 10
THRESHOLDS = range(0, 17, 2)


def run(*, pictures: int) -> None:
    folder = gallery()
    drawn = sum((folder / f"{number:04}.png").exists() for number in range(pictures))
    print(f"\n{pictures} pictures, {drawn} of them drawn by the model, the others landscapes of its world")
    codes = np.array([image_code(picture(number, folder)) for number in range(pictures)], np.uint64)
    looked_up = range(0, pictures, EVERY)
    copies = {name: _copies(attack, looked_up, folder) for name, attack in attacks().items() if name != "mirror"}
    print(f"\nmissed of {len(looked_up)} copies of each kind, by the bits of 64 that may differ\n")
    print(f"{'bits':<28}" + "".join(f"{bits:>7}" for bits in THRESHOLDS))
    own = codes[list(looked_up)]
    for name, found in copies.items():
        away = np.bitwise_count(found ^ own)
        print(f"{name:<28}" + "".join(f"{_percent((away > bits).mean()):>7}" for bits in THRESHOLDS))
    _false_matches(codes)


def _copies(attack: object, numbers: range, folder: Path) -> npt.NDArray[np.uint64]:
    assert callable(attack)
    return np.array([image_code(attack(picture(number, folder))) for number in numbers], np.uint64)


def _false_matches(codes: npt.NDArray[np.uint64]) -> None:
    """What else is found with a picture, among all others."""
    apart = np.bitwise_count(codes[:, None] ^ codes[None, :]).astype(np.int64)
    np.fill_diagonal(apart, 65)
    print(f"\nother pictures that are found with one, of {len(codes) - 1}\n")
    for name, counts in (
        ("pictures with any", [(apart <= bits).any(1).mean() for bits in THRESHOLDS]),
        ("pairs", [(apart <= bits).mean() for bits in THRESHOLDS]),
    ):
        print(f"{name:<28}" + "".join(f"{_percent(count):>7}" for count in counts))
    print(f"\nthe gateway takes {DISTANCE} bits, and ranks by them; an id in the pixels goes before any code")


def _percent(share: float) -> str:
    return f"{100 * share:.2f}%" if 0 < share < 0.01 else f"{100 * share:.1f}%"
