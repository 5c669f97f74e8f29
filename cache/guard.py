"""What must agree before one prompt's picture may stand for another's, however similar their vectors are.

Each level gives a prompt a canonical form, and at that level two prompts may stand for each other exactly if their
forms are equal. So a form can be hashed, kept beside a vector and searched for: nothing is compared pair by pair.

- ``ordered``: the same words in the same order. Articles, case, spelling, figures and most punctuation do not count,
  and clauses of nothing but light, time, weather, medium or praise may stand anywhere. All others keep their place:
  "girl, red dress, boy, blue shirt" has the same clauses as its opposite.
- ``words``: colours, counts, negations, sides, genders and the ``-terms`` agree, in any order.
- ``off``: nothing need agree.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from importlib import resources
from typing import Literal, get_args

Level = Literal["ordered", "words", "off"]
LEVELS: tuple[Level, ...] = get_args(Level)
#: Changes with the forms: those of another version are never equal to ours.
VERSION = 1


def form(text: str, negatives: Sequence[str], level: Level) -> str:
    """The canonical form of a prompt's positive words and negative terms; for equality only."""
    if level == "off":
        return ""
    clauses = _clauses(text)
    if level == "words":
        told = sorted(_KINDS[word] for clause in clauses for word in clause if word in _KINDS)
    else:
        told = _ordered(clauses)
    terms = sorted({" ".join(word for clause in _clauses(term) for word in clause) for term in negatives})
    return f"{VERSION}:{','.join(told)}-{','.join(terms)}"


def _ordered(clauses: Sequence[list[str]]) -> list[str]:
    """The clauses in their order, and after them, in no order, what is said of the whole picture."""
    said = {word for clause in clauses for word in clause}
    if said & _PARTS or any(len(said & kind) > 1 for kind in _ONE_OF):
        # Of two halves, or two times of day, it matters which clause stands with which.
        return [*map(" ".join, clauses), "|"]
    floating = [clause for clause in clauses if _floats(clause)]
    placed = [clause for clause in clauses if not _floats(clause)]
    return [*map(" ".join, placed), "|", *sorted(map(" ".join, map(_bare, floating)))]


def _clauses(text: str) -> list[list[str]]:
    """The words of each clause, as they count; clauses that say nothing are left out."""
    plain = unicodedata.normalize("NFKC", text).casefold().replace("’", "'").replace("&", " and ")
    plain = _OPENING.sub("", _RELATIVE.sub(" ", plain))
    plain = _TIME.sub(_apart, plain) if len(_TIME.findall(plain)) == 1 else plain
    clauses = (_words(clause) for clause in _ENDS.split(plain))
    return [clause for clause in clauses if clause]


def _apart(match: re.Match[str]) -> str:
    """A time of day that begins or ends a clause, as a clause of its own."""
    return f"\n{match[0]}\n"


def _words(clause: str) -> list[str]:
    words: list[str] = []
    for word in _WORD.findall(clause):
        parts = [word] if _JOINED.search(word) or all(part in _COUNTED for part in word.split("-")) else word.split("-")
        for part in parts:
            if part not in _NEUTRAL:
                words += _SAME[part].split("-") if part in _SAME else [part]
    return words[1:] if words[:1] == ["with"] else words


def _floats(clause: Sequence[str]) -> bool:
    """Whether a clause speaks of the whole picture, and so may stand anywhere."""
    return any(word in _WHOLE for word in clause) and all(
        word in _WHOLE or word in _BESIDE or word in _GLUE for word in clause
    )


def _bare(clause: Sequence[str]) -> list[str]:
    return [word for word in clause if word not in _GLUE]


# A comma before "and", "in" or the like is a matter of taste; all others separate.
_ENDS = re.compile(
    r"[;\n。、，]|[,(){}\[\]]\s*+(?!(?:and|in|on|at|under|over|beside|behind|near|from|by|of|for|as|while)\s)"
    r"|[.!?:](?=\s|$)|\s[-–—]+\s"
)
# Words with their hyphens, "'s" apart, numbers with their points, and every sign that may mean something.
_WORD = re.compile(r"'s\b|\d+(?:\.\d+)?(?!\w)|\w+(?:'(?!s\b)\w+|-\w+)*|[^\w\s.,;:!?\"'“”‘()\[\]{}<>`*_~–—-]")
_OPENING = re.compile(
    r"^\s*(?:(?:please\s+)?(?:(?:can|could)\s+you\s+)?(?:i\s+(?:want|need|would\s+like)|(?:please\s+|)"
    r"(?:draw|paint|create|generate|make|show|give|render)\s+me|please\s+(?:draw|paint|create|generate|make|render))\s+)?"
    r"(?:(?:(?:an?|the|this)\s+)?(?:picture|image|depiction)\s+(?:of|with)\s+(?=\w))?"
)
_RELATIVE = re.compile(r"\b(?:who|that|which|there)(?:'s|\s+is|\s+are)\b|(?<=\bit)'s\b")
_TIMES = "night dawn dusk sunrise sunset noon midday midnight twilight"
_TIME = re.compile(
    rf"(?:^|(?<=,))\s*at\s+(?:{_TIMES.replace(' ', '|')})\b|\bat\s+(?:{_TIMES.replace(' ', '|')})\s*(?=[.,;]|$)"
)
# A man-eating plant is no man eating a plant.
_JOINED = re.compile(r"-\w+ing$")
_NEUTRAL = frozenset({"a", "an", "the", "is", "are", "am", "be", "being", "that", "which", "there"})

_LISTS = tomllib.loads(resources.files("cache").joinpath("guard.toml").read_text(encoding="utf-8"))
_NUMBERS: list[str] = _LISTS["numbers"].split()
_COUNTED = frozenset([*_NUMBERS, "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"])
_SAME = {str(number): word for number, word in enumerate(_NUMBERS)}
_SAME.update(pair.split("/") for pair in _LISTS["spellings"].split())
_GLUE, _WHOLE, _BESIDE, _PARTS = (frozenset(_LISTS[name].split()) for name in ("glue", "whole", "beside", "parts"))
_ONE_OF = [frozenset(row.split()) for row in _LISTS["one_of"]]
_KINDS = {word: word for word in (*_NUMBERS, *_LISTS["told"].split())}
for _row in _LISTS["kinds"]:
    _KINDS.update(dict.fromkeys(_row.split(), _row.split()[0]))
