"""The review: a drawn picture gets a verdict, and without a verdict it goes nowhere.

Reviewers say what they see (`Opinion`), a ruleset decides what of it blocks (`Verdict`). There are two:
the picture check, which finds broken renders, and the text rules, applied once more to the prompt as it was really
drawn, with everything that characters, styles and the optimiser added. A reviewer that looks at the content of the
picture is one more class with the same method.
"""

import time
import tomllib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

from compliance.errors import BadRules, BrokenRender, ReviewUnavailable
from compliance.picture import Blocked, Raw, Reviewed
from compliance.rules import MINORS, PromptGate, Violation, content_version
from compliance.verdict import Verdict

RULESETS = Path(__file__).with_name("rulesets")
DEFAULT = "default"
# A picture whose colours lie closer together than this (of 255) in every channel shows nothing.
_FLAT = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """Which categories block. `version` changes with the content of the file."""

    name: str
    title: str
    version: str
    block: frozenset[str]

    def blocks(self, violation: Violation) -> bool:
        """Minors block under every ruleset."""
        return violation.category == MINORS or violation.category in self.block


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """All that a reviewer may look at. `positive` and `negative` are the composed prompts, as the model got them.

    `width` and `height` are what was asked for, in pixels. `precompliance` is what somebody upstream found: a hint
    that may make a reviewer stricter and never milder.
    """

    raw: Raw
    positive: str
    negative: str
    width: int
    height: int
    ruleset: Ruleset
    precompliance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one reviewer saw. `scores` are 0-1 by category, where it has such."""

    violations: tuple[Violation, ...] = ()
    scores: Mapping[str, float] = field(default_factory=dict)


class Reviewer(Protocol):
    """Looks at a case and says what it sees. `version` changes whenever the same case may get another opinion."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def review(self, case: Case) -> Opinion:
        """Raises ReviewUnavailable when it can't tell; it never guesses."""


class PictureCheck:
    """Finds broken renders: the wrong size, or one colour all over. Those are errors, not verdicts."""

    name = "picture"
    version = "1"

    def review(self, case: Case) -> Opinion:
        if case.raw.size != (case.width, case.height):
            width, height = case.raw.size
            raise BrokenRender(f"The picture has {width}x{height} pixels instead of {case.width}x{case.height}.")
        extrema = cast(tuple[tuple[int, int], ...], case.raw.pixels.getextrema())
        if all(high - low < _FLAT for low, high in extrema):
            raise BrokenRender("The picture shows a single colour.")
        return Opinion()


class TextRules:
    """The prompt gate, once more over the composed prompt."""

    name = "text-rules"

    def __init__(self, gate: PromptGate) -> None:
        self._gate = gate

    @property
    def version(self) -> str:
        return self._gate.version

    def review(self, case: Case) -> Opinion:
        return Opinion(violations=self._gate.check(case.positive, case.negative))


def review(
    case: Case, reviewers: Sequence[Reviewer], *, clock: Callable[[], float] = time.perf_counter
) -> Reviewed | Blocked:
    """Asks every reviewer and lets the ruleset decide over all that they saw.

    Raises ReviewUnavailable when a reviewer has no answer or when there is none to ask, and BrokenRender when there is
    nothing to review.
    """
    if not reviewers:
        raise ReviewUnavailable("There is no reviewer.", fix="Configure at least one reviewer.")
    began = clock()
    opinions = [reviewer.review(case) for reviewer in reviewers]
    seen = [violation for opinion in opinions for violation in opinion.violations]
    blocking = [violation for violation in seen if case.ruleset.blocks(violation)]
    verdict = Verdict(
        safe=not blocking,
        ruleset=case.ruleset.name,
        ruleset_version=case.ruleset.version,
        codes=_each(violation.rule for violation in blocking),
        categories=_each(violation.name for violation in blocking),
        findings=_each(violation.rule for violation in seen if violation not in blocking),
        releasable=all(violation.releasable for violation in blocking),
        scores={name: score for opinion in opinions for name, score in opinion.scores.items()},
        reviewer="+".join(reviewer.name for reviewer in reviewers),
        reviewer_version="+".join(reviewer.version for reviewer in reviewers),
        latency_ms=round(1000 * (clock() - began), 3),
    )
    if verdict.safe:
        return Reviewed(pixels=case.raw.pixels, verdict=verdict)
    return Blocked(raw=case.raw, verdict=verdict)


def load_rulesets(folder: Path = RULESETS, categories: Collection[str] = ()) -> dict[str, Ruleset]:
    """Every `*.toml` of the folder by its name; one must be called `default`.

    With `categories`, a ruleset that names any other is refused: a misspelt category would block nothing. Raises
    BadRules with the file's name.
    """
    found: dict[str, Ruleset] = {}
    for path in sorted(folder.glob("*.toml")):
        ruleset = _ruleset(path)
        if ruleset.name in found:
            raise BadRules(f"{path}: there are two rulesets {ruleset.name!r}.", fix="Rename one.")
        if categories and (unknown := ruleset.block - {*categories}):
            raise BadRules(
                f"{path}: unknown category {', '.join(sorted(unknown))}.",
                fix=f"Known: {', '.join(sorted(categories))}.",
            )
        found[ruleset.name] = ruleset
    if DEFAULT not in found:
        raise BadRules(f"{folder} has no ruleset {DEFAULT!r}.", fix=f"Add {DEFAULT}.toml with name, title and block.")
    return found


def _ruleset(path: Path) -> Ruleset:
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise BadRules(
            f"{path} can't be read: {exc}.", fix="Give a file in the form of rulesets/default.toml."
        ) from exc
    match data:
        case {"name": str(name), "title": str(title), "block": [*block]} if all(isinstance(b, str) for b in block):
            return Ruleset(name=name, title=title, version=content_version(path), block=frozenset(block))
    raise BadRules(f"{path} needs name and title as texts and block as a list of categories.")


def _each(items: Iterable[str]) -> tuple[str, ...]:
    """Without repetitions, in order."""
    return tuple(dict.fromkeys(items))
