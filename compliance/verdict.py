"""What a review concluded, as a value that can be stored with the job and with the master picture."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The one answer about one picture under one ruleset.

    `codes` are the rule ids that blocked it and `categories` their names for people, both empty when it is safe.
    `findings` are rule ids that the ruleset only reports. `releasable` is False when the picture must never be handed
    out in any form, not even to a key that may see blocked pictures (resolution of `unsafe_url`: minors and other
    illegal content).
    """

    safe: bool
    ruleset: str
    ruleset_version: str
    codes: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    findings: tuple[str, ...] = ()
    releasable: bool = True
    scores: Mapping[str, float] = field(default_factory=dict)
    reviewer: str = ""
    reviewer_version: str = ""
    latency_ms: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """A dict that JSON can hold; `from_dict` reads it back."""
        return asdict(self) | {"scores": dict(self.scores)}

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> "Verdict":
        """Reads what `as_dict` gave, also after JSON made lists of the tuples. Unknown keys are ignored."""
        known = {name: stored[name] for name in cls.__dataclass_fields__ if name in stored}
        for name in ("codes", "categories", "findings"):
            known[name] = tuple(known.get(name, ()))
        return cls(**known)
