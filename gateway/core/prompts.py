"""The prompt syntax of the Imgen reference: ``@name``, ``-term``, and how positive and negative are put together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

#: ``@name`` at the start or after a space or comma, and not part of something longer (``a@b.c`` is text).
_NAME = re.compile(r"(?<![^\s,])@([A-Za-z0-9_-]{1,64})(?![\w@-]|\.\w)")
_MIDDLE_DASH = re.compile(r"\s-(?=[^\W\d_])")
#: C0 and C1 controls and lone surrogates: no model reads them and PostgreSQL refuses some.
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True, kw_only=True, slots=True)
class Parsed:
    """A prompt taken apart. ``names`` are lower case; ``stray`` are ``-word`` inside a segment, which stay text."""

    names: tuple[str, ...]
    positive: str
    negatives: tuple[str, ...]
    stray: tuple[str, ...] = ()


def clean(text: str) -> str:
    """Text without control characters, outer spaces and runs of blanks."""
    return " ".join(_UNPRINTABLE.sub(" ", text).split())


def parse(raw: str) -> Parsed:
    """Tokenise a raw prompt. Never raises; what is no token stays positive text (resolutions I3, I4)."""
    text = clean(raw)
    names = tuple(match[1].lower() for match in _NAME.finditer(text))
    positives: list[str] = []
    negatives: list[str] = []
    stray: list[str] = []
    for segment in _NAME.sub(" ", text).split(","):
        words = clean(segment)
        if words.startswith("-") and words[1:2].isalpha():
            negatives.append(words[1:])
        elif words:
            positives.append(words)
            stray += [words[m.start() + 1 :].split()[0] for m in _MIDDLE_DASH.finditer(words)]
    return Parsed(names=names, positive=", ".join(positives), negatives=tuple(negatives), stray=tuple(stray))


def render(parsed: Parsed) -> str:
    """The prompt that `parse` reads back to the same parts."""
    head = " ".join(f"@{name}" for name in parsed.names)
    tail = _join([parsed.positive, *(f"-{term}" for term in parsed.negatives)])
    return f"{head} {tail}".strip()


def explicit_negatives(text: str) -> str:
    """The ``negative`` field; a leading ``-`` of a term is taken off once (resolution I41)."""
    terms = (clean(term) for term in clean(text).split(","))
    return _join(term[1:] if term.startswith("-") and term[1:2].isalpha() else term for term in terms)


def compose_positive(*, trigger: str, character: str, prompt: str, style: str) -> str:
    """``[trigger], [character_positive], <user prompt>[, <style quality tags>]`` of what is not empty."""
    return _join([trigger, character, prompt, style])


def compose_negative(*, base: str, style: str, character: str, terms: Iterable[str], explicit: str) -> str:
    """``<base>[, <style extra>][, <character>][, <parsed -terms>][, <explicit>]`` of what is not empty."""
    return _join([base, style, character, *terms, explicit])


def as_drawn(positive: str, negative: str, guidance: float | None) -> tuple[str, str]:
    """What rules must read as asked for, and as left out: at guidance 1 and below nothing is pushed away from."""
    if guidance is not None and guidance <= 1:
        return _join([positive, negative]), ""
    return positive, negative


def _join(parts: Iterable[str]) -> str:
    return ", ".join(part for part in parts if part)
