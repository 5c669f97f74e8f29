"""The reviewers that are there and the rulesets that say what of their sights counts: one review, ready to be asked."""

from collections.abc import Mapping, Sequence

from compliance.errors import ReviewUnavailable
from compliance.picture import Raw
from compliance.review import Context, Reviewer, decide, review
from compliance.reviewers.guard import Guarded
from compliance.reviewers.words import Words
from compliance.rulesets import Ruleset, fit
from compliance.verdict import Asked, Verdict


class Panel:
    """Synchronous and safe to call from threads. `words` is one of `reviewers`: it alone reads prompts at the gate."""

    def __init__(self, words: Words, others: Sequence[Reviewer], rulesets: Mapping[str, Ruleset]) -> None:
        """Raises BadRules when a ruleset needs a reviewer that is not there, or a label that its reviewer lacks."""
        self.rulesets = rulesets
        self.reviewers: tuple[Reviewer, ...] = (*others, words)
        self._words = words
        fit(rulesets.values(), {reviewer.name: reviewer.labels for reviewer in self.reviewers})

    def gate(self, context: Context, ruleset: str) -> Verdict:
        """What the words alone forbid, before anything is drawn: a rule without `refuse_prompt` waits for the review.

        Raises ReviewUnavailable only for a ruleset that is not there: no text makes it raise.
        """
        rules = self._ruleset(ruleset)
        asked = Asked(name=self._words.name, version=self._words.version)
        return decide({self._words.name: self._words.read(context)}, [asked], context.tier, rules.at_the_gate())

    def upload(self, picture: Raw, ruleset: str) -> Verdict:
        """What the list of known pictures says of one that a caller sends; nobody else looks at it yet."""
        rules = self._ruleset(ruleset)
        lists = [reviewer for reviewer in self.reviewers if reviewer.name == "hashes"]
        opinions = {each.name: each.review(picture, Context(positive=""), rules) for each in lists}
        asked = [Asked(name=each.name, version=each.version) for each in lists]
        return decide(opinions, asked, "", rules)

    def review(self, picture: Raw, context: Context, ruleset: str) -> Verdict:
        """Raises what `compliance.review.review` raises, also for a ruleset that is not there."""
        return review(picture, context, self._ruleset(ruleset), self.reviewers)

    def troubles(self) -> list[str]:
        """A sentence for each reviewer that is known not to answer now."""
        guards = [reviewer for reviewer in self.reviewers if isinstance(reviewer, Guarded)]
        return [f"the reviewer {guard.name} does not answer: {guard.trouble}" for guard in guards if guard.trouble]

    def _ruleset(self, name: str) -> Ruleset:
        try:
            return self.rulesets[name]
        except KeyError:
            raise ReviewUnavailable(f"There is no ruleset {name!r}.", fix="Put its file back.") from None
