"""The world is the same on every machine, fits every size, and its captions leave out only what is usual."""

import hashlib
from dataclasses import replace
from random import Random

import numpy as np
import pytest

from handler.builtin.captions import (
    MOON_WORDS,
    NEGATIVE,
    STAR_WORDS,
    STRANGERS,
    STYLE_WORDS,
    SUN_WORDS,
    TERRAIN_WORDS,
    THING_WORDS,
    TIME_WORDS,
    WEATHER_WORDS,
    caption,
    negative,
    words,
)
from handler.builtin.colours import LETTERS, TIMES, palette, palettes
from handler.builtin.sprites import SPRITES
from handler.builtin.world import (
    CELL,
    CHARACTERS,
    OBJECTS,
    PLACES,
    SIZES,
    STYLES,
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
    things=(Thing(name="boat", paint="blue", place="left"), Thing(name="bella", place="right")),
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
        allowed = set(palette(scene.time, scene.style).values())
        assert {tuple(map(int, colour)) for colour in draw(scene, SIZES[index % 7]).reshape(-1, 3)} <= allowed


def test_the_palettes_are_small_and_their_colours_far_apart():
    for colours in palettes():
        assert 20 <= len(colours) <= 32
        apart = np.linalg.norm(colours[:, None].astype(float) - colours[None], axis=-1)
        assert apart[~np.eye(len(colours), dtype=bool)].min() > 12


def test_no_two_palettes_are_alike():
    codes = [frozenset(map(bytes, colours)) for colours in palettes()]
    shared = [len(one & two) / len(one) for i, one in enumerate(codes) for two in codes[:i]]
    assert max(shared) < 0.8


def test_a_training_picture_never_holds_a_character():
    rng = Random(11)
    scenes = [sample(rng) for _ in range(2000)]
    assert {thing.name for scene in scenes for thing in scene.things} == set(OBJECTS)


def test_every_style_is_seen_often_and_changes_the_picture():
    rng = Random(13)
    styles = [sample(rng).style for _ in range(2000)]
    for style in STYLES:
        assert 0.1 < styles.count(style) / len(styles) < 0.2
        changed = draw(replace(BUSY, style=style), SIZES[0]) != draw(BUSY, SIZES[0])
        assert changed.any(-1).mean() > 0.15


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_a_postcard_has_a_white_frame_that_hides_no_edge_of_a_thing(size):
    plain = Scene(style="postcard", terrain="city")
    for place in PLACES:
        scene = replace(plain, things=(Thing(name="castle", paint="red", place=place),))
        pixels = draw(scene, size)
        white = (pixels == palette("noon")["white"]).all(-1)
        assert white[:CELL].all() and white[-CELL:].all() and white[:, :CELL].all() and white[:, -CELL:].all()
        changed = (pixels != draw(plain, size)).any(-1)
        assert np.count_nonzero(changed.any(0)) == len(SPRITES["castle"][0])


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
        if scene.style:
            assert any(words in text for words in STYLE_WORDS[scene.style])


def test_the_same_scene_is_told_in_many_ways():
    rng = Random(9)
    assert len({caption(BUSY, rng) for _ in range(100)}) > 90


def test_a_caption_names_a_stranger_now_and_then():
    rng = Random(15)
    names = {name for names in STRANGERS.values() for name in names}
    texts = [caption(sample(rng), rng) for _ in range(2000)]
    strange = [text for text in texts if names & set(text.replace(",", "").split())]
    assert 0.05 < len(strange) / len(texts) < 0.15
    assert any("aya on the right" in text for text in strange)


def test_negative_language_tells_only_what_the_picture_shows():
    rng = Random(17)
    lengths = []
    for _ in range(1000):
        scene = sample(rng)
        marker, bag = negative(scene, rng)[: len(NEGATIVE)], negative(scene, rng)[len(NEGATIVE) + 2 :]
        assert marker == NEGATIVE
        true = {*TIME_WORDS[scene.time], *TERRAIN_WORDS[scene.terrain], *WEATHER_WORDS[scene.weather]}
        true |= {word for thing in scene.things for word in THING_WORDS[thing.name]}
        true |= set(STYLE_WORDS.get(scene.style, ()))
        if scene.light:
            true |= set(MOON_WORDS if scene.time == "night" else SUN_WORDS)
        if scene.stars:
            true |= set(STAR_WORDS)
        told = bag.split(", ") if bag else []
        assert set(told) <= true
        lengths.append(len(told))
    assert set(lengths) == {0, 1, 2, 3, 4}


def test_the_closed_vocabulary_has_what_prompts_need():
    known = set(words())
    assert {*CHARACTERS, *OBJECTS, *TIMES, *TERRAINS, "fog", "hill", "moon", "stars", "left", "right"} <= known
    assert {*STYLES, "synthwave", "framed", "lowres", "blurry"} <= known
