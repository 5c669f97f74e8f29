"""The word rules: what a prompt plainly asks for, found by short lists of terms and rules over them.

It reads words, not substrings, and combinations rather than single words: "child" and "nude" are fine apart. The
built-in rules are in `rules.toml`. A file of one's own adds rules of its own; nothing in it can weaken the built-in
ones. What of it blocks, a ruleset says: here are only names of what was found.
"""

import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from compliance import text
from compliance.errors import BadRules
from compliance.rulesets import MINORS, content_version

BUILT_IN = Path(__file__).with_name("rules.toml")
AGE, GROWN = "<age>", "<grown>"
HARMLESS = ""
_ADULT_FROM = 18
# What may stand between tens and ones: "treinta y cinco".
_AND = frozenset({"and", "y", "e", "et"})
# Where a class of terms was found: (first position, position after it).
_Spans = list[tuple[int, int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """One word rule that applies, and the class of rules that it belongs to."""

    rule: str
    category: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rule:
    violation: Violation
    positive: tuple[frozenset[str], ...]
    negative: tuple[frozenset[str], ...]
    either: tuple[frozenset[str], ...]
    within: int | None

    def applies(self, positive: Mapping[str, _Spans], negative: Mapping[str, _Spans]) -> bool:
        return (
            _together([_spans(group, positive) for group in self.positive], self.within)
            and all(_spans(group, negative) for group in self.negative)
            and all(_spans(group, positive) or _spans(group, negative) for group in self.either)
        )


@dataclass(slots=True)
class _Node:
    """A point in the tree of phrases: the words that may follow, and the classes of the phrase that ends here."""

    next: dict[str, "_Node"] = field(default_factory=dict)
    classes: set[str] = field(default_factory=set)

    def grow(self, phrase: Iterable[str], name: str) -> None:
        """Adds a phrase of the class of this name."""
        node = self
        for word in phrase:
            node = node.next.setdefault(word, _Node())
        node.classes.add(name)

    def words(self) -> set[str]:
        """Every word of every phrase from here on."""
        return {*self.next}.union(*(node.words() for node in self.next.values()))

    def endings(self) -> set[str]:
        """The words that are a whole phrase."""
        return {word for word, node in self.next.items() if node.classes}


class _Rulebook:
    """One file of rules with its own terms: a phrase tree over spellings, and the rules over classes of terms."""

    def __init__(
        self,
        terms: Mapping[str, Iterable[str]],
        harmless: Iterable[str],
        numbers: Mapping[str, str],
        rules: Sequence[_Rule],
    ) -> None:
        self.rules = rules
        self._tree, self._harmless = _Node(), _Node()
        self._numbers = numbers
        for name, phrases in terms.items():
            for phrase in phrases:
                self._add(phrase, name)
        for phrase in harmless:
            written = _each_word(phrase, text.exact)
            self._harmless.grow(written, HARMLESS)
            self._harmless.grow(["".join(written)], HARMLESS)
        self._lexicon = text.Lexicon(self._tree.words() | self._numbers.keys() | _AND, self._tree.endings())

    def find(self, prompt: str) -> dict[str, _Spans]:
        """Every class of terms with the places where it was found, but for those within a harmless phrase.

        A harmless phrase is one only as it is written in the list: no trick makes one.
        """
        written, edges = text.read(prompt, self._lexicon)
        leaving: list[list[tuple[int, str]]] = [[] for _ in written]
        # Where a number may go on: after "thirty", and after "treinta y".
        tens = {end for _, end, word in edges if self._numbers.get(word) == GROWN}
        tens |= {end for start, end, word in edges if word in _AND and start in tens}
        for start, end, word in edges:
            number = self._number(word)
            if number == AGE and start in tens and not word.isdecimal():
                number = GROWN
            leaving[start] += [(end, form) for form in (word, number) if form]
        found: dict[str, _Spans] = {}
        for start in range(len(written)):
            for end, name in _phrases(self._tree, leaving, start):
                found.setdefault(name, []).append((start, end))
        plainly = [[(at, word), (at, self._number(word))] for at, word in enumerate(written, 1)]
        harmless = [(at, end) for at in range(len(written)) for end, _ in _phrases(self._harmless, plainly, at)]
        # Rules count words, so letters that stand apart are one together.
        words = list(accumulate(map(_is_new_word, ["", *written], [*written, ""]), initial=0))
        return {
            name: [(words[start], words[end]) for start, end in spans]
            for name, spans in _without(harmless, found, len(written)).items()
        }

    def _add(self, phrase: str, name: str) -> None:
        words = _each_word(phrase, text.words)
        self._tree.grow(words, name)
        # A phrase may also be written as one word: "schoolgirl" is in the list as "school girl".
        if not {AGE, GROWN} & {*words}:
            self._tree.grow(["".join(words)], name)

    def _number(self, word: str) -> str:
        if word.isdecimal():
            return "" if len(word) > 3 else AGE if int(word) < _ADULT_FROM else GROWN
        return self._numbers.get(word, "")


class PromptGate:
    """Checks prompts against the built-in rules, and against those of a file of one's own."""

    def __init__(self, rulebooks: Sequence[_Rulebook], version: str) -> None:
        """`version` names the content of the files; a verdict carries it."""
        self._rulebooks = rulebooks
        self.version = version
        found = [rule.violation for book in rulebooks for rule in book.rules]
        self.labels = frozenset({each.rule for each in found} | {each.category for each in found})

    @classmethod
    def built_in(cls) -> "PromptGate":
        return cls([_built_in()], content_version(BUILT_IN))

    @classmethod
    def from_file(cls, path: Path) -> "PromptGate":
        """The built-in rules and those of this file, which has the same form. Raises BadRules with the file's name."""
        built_in, own = _built_in(), _load(path)
        taken = {rule.violation.rule for rule in built_in.rules}
        for rule in own.rules:
            if rule.violation.rule in taken or rule.violation.category == MINORS:
                raise BadRules(
                    f"{path}: the rule {rule.violation.rule!r} stands in for a built-in one.",
                    fix="Give it another id, and a category other than MINORS.",
                )
        return cls([built_in, own], content_version(BUILT_IN, path))

    def check(self, positive: str, negative: str = "") -> tuple[Violation, ...]:
        """Every rule that applies, in the order of the files. Any text is allowed, and none makes this raise.

        A negative prompt takes things away, so "-child" is not held against anybody. That is true only as long as the
        guidance is above 1: below, the model draws the negative prompt, and its text must be passed as positive.
        """
        return tuple(
            rule.violation
            for book in self._rulebooks
            for found in [(book.find(positive), book.find(negative))]
            for rule in book.rules
            if rule.applies(*found)
        )


def _phrases(tree: _Node, leaving: Sequence[Sequence[tuple[int, str]]], start: int) -> Iterator[tuple[int, str]]:
    """(end, class) of every phrase that begins at this position."""
    ahead = [(start, tree)]
    while ahead:
        at, node = ahead.pop()
        for end, word in leaving[at] if at < len(leaving) else ():
            if then := node.next.get(word):
                yield from ((end, name) for name in then.classes)
                ahead.append((end, then))


def _each_word(phrase: str, words: Callable[[str], list[str]]) -> list[str]:
    return [each for word in phrase.split() for each in ([word] if word in (AGE, GROWN) else words(word))]


def _is_new_word(before: str, word: str) -> bool:
    """Whether a word begins here, and not only one more letter of those that stand apart."""
    return len({*before}) != 1 or len({*word}) != 1


def _without(harmless: _Spans, found: Mapping[str, _Spans], length: int) -> dict[str, _Spans]:
    """Drops the hits that lie within a harmless phrase."""
    reach = [0] * length
    for start, end in harmless:
        reach[start] = max(reach[start], end)
    furthest = list(accumulate(reach, max))
    return {name: [(start, end) for start, end in spans if furthest[start] < end] for name, spans in found.items()}


def _spans(classes: frozenset[str], found: Mapping[str, _Spans]) -> _Spans:
    return [span for name in classes for span in found.get(name, ())]


def _together(groups: Sequence[_Spans], within: int | None) -> bool:
    """True when every group has a hit; with `within`, all of them within so many words."""
    if within is None or not all(groups):
        return all(groups)
    last = [-sys.maxsize] * len(groups)
    for start, end, group in sorted((start, end, group) for group, spans in enumerate(groups) for start, end in spans):
        last[group] = max(last[group], end)
        if min(last) >= start - within:
            return True
    return False


@cache
def _built_in() -> _Rulebook:
    """Read once in a process: it takes a fifth of a second, and nothing changes a rulebook that was read."""
    return _load(BUILT_IN)


def _load(path: Path) -> _Rulebook:
    """Reads one file. Every mistake in it is a BadRules that names the file."""
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        terms = {name: _phrases_of(phrases, f"terms.{name}") for name, phrases in data.get("terms", {}).items()}
        harmless = _phrases_of(data.get("harmless", {}).get("phrases", []), "harmless.phrases")
        numbers = {
            text.spelling(word): sort
            for sort, key in ((AGE, "age"), (GROWN, "grown"))
            for word in _strings(data.get("numbers", {}).get(key, []), f"numbers.{key}")
        }
        rules = [_rule(entry, terms) for entry in data.get("rules", [])]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise BadRules(
            f"{path} can't be read: {exc}.", fix="Give a file in the form of compliance/rules.toml."
        ) from exc
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise BadRules(f"{path}: {exc}.", fix="Compare it with compliance/rules.toml.") from exc
    return _Rulebook(terms, harmless, numbers, rules)


def _rule(entry: Mapping[str, Any], terms: Mapping[str, Any]) -> _Rule:
    name, category = entry["id"], entry["category"]
    if not (isinstance(name, str) and isinstance(category, str)):
        raise ValueError("a rule's id and category must be texts")
    groups = {
        where: tuple(frozenset(group.split("|")) for group in _strings(entry.get(where, []), f"{name}.{where}"))
        for where in ("positive", "negative", "either")
    }
    if not any(groups.values()):
        raise ValueError(f"rule {name!r} has no positive, negative or either")
    if unknown := {c for many in groups.values() for group in many for c in group} - terms.keys():
        raise ValueError(f"rule {name!r}: there are no [terms] {', '.join(sorted(unknown))}")
    violation = Violation(rule=name, category=category)
    within = entry.get("within")
    if not (within is None or isinstance(within, int)):
        raise ValueError(f"rule {name!r}: within must be a number of words")
    return _Rule(violation=violation, within=within, **groups)


def _phrases_of(value: Any, where: str) -> list[str]:
    phrases = _strings(value, where)
    if bad := [phrase for phrase in phrases if not all(text.spelling(word) for word in phrase.split())]:
        raise ValueError(f"{where}: every word needs letters, unlike in {bad[0]!r}")
    return phrases


def _strings(value: Any, where: str) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise ValueError(f"{where} must be a list of texts")
    return value
