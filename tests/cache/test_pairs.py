"""The labelled pairs themselves: well-formed, each there once, labelled as their group says, enough of every group."""

from collections import Counter

import pytest

from tests.cache.pairs import pairs

#: How many pairs of each group each half has at the least.
LEAST = {
    "light": 60, "free": 25, "typo": 15, "colour": 12, "number": 12, "negation": 20, "subject": 12, "order": 20,
    "binding": 20, "attribute": 12, "style": 12, "long": 20, "addition": 12,
}  # fmt: skip
SAME = {"light", "free", "typo"}
PAIRS = pairs()
IDS = [f"{n}-{pair.half}-{pair.group}" for n, pair in enumerate(PAIRS)]


def sides(pair):
    return (pair.a, pair.a_negatives), (pair.b, pair.b_negatives)


# In one go each: a test for each pair made a quarter of all tests, and twenty seconds of nothing but their starts.


def test_every_pair_is_well_formed():
    for name, pair in zip(IDS, PAIRS, strict=True):
        assert pair.half in {"before", "after"}, name
        assert isinstance(pair.same, bool), name
        for text in (pair.a, pair.b, *pair.a_negatives, *pair.b_negatives):
            assert isinstance(text, str), name
            assert text and text == " ".join(text.split()), name
        for a_or_b in sides(pair):
            assert not a_or_b[0].startswith("-") and not any(each.startswith("-") for each in a_or_b[1]), name
            assert len(set(a_or_b[1])) == len(a_or_b[1]), name


def test_the_two_sides_of_every_pair_differ():
    assert [name for name, (a, b) in zip(IDS, map(sides, PAIRS), strict=True) if a == b] == []


def test_every_label_agrees_with_its_group():
    assert {pair.group for pair in PAIRS} <= LEAST.keys()
    assert [name for name, pair in zip(IDS, PAIRS, strict=True) if pair.same != (pair.group in SAME)] == []


def test_no_pair_is_there_twice_nor_swapped():
    times = Counter(frozenset(sides(pair)) for pair in PAIRS)
    assert not [each for each, count in times.items() if count > 1]


@pytest.mark.parametrize("half", ["before", "after"])
@pytest.mark.parametrize(("group", "least"), LEAST.items())
def test_each_half_has_enough_of_a_group(group, least, half):
    assert sum(pair.group == group for pair in PAIRS if pair.half == half) >= least


def test_half_of_the_pairs_were_written_before_the_guard_and_half_after():
    written = Counter(pair.half for pair in PAIRS)
    assert written["before"] >= 170
    assert written["after"] >= 170


@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair.group == "long"], ids=lambda pair: pair.a[:40])
def test_a_long_pair_differs_in_one_word(pair):
    a, b = pair.a.split(), pair.b.split()
    assert 25 <= len(a) <= 45 and len(a) == len(b)
    changed = [(x, y) for x, y in zip(a, b, strict=True) if x != y and {x, y} != {"a", "an"}]
    assert len(changed) == 1
