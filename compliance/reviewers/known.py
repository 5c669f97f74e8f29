"""Pictures that are known: a list of perceptual hashes (PDQ) that an operator keeps or gets from others.

One picture a line: 64 hex digits and, where it is not `known_bad`, its label. What follows a `#` is a remark.

    f8f8f0cee0f4a84f06370a22038f63f0b36e2ed596621e1d33e6b39c4e9c9b22
    d8f8f0cce0f4a84f0e370a22028f67f0b36e2ed596621e1d33e6b39c4e9c9b22 minors   # case 4711

A picture is on the list when at most 31 of the 256 bits differ, in any of its rotations and flips: the distance that
Meta's ThreatExchange recommends. One with too little in it to be told from others (a quality below 50) matches nothing,
however near it is.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from compliance.errors import BadRules
from compliance.pdq import BITS, Bytes, turned_hashes
from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.rulesets import Ruleset, content_version

LABELS = ("known_bad", "minors")
DISTANCE = 31
QUALITY = 50
_DIGITS = BITS // 4
_FORM = f"Write {_DIGITS} hex digits, then nothing or one of: {', '.join(LABELS)}."


class KnownPictures:
    """The reviewer `hashes`: says 1 for each label under which a picture is on the list."""

    name = "hashes"
    labels: frozenset[str] = frozenset(LABELS)
    always = True

    def __init__(self, hashes: Bytes, labels: Sequence[str], version: str) -> None:
        """`hashes` has a row of 32 bytes for each of `labels`."""
        self._words = _words(hashes)
        self._first, self._second = (np.ascontiguousarray(self._words[:, column]) for column in (0, 1))
        self._of_label = {label: np.array([each == label for each in labels], bool) for label in LABELS}
        self.version = version

    @classmethod
    def from_file(cls, path: Path) -> Self:
        """Raises BadRules with file, line and fix."""
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as exc:
            raise BadRules(f"{path}: can't be read: {exc}.", fix="Give a text file in UTF-8.") from exc
        entries = [_entry(line, f"{path}:{number}") for number, line in enumerate(lines, 1) if _told(line)]
        if not entries:
            raise BadRules(f"{path}:1: there is no hash in it.", fix=f"{_FORM} Without a list, name no file.")
        digests = b"".join(digest for digest, _ in entries)
        hashes = np.frombuffer(digests, np.uint8).reshape(len(entries), BITS // 8)
        return cls(hashes, [label for _, label in entries], content_version(path))

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        hashes, quality = turned_hashes(picture.pixels)
        if quality < QUALITY:
            return Opinion()
        near = np.zeros(len(self._words), bool)
        for turned in _words(hashes):
            # Almost none is near in the first half of the bits already: that spares the sums over rows.
            first = np.bitwise_count(self._first ^ turned[0]) + np.bitwise_count(self._second ^ turned[1])
            some = np.flatnonzero(first <= DISTANCE)
            near[some] |= np.bitwise_count(self._words[some] ^ turned).sum(1) <= DISTANCE
        return Opinion(picture={label: 1.0 for label, rows in self._of_label.items() if (near & rows).any()})


def _words(hashes: Bytes) -> npt.NDArray[np.uint64]:
    """The same bits, 64 at a time."""
    return np.ascontiguousarray(hashes).view(np.uint64)


def _told(line: str) -> str:
    return line.partition("#")[0].strip()


def _entry(line: str, where: str) -> tuple[bytes, str]:
    digits, *rest = _told(line).split()
    label = rest[0].lower() if rest else LABELS[0]
    try:
        digest = bytes.fromhex(digits)
    except ValueError:
        digest = b""
    if len(digest) != BITS // 8:
        raise BadRules(f"{where}: {digits[:80]!r} is no PDQ hash.", fix=_FORM)
    if len(rest) > 1 or label not in LABELS:
        raise BadRules(f"{where}: {' '.join(rest)[:80]!r} is no label.", fix=_FORM)
    return digest, label
