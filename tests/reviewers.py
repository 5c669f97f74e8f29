"""Reviewers for tests: one that sees colours, and one that is silent now and then. And rulesets that listen to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compliance.errors import ReviewUnavailable
from compliance.panel import Panel
from compliance.review import Opinion, Reviewer
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import Rule, Ruleset, load_rulesets, standing_rules

#: What the first pixel says to `SeesColours`.
COLOURS = {(0, 0, 255): "blue", (255, 0, 255): "minors", (0, 255, 255): "gone"}


class SeesColours:
    """A detector that says the name of the colour in the first pixel."""

    name, version, labels, always = "detector", "7", None, True

    def review(self, picture, context, ruleset):
        seen = COLOURS.get(picture.pixels.getpixel((0, 0)))
        return Opinion(picture={seen: 1.0} if seen else {})


class Silent:
    """A reviewer that has no answer for its first calls."""

    name, version, labels, always = "judge", "1", None, True

    def __init__(self, calls: int | Callable[[], bool]) -> None:
        self.calls = calls

    def review(self, picture, context, ruleset):
        if callable(self.calls):
            silent = self.calls()
        else:
            self.calls -= 1
            silent = self.calls >= 0
        if silent:
            raise ReviewUnavailable("The judge does not answer.")
        return Opinion()


def rule(id: str, name: str, **more) -> Rule:
    return Rule(id=id, category="COLOUR", name=name, looks_at="picture", reviewers={"detector": {id: 0.5}}, **more)


#: Blue pictures are blocked, and what is "gone" is never handed out.
COLOURS_RULESET = Ruleset(
    name="colours",
    title="No blue",
    version="v1",
    rules=(*standing_rules(), rule("blue", "Blue"), rule("gone", "Gone", releasable=False)),
)


def panel(*others: Reviewer, folder: Path | None = None) -> Panel:
    """The word rules and these reviewers, under the shipped rulesets and ``colours``, or those of the folder."""
    folders = [folder] if folder else []
    rulesets = {name: rules for name, rules in load_rulesets(*folders).items() if not rules.requires}
    return Panel(Words(PromptGate.built_in()), others, {"colours": COLOURS_RULESET, **rulesets})
