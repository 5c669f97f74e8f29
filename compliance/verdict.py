"""What a review concluded, as a value that can be stored with the job and with the master picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why one rule applied: which reviewer said what about what, and how sure it had to be.

    `seen_in` is `prompt` or `picture`, `label` the reviewer's own word, `score` and `threshold` are 0-1, and `action`
    is `block` or `flag`, a tier's exception already counted.
    """

    rule: str
    category: str
    name: str
    action: str
    seen_in: str
    reviewer: str
    label: str
    score: float
    threshold: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One reviewer that was asked, and how long it took in milliseconds."""

    name: str
    version: str
    latency_ms: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The one answer about one picture (or, before anything is drawn, about one prompt) under one ruleset.

    `codes` are the ids of the rules that blocked it and `categories` their names for people, both empty when it is
    safe. `findings` are ids of rules that only flag. `releasable` is False when the picture must never be handed out in
    any form, not even to a key that may see blocked pictures, and `minors` says that one of the rules that nothing
    turns off applied. `scores` are 0-1 by `reviewer.seen_in.label`. A person who decided stands in `reviewer` as
    `human:<name>`.
    """

    safe: bool
    ruleset: str
    ruleset_version: str
    codes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    releasable: bool = True
    minors: bool = False
    scores: Mapping[str, float] = field(default_factory=dict)
    reasons: tuple[Reason, ...] = ()
    reviewer: str = ""
    reviewer_version: str = ""
    asked: tuple[Asked, ...] = ()
    latency_ms: float = 0.0

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of the rules that blocked, in their order."""
        return tuple(dict.fromkeys(reason.category for reason in self.reasons if reason.action == "block"))

    def released(self, by: str) -> "Verdict":
        """The safe verdict of a person, by name, over the same picture; what was found stays on record.

        Raises ValueError where nobody may decide so.
        """
        if self.minors or not self.releasable:
            raise ValueError("nobody may release this picture")
        return replace(
            self,
            safe=True,
            codes=(),
            categories=(),
            findings=(*self.codes, *self.findings),
            reviewer=f"human:{by}",
            reviewer_version="",
        )

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold; `from_dict` reads it back."""
        return asdict(self) | {"scores": dict(self.scores)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Verdict":
        """Reads what `as_dict` gave, also after JSON made lists of the tuples. Unknown keys are ignored."""
        known = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        for name in ("codes", "categories", "findings"):
            known[name] = tuple(known.get(name, ()))
        known["reasons"] = tuple(_known(Reason, each) for each in known.get("reasons", ()))
        known["asked"] = tuple(_known(Asked, each) for each in known.get("asked", ()))
        return cls(**known)


def _known(kind: Any, stored: Mapping[str, Any]) -> Any:
    return kind(**{name: stored[name] for name in kind.__dataclass_fields__ if name in stored})
