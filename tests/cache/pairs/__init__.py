"""The labelled pairs of prompts in the files beside this one: may a picture drawn for `a` be handed out for `b`?"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """Two prompts, what each asks to leave out, and whether one picture serves both. `half` is the name of its file."""

    group: str
    a: str
    b: str
    same: bool
    half: str
    a_negatives: tuple[str, ...] = ()
    b_negatives: tuple[str, ...] = ()


def pairs() -> list[Pair]:
    """Every pair, by file and in the order written. Raises TypeError where a table has a key too many or too few."""
    return [
        _pair(table, file.stem)
        for file in sorted(Path(__file__).parent.glob("*.toml"))
        for table in tomllib.loads(file.read_text(encoding="utf-8"))["pair"]
    ]


def _pair(table: dict[str, Any], half: str) -> Pair:
    lists = {key: tuple(value) for key, value in table.items() if isinstance(value, list)}
    return Pair(**{**table, **lists}, half=half)
