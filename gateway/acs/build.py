"""Which reviewers there are, by the settings."""

from __future__ import annotations

from collections.abc import Sequence

from compliance.panel import Panel
from compliance.review import Reviewer
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets
from gateway.settings import Settings


def panel_of(settings: Settings, others: Sequence[Reviewer] = ()) -> Panel:
    """``others`` are asked too. Raises `compliance.errors.BadRules`, which names file, line and fix."""
    gate = PromptGate.from_file(settings.word_rules) if settings.word_rules else PromptGate.built_in()
    folders = [settings.rulesets] if settings.rulesets else []
    return Panel(Words(gate), [RenderCheck(), *others], load_rulesets(*folders))
