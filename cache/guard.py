"""What must agree before one prompt's picture may stand for another's, however similar their vectors are.

Each level gives a prompt a canonical form, and at that level two prompts may stand for each other exactly if their
forms are equal. So a form can be hashed, kept beside a vector and searched for: nothing is compared pair by pair.

- ``ordered``: the same words in the same order. Articles, case, spelling, figures and most punctuation do not count,
  but do within quotes and where lettering is spoken of: that text is drawn. Clauses of nothing but medium or praise
  may stand anywhere, and those of light, time, weather or framing where they stand at one place of the prompt: of
  "cabin, warm light, forest, cold light" each keeps its place. So do all other clauses: "girl, red dress, boy, blue
  shirt" has the same ones as its opposite.
- ``words``: colours, counts, negations, sides, genders and the ``-terms`` agree, in any order.
- ``off``: nothing need agree.
"""

from __future__ import annotations

import re
import tomllib
import unicodedata
from collections.abc import Sequence
from importlib import resources
from itertools import dropwhile, groupby, pairwise
from typing import Literal, get_args

Level = Literal["ordered", "words", "off"]
LEVELS: tuple[Level, ...] = get_args(Level)
#: Changes with the forms: those of another version are never equal to ours.
VERSION = 2


def form(text: str, negatives: Sequence[str], level: Level) -> str:
    """The canonical form of a prompt's positive words and negative terms; for equality only."""
    if level == "off":
        return ""
    clauses = _clauses(text)
    if level == "words":
        parts = (part for clause in clauses for word in clause for part in word.split("-"))
        told = sorted(_KINDS.get(part, part) for part in parts if part in _KINDS or _COUNT.fullmatch(part))
    else:
        told = _ordered(clauses)
    terms = sorted({" ".join(word for clause in _clauses(term) for word in clause) for term in negatives})
    return f"{VERSION}:{','.join(told)}-{','.join(terms)}"


def _ordered(clauses: Sequence[list[str]]) -> list[str]:
    """The clauses in their order, and after them, in no order, what is said of the whole picture."""
    clauses = _looks_sorted(clauses)
    said = {word for clause in clauses for word in clause}
    if said & _PARTS or any(len(said & kind) > 1 for kind in _ONE_OF):
        # Of two halves, or two times of day, it matters which clause stands with which.
        return [*map(" ".join, clauses), "|"]
    praise = [_floats(clause, _PRAISE) for clause in clauses]
    # Said at two places, it is said of what stands beside it, but for what opens or ends the prompt ...
    if _places(praise) > 1:
        opening, ending = praise.index(False), len(praise) - praise[::-1].index(False)
        praise = [floats and not opening <= n < ending for n, floats in enumerate(praise)]
    others = [clause for clause, floats in zip(clauses, praise, strict=True) if not floats]
    # ... which of light and weather cannot be known; and after a negation that may be one more thing to leave out.
    scene = [_floats(clause, _PRAISE | _SCENE) and not _floats(clause, _PRAISE) for clause in others]
    if said & _WITHOUT or _places(scene) > 1:
        scene = [False] * len(others)
    placed = [clause for clause, floats in zip(others, scene, strict=True) if not floats]
    free = [clause for clause, floats in zip(clauses, praise, strict=True) if floats]
    free += [clause for clause, floats in zip(others, scene, strict=True) if floats]
    return [*map(" ".join, placed), "|", *sorted(map(" ".join, map(_bare, free)))]


def _looks_sorted(clauses: Sequence[list[str]]) -> list[list[str]]:
    """The clauses, with those about one somebody's looks, where they follow each other, in one order."""
    ordered: list[list[str]] = []
    for looks, group in groupby(clauses, _of_looks):
        run = list(group)
        # Hair that is told of twice is that of two.
        one = len({clause[-1] for clause in run}) == len(run)
        ordered += sorted(run) if looks and one else run
    return ordered


def _of_looks(clause: Sequence[str]) -> bool:
    return clause[-1] in _LOOKS and all(word in _LOOKS or word in _HUES for word in clause)


def _places(floats: Sequence[bool]) -> int:
    """At how many places, among clauses that do not, clauses float."""
    return sum(here and not before for before, here in pairwise([False, *floats]))


def _clauses(text: str) -> list[list[str]]:
    """The words of each clause, as they count; clauses that say nothing are left out."""
    plain = unicodedata.normalize("NFKC", _RAISED.sub("^", text)).translate(_QUOTES)
    plain = _NAME.sub(_name, plain) if _LOWER.search(plain) else plain
    plain = plain.casefold()
    for short, word in _SHORT:
        plain = short.sub(word, plain)
    plain = _SIGNS.sub(_literal, _QUOTED.sub(_literal, plain)).replace("&", " and ")
    said = frozenset(re.findall(r"\w+", plain))
    lettering = bool(said & _LETTERING)
    plain = _ASKED.sub("", plain)
    plain = plain if said & _HANGING else _PICTURE.sub("", plain)
    plain = plain if lettering else _RELATIVE.sub(" ", plain)
    plain = _STUFF.sub("_a ", plain)
    plain = _TIME.sub(_apart, plain) if len(_TIME.findall(plain)) == 1 else plain
    # A comma before "and", "in" or the like is a matter of taste, but it ends what a negation leaves out.
    clauses = (_words(clause, lettering) for clause in (_ALL_ENDS if said & _WITHOUT else _ENDS).split(plain))
    return [clause for clause in clauses if clause]


def _literal(match: re.Match[str]) -> str:
    """Text or signs to be drawn as they are, as one word."""
    return " _" + "".join(sign if sign.isalnum() else f"_{ord(sign):x}_" for sign in match[0].strip("\"'")) + " "


def _name(match: re.Match[str]) -> str:
    """A name that in small letters is something else, as a word of its own."""
    return f"_{match[0]}" if match[0].lower() in _NAMES else match[0]


def _apart(match: re.Match[str]) -> str:
    """A time of day that begins or ends a prompt, as a clause of its own."""
    return f"\n{match[0]}\n"


def _words(clause: str, lettering: bool) -> list[str]:
    """The words of a clause; where `lettering` is spoken of, each as it is spelt."""
    words: list[str] = []
    for word in _WORD.findall(clause):
        # A black and white cat is one, a black and a white cat are two.
        two = words[-1:] == ["and"] and words[-2:-1] and words[-2] in _HUES
        if word in _NEUTRAL and not lettering and not two:
            continue
        for part in _parts(word, after=words[-1:]):
            words += _SAME[part].split("-") if part in _SAME and not lettering else [part]
    return words[1:] if words[:1] == ["with"] else words


def _parts(word: str, *, after: Sequence[str]) -> list[str]:
    """What a hyphen joins, apart. But two hundred-year-old trees are not two hundred year-old trees."""
    parts = word.split("-")
    numbers = all(part in _COUNTED for part in parts) or (
        parts[0] in _COUNTED and any(each in _COUNTED for each in after)
    )
    return [word] if numbers or _JOINED.search(word) else parts


def _floats(clause: Sequence[str], whole: frozenset[str]) -> bool:
    """Whether a clause speaks of the whole picture: not "painting", which may be done, nor "light blue"."""
    said = _bare(clause)
    return (
        any(word in whole for word in said)
        and all(word in whole or word in _BESIDE or word in _GLUE for word in said)
        and not (said[-1] in _TINTS or (len(said) == 1 and said[0] in _THINGS))
    )


def _bare(clause: Sequence[str]) -> list[str]:
    """A clause without the small words that begin it: "at dusk" is "dusk", but a sketch of a book is none in a book."""
    return [*dropwhile(_GLUE.__contains__, clause)]


_QUOTES = str.maketrans("’‘“”„«»", '\'\'"""""')
# Ten to the third is no hundred and three.
_RAISED = re.compile(r"(?<=\w)(?=[²³¹⁰⁴-⁹¼-¾⅐-⅞])")
_QUOTED = re.compile(r"(?<!\d)\"[^\"\n]+\"|(?<!\w)'[^'\n]+'(?!\w)")
_SHORT = (
    (re.compile(r"\bw/o\b"), "without"),
    (re.compile(r"\bw/(?=\s)"), "with"),
    (re.compile(r"(?<=[^\W_])_(?=[^\W_])"), " "),
)
# Signs that stand alone, such as a smile or an arrow, but not those that separate.
_SIGNS = re.compile(r"(?<!\S)(?![-–—.,;:|/&]+(?!\S))[^\w\s]+(?!\S)")
_LOWER = re.compile(r"\b[^\W\dA-Z_]\w+")
_NAME = re.compile(r"(?<=[^\W\dA-Z_] )[A-Z]\w*(?![\w-])")
_PREPOSITIONS = "and|in|on|at|under|over|beside|behind|near|from|by|of|for|as|while"
_ALL_ENDS, _ENDS = (
    re.compile(rf"[;\n。、，]|[,(){{}}\[\]]{taste}|[.!?:](?=\s|$)|\s[-–—|]+\s")
    for taste in ("", rf"\s*+(?!(?:{_PREPOSITIONS})(?!\S))")
)
# Words with their hyphens, "'s" apart, numbers with their points, feet and inches, every sign that may mean something.
_WORD = re.compile(
    r"'s\b|(?<!\w)\.?\d+(?:\.\d+)?(?!\w)|\w+(?:'(?!s\b)\w+|-\w+)*|(?<=\d)['\"]|(?<![\w-])[-–](?=\w)"
    r"|[^\w\s.,;:!?\"'()\[\]{}`*~–—-]"
)
_ASKED = re.compile(
    r"^\s*(?:(?:please\s+)?(?:(?:can|could)\s+you\s+)?(?:i\s+(?:want|need|would\s+like)|(?:please\s+)?"
    r"(?:draw|paint|create|generate|make|show|give|render)\s+me|please\s+(?:draw|paint|create|generate|make|render)"
    r"|(?:draw|paint|create|generate|make|show|render)(?=\s+an?\s+(?:picture|image)\s+of\s))\s+)"
)
_PICTURE = re.compile(r"^\s*(?:(?:an?|this)\s+)?(?:picture|image|depiction)\s+of\s+(?=\w)")
_RELATIVE = re.compile(r"\b(?:who|that|which|there)(?:'s|\s+is|\s+are)\b|(?<=\bit)'s\b")
_TIMES = (
    r"(?:at\s+(?:night|dawn|dusk|sunrise|sunset|noon|midday|midnight|twilight)"
    r"|in\s+the\s+(?:early\s+|late\s+)?(?:morning|afternoon|evening))"
)
_TIME = re.compile(rf"^\s*{_TIMES}\b|\b{_TIMES}(?=\s*+(?:[.]\s*+)?$)")
# Figures, and tags as 2girls.
_COUNT = re.compile(r"\.?\d+(?:\.\d+)?(?:girls?|boys?)?")
# A man-eating plant is no man eating a plant.
_JOINED = re.compile(r"-\w+ing$")
_NEUTRAL = frozenset({"a", "an", "the", "is", "are", "being", "that", "which", "there", "very"})

_LISTS = tomllib.loads(resources.files("cache").joinpath("guard.toml").read_text(encoding="utf-8"))
_NUMBERS: list[str] = _LISTS["numbers"].split()
_COUNTED = frozenset([*_NUMBERS, "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety", "hundred"])
_SAME = {str(number): word for number, word in enumerate(_NUMBERS)}
_SAME.update(pair.split("/") for pair in _LISTS["spellings"].split())
_SETS = (
    "glue",
    "praise",
    "scene",
    "beside",
    "tints",
    "things",
    "parts",
    "looks",
    "hues",
    "hanging",
    "lettering",
    "names",
)
_GLUE, _PRAISE, _SCENE, _BESIDE, _TINTS, _THINGS, _PARTS, _LOOKS, _HUES, _HANGING, _LETTERING, _NAMES = (
    frozenset(_LISTS[name].split()) for name in _SETS
)
# Chicken on a plate is no chicken that stands on one, and few people are fewer than a few.
_STUFF = re.compile(
    rf"\ban?\s+(?=(?:{'|'.join(_LISTS['stuff'].split())})\s*(?:[.,;:)]|$|\b(?:{_PREPOSITIONS}|with|next)(?!\S))|few\b)"
)
_ONE_OF = [frozenset(row.split()) for row in _LISTS["one_of"]]
_KINDS = {word: word for word in (*_COUNTED, *_LISTS["told"].split())}
_WITHOUT = frozenset(_LISTS["kinds"][0].split())
for _row in _LISTS["kinds"]:
    _KINDS.update(dict.fromkeys(_row.split(), _row.split()[0]))
