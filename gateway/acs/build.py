"""The reviewers of this process, from the settings."""

from __future__ import annotations

from typing import Any

from compliance.panel import Panel
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets


def panel_of(settings: Any) -> Panel:
    """Raises BadRules with file, line and fix."""
    own = getattr(settings, "rulesets", None)
    return Panel(Words(PromptGate.built_in()), [RenderCheck()], load_rulesets(*([own] if own else [])))
