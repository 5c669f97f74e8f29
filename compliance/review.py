"""The review: a drawn picture gets a verdict, and without a verdict it goes nowhere.

Reviewers say what they see (`Opinion`), a ruleset decides what of it blocks (`Verdict`). Every reviewer that a ruleset
names is asked, and every one that knows about minors, whatever the ruleset: none is spared because another has blocked
already, for a picture that may be shown to a reviewer of blocked pictures must first have been looked at for worse.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from compliance.errors import ReviewUnavailable
from compliance.picture import Blocked, Raw, Reviewed
from compliance.rulesets import Rule, Ruleset
from compliance.verdict import Asked, Reason, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a reviewer may know beside the pixels. `positive` and `negative` are the prompts as the model got them.

    `width` and `height` are what was asked for, in pixels; 0 where nobody asked. `tier` is the key's. `precompliance`
    is what somebody upstream found: a hint that may make a reviewer stricter and never milder.
    """

    positive: str
    negative: str = ""
    width: int = 0
    height: int = 0
    tier: str = "standard"
    precompliance: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What one reviewer saw: a score of 0-1 for each label that it has something to say about."""

    prompt: Mapping[str, float] = field(default_factory=dict)
    picture: Mapping[str, float] = field(default_factory=dict)


class Reviewer(Protocol):
    """Looks at a picture and its prompt and says what it sees.

    `name` is one of `rulesets.REVIEWERS`, or that of a check that has no labels. `version` changes whenever the same
    picture may get another opinion. `labels` are all that it can give, None where that is open. `always` is true where
    it is asked whatever the ruleset names: it knows about minors, or finds broken renders.
    """

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    @property
    def labels(self) -> frozenset[str] | None: ...

    @property
    def always(self) -> bool: ...

    def review(self, picture: Raw, context: Context, ruleset: Ruleset) -> Opinion:
        """Raises ReviewUnavailable when it can't tell; it never guesses."""


def review(
    picture: Raw,
    context: Context,
    ruleset: Ruleset,
    reviewers: Sequence[Reviewer],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Verdict:
    """Asks the reviewers and lets the ruleset decide over all that they saw.

    Raises ReviewUnavailable when a reviewer has no answer, when the ruleset requires one that is not there, or when
    there is none to ask; and BrokenRender when there is nothing to review.
    """
    if missing := ruleset.requires - {reviewer.name for reviewer in reviewers}:
        raise ReviewUnavailable(f"The ruleset {ruleset.name!r} requires {', '.join(sorted(missing))}.")
    chosen = [reviewer for reviewer in reviewers if reviewer.always or reviewer.name in ruleset.uses]
    if not chosen:
        raise ReviewUnavailable("There is no reviewer.", fix="Configure at least one reviewer.")
    opinions: dict[str, Opinion] = {}
    asked: list[Asked] = []
    for reviewer in chosen:
        began = clock()
        opinions[reviewer.name] = reviewer.review(picture, context, ruleset)
        took = round(1000 * (clock() - began), 3)
        asked.append(Asked(name=reviewer.name, version=reviewer.version, latency_ms=took))
    return decide(opinions, asked, context.tier, ruleset)


def decide(opinions: Mapping[str, Opinion], asked: Sequence[Asked], tier: str, ruleset: Ruleset) -> Verdict:
    """What a ruleset makes of opinions. A rule applies when one label that it looks at reaches its threshold."""
    reasons = [reason for rule in ruleset.rules if (reason := _reason(rule, opinions, tier))]
    blocking = [reason for reason in reasons if reason.action == "block"]
    rules = {rule.id: rule for rule in ruleset.rules}
    return Verdict(
        safe=not blocking,
        ruleset=ruleset.name,
        ruleset_version=ruleset.version,
        codes=tuple(reason.rule for reason in blocking),
        categories=_each(reason.name for reason in blocking),
        findings=tuple(reason.rule for reason in reasons if reason.action == "flag"),
        releasable=all(rules[reason.rule].releasable for reason in reasons),
        minors=any(rules[reason.rule].minors for reason in blocking),
        scores={
            f"{name}.{part}.{label}": score
            for name, opinion in opinions.items()
            for part, scores in (("prompt", opinion.prompt), ("picture", opinion.picture))
            for label, score in scores.items()
        },
        reasons=tuple(reasons),
        reviewer="+".join(each.name for each in asked),
        reviewer_version="+".join(each.version for each in asked),
        asked=tuple(asked),
        latency_ms=round(sum(each.latency_ms for each in asked), 3),
    )


def judged(picture: Raw, verdict: Verdict) -> Reviewed | Blocked:
    """The picture with its verdict, in the type that the verdict allows."""
    return Reviewed(pixels=picture.pixels, verdict=verdict) if verdict.safe else Blocked(raw=picture, verdict=verdict)


def _reason(rule: Rule, opinions: Mapping[str, Opinion], tier: str) -> Reason | None:
    """The strongest sight that makes the rule apply, if any does."""
    seen = [
        (score - threshold, name, part, label, score, threshold)
        for name, thresholds in rule.reviewers.items()
        if (opinion := opinions.get(name))
        for part, scores in (("prompt", opinion.prompt), ("picture", opinion.picture))
        if rule.looks_at_part(part)
        for label, threshold in thresholds.items()
        if (score := scores.get(label, 0.0)) >= threshold
    ]
    if not seen:
        return None
    _, name, part, label, score, threshold = max(seen)
    return Reason(
        rule=rule.id,
        category=rule.category,
        name=rule.name,
        action=rule.action_for(tier),
        seen_in=part,
        reviewer=name,
        label=label,
        score=score,
        threshold=threshold,
    )


def _each(items: Iterable[str]) -> tuple[str, ...]:
    """Without repetitions, in order."""
    return tuple(dict.fromkeys(items))
