"""Random prompts: a grammar and its words from the catalogue, put together by chance and never against each other."""

from __future__ import annotations

import random
import re
import secrets
from dataclasses import dataclass

from gateway.core import prompts
from gateway.core.catalog import SLOT, Catalog, RandomPhrase
from gateway.core.images import SEEDS


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomPrompt:
    """A prompt, and the seed that gives it again as long as the catalogue is the same."""

    prompt: str
    character: str
    seed: int


class RandomPrompts:
    """Draws prompts from a catalogue."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def draw(self, character: str | None = None, seed: int | None = None) -> RandomPrompt:
        """One prompt. ``character`` None lets chance choose one of all, ``""`` is none; a name must be known.

        A catalogue without words for it gives the character alone, or nothing.
        """
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        chance = random.Random(seed)
        if character is None:
            character = chance.choice(list(self._catalog.characters) or [""])
        said: list[str] = []
        text = self._fill("{prompt}", character, said, chance)
        return RandomPrompt(
            prompt=prompts.render(
                prompts.Parsed(names=(character,) if character else (), positive=_tidy(text), negatives=())
            ),
            character=character,
            seed=seed,
        )

    def _fill(self, text: str, character: str, said: list[str], chance: random.Random) -> str:
        """The text with its slots filled, left to right; ``said`` collects all words so far."""
        parts = []
        for at, part in enumerate(SLOT.split(text)):
            if at % 2 == 0:
                said.append(part)
                parts.append(part)
                continue
            fitting = [
                phrase for phrase in self._catalog.random.get(part, ()) if self._fits(phrase, character, " ".join(said))
            ]
            if fitting:
                phrase = chance.choices(fitting, [each.weight for each in fitting])[0]
                parts.append(self._fill(phrase.text, character, said, chance))
        return "".join(parts)

    def _fits(self, phrase: RandomPhrase, character: str, said: str) -> bool:
        if phrase.characters is not None and character not in phrase.characters:
            return False
        if any(_says(said, word) for word in phrase.unless):
            return False
        return not phrase.needs or any(_says(said, word) for word in phrase.needs)


def _says(said: str, words: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(words)}(?!\w)", said) is not None


def _tidy(text: str) -> str:
    """Without the clauses and blanks that empty slots leave over."""
    return ", ".join(clause for clause in map(prompts.clean, text.split(",")) if clause)
