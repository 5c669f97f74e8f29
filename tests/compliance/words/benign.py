"""Ordinary prompts, made from a seed: what people ask for, with words that lie near the listed ones.

`KINDS` maps a name to something that gives one prompt from a source of chance; another builder of prompts, such as the
one behind a random button, joins by an entry there.
"""

from __future__ import annotations

import random
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

from gateway.core.catalog import load
from gateway.core.images import SEEDS
from gateway.core.prompts import parse
from gateway.core.random_prompts import RandomPrompts

Kind = Callable[[random.Random], str]

_WORDS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
_TONGUES: dict[str, dict[str, list[str]]] = _WORDS["tongues"]


def person(chance: random.Random) -> str:
    parts = [
        f"{_article(_one('people', chance))} {_one('doing', chance)}",
        _one("places", chance),
        _one("styles", chance),
    ]
    return ", ".join(parts[: chance.randint(1, 3)] + _tags(chance))


def thing(chance: random.Random) -> str:
    return ", ".join(
        [_one("things", chance), *chance.sample([_one("places", chance), _one("styles", chance)], 1), *_tags(chance)]
    )


def craft(chance: random.Random) -> str:
    return ", ".join([_one("art", chance), _one("styles", chance), *_tags(chance)])


def crowded(chance: random.Random) -> str:
    """Several things and people in one prompt: words of different phrases come close to each other."""
    parts = [
        _one("people", chance),
        _one("things", chance),
        _one("art", chance),
        _one("doing", chance),
        _one("places", chance),
    ]
    chance.shuffle(parts)
    return ", ".join(parts[: chance.randint(3, 5)])


def character(chance: random.Random) -> str:
    name = chance.choice(["@aya", "@bella"])
    without = chance.choice(["fog", "people", "text", "child", "cars"])
    return f"{name} {_one('doing', chance)}, {_one('places', chance)}, -{without}"


def _tongue(language: str) -> Kind:
    def prompt(chance: random.Random) -> str:
        words = _TONGUES[language]
        who, doing, where, style = (chance.choice(words[part]) for part in ("who", "doing", "where", "style"))
        gap = "" if language in ("ja", "zh") else " "
        return (
            f"{where}{gap}{who}{gap}{doing}, {style}"
            if language in ("ja", "zh", "ko")
            else f"{who} {doing} {where}, {style}"
        )

    return prompt


_RANDOM = RandomPrompts(load())


def random_button(chance: random.Random) -> str:
    """What the action `random` answers, without the name of a character."""
    return parse(_RANDOM.draw(seed=chance.randrange(SEEDS)).prompt).positive


KINDS: dict[str, Kind] = {
    "people": person,
    "things": thing,
    "art, medicine, fashion, food": craft,
    "several at once": crowded,
    "characters": character,
    "the random button": random_button,
    **{f"people ({language})": _tongue(language) for language in _TONGUES},
}
_SHARES = {"people": 8, "things": 5, "art, medicine, fashion, food": 3, "several at once": 5}


def prompts(count: int, seed: int = 0) -> Iterator[tuple[str, str]]:
    """So many different prompts, each with the name of its kind; the same for the same seed."""
    chance = random.Random(seed)
    kinds = [name for name in KINDS for _ in range(_SHARES.get(name, 1))]
    seen: set[str] = set()
    while len(seen) < count:
        name = chance.choice(kinds)
        prompt = KINDS[name](chance)
        if prompt not in seen:
            seen.add(prompt)
            yield name, prompt


def _one(kind: str, chance: random.Random) -> str:
    word: str = chance.choice(_WORDS[kind])
    return word


def _article(who: str) -> str:
    return who if who[0].isdigit() or who.endswith("s") else f"{'an' if who[0] in 'aeiou' else 'a'} {who}"


def _tags(chance: random.Random) -> list[str]:
    return chance.sample(_WORDS["tags"], chance.randint(0, 3))
