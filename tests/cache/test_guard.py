"""The guard of the cache against the labelled pairs, and what its forms are for any text at all."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cache.guard import LEVELS, VERSION, form
from tests.cache.pairs import Pair, pairs

PAIRS = pairs()
WRONG = [pair for pair in PAIRS if not pair.same]
HALVES = ("before", "after")
#: Of the wrong pairs of a group, the share that `words` refuses at the least: what it lists, in whatever order, and no
#: more. It sees no "-less" nor "un-", no plural, no mark, and not which of two things a colour or a "no" belongs to.
REFUSED_BY_WORDS = {"colour": 0.85, "number": 0.7, "negation": 0.6}

texts = st.text(max_size=120) | st.text(
    st.sampled_from("aAb1 ,.;:-'\"()&|!?_²é’“猫🦊\u200d\u0301\ud800\n"), max_size=60
)
terms = st.lists(texts, max_size=4)
levels = st.sampled_from(LEVELS)
plain_words = st.lists(
    st.sampled_from("fox heron bridge red three no harbour night rain art light oil golden and with".split()),
    min_size=1,
    max_size=8,
)


def passes(pair: Pair, level: str) -> bool:
    return form(pair.a, pair.a_negatives, level) == form(pair.b, pair.b_negatives, level)


@pytest.mark.parametrize("pair", WRONG, ids=[f"{n}-{pair.half}-{pair.group}" for n, pair in enumerate(WRONG)])
def test_the_default_level_passes_no_wrong_pair(pair):
    assert not passes(pair, "ordered")


@pytest.mark.parametrize("half", HALVES)
def test_the_default_level_passes_most_light_rewordings(half):
    light = [pair for pair in PAIRS if pair.half == half and pair.group == "light"]
    assert sum(passes(pair, "ordered") for pair in light) >= 0.75 * len(light)


@pytest.mark.parametrize("half", HALVES)
def test_what_the_default_level_passes_the_others_pass_too(half):
    for pair in (pair for pair in PAIRS if pair.half == half and passes(pair, "ordered")):
        assert passes(pair, "words")
        assert passes(pair, "off")


@pytest.mark.parametrize(("group", "least"), REFUSED_BY_WORDS.items())
def test_words_refuses_what_it_lists(group, least):
    wrong = [pair for pair in PAIRS if pair.group == group]
    assert sum(not passes(pair, "words") for pair in wrong) >= least * len(wrong)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a red door", "a green door"),
        ("a light blue door", "a light green door"),
        ("two geese on a pond", "three geese on a pond"),
        ("21 geese on a pond", "22 geese on a pond"),
        ("2girls, rain", "3girls, rain"),
        ("twenty-one geese", "twenty geese"),
        ("a seven-string guitar", "a six-string guitar"),
        ("a pond with geese", "a pond without geese"),
        ("geese, no snow", "geese, snow"),
        ("a lamp on the left", "a lamp on the right"),
        ("a tram below a bridge", "a tram above a bridge"),
        ("a man at a loom", "a woman at a loom"),
        ("1boy, loom", "1girl, loom"),
        ("her loom", "his loom"),
    ],
)
def test_words_keeps_colours_counts_negations_sides_and_genders(a, b):
    assert form(a, (), "words") != form(b, (), "words")
    assert form(a, (), "ordered") != form(b, (), "ordered")


def test_words_leaves_the_order_alone():
    assert form("a red fox and a black heron", (), "words") == form("a black fox and a red heron", (), "words")


@pytest.mark.parametrize("level", ["ordered", "words"])
def test_the_terms_to_leave_out_must_agree(level):
    assert form("a pond", ("geese",), level) != form("a pond", (), level)
    assert form("a pond", ("geese",), level) != form("a pond", ("ducks",), level)
    assert form("a pond", ("blue hat", "red coat"), level) != form("a pond", ("red hat", "blue coat"), level)
    assert form("a pond", ("geese",), level) != form("a pond, geese", (), level)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("a fox under a bridge, golden hour", "golden hour, a fox under a bridge"),
        ("an image of a fox", "Fox."),
        ("blue_eyes, long_hair", "blue eyes, long hair"),
        ("five geese & a fox", "5 geese and a fox"),
        ("a fox at dusk", "At dusk, a fox"),
        ("a red house on a hill, soft light", "soft light, a Red house on the hill"),
        ("1girl, silver hair, blue eyes, attic", "1girl, blue eyes, silver hair, attic"),
        ("the fox’s den", "the fox's den"),
        ("a fox | a den | night", "a fox, a den, night"),
    ],
)
def test_what_makes_no_difference_is_left_out(a, b):
    assert form(a, (), "ordered") == form(b, (), "ordered")


@given(texts, terms, levels)
def test_any_text_has_one_form(text, negatives, level):
    assert form(text, negatives, level) == form(text, list(negatives), level)


@given(texts, terms, texts, terms)
def test_off_tells_nothing_apart(a, a_negatives, b, b_negatives):
    assert form(a, a_negatives, "off") == form(b, b_negatives, "off")


@given(texts, terms.flatmap(lambda each: st.tuples(st.just(each), st.permutations(each))), levels)
def test_the_order_of_the_terms_makes_no_difference(text, both, level):
    one, other = both
    assert form(text, one, level) == form(text, other, level)


@given(plain_words, st.sampled_from([", ", " ", "; "]), levels)
def test_case_and_blanks_make_no_difference(words, between, level):
    text = between.join(words)
    assert form(f"  {between.join(words).replace(' ', '   ').upper()}\t", (), level) == form(text, (), level)


@given(st.lists(st.sampled_from(["fox", "heron", "bridge", "kiln", "loom"]), min_size=2, max_size=6), st.data())
def test_two_things_that_change_places_make_another_form(things, data):
    n = data.draw(st.integers(0, len(things) - 2))
    swapped = [*things[:n], things[n + 1], things[n], *things[n + 2 :]]
    for between in (" ", ", ", " beside a "):
        same = form(between.join(things), (), "ordered") == form(between.join(swapped), (), "ordered")
        assert same == (things == swapped)


@given(
    st.text(st.sampled_from("🦊🐺🌙👩🚀→猫犬狐雪夜ねこ\u200d"), min_size=1, max_size=8),
    st.text(st.sampled_from("🦊🐺🌙👩🚀→猫犬狐雪夜ねこ\u200d"), min_size=1, max_size=8),
)
def test_emoji_and_characters_that_differ_make_forms_that_differ(a, b):
    assert (form(a, (), "ordered") == form(b, (), "ordered")) == (a == b)
    assert (form(f"a {a} on a wall", (), "ordered") == form(f"a {b} on a wall", (), "ordered")) == (a == b)


@given(st.lists(st.sampled_from(["left", "right", "above", "below", "behind", "before"]), min_size=2, unique=True))
def test_places_that_differ_make_forms_that_differ(places):
    for level in ("ordered", "words"):
        forms = [form(f"a fox {place} a heron", (), level) for place in places]
        assert all(one != other for one, other in pairwise(forms))
        assert len(set(forms)) == len(places)


@given(texts)
def test_a_form_says_which_version_of_the_words_made_it(text):
    assert form(text, (), "ordered").startswith(f"{VERSION}:")
    assert form(text, (), "words").startswith(f"{VERSION}:")
