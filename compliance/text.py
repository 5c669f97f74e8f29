"""Hostile text made plain: the words that a reader would see in it, however they are written.

`read` gives positions 0..n and, between them, edges: each a word that a reader may see there. "n.u.d.e", "ｎｕｄｅ",
"nuuude", "nud3", "n u d e" and any mixture of them have an edge `nude`. An edge is a whole word, never a part of one:
"kidney" has no edge `kid`. The work is linear in the length of the text, and no text makes it raise.

Two limits, on purpose: words that only a space cuts, into parts of two letters and more, stay apart, for "pen is" is no
other word; and scripts without spaces (Chinese, Japanese, Korean) are read character by character, so that a word is
found there wherever its characters stand together.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

Edge = tuple[int, int, str]

LOOKALIKES = Path(__file__).with_name("confusables.txt")
# What prompts were seen to use beyond Unicode's list, or otherwise than it.
_LOOKALIKES = (
    "аa вb гr еe зe иn іi јj кk мm нh оo рp сc тt уy ѵv хx ѕs ԁd ԛq ԝw һh "
    "αa βb γy δd εe ηn ιi κk μu νv οo ρp τt υu χx ωw "
    "ɑa ɡg ɩi ıi łl øo đd ħh ŧt æa œo ðd þp əe ɛe ɪi ʟl ʀr ᴀa ʙb ᴄc ᴅd ᴇe ꜰf ɢg ʜh ᴊj ᴋk ᴍm ɴn ᴏo ᴘp ꞯq ᴛt "
    "ᴜu ᴠv ᴡw ʏy ᴢz"
)
# Letters in circles and boxes, and the halves of flags.
_BOXED = {first + i: chr(ord("a") + i) for first in (0x1F150, 0x1F170, 0x1F1E6) for i in range(26)}
_FILLERS = frozenset("\u115f\u1160\u3164\uffa0\u2800")
# Scripts that put no spaces between words: ideographs, kana, and the syllables of Korean.
_UNSPACED = (
    (0x2E80, 0x2FDF),
    (0x3005, 0x3007),
    (0x3041, 0x30FF),
    (0x3400, 0x9FFF),
    (0xAC00, 0xD7AF),
    (0x20000, 0x3FFFF),
)

# Signs and digits that stand for letters. `1`, `!` and `|` stand for i or l, so the two count as one letter.
_SIGNS = frozenset("@$!|€+¢£§")
_READINGS = {
    **{sign: (letter,) for sign, letter in zip("@$!|€+¢£§", "asiietcis", strict=True)},
    **{digit: (digit, letter) for digit, letter in zip("013456789", "oieasgtbg", strict=True)},
}
_SAME = str.maketrans("l", "i")
_CONTROLS = dict.fromkeys(range(32), " ")
# No word has a letter four times in a row, and no reading needs more of anything than that.
_MANY = re.compile(r"(\D)\1{3,}")
# So far a reading goes: letters, characters of any kind, and letters that all stand for the same one.
_LONGEST_WORD = 64
_LONGEST_REACH = 256
_LONGEST_STAY = 8
_SHORTEST_PART = 3

_PUNCTUATION, _LETTER, _DIGIT, _SIGN = range(4)


@dataclass(slots=True)
class _Node:
    """A point in the tree of letters: what may follow, and the word that ends here."""

    next: dict[str, "_Node"] = field(default_factory=dict)
    word: str = ""
    whole: bool = False


# Ways to read what was gone through so far: by the node that its letters lead to and the last of them, the node itself
# and the whole words before those letters.
_Readings = dict[tuple[int, str], tuple[_Node, tuple[str, ...]]]


class Lexicon:
    """The words to look for, each in its `spelling`. `whole` are those that mean something alone."""

    def __init__(self, known: Iterable[str], whole: Iterable[str]) -> None:
        self.root = _Node()
        for word in known:
            self._end(word).word = word
        for word in whole:
            self._end(word).whole = len(word) >= _SHORTEST_PART

    def _end(self, word: str) -> _Node:
        node = self.root
        for letter in word:
            node = node.next.setdefault(letter, _Node())
        return node


def plain(text: str) -> str:
    """Lower case, without accents, invisible characters and look-alike letters. Control characters become spaces.

    Characters of scripts without spaces stand alone.
    """
    if text.isascii():
        # Most texts, and nothing below is about them: ten times as quick.
        return text.translate(_CONTROLS).lower()
    # Combining marks go first: to normalise a long run of them takes more than linear time.
    visible = "".join(" " if _is_break(c) else c for c in text if not _invisible(c))
    shown = unicodedata.normalize("NFKD", visible.translate(_CAPITALS)).translate(_CAPITALS)
    folded = unicodedata.normalize("NFKD", shown.casefold())
    letters = "".join(c for c in folded if not _invisible(c)).translate(_CONFUSABLES)
    if letters.isascii():
        return letters
    composed = unicodedata.normalize("NFC", letters)
    return "".join(f" {c} " if c > "\u2e7f" and _is_unspaced(c) else _digit(c) for c in composed)


def spelling(word: str) -> str:
    """The form in which words are compared: letters and digits only."""
    return _bare(plain(word))


def exact(phrase: str) -> list[str]:
    """The words of a phrase as `read` says that they are written."""
    return _Page(plain(phrase)).atoms


def words(phrase: str) -> list[str]:
    """The spellings of a phrase's words."""
    return [bare for word in plain(phrase).split() if (bare := _bare(word))]


def read(text: str, lexicon: Lexicon) -> tuple[list[str], list[Edge]]:
    """What is written, one word or number per position, and each edge (start, end, word) whose word is known.

    Numbers are edges too.
    """
    page = _Page(_MANY.sub(r"\1\1\1", plain(text)))
    edges = {edge for start in page.starts for edge in page.read_from(start, lexicon)}
    edges.update((at, at + 1, atom) for at, atom in enumerate(page.atoms) if atom.isdecimal())
    return page.atoms, sorted(edges)


class _Page:
    """A plain text with what a reading must know of each character.

    `atoms` are its runs of letters and of digits; they are the positions. A group is what stands between spaces and
    punctuation.
    """

    def __init__(self, text: str) -> None:
        self._text = text.translate(_SAME)
        self._kinds = [_kind(c) for c in text]
        # Of each character: how many atoms begin before it, and whether a word may go on across it.
        self._begun: list[int] = []
        self.atoms: list[str] = []
        self.starts: list[int] = []
        self._bridges = [True] * len(text)
        self._measure(text)

    def read_from(self, start: int, lexicon: Lexicon) -> Iterator[Edge]:
        """Every word, and every run of words written together, that begins with the character at `start`."""
        text, kinds, bridges = self._text, self._kinds, self._bridges
        readings: _Readings = {(0, ""): (lexicon.root, ())}
        left, stayed = _LONGEST_WORD, 0
        for at in range(start, min(len(text), start + _LONGEST_REACH)):
            kind = kinds[at]
            if kind == _PUNCTUATION:
                if not bridges[at]:
                    return
                continue
            then = _went_on(readings, text[at], kind == _SIGN and at > start)
            stayed = stayed + 1 if then.keys() <= readings.keys() else 0
            readings, left = then, left - 1
            if not readings or not left or stayed > _LONGEST_STAY:
                return
            if self._ends(at) and self._begun[start] < self._begun[at + 1]:
                for node, before in readings.values():
                    if node.word and (not before or node.whole):
                        for word in (*before, node.word):
                            yield self._begun[start], self._begun[at + 1], word
            # "nudechild": right behind a word another may begin.
            if at + 1 == len(text) or kinds[at + 1] == _PUNCTUATION:
                continue
            for node, before in readings.values():
                if node.whole:
                    readings.setdefault((id(lexicon.root), ""), (lexicon.root, (*before, node.word)))
                    break

    def _ends(self, at: int) -> bool:
        """Whether a word may end with this character: not within a run of letters, and a sign only at the very end."""
        kind, following = self._kinds[at], self._kinds[at + 1] if at + 1 < len(self._kinds) else _PUNCTUATION
        return following in (_PUNCTUATION, _SIGN) if kind == _SIGN else following != kind

    def _measure(self, text: str) -> None:
        kinds = self._kinds
        gap, same, single_before = -1, frozenset[str](), True
        for at, kind in enumerate(kinds):
            self._begun.append(len(self.atoms))
            previous = kinds[at - 1] if at else _PUNCTUATION
            if kind == _PUNCTUATION:
                if previous != _PUNCTUATION:
                    gap, single_before = at, bool(same)
                continue
            if previous == _PUNCTUATION:
                same = _letters(self._text[at])
                self._judge_gap(gap, at, single_before)
            else:
                same &= _letters(self._text[at])
            if kind == _SIGN:
                # The second of two signs that stand for one letter begins no word that the first one does not.
                if previous == _PUNCTUATION or (previous == _SIGN and _READINGS[text[at]] != _READINGS[text[at - 1]]):
                    self.starts.append(at)
            elif kind != previous:
                self.atoms.append(text[at])
                self.starts.append(at)
            else:
                self.atoms[-1] += text[at]
        self._begun.append(len(self.atoms))

    def _judge_gap(self, gap: int, group: int, single_before: bool) -> None:
        """A word goes on across punctuation; across a space only next to a letter that stands alone."""
        text = self._text
        if gap < 0 or single_before or not any(c.isspace() for c in text[gap:group]):
            return
        same, after = _letters(text[group]), group + 1
        while after < len(text) and self._kinds[after] != _PUNCTUATION and after - group < _LONGEST_WORD:
            same &= _letters(text[after])
            after += 1
        if not same:
            self._bridges[gap] = False


def _went_on(readings: _Readings, c: str, is_mark: bool) -> _Readings:
    """The readings after one more character: it is the next letter, or the last one again, or a mere mark."""
    then: _Readings = {}
    letters = _READINGS.get(c) or (c,)
    for key, (node, before) in readings.items():
        for letter in letters:
            if child := node.next.get(letter):
                then.setdefault((id(child), letter), (child, before))
            if letter == key[1]:
                then.setdefault(key, (node, before))
        if is_mark:
            then.setdefault(key, (node, before))
    return then


def _letters(c: str) -> frozenset[str]:
    """All that a character may stand for."""
    return frozenset(_READINGS.get(c) or c)


def _kind(c: str) -> int:
    if c.isalpha():
        return _LETTER
    if c.isalnum():
        return _DIGIT
    return _SIGN if c in _SIGNS else _PUNCTUATION


def _invisible(c: str) -> bool:
    return c in _FILLERS or (c > "~" and unicodedata.category(c) in ("Cf", "Mn", "Mc", "Me"))


def _is_break(c: str) -> bool:
    """Control characters, and the few signs that stand for a whole phrase, which would blow the text up."""
    return c < " " or (c > "\u3000" and unicodedata.decomposition(c).count(" ") > 4)


def _is_unspaced(c: str) -> bool:
    return any(first <= ord(c) <= last for first, last in _UNSPACED)


def _digit(c: str) -> str:
    """A digit of any script as ours."""
    return str(unicodedata.decimal(c)) if c > "~" and c.isdecimal() else c


def _bare(text: str) -> str:
    return "".join(c for c in text if c.isalnum()).translate(_SAME)


def _lookalikes() -> tuple[dict[int, str], dict[int, str]]:
    """What capitals look like whose small letter looks otherwise, and what everything else looks like."""
    # Normalisation makes another sigma of this one.
    capitals = {ord("ϲ"): "c"}
    others: dict[int, str] = {}
    for line in LOOKALIKES.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            letter, _, doubles = line.partition(" ")
            for double in doubles:
                (others if double.casefold() == double else capitals)[ord(double)] = letter
    return capitals, others | {ord(pair[0]): pair[1] for pair in _LOOKALIKES.split()} | _BOXED


_CAPITALS, _CONFUSABLES = _lookalikes()
