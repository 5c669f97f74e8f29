"""The labelled cases of `labelled.jsonl`, one a line, and how the rules are judged by them.

text, negative     what is asked for, and what is taken away
labels             the categories that the rules should find, none where the prompt is harmless
kind               plain, adult, negative, benign trap, or the trick that hides a plain phrase
language           two letters
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from compliance.rules import PromptGate
from tests.compliance.words.benign import prompts
from tests.compliance.words.tricks import TRICKS

FILE = Path(__file__).with_name("labelled.jsonl")
#: What no ruleset lets pass.
REFUSED = frozenset({"MINORS", "ILLEGAL_SEXUAL"})
BENIGN = 2500
#: At most this part of the ordinary prompts may be refused.
TOLERATED = 0.005


@dataclass(frozen=True, kw_only=True)
class Case:
    text: str
    labels: frozenset[str]
    kind: str
    language: str
    negative: str = ""

    def is_right(self, gate: PromptGate) -> bool:
        """Whether the rules find just the labels; of a hidden phrase, whether they refuse it as they should."""
        found = {each.category for each in gate.check(self.text, self.negative)}
        return found & REFUSED == self.labels & REFUSED and (self.kind in TRICKS or found == self.labels)


@dataclass(frozen=True, kw_only=True)
class Benign:
    """What became of the ordinary prompts: how many were refused, and how many have another label."""

    prompts: int
    refused: tuple[str, ...]
    others: dict[str, int]


def cases() -> list[Case]:
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [Case(**row | {"labels": frozenset(row["labels"])}) for row in map(json.loads, lines)]


def benign(gate: PromptGate, count: int = BENIGN, seed: int = 0) -> Benign:
    refused, others = [], {"ADULT_NSFW": 0, "SUGGESTIVE": 0}
    for _, prompt in prompts(count, seed):
        found = {each.category for each in gate.check(prompt)}
        if found & REFUSED:
            refused.append(prompt)
        for label in others.keys() & found:
            others[label] += 1
    return Benign(prompts=count, refused=tuple(refused), others=others)


def rows(gate: PromptGate) -> Iterable[tuple[str, str, int, int]]:
    """(kind, language, cases, right) of every pair that has cases, in the order of the file."""
    groups: dict[tuple[str, str], list[bool]] = {}
    for case in cases():
        groups.setdefault((case.kind, case.language), []).append(case.is_right(gate))
    for (kind, language), right in groups.items():
        yield kind, language, len(right), sum(right)
