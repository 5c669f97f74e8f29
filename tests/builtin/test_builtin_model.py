"""The committed weights draw what they are told, at every size. These tests are red if the model broke.

Seeds are fixed and the counters are plain: shares of colours, patches of one colour, sprites found by their shape.
"""

import json
import warnings

import numpy as np
import pytest
import torch

from handler.builtin.judge import Judge, Table, exam, explicit, lights, marks, names_of, stars, things
from handler.builtin.studio import MODEL, Studio
from handler.builtin.world import SIZES, art_size

SQUARE = (1024, 1024)
SIZE_NAMES = [f"{width}x{height}" for width, height in SIZES]


@pytest.fixture(scope="module")
def studio():
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries announce their next versions
        return Studio()


@pytest.fixture(scope="module")
def draw(studio):
    def draw(prompt, size=SQUARE, seed=1, **wishes):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.asarray(next(studio.draw([prompt], size, [seed], **wishes)))

    return draw


def seen(pixels):
    return [(found.name, found.paint, found.place) for found in things(names_of(pixels)[1])]


def test_the_folder_is_standard_and_small():
    index = json.loads((MODEL / "model_index.json").read_text(encoding="utf-8"))
    assert index["_class_name"] == "StableDiffusionPipeline"
    sizes = [path.stat().st_size for path in MODEL.rglob("*") if path.is_file()]
    assert max(sizes) < 16_000_000
    assert sum(sizes) < 20_000_000


@pytest.mark.parametrize("size", SIZES, ids=SIZE_NAMES)
def test_aya_stands_on_a_hill_at_every_size(draw, size):
    pixels = draw("aya, on a hill", size, negative="fog")
    assert pixels.shape[1::-1] == art_size(size)
    assert seen(pixels) == [("aya", "", "center")]
    time, names = names_of(pixels)
    assert time == "noon"
    assert len(lights(names)) <= 1


@pytest.mark.parametrize("place", ["left", "right"])
def test_a_red_house_stands_on_the_side_that_was_asked(draw, place):
    pixels = draw(f"a red house on the {place}, hills, noon")
    assert seen(pixels) == [("house", "red", place)]
    red, green, blue = np.moveaxis(pixels.astype(int), -1, 0)
    columns = np.nonzero((red > 180) & (green < 80) & (blue < 90))[1]
    assert len(columns) > 40
    assert (columns.mean() < 32) == (place == "left")


def test_two_characters_change_places_with_the_words(draw):
    assert set(seen(draw("aya on the left, bella on the right"))) == {("aya", "", "left"), ("bella", "", "right")}
    assert set(seen(draw("bella on the left, aya on the right"))) == {("bella", "", "left"), ("aya", "", "right")}


def test_night_is_dark_and_noon_is_bright(draw):
    assert draw("hills at night").mean() + 80 < draw("hills at noon").mean()


@pytest.mark.parametrize("place", ["left", "right"])
def test_there_is_one_sun_where_it_was_asked(draw, place):
    assert lights(names_of(draw(f"hills, noon, sun on the {place}"))[1]) == (place,)


def test_a_negative_prompt_takes_the_moon_and_the_stars_away(draw):
    # A negative pushes and does not forbid (the model card counts it); this seed is one where it wins.
    asked = names_of(draw("hills at night, moon, stars"))[1]
    assert len(lights(asked)) == 1
    assert stars(asked) >= 2
    bare = names_of(draw("hills at night", seed=3, negative="moon, stars"))[1]
    assert lights(bare) == ()
    assert stars(bare) == 0


def test_the_same_seed_draws_the_same_picture_and_another_seed_another(draw):
    first = draw("a castle, mountains, sunset", seed=4, steps=6)
    assert (draw("a castle, mountains, sunset", seed=4, steps=6) == first).all()
    assert (draw("a castle, mountains, sunset", seed=5, steps=6) != first).any()


def test_unknown_words_do_not_disturb(draw):
    assert ("aya", "", "center") in seen(draw("masterpiece, aya, zxqv, best quality, hills"))


@pytest.mark.parametrize("size", [SQUARE, (1344, 768), (768, 1344)], ids=["square", "wide", "tall"])
def test_most_marks_are_earned_on_held_out_prompts(studio, size):
    judge, scenes, table = Judge(size, drawings=400), exam(6, size), Table()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pictures = list(studio.draw([explicit(scene) for scene in scenes], size, range(6), steps=8))
    for scene, picture in zip(scenes, pictures, strict=True):
        table.add("all", marks(scene, judge.look(np.asarray(picture))))
    assert np.mean(table.rows["all"]["time"]) == 1
    assert np.mean([right for column in table.rows["all"].values() for right in column]) > 0.85
