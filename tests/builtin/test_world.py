"""The world is the same on every machine, fits every size, and its captions leave out only what is usual."""

import hashlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from handler.builtin.captions import caption, words
from handler.builtin.colours import LETTERS, TIMES, palette, palettes
from handler.builtin.sprites import SPRITES
from handler.builtin.world import (
    CHARACTERS,
    OBJECTS,
    PLACES,
    SIZES,
    TERRAINS,
    USUAL_PAINT,
    WEATHERS,
    Scene,
    Thing,
    art_size,
    draw,
    sample,
)

BUSY = Scene(
    time="night",
    terrain="sea",
    weather="fog",
    light="left",
    stars=True,
    things=(Thing(name="boat", paint="blue", place="left"), Thing(name="bella", place="right", nudge=4)),
    phase=(3, 7),
)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_every_scene_fits_every_size(size):
    width, height = art_size(size)
    for terrain in TERRAINS:
        for weather in WEATHERS:
            pixels = draw(replace(BUSY, terrain=terrain, weather=weather), size)
            assert pixels.shape == (height, width, 3)
            assert len(np.unique(pixels.reshape(-1, 3), axis=0)) >= 8


def test_the_same_seed_gives_the_same_scenes_and_the_same_pixels():
    def digest(seed):
        rng = Random(seed)
        scenes = [sample(rng) for _ in range(50)]
        return hashlib.sha256(b"".join(draw(scene, SIZES[i % 7]).tobytes() for i, scene in enumerate(scenes))).digest()

    assert digest(1) == digest(1)
    assert digest(1) != digest(2)


def test_a_picture_holds_only_the_colours_of_its_time():
    rng = Random(5)
    for index in range(80):
        scene = sample(rng)
        allowed = set(palette(scene.time).values())
        assert {tuple(map(int, colour)) for colour in draw(scene, SIZES[index % 7]).reshape(-1, 3)} <= allowed


def test_the_palettes_are_small_and_their_colours_far_apart():
    for colours in palettes():
        assert 20 <= len(colours) <= 32
        apart = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1)
        assert apart[~np.eye(len(colours), dtype=bool)].min() > 12


def test_sprites_are_rectangles_of_known_letters():
    for rows in SPRITES.values():
        assert len({len(row) for row in rows}) == 1
        assert set("".join(rows)) <= set(LETTERS) | {".", "C"}


def test_a_thing_stands_on_the_side_that_the_scene_says():
    for size in SIZES:
        empty = draw(Scene(), size)
        middles = []
        for place in PLACES:
            changed = (draw(Scene(things=(Thing(name="aya", place=place),)), size) != empty).any(-1)
            middles.append(np.argwhere(changed)[:, 1].mean() / size[0] * 16)
        assert middles[0] < 0.36 < middles[1] < 0.64 < middles[2]


def test_a_caption_tells_every_thing_that_is_not_as_usual():
    rng = Random(7)
    for _ in range(300):
        scene = sample(rng)
        text = caption(scene, rng)
        for thing in scene.things:
            if thing.paint in {"red", "blue", "green", "white"} and thing.paint != USUAL_PAINT[thing.name]:
                assert thing.paint in text
        if scene.light == "left":
            assert "left" in text


def test_the_same_scene_is_told_in_many_ways():
    rng = Random(9)
    assert len({caption(BUSY, rng) for _ in range(100)}) > 90


def test_the_closed_vocabulary_has_what_prompts_need():
    known = set(words())
    assert {*CHARACTERS, *OBJECTS, *TIMES, *TERRAINS, "fog", "hill", "moon", "stars", "left", "right"} <= known
