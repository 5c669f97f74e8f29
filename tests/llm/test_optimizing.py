"""What is taken from an optimizer's answer, whatever that is, and that the caller's own words are all still there."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import prompts
from gateway.core.optimizing import MOST, WHOLE, Optimizing
from gateway.errors import EnhancementFailed

pytestmark = pytest.mark.anyio

ANY_TEXT = st.text(st.characters(), max_size=300)
PIECES = st.lists(
    st.sampled_from(
        ["@aya", "@bella", "@", "-fog", "- fog", "-", ",", " ", "a hill", "fog", "close-up", "a@b.c", "-5", "é", "\n"]
    ),
    max_size=30,
).map("".join)
WRAPPED = st.tuples(
    st.sampled_from(["", "Prompt: ", '"', "```\n", "<think>x</think>", "**Enhanced prompt:** ", "“"]),
    PIECES,
    st.sampled_from(["", '"', "\n```", "”"]),
).map("".join)
ANSWERS = (
    ANY_TEXT | PIECES | WRAPPED | st.sampled_from(["@bella", "-fog", "a hill, " * 1000, "x" * 9000, "word " * 4000])
)


class Parrot:
    """Answers what it was told to, and notes what it was asked."""

    name = "parrot"

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    async def enhance(self, text, *, model, style, character):
        self.asked.append((text, model, style, character))
        return self.answer


async def optimized(prompt, answer, *, character="", **limits):
    """The prompt as it comes out, and what the optimizer was asked."""
    parrot, parsed = Parrot(answer), prompts.parse(prompt)
    better = await Optimizing(parrot, **limits).optimize(
        parsed, model_label="Eros", style_label="Winter", character_label=character
    )
    return prompts.render(better), parrot.asked


async def taken(answer, prompt="a hill"):
    return (await optimized(prompt, answer))[0]


async def test_the_optimizer_gets_the_positive_text_and_labels_and_neither_names_nor_negatives():
    prompt, asked = await optimized("@aya on a hill, -fog, -red dress", "a green hill", character="Aya, the fox")
    assert asked == [("on a hill", "Eros", "Winter", "Aya, the fox")]
    assert prompt == "@aya a green hill, -fog, -red dress"


@pytest.mark.parametrize(
    "answer",
    [
        "a green hill, at noon",
        " a green hill,\n at noon \n",
        '"a green hill, at noon"',
        "“a green hill, at noon”",
        "**a green hill, at noon**",
        "Prompt: a green hill, at noon",
        'Enhanced prompt: "a green hill, at noon"',
        '"Prompt: a green hill, at noon"',
        "**Improved Prompt:** a green hill, at noon",
        "Sure! Here is your improved prompt:\n\na green hill, at noon",
        "Here's the enhanced prompt: a green hill, at noon",
        "```\na green hill, at noon\n```",
        "```text\na green hill, at noon\n```",
        "```a green hill, at noon```",
        "Here it is:\n```\nprompt: a green hill, at noon\n```\nEnjoy.",
        "<think>The user wants @bella, so</think>\na green hill, at noon",
        "a green hill,, at noon,",
        "@bella a green hill, at noon, -fog",
        "a green hill, -fog, at noon @nobody, -x",
        "a green\u0000 hill, at\u001b noon",
    ],
)
async def test_what_stands_around_an_answer_is_taken_off(answer):
    assert await taken(answer) == "a green hill, at noon"


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "  \n",
        "a hill",
        '"a hill"',
        "@bella",
        "-fog",
        "@bella, -fog",
        ",,",
        "<think>a hill is",
        "<think>x</think>",
        '""',
    ],
)
async def test_an_answer_that_says_nothing_more_leaves_the_prompt_as_it_is(answer):
    parsed = prompts.parse("@aya a hill, -fog")
    again = await Optimizing(Parrot(answer)).optimize(parsed, model_label="", style_label="", character_label="")
    assert again is parsed


@pytest.mark.parametrize(
    "answer",
    ['"red" and "blue"', "a sign that says prompt: go", "a close-up of a - dash", "rock 'n' roll, 5 o'clock", "a@b.c"],
)
async def test_what_belongs_to_an_answer_is_kept(answer):
    assert await taken(answer) == answer


async def test_a_long_answer_is_cut_at_a_comma():
    prompt = await taken("a green hill at noon, " * 1000)
    assert MOST - 50 < len(prompt) <= MOST and prompt.endswith("a green hill at noon")


async def test_a_long_answer_without_commas_is_cut_at_a_word_and_one_without_words_is_not_used():
    prompt = await taken("hills, " + "word " * 4000)
    assert MOST - 50 < len(prompt) <= MOST and prompt.endswith(" word")
    assert await taken("x" * 9000) == "a hill"


async def test_names_and_negatives_count_for_the_limit_of_the_whole_prompt():
    terms = ", ".join(["-fog"] * 600)
    prompt, asked = await optimized(f"@aya a hill, {terms}", "a green hill, " * 200)
    assert asked and len(prompt) <= WHOLE
    assert prompts.parse(prompt).negatives == ("fog",) * 600


@pytest.mark.parametrize(
    "prompt", ["x" * MOST, "a," * 1999, "a hill, " + "-a," * 1300], ids=["text", "commas", "terms"]
)
async def test_a_prompt_that_leaves_no_room_is_not_sent(prompt):
    parsed = prompts.parse(prompt)
    parrot = Parrot("a green hill")
    assert (
        await Optimizing(parrot).optimize(parsed, model_label="", style_label="", character_label="A") is parsed
        and parrot.asked == []
    )


async def test_a_character_alone_is_enhanced_by_its_label():
    assert await optimized("@aya, -fog", "on a hill", character="Aya, the fox") == (
        "@aya on a hill, -fog",
        [("", "Eros", "Winter", "Aya, the fox")],
    )


async def test_neither_text_nor_character_is_nothing_to_enhance():
    assert await optimized("@nobody, -fog", "on a hill") == ("@nobody -fog", [])


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        pytest.param("a hill, at night, moon", "a hill, -night, -red dress", id="and-what-builds-on-it"),
        pytest.param("a hill, at noon, Night sky", "a hill, at noon, -night, -red dress", id="case"),
        pytest.param("a hill, a fox in a red dress", "a hill, -night, -red dress", id="words-inside"),
        pytest.param("a hill by night, clear sky", "a hill, -night, -red dress", id="reworded"),
        pytest.param("a hill, a nightingale", "a hill, a nightingale, -night, -red dress", id="whole-words"),
    ],
)
async def test_nothing_is_added_that_the_caller_wants_left_out(answer, prompt):
    assert await taken(answer, "a hill, -night, -red dress") == prompt


async def test_what_the_caller_says_both_ways_stays_as_it_is():
    assert await taken("fog, a hill, at noon", "fog, a hill, -fog") == "fog, a hill, at noon, -fog"


async def test_a_failure_is_the_callers_to_handle():
    class Broken(Parrot):
        async def enhance(self, text, *, model, style, character):
            raise EnhancementFailed

    with pytest.raises(EnhancementFailed):
        await Optimizing(Broken("")).optimize(
            prompts.parse("a hill"), model_label="", style_label="", character_label=""
        )


@given(ANY_TEXT | PIECES, ANSWERS)
async def test_whatever_is_answered_names_and_negatives_are_the_callers(prompt, answer):
    parsed = prompts.parse(prompt)
    better, asked = await optimized(prompt, answer, character="Aya")
    again = prompts.parse(better)
    assert (again.names, again.negatives) == (parsed.names, parsed.negatives)
    assert all("@" + name not in text.split() for text, *_ in asked for name in parsed.names)
    assert again.positive or not parsed.positive
    if again.positive != parsed.positive:
        assert len(better) <= WHOLE and len(again.positive) <= MOST


@given(PIECES, ANSWERS, st.integers(5, 60), st.integers(10, 80))
async def test_the_limits_hold_whatever_they_are(prompt, answer, most, whole):
    parsed = prompts.parse(prompt)
    better, _ = await optimized(prompt, answer, character="Aya", most=most, whole=whole)
    again = prompts.parse(better)
    assert (again.names, again.negatives) == (parsed.names, parsed.negatives)
    if again.positive != parsed.positive:
        assert len(better) <= whole and len(again.positive) <= most
