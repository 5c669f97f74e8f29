"""No trick, and no tricks on top of each other, make a blocked phrase pass."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance.rules import PromptGate
from tests.compliance.words.labelled import REFUSED, cases
from tests.compliance.words.tricks import DOUBLES, LEET, TRICKS, can_be_joined

GATE = PromptGate.built_in()
BLOCKED = [case.text for case in cases() if case.kind == "plain" and case.labels & REFUSED]
# The tricks are about letters of ours.
LATIN = [text for text in BLOCKED if all(ord(c) < 0x250 for c in text)]
JOINED = [text for text in LATIN if can_be_joined(text)]
ORDERLY = [name for name in TRICKS if name != "joined words"]
LOOKS = ["confusables", "zero-width", "combining marks", "casing", "full-width"]
EVERYWHERE = ["zero-width", "combining marks", "casing"]


def refused(text):
    return any(found.category in REFUSED for found in GATE.check(text))


def hidden(text, names, seed):
    chance = random.Random(seed)
    for name in names:
        text = TRICKS[name](text, chance)
    return text


def test_there_is_enough_to_hide():
    assert len(LATIN) > 70
    assert len(JOINED) > 20
    assert len(BLOCKED) - len(LATIN) > 15


@pytest.mark.parametrize("name", ORDERLY)
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(LATIN), st.integers(0, 2**32))
def test_one_trick_hides_nothing(name, text, seed):
    assert refused(hidden(text, [name], seed))


@settings(max_examples=600, deadline=None)
@given(st.sampled_from(LATIN), st.lists(st.sampled_from(ORDERLY), min_size=2, max_size=5, unique=True), st.integers())
def test_tricks_on_top_of_each_other_hide_nothing(text, names, seed):
    assert refused(hidden(text, names, seed))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(JOINED), st.lists(st.sampled_from(ORDERLY), max_size=4, unique=True), st.integers())
def test_words_written_together_hide_nothing_with_other_tricks_either(text, names, seed):
    assert refused(hidden(text, ["joined words", *names], seed))


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(BLOCKED), st.lists(st.sampled_from(EVERYWHERE), min_size=1, unique=True), st.integers())
def test_marks_and_invisible_characters_hide_nothing_in_any_script(text, names, seed):
    assert refused(hidden(text, names, seed))


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(LATIN),
    st.lists(st.sampled_from(ORDERLY), max_size=3, unique=True),
    st.integers(),
    st.sampled_from(["a hill, ", "best quality, 8k, (", "1girl,solo,", "<lora:ink:0.8> "]),
    st.sampled_from([", watercolor", ":1.2), bokeh", " at dawn", "!!", "..."]),
)
def test_what_stands_around_it_hides_nothing(text, names, seed, before, after):
    assert refused(before + hidden(text, names, seed) + after)


@pytest.mark.parametrize("letter", [*DOUBLES])
def test_every_double_of_a_letter_is_that_letter(letter):
    words = [text for text in LATIN if letter in text]
    for text in words:
        for double in DOUBLES[letter]:
            assert refused(text.replace(letter, double)), (text, double)


@pytest.mark.parametrize("letter", [*LEET])
def test_every_sign_for_a_letter_is_that_letter(letter):
    for text in LATIN:
        for sign in LEET[letter]:
            assert refused(text.replace(letter, sign)), (text, sign)


@pytest.mark.parametrize("times", [2, 3, 4, 9, 60])
def test_a_letter_may_be_written_as_often_as_one_likes(times):
    assert refused(f"n{'u' * times}de {'c' * times}hild")
    assert refused(f"naked ki{'d' * times}")


@pytest.mark.parametrize(
    "word", ["kidney", "minority", "grape", "sextant", "Essex", "cumulus", "analysis", "brasserie"]
)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(LOOKS), max_size=4, unique=True), st.integers())
def test_a_harmless_word_stays_harmless_however_its_letters_look(word, names, seed):
    assert not refused(hidden(f"a child, {word}", names, seed))
