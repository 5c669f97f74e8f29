"""The word rules as a reviewer: over the prompt as it was really drawn, with everything that was added to it."""

from compliance.picture import Raw
from compliance.review import Context, Opinion
from compliance.rules import PromptGate
from compliance.rulesets import Ruleset


class Words:
    """Says the ids and the categories of the word rules that apply, each with the score 1."""

    name = "text"
    always = True

    def __init__(self, gate: PromptGate) -> None:
        self._gate = gate

    @property
    def version(self) -> str:
        return self._gate.version

    @property
    def labels(self) -> frozenset[str]:
        return self._gate.labels

    def read(self, context: Context) -> Opinion:
        """What the words alone say, before anything is drawn. Never raises."""
        found = self._gate.check(context.positive, context.negative)
        return Opinion(prompt=dict.fromkeys((label for each in found for label in (each.rule, each.category)), 1.0))

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        return self.read(context)
