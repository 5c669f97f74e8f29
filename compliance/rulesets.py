"""Rulesets: which sights of which reviewers block a picture. TOML files that an operator reads and writes.

    name = "house"
    title = "House rules"
    requires = ["judge"]             # without these reviewers the start stops

    [[rules]]
    id = "weapons"                   # what `filter_categories` says
    category = "VIOLENCE"            # a class of rules; some surfaces name it
    name = "Weapons"                 # what the sentence for people says
    description = "Guns and blades that are pointed at somebody."   # what a judge is told
    looks_at = "both"                # prompt, picture, or both
    action = "block"                 # or flag
    refuse_prompt = false            # true: a prompt that its text rules find is refused before it is drawn
    releasable = true                # false: never handed out, whatever scope a key has
    except_tiers = ["pro"]           # for keys of these tiers it only flags
    [rules.reviewers]                # a label or labels with the least score that counts, 0-1
    text = ["weapons"]               # a list: any of these labels, at 0.5
    moderation = { violence = 0.7 }
    judge = 0.6                      # one number: the label is the rule's own id

A reviewer that a rule names and that is not configured is passed over, unless the ruleset requires it. The rules about
minors are in `minors.toml`, and what a reviewer's own provider refuses to look at in `provider.toml`, both in the same
form; they belong to every ruleset and none can name, change or leave them out.
"""

import hashlib
import tomllib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from compliance.errors import BadRules

SHIPPED = Path(__file__).with_name("rulesets")
MINORS_FILE = Path(__file__).with_name("minors.toml")
PROVIDER_FILE = Path(__file__).with_name("provider.toml")
MINORS = "MINORS"
PROVIDER_POLICY = "PROVIDER_POLICY"
#: What a reviewer says, with the score 1, whose provider refuses to look: its answer is final, and it is no outage.
REFUSED = "provider.refused"
DEFAULT = "default"
#: The names that a ruleset may give reviewers, with what each of them is.
REVIEWERS = {
    "text": "the word rules over the prompt",
    "moderation": "an OpenAI-compatible moderation endpoint",
    "judge": "an OpenAI-compatible vision model",
    "detector": "an ONNX picture classifier",
    "hashes": "the operator's list of known bad pictures",
    "builtin": "the classifier of the built-in model's world",
}
#: The least score of a label that is given without one.
LIKELY = 0.5

Id = Annotated[str, Field(pattern=r"^[a-z0-9_.-]{1,64}$")]
Score = Annotated[float, Field(gt=0, le=1)]


class Rule(BaseModel):
    """One rule; see the module for what its members mean."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: Id
    category: Annotated[str, Field(pattern=r"^[A-Z0-9_]{1,64}$")]
    name: Annotated[str, Field(min_length=1, max_length=200)]
    description: Annotated[str, Field(max_length=2000)] = ""
    looks_at: Literal["prompt", "picture", "both"] = "both"
    action: Literal["block", "flag"] = "block"
    refuse_prompt: bool = False
    releasable: bool = True
    except_tiers: frozenset[str] = frozenset()
    reviewers: Annotated[Mapping[str, Mapping[str, Score]], Field(min_length=1)]

    @field_validator("reviewers", mode="before")
    @classmethod
    def _labels(cls, given: Any, info: Any) -> Any:
        if not isinstance(given, dict):
            return given
        return {name: _thresholds(labels, info.data.get("id", "")) for name, labels in given.items()}

    @model_validator(mode="after")
    def _known_reviewers(self) -> Self:
        if unknown := self.reviewers.keys() - REVIEWERS.keys():
            raise ValueError(f"there is no reviewer {sorted(unknown)[0]!r}; use one of: {', '.join(REVIEWERS)}")
        return self

    @property
    def minors(self) -> bool:
        return self.category == MINORS

    def action_for(self, tier: str) -> str:
        return "flag" if tier in self.except_tiers else self.action

    def looks_at_part(self, part: str) -> bool:
        return self.looks_at in (part, "both")


def _thresholds(labels: Any, own: str) -> Any:
    if isinstance(labels, list):
        return dict.fromkeys(labels, LIKELY)
    if isinstance(labels, int | float) and not isinstance(labels, bool):
        return {own: labels}
    return labels


class _File(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Id
    title: Annotated[str, Field(min_length=1, max_length=200)]
    requires: frozenset[str] = frozenset()
    rules: tuple[Rule, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruleset:
    """A ruleset with the rules that are always on in front. `version` changes with the content of its files."""

    name: str
    title: str
    version: str
    rules: tuple[Rule, ...]
    requires: frozenset[str] = field(default=frozenset())

    @property
    def uses(self) -> frozenset[str]:
        """The reviewers that any of its rules names."""
        return frozenset(name for rule in self.rules for name in rule.reviewers) | self.requires

    def at_the_gate(self) -> "Ruleset":
        """The same with only the rules that refuse a prompt before it is drawn."""
        return replace(self, rules=tuple(rule for rule in self.rules if rule.refuse_prompt))

    def labels(self, reviewer: str) -> frozenset[str]:
        """What of a reviewer's labels any rule looks at."""
        return frozenset(label for rule in self.rules for label in rule.reviewers.get(reviewer, ()))


def load_rulesets(*folders: Path) -> dict[str, Ruleset]:
    """The shipped rulesets and those of an operator's folders, by name; a later one replaces an earlier one's name.

    Raises BadRules with file, line and fix.
    """
    found: dict[str, Ruleset] = {}
    for folder in (SHIPPED, *folders):
        if not folder.is_dir():
            raise BadRules(f"{folder}: there is no such folder of rulesets.", fix="Make it, or name another.")
        of_folder: dict[str, Path] = {}
        for path in sorted(folder.glob("*.toml")):
            ruleset = load_ruleset(path)
            if ruleset.name in of_folder:
                other = of_folder[ruleset.name].name
                raise BadRules(f"{path}:1: {other} is called {ruleset.name!r} too.", fix="Give one another name.")
            of_folder[ruleset.name] = path
            found[ruleset.name] = ruleset
    return found


def load_ruleset(path: Path) -> Ruleset:
    """One file. Raises BadRules with its line and the fix."""
    content = _read(path)
    ids: set[str] = set()
    for number, rule in enumerate(content.rules):
        where = f"{path}{_line(path, number)}: rule {rule.id!r}"
        if rule.id in ids:
            raise BadRules(f"{where} is there twice.", fix="Give one of them another id.")
        if rule.category in (MINORS, PROVIDER_POLICY) or rule.id.startswith(("minors", "provider.")):
            raise BadRules(
                f"{where} stands in for a rule about minors or about a provider's policy.",
                fix="Take it out: those rules are always on. Give a rule of your own another id and category.",
            )
        ids.add(rule.id)
    if unknown := content.requires - REVIEWERS.keys():
        raise BadRules(
            f"{path}{_line(path, None, 'requires')}: requires names {sorted(unknown)[0]!r}, which is no reviewer.",
            fix=f"Use one of: {', '.join(REVIEWERS)}.",
        )
    return Ruleset(
        name=content.name,
        title=content.title,
        version=content_version(MINORS_FILE, PROVIDER_FILE, path),
        rules=(*standing_rules(), *content.rules),
        requires=content.requires,
    )


def standing_rules() -> tuple[Rule, ...]:
    """The rules that belong to every ruleset: about minors, and about what a provider refuses to look at."""
    return _read(MINORS_FILE).rules + _read(PROVIDER_FILE).rules


def content_version(*files: Path) -> str:
    """12 hex digits that change whenever one of the files does."""
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:12]


def fit(rulesets: Iterable[Ruleset], labels: Mapping[str, Collection[str] | None]) -> None:
    """Raises BadRules when a ruleset requires a reviewer that is not there, or names a label that one never gives.

    `labels` has every configured reviewer by its name, with all labels that it can give, or None where that is open.
    """
    for ruleset in rulesets:
        if missing := ruleset.requires - labels.keys():
            name = sorted(missing)[0]
            raise BadRules(
                f"The ruleset {ruleset.name!r} requires the reviewer {name!r}, which is not configured.",
                fix=f"Configure {REVIEWERS[name]}, or take it out of requires.",
            )
        for rule in ruleset.rules:
            for name in rule.reviewers.keys() & labels.keys():
                known = labels[name]
                if known is not None and (strange := rule.reviewers[name].keys() - set(known)):
                    raise BadRules(
                        f"The ruleset {ruleset.name!r}, rule {rule.id!r}: {name} never says {sorted(strange)[0]!r}.",
                        fix=f"It says: {', '.join(sorted(known))}.",
                    )


def _read(path: Path) -> _File:
    try:
        text = path.read_text(encoding="utf-8")
        return _File.model_validate(tomllib.loads(text))
    except (OSError, UnicodeDecodeError) as exc:
        raise BadRules(f"{path}: can't be read: {exc}.", fix="Give a TOML file in UTF-8.") from exc
    except tomllib.TOMLDecodeError as exc:
        raise BadRules(f"{path}: {exc}.", fix="Mend the TOML; compliance/rulesets/default.toml is an example.") from exc
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        place = first["loc"]
        number = place[1] if len(place) > 1 and place[0] == "rules" and isinstance(place[1], int) else None
        name = ".".join(str(part) for part in place if part not in ("__root__",))
        problem = first["msg"].removeprefix("Value error, ")
        raise BadRules(
            f"{path}{_line(path, number, *map(str, reversed(place)))}: {name}: {problem}.",
            fix="Compare it with compliance/rulesets/default.toml.",
        ) from exc


def _line(path: Path, rule: int | None, *keys: str) -> str:
    """`:12`, the line of the first of these keys that the rule of that number has, or of its header."""
    lines = path.read_text(encoding="utf-8").splitlines()
    headers = [number for number, line in enumerate(lines, 1) if line.strip().startswith("[[rules]]")]
    start = 1 if rule is None else headers[rule] if rule < len(headers) else 1
    end = min((number for number in headers if number > start), default=len(lines) + 1)
    if rule is None:
        end = headers[0] if headers else len(lines) + 1
    written = {lines[number - 1].partition("=")[0].strip().strip('"'): number for number in range(start, end)}
    return f":{next((written[key] for key in keys if key in written), start)}"
