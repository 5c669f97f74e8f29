"""The labelled pairs with the real encoder: what the cache hands out at its default level and its default floor."""

from __future__ import annotations

import pytest

from bench import guard
from bench.guard import Judged, judged, precision, recall
from cache.minilm import MiniLM
from tests.cache.pairs import Pair


@pytest.fixture(scope="module")
def every(tmp_path_factory: pytest.TempPathFactory) -> list[Judged]:
    return judged(MiniLM.open(tmp_path_factory.mktemp("minilm")))


def hits(every, level, **wanted):
    return [each for each in every if each.hit(level) and all(getattr(each.pair, k) == v for k, v in wanted.items())]


def test_no_wrong_pair_is_a_hit_in_any_group(every):
    assert [(each.pair.group, each.pair.a, each.pair.b) for each in hits(every, "ordered", same=False)] == []
    assert precision(every, "ordered") == 1


def test_most_light_rewordings_are_hits(every):
    light = [each for each in every if each.pair.group == "light"]
    assert len(hits(light, "ordered")) >= 0.7 * len(light)


def test_the_floor_alone_hands_out_wrong_pictures(every):
    # What the guard is for: were the floor enough, it should go.
    assert precision(every, "off") < 0.5
    assert recall(every, "off") > recall(every, "ordered")


@pytest.mark.parametrize("half", ["before", "after"])
def test_each_level_is_more_exact_than_the_next_and_finds_less(every, half):
    of = [each for each in every if each.pair.half == half]
    assert precision(of, "ordered") > precision(of, "words") > precision(of, "off")
    assert 0 < recall(of, "ordered") < recall(of, "words") <= recall(of, "off")


def test_a_hit_is_above_the_floor_and_equal_in_form():
    pair = Pair(group="light", a="a", b="b", same=True, half="before")
    assert Judged(pair=pair, similarity=0.951, levels=frozenset({"off"})).hit("off")
    assert not Judged(pair=pair, similarity=0.95, levels=frozenset({"off"})).hit("off")
    assert not Judged(pair=pair, similarity=0.99, levels=frozenset({"off"})).hit("words")


def test_precision_is_of_the_hits_and_recall_of_the_right_pairs():
    def of(same: bool, similarity: float) -> Judged:
        pair = Pair(group="free", a="a", b="b", same=same, half="before")
        return Judged(pair=pair, similarity=similarity, levels=frozenset({"off"}))

    some = [of(True, 0.99), of(True, 0.9), of(True, 0.98), of(True, 0.2), of(False, 0.97), of(False, 0.1)]
    assert precision(some, "off") == pytest.approx(2 / 3)
    assert recall(some, "off") == pytest.approx(2 / 4)
    assert precision(some, "ordered") == 1
    assert recall(some, "ordered") == 0


def test_the_table_has_a_row_for_each_group_and_each_measure(tmp_path, capsys):
    guard.run(tmp_path)
    rows = {
        line.split("|")[1].strip(): line.split("|")[2:-1]
        for line in capsys.readouterr().out.splitlines()
        if "|" in line
    }
    assert all(len(cells) == 5 for cells in rows.values())
    for group in (
        "colour",
        "number",
        "negation",
        "subject",
        "order",
        "binding",
        "attribute",
        "style",
        "long",
        "addition",
    ):
        assert [cell.strip() for cell in (rows[group][0], rows[group][2])] == ["no", "0 / 0"]
    for half in ("before", "after", "both"):
        assert rows[f"**precision**, {half}"][2].strip() == "100.0%"
        assert rows[f"**recall**, {half}"][2].strip().endswith("%")
