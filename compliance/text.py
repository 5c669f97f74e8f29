"""Hostile text made plain: the words that a reader would see in it, however they are written.

`read` gives positions 0..n and, between them, edges: each a word that a reader may see there. "n.u.d.e", "ｎｕｄｅ",
"nuuude", "nud3" and "n u d e" all have an edge `nude`. An edge is a whole word, never a part of one: "kidney" has no
edge `kid`. The work is linear in the length of the text, and no text makes it raise.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

Edge = tuple[int, int, str]

# Letters that look Latin and are not, and that Unicode's compatibility decomposition leaves as they are: each with its
# double.
_LOOKALIKES = (
    "аa вb гr еe зe иn іi јj кk мm нh оo рp сc тt уy ѵv хx ѕs ԁd ԛq ԝw һh "
    "αa βb γy δd εe ηn ιi κk νv οo ρp τt υu χx ωw "
    "ɑa ɡg ɩi ıi łl øo đd ħh ŧt æa œo ðd þp əe ɛe ɪi ʟl ʀr ᴀa ʙb ᴄc ᴅd ᴇe ɢg ʜh ᴊj ᴋk ᴍm ɴn ᴏo ᴘp ᴛt ᴜu ᴠv ᴡw ʏy ᴢz"
)
# Letters in circles and boxes, and the halves of flags.
_BOXED = {first + i: chr(ord("a") + i) for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
_CONFUSABLES = {ord(pair[0]): pair[1] for pair in _LOOKALIKES.split()} | _BOXED
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")

_SIGNS = "@$!|€+"
_LEET = str.maketrans("013456789@$!|€+", "oieasgtbgasiiet")
# `1`, `!` and `|` stand for i or l, so the two count as one letter, in word lists as well as in texts.
_SAME = str.maketrans("l", "i")
_WORD = re.compile(rf"(?:[^\W_]|[{re.escape(_SIGNS)}])+")
_ATOM = re.compile(r"\d+|[^\W\d_]+")
_DOUBLE = re.compile(r"(.)\1+")
_TRIPLE = re.compile(r"(.)\1{2,}")
# Longer runs of letters are not words, and are not taken apart.
_LONGEST_RUN = 40
_SHORTEST_PART = 3


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The words to look for, each in its `spelling`. `whole` are those that mean something alone."""

    known: frozenset[str]
    whole: frozenset[str]
    longest: int


def plain(text: str) -> str:
    """Lower case, without accents, invisible characters and look-alike letters. Control characters become spaces."""
    # Combining marks go first: to normalise a long run of them takes more than linear time.
    visible = "".join(" " if _is_break(c) else c for c in text if not _invisible(c))
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", visible).casefold())
    return "".join(c for c in folded if not _invisible(c)).translate(_CONFUSABLES)


def spelling(word: str) -> str:
    """The form in which words are compared: letters and digits only."""
    return _bare(plain(word))


def read(text: str, lexicon: Lexicon) -> tuple[int, list[Edge]]:
    """The number of positions, and each edge (start, end, word) whose word is known; numbers are edges too."""
    atoms: list[str] = []
    edges: set[Edge] = set()
    for chunk in plain(text).split():
        begin = len(atoms)
        for word in _WORD.findall(chunk):
            start = len(atoms)
            atoms += _ATOM.findall(word)
            edges.update(_edges(start, len(atoms), word, lexicon))
        # What punctuation splits, and no space: "nu-de", "c.h.i.l.d".
        edges.update(_edges(begin, len(atoms), chunk, lexicon))
    for at, atom in enumerate(atoms):
        edges.update(_edges(at, at + 1, atom, lexicon))
        if atom.isdecimal():
            edges.add((at, at + 1, atom))
    edges.update(_spaced(atoms, lexicon))
    return len(atoms), sorted(edges)


def _invisible(c: str) -> bool:
    return c in _FILLERS or (c > "~" and unicodedata.category(c) in ("Cf", "Mn", "Mc", "Me"))


def _is_break(c: str) -> bool:
    """Control characters, and the few signs that stand for a whole phrase, which would blow the text up."""
    return c < " " or (c > "\u3000" and unicodedata.decomposition(c).count(" ") > 4)


def _bare(text: str) -> str:
    return "".join(c for c in text if c.isalnum()).translate(_SAME)


def _edges(start: int, end: int, text: str, lexicon: Lexicon) -> Iterator[Edge]:
    """What may be read over these positions: a known word, or several of them written together ("kindersex")."""
    if start == end or len(text) > 4 * _LONGEST_RUN:
        return
    for form in _forms(text):
        if form in lexicon.known:
            yield start, end, form
        elif len(form) <= _LONGEST_RUN:
            for part in _parts(form, lexicon):
                yield start, end, part


def _forms(text: str) -> set[str]:
    """The spellings that a text may stand for: digits as digits or as letters, repeated letters repeated or not."""
    forms = set()
    for bare in {_bare(text), _bare(text.translate(_LEET))}:
        forms.add(bare)
        # "nuuude" and "nnuudde", but not "coffee": one double letter is ordinary spelling.
        if _TRIPLE.search(bare) or sum(1 for _ in _DOUBLE.finditer(bare)) > 1:
            forms |= {_DOUBLE.sub(r"\1", bare), _TRIPLE.sub(r"\1\1", bare)}
    return forms


def _parts(run: str, lexicon: Lexicon) -> list[str]:
    """The words of which the whole run is made, each meaning something alone, or none when something remains over."""
    came_from: list[int | None] = [0] + [None] * len(run)
    for end in range(_SHORTEST_PART, len(run) + 1):
        for start in range(max(0, end - lexicon.longest), end - _SHORTEST_PART + 1):
            if came_from[start] is not None and run[start:end] in lexicon.whole:
                came_from[end] = start
                break
    parts, end = [], len(run)
    while end and (start_of_part := came_from[end]) is not None:
        parts.append(run[start_of_part:end])
        end = start_of_part
    return [] if end else parts


def _spaced(atoms: list[str], lexicon: Lexicon) -> Iterator[Edge]:
    """Words of atoms that hang together by single letters: "n u d e", "c h ild", "5 e x"; but not "pen is"."""
    for letters in ([_bare(atom) for atom in atoms], [_bare(atom.translate(_LEET)) for atom in atoms]):
        for start, joined in enumerate(letters):
            for end in range(start + 1, len(letters)):
                if len(letters[end - 1]) > 1 and len(letters[end]) > 1:
                    break
                joined += letters[end]
                if len(joined) > lexicon.longest:
                    break
                if joined in lexicon.known:
                    yield start, end + 1, joined
