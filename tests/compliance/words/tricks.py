"""Ways to write a phrase so that a person or a model still reads it and a list of words does not find it.

Each is a function of a text and a source of chance; they compose in any order. Digits keep their value, so that an age
stays that age. `spacing` sets all letters of a word apart: words cut into longer parts by spaces alone are not covered.
"""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Callable

from compliance.text import plain

Trick = Callable[[str, random.Random], str]

# Chosen by eye, and not from the table that the rules use.
DOUBLES = {
    "a": "аαɑᴀⓐ🅐𝒶𝐚ａᎪ",
    "b": "Ƅвʙⓑ𝓫ｂᏴ",
    "c": "сϲᴄⓒ𝒸ｃⅽᏟ",
    "d": "ԁᴅⓓ𝒹ⅾᎠ",
    "e": "еεᴇⓔℯ𝐞ｅᎬ",
    "f": "ꜰⓕ𝒻ｆք",
    "g": "ɡɢⓖ𝓰ｇԌ",
    "h": "һհʜⓗ𝒽ｈΗ",
    "i": "іιɪⓘ𝒾ｉⅰᎥ",
    "j": "јᴊⓙ𝒿ｊ",
    "k": "кκᴋⓚ𝓀ｋᏦ",
    "l": "ʟⓛ𝓁ｌⅼᏞ",
    "m": "мᴍⓜ𝓂ｍⅿΜ",
    "n": "ηɴⓝ𝓃ｎոΝ",
    "o": "оοᴏⓞℴ𝐨ｏօ",
    "p": "рρᴘⓟ𝓅ｐᏢ",
    "q": "ԛⓠ𝓆ｑ",
    "r": "гʀⓡ𝓇ｒᎡ",
    "s": "ѕⓢ𝓈ｓꜱᏚ",
    "t": "тτᴛⓣ𝓉ｔᎢ",
    "u": "υᴜⓤ𝓊ｕս",
    "v": "ѵνᴠⓥ𝓋ｖⅴᏙ",
    "w": "ԝωᴡⓦ𝓌ｗᎳ",
    "x": "хχⓧ𝓍ｘⅹΧ",
    "y": "уγʏⓨ𝓎ｙΥ",
    "z": "ᴢⓩ𝓏ｚΖ",
}
LEET = {"a": "4@", "b": "8", "e": "3€", "g": "69", "i": "1!|", "l": "1|", "o": "0", "s": "5$", "t": "7+"}
# What one more letter makes of a listed word is read as the word that it is.
OTHER_WORDS = {"rapped", "rapping", "nuee", "brass", "seeks", "cull", "annal"}
_NOTHING_ALONE = {"kind", "scene", "sexual", "art"}
INVISIBLE = "\u200b\u200c\u200d\u2060\ufeff\u00ad\u034f\u180e\u2064\ufe0f\u061c\u200e"
MARKS = "\u0300\u0301\u0308\u0323\u0336\u0337\u20dd\u0489\u030a"
POINTS = ".-_*/~^·'`=#:,;"
SPACES = (" ", "  ", "\t", "\u00a0", "\u2003", "\n")


def confusables(text: str, chance: random.Random) -> str:
    return "".join(chance.choice(DOUBLES[c.lower()] + c) if c.lower() in DOUBLES else c for c in text)


def zero_width(text: str, chance: random.Random) -> str:
    return "".join(c + chance.choice(INVISIBLE) for c in text)


def leet(text: str, chance: random.Random) -> str:
    return "".join(chance.choice(LEET[c.lower()] + c) if c.lower() in LEET else c for c in text)


def spacing(text: str, chance: random.Random) -> str:
    gap = chance.choice(SPACES)
    return gap.join(_between(word, gap) for word in text.split())


def repeated_letters(text: str, chance: random.Random) -> str:
    return " ".join(_repeated(word, chance) for word in text.split())


def punctuation(text: str, chance: random.Random) -> str:
    return " ".join(_between(word, chance.choice(POINTS)) for word in text.split())


def full_width(text: str, chance: random.Random) -> str:
    return "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text)


def combining_marks(text: str, chance: random.Random) -> str:
    return "".join(c + "".join(chance.choices(MARKS, k=chance.randint(0, 2))) if c.isalpha() else c for c in text)


def casing(text: str, chance: random.Random) -> str:
    """Of Latin letters only: the capitals of others look otherwise."""
    return "".join(c.upper() if c < "\u0180" and len(c.upper()) == 1 and chance.random() < 0.5 else c for c in text)


def joined_words(text: str, chance: random.Random) -> str:
    """Only for phrases of which each word means something alone; others are nothing in one word."""
    return "".join(text.split())


TRICKS: dict[str, Trick] = {
    "confusables": confusables,
    "zero-width": zero_width,
    "leet": leet,
    "spacing": spacing,
    "repeated letters": repeated_letters,
    "punctuation": punctuation,
    "full-width": full_width,
    "combining marks": combining_marks,
    "casing": casing,
    "joined words": joined_words,
}


def can_be_joined(text: str) -> bool:
    words = text.split()
    return len(words) == 2 and all(
        word.isalpha() and len(word) > 2 and word.lower() not in _NOTHING_ALONE for word in words
    )


def _repeated(word: str, chance: random.Random) -> str:
    out = "".join(c * chance.randint(1, 3) if c.isalpha() else c for c in word)
    if plain(out).strip(",") in OTHER_WORDS:
        return "".join(c * 3 if c.isalpha() else c for c in word)
    return out


def _between(word: str, gap: str) -> str:
    """The word with something between its letters; a number, and what hangs on a letter, stay where they are."""
    if word.strip(",").isdecimal():
        return word
    apart = [c for index, c in enumerate(word) if index and not unicodedata.category(c).startswith(("M", "Cf"))]
    return word[:1] + "".join(gap + c if c in apart else c for c in word[1:])
