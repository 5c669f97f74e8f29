"""What the word rules make of the labelled texts and of ordinary prompts, as the table that README shows."""

from __future__ import annotations

from compliance.rules import PromptGate
from tests.compliance.words import labelled
from tests.compliance.words.benign import KINDS


def run() -> None:
    gate = PromptGate.built_in()
    rows = list(labelled.rows(gate))
    print("| labelled texts | languages | cases | right | wrong |")
    print("|---|---|---:|---:|---:|")
    for kind in dict.fromkeys(row[0] for row in rows):
        _line(kind, [row for row in rows if row[0] == kind])
    _line("**all**", rows)
    print("\n| language | cases | right | wrong |")
    print("|---|---:|---:|---:|")
    for language in dict.fromkeys(row[1] for row in rows):
        count, right = _sums([row for row in rows if row[1] == language])
        print(f"| {language} | {count} | {right} | {count - right} |")
    seen = labelled.benign(gate)
    print(f"\nordinary prompts ({len(KINDS)} kinds): refused {len(seen.refused)} of {seen.prompts}", end=" ")
    print(f"({len(seen.refused) / seen.prompts:.2%}); also", end=" ")
    print(", ".join(f"{label} {count}" for label, count in seen.others.items()))


def _line(kind: str, rows: list[tuple[str, str, int, int]]) -> None:
    count, right = _sums(rows)
    print(f"| {kind} | {' '.join(dict.fromkeys(row[1] for row in rows))} | {count} | {right} | {count - right} |")


def _sums(rows: list[tuple[str, str, int, int]]) -> tuple[int, int]:
    return sum(row[2] for row in rows), sum(row[3] for row in rows)
