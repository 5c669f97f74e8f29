"""What the catalogue adds to a prompt: nothing that the prompt says, and nothing that it does not bear."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core.catalog import Aspect, Phrase, load
from gateway.errors import CatalogError
from gateway.llm.templates import Templates
from handler.builtin import captions
from handler.builtin.world import sample

pytestmark = pytest.mark.anyio

SHIPPED = load().optimize
DAY = {"noon", "dawn", "sunset"}
#: By what is in a scene: the words that tell it, whole, as the built-in model's captions have them.
TOLD = {
    **{time: set(words) for time, words in captions.TIME_WORDS.items()},
    **{weather: set(words) for weather, words in captions.WEATHER_WORDS.items()},
    **{place: set(words) for place, words in captions.TERRAIN_WORDS.items()},
    "sun": set(captions.SUN_WORDS),
    "moon": set(captions.MOON_WORDS),
    "stars": set(captions.STAR_WORDS),
}
GROUPS = [captions.TIME_WORDS, captions.WEATHER_WORDS, captions.TERRAIN_WORDS]
PHRASES = [phrase.text for aspect in SHIPPED.values() for phrase in aspect.add]
CAPTION_WORDS = captions.words()


async def enhanced(text, aspects=SHIPPED, *, style="", character=""):
    return await Templates(aspects).enhance(text, model="Eros", style=style, character=character)


def told(text):
    """What a text tells of time, weather, place and lights."""
    padded = f" {text.replace(',', ' ')} "
    return {name for name, words in TOLD.items() if any(f" {word} " in padded for word in words)}


async def test_every_aspect_that_a_prompt_leaves_open_gets_one_phrase():
    text = await enhanced("a red house")
    assert text.startswith("a red house, ")
    added = text.split(", ")[1:]
    assert all(part in PHRASES for part in added) and len(added) == len(set(added)) >= 3
    assert len(told(text) & DAY | told(text) & {"night"}) == 1


async def test_the_same_prompt_always_gets_the_same():
    assert await enhanced("a red house") == "a red house, at sunset, with clouds, by the sea, with a sun"
    assert len({await enhanced(f"house {number}") for number in range(40)}) > 10


async def test_a_prompt_that_says_all_is_left_as_it_is():
    for text in (
        "a fox on a hill at night, clear sky, moon",
        "NOON, Clouds, the City, sun",
        "in the rain at noon, city",
    ):
        assert await enhanced(text) == text


@pytest.mark.parametrize(
    ("text", "never"),
    [
        ("a fox at night", {"sun", *DAY}),
        ("a fox under the moon", {"sun", *DAY}),
        ("a starry sky", {"sun", "rain", "snow", "fog", "cloudy", *DAY}),
        ("a sunny day", {"night", "moon", "stars", "snow", "fog", "rain", "cloudy"}),
        ("a house, fog", {"sun", "moon", "stars", "clear", "snow", "cloudy"}),
        ("a boat", {"hills", "mountains", "forest", "city", "desert"}),
        ("on bed, warm lighting", {"fog", "snow", "rain", "cloudy", "clear", "sea", "city", "sun", "moon", "stars"}),
        ("desert dunes", {"snow", "sea", "forest"}),
    ],
)
async def test_nothing_is_added_that_the_prompt_does_not_bear(text, never):
    for number in range(60):
        said = f"{text}, {number}"
        assert not told((await enhanced(said)).removeprefix(said)) & never


async def test_the_labels_of_style_and_character_count_as_said():
    for number in range(60):
        assert not told(await enhanced(f"house {number}", style="Golden hour")) & {"noon", "dawn", "night"}
        assert not told(await enhanced(f"house {number}", style="Winter")) & {"fog", "clear", "cloudy", "sun"}
        assert not told(await enhanced(f"{number}", character="The owl of the night")) & DAY


async def test_a_character_alone_gets_a_scene():
    scenes = {await enhanced("", character=name) for name in ("Aya, the fox", "Bella, the owl")}
    assert len(scenes) == 2 and all(len(scene.split(", ")) >= 3 for scene in scenes)


@pytest.mark.parametrize("text", ["城の夜", "ночь над городом", "ليل", "night, 夜"])
async def test_a_text_in_another_script_is_left_as_it_is(text):
    assert await enhanced(text) == text


async def test_a_catalogue_without_aspects_adds_nothing():
    assert await enhanced("a red house", {}) == "a red house"


async def test_a_phrase_is_added_where_its_conditions_are_met():
    aspect = Aspect(add=(Phrase(text="stars", needs=("night",), unless=("fog",)),))
    assert await enhanced("a night", {"light": aspect}) == "a night, stars"
    assert await enhanced("a knight", {"light": aspect}) == "a knight"
    assert await enhanced("a night, fog", {"light": aspect}) == "a night, fog"
    assert await enhanced("a night, foggy", {"light": aspect}) == "a night, foggy, stars"


def test_the_shipped_phrases_are_words_that_the_built_in_model_knows():
    assert {word for phrase in PHRASES for word in phrase.split()} <= set(CAPTION_WORDS)


CATALOG = """version = 1
[models.first]
label = "First"
worker = "builtin"

[optimize.time]
said = ["day"]
add = ["at noon", { text = "at night", unless = ["sun"] }]
"""


def test_aspects_come_from_the_file_in_its_order(tmp_path):
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG + '[optimize.again]\nadd = ["clear sky"]\n', encoding="utf-8")
    read = load(path).optimize
    assert list(read) == ["time", "again"] and read["again"].said == ()
    assert read["time"].add == (Phrase(text="at noon"), Phrase(text="at night", unless=("sun",)))


@pytest.mark.parametrize(
    ("good", "bad", "says"),
    [
        pytest.param('"at noon"', '"@aya at noon"', ":8: optimize.time.add.0.text: must be plain words", id="name"),
        pytest.param(
            '"at noon"', '"at noon, -fog"', ":8: optimize.time.add.0.text: must be plain words", id="negative"
        ),
        pytest.param('"at noon"', '""', ":8: optimize.time.add.0.text: must be plain words", id="empty"),
        pytest.param('"at noon"', "5", ":8: optimize.time.add.0: ", id="number"),
        pytest.param('"day"', '" day"', ":7: optimize.time.said.0: must be plain words", id="blank"),
        pytest.param('"day"', f'"{"d" * 201}"', ":7: optimize.time.said.0: ", id="too-long"),
        pytest.param("unless", "without", ":8: optimize.time.add.1.without: ", id="unknown-key"),
        pytest.param("add = [", "also = [", ":6: optimize.time.add: Field required", id="nothing-to-add"),
        pytest.param('add = ["at noon", { text = "at night", unless = ["sun"] }]', "add = []", ":8: ", id="empty-list"),
        pytest.param("optimize.time", "optimize.Time", ":6: optimize.Time: ", id="upper-case"),
    ],
)
def test_a_bad_aspect_is_told_with_its_line(tmp_path, good, bad, says):
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG.replace(good, bad), encoding="utf-8")
    with pytest.raises(CatalogError) as caught:
        load(path)
    assert f"catalog.toml{says}" in caught.value.message


async def test_captions_of_2000_scenes_are_never_contradicted_and_a_second_time_adds_nothing():
    rng, grown = random.Random(5), 0
    for _ in range(2000):
        text = captions.caption(sample(rng), rng)
        better = await enhanced(text)
        said, added = told(text), told(better.removeprefix(text))
        for group in GROUPS:
            assert len(added & set(group)) <= 1 and not (added & set(group) and said & set(group)), better
        everything = said | added
        assert not (added and {"night", "sun"} <= everything) or {"night", "sun"} <= said, better
        assert not added & {"moon", "stars"} or "night" in everything, better
        assert not ({"stars"} & added and {"cloudy", "fog", "rain", "snow"} & everything), better
        assert not ({"snow"} & added and {"desert", "sun"} & everything), better
        assert await enhanced(better) == better
        grown += better != text
    assert grown > 800


@given(st.lists(st.sampled_from([*CAPTION_WORDS, ","]), max_size=20).map(" ".join))
async def test_the_text_stays_at_the_front_and_a_second_time_adds_nothing(text):
    better = await enhanced(text)
    assert better.startswith(text)
    assert await enhanced(better) == better
