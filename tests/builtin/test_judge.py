"""The judge sees what was drawn, and sees what is wrong."""

from dataclasses import replace

import pytest

from handler.builtin.colours import TIMES
from handler.builtin.judge import exam, explicit, judge_of, marks
from handler.builtin.world import SIZES, WEATHERS, Scene, Thing, draw

SQUARE = (1024, 1024)
HOUSE = Thing(name="house", paint="blue", place="left")
SCENE = Scene(time="night", terrain="forest", light="right", stars=True, things=(HOUSE,))


@pytest.fixture(scope="module")
def judge():
    return judge_of(SQUARE)


def missed(judge, asked, shown):
    return {name for name, right in marks(asked, judge.look(draw(shown, SQUARE))).items() if not right}


def test_a_true_drawing_gets_every_mark(judge):
    assert missed(judge, SCENE, SCENE) == set()


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"time": "sunset", "stars": False}, "time"),
        ({"terrain": "sea"}, "terrain"),
        ({"weather": "rain"}, "weather"),
        ({"style": "neon"}, "style"),
        ({"style": "postcard"}, "style"),
        ({"light": "left"}, "light"),
        ({"light": ""}, "light"),
        ({"stars": False}, "stars"),
        ({"things": ()}, "one of each"),
        ({"things": (replace(HOUSE, place="right"),)}, "place"),
        ({"things": (replace(HOUSE, paint="red"),)}, "paint"),
        ({"things": (HOUSE, replace(HOUSE, place="right"))}, "one of each"),
        ({"things": (HOUSE, Thing(name="aya", place="right"))}, "nothing else"),
    ],
)
def test_a_wrong_drawing_loses_its_mark(judge, change, mark):
    assert {mark, "everything"} <= missed(judge, SCENE, replace(SCENE, **change))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_held_out_drawings_are_read_rightly_at_every_size(size):
    judge = judge_of(size)
    scenes = exam(12, size)
    right = [marks(scene, judge.look(draw(scene, size)))["everything"] for scene in scenes]
    assert sum(right) >= 11


def test_an_explicit_prompt_tells_everything():
    assert explicit(SCENE) == "blue house on the left, forest, night, clear sky, moon on the right, stars"
    assert explicit(replace(SCENE, style="neon")).endswith("stars, neon")


@pytest.mark.parametrize("style", ["neon", "postcard"])
def test_a_style_is_told_from_the_others_at_every_time_of_day(judge, style):
    for time in TIMES:
        for weather in WEATHERS:
            scene = replace(SCENE, time=time, stars=False, weather=weather, style=style)
            sight = judge.look(draw(scene, SQUARE))
            assert (sight.style, sight.time, sight.weather) == (style, time, weather)
