"""What the cache would hand out, over the labelled pairs: at each level of its guard and with the floor alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cache.encoder import Encoder
from cache.guard import LEVELS, form
from cache.minilm import MiniLM
from tests.cache.pairs import Pair, pairs

#: The similarity that a hit must exceed.
FLOOR = 0.95


@dataclass(frozen=True, kw_only=True, slots=True)
class Judged:
    """A labelled pair, the cosine similarity of its positive words, and the levels whose forms are equal."""

    pair: Pair
    similarity: float
    levels: frozenset[str]

    def hit(self, level: str) -> bool:
        return self.similarity > FLOOR and level in self.levels


def judged(encoder: Encoder) -> list[Judged]:
    return [_judge(encoder, pair) for pair in pairs()]


def _judge(encoder: Encoder, pair: Pair) -> Judged:
    return Judged(
        pair=pair,
        similarity=float(encoder.encode(pair.a) @ encoder.encode(pair.b)),
        levels=frozenset(
            level for level in LEVELS if form(pair.a, pair.a_negatives, level) == form(pair.b, pair.b_negatives, level)
        ),
    )


def precision(of: Sequence[Judged], level: str) -> float:
    """How many of the hits are right; 1 where there are none."""
    hits = [each for each in of if each.hit(level)]
    return sum(each.pair.same for each in hits) / len(hits) if hits else 1.0


def recall(of: Sequence[Judged], level: str) -> float:
    """How many of the pairs that one picture serves are hits."""
    same = [each for each in of if each.pair.same]
    return sum(each.hit(level) for each in same) / len(same)


def run(folder: Path) -> None:
    """Prints the tables; MiniLM's graph is made in the folder."""
    every = judged(MiniLM.open(folder))
    halves = {half: [each for each in every if each.pair.half == half] for half in ("before", "after")}
    print(f"hits at a similarity above {FLOOR}, of pairs written before the guard / after it and against it\n")
    _row("group", "one picture serves both", "pairs", *LEVELS[:-1], f"{LEVELS[-1]}: the floor alone")
    _row("---", "---", *["---:"] * (1 + len(LEVELS)))
    for group, same in {each.pair.group: each.pair.same for each in every}.items():
        of = [[each for each in half if each.pair.group == group] for half in halves.values()]
        hits = (" / ".join(str(sum(each.hit(level) for each in half)) for half in of) for level in LEVELS)
        _row(group, "yes" if same else "no", " / ".join(str(len(half)) for half in of), *hits)
    for name, measure in (("precision", precision), ("recall", recall)):
        for half, these in {**halves, "both": every}.items():
            shares = (f"{measure(these, level):.1%}" for level in LEVELS)
            _row(f"**{name}**, {half}", "", str(len(these)), *shares)


def _row(*cells: str) -> None:
    print(f"| {' | '.join(cells)} |")
