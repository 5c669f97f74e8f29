"""`Templates`: what the catalogue would add to a prompt, chosen by the prompt itself. No model and no network."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping

from gateway.core.catalog import Aspect

#: The last letter of Latin script in its common blocks: texts in other scripts say things that no word list here knows.
_LAST_LATIN = "\u024f"


class Templates:
    """The port `Optimizer` over the aspects of a catalogue."""

    name = "templates"

    def __init__(self, aspects: Mapping[str, Aspect]) -> None:
        self._aspects = [
            (
                name,
                _any_of([*aspect.said, *(phrase.text for phrase in aspect.add)]),
                [(phrase.text, _any_of(phrase.needs), _any_of(phrase.unless)) for phrase in aspect.add],
            )
            for name, aspect in aspects.items()
        ]

    async def enhance(self, text: str, *, model: str, style: str, character: str) -> str:
        """The text and, after it, a phrase of each aspect that nothing in it speaks of. Never fails."""
        if any(letter.isalpha() and letter > _LAST_LATIN for letter in text):
            return text
        said, parts = ", ".join([text, style, character]), [text] if text else []
        for name, already, phrases in self._aspects:
            if already.search(said):
                continue
            fit = [
                phrase
                for phrase, needs, unless in phrases
                if (not needs.pattern or needs.search(said)) and not (unless.pattern and unless.search(said))
            ]
            if fit:
                chosen = fit[_number(name, text, character) % len(fit)]
                parts.append(chosen)
                said += f", {chosen}"
        return ", ".join(parts)


def _any_of(words: Iterable[str]) -> re.Pattern[str]:
    """Finds one of the words or phrases, whole and in any case; an empty pattern for none of them."""
    either = "|".join(re.escape(word) for word in words)
    return re.compile(rf"(?<!\w)(?:{either})(?!\w)" if either else "", re.IGNORECASE)


def _number(*parts: str) -> int:
    """A large number that only the parts decide, on every machine."""
    return int.from_bytes(hashlib.sha256("\n".join(parts).encode()).digest())
