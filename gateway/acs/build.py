"""Which reviewers there are, by the settings."""

from __future__ import annotations

from compliance.panel import Panel
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets
from gateway.settings import Settings


def panel_of(settings: Settings) -> Panel:
    """Raises `compliance.errors.BadRules`, which names file, line and fix."""
    gate = PromptGate.from_file(settings.word_rules) if settings.word_rules else PromptGate.built_in()
    folders = [settings.rulesets] if settings.rulesets else []
    return Panel(Words(gate), [RenderCheck()], load_rulesets(*folders))
