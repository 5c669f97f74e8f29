"""What a compliance service answers, read with suspicion: whatever is not plainly a verdict is none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
from pydantic import TypeAdapter

from compliance.rulesets import MINORS
from compliance.verdict import Verdict

_VERDICT = TypeAdapter(Verdict)
#: What a verdict must say: their defaults are those of a safe one.
_SAID = ("safe", "ruleset", "ruleset_version", "codes", "releasable", "minors", "reasons", "reviewer")


def verdict_in(body: bytes, ruleset: str, *, sha256: str = "", by_nobody: bool = False) -> Verdict:
    """The verdict under this ruleset about the picture with this hash, empty where it is about words alone.

    `by_nobody` says that no reviewer need have been asked, as where there is no list of known pictures. Raises
    ValueError for everything that is no such verdict, or that contradicts itself.
    """
    answer = _object(body)
    if answer.get("sha256") != (sha256 or None):
        raise ValueError("the verdict is about another picture")
    given = answer.get("verdict")
    if not isinstance(given, dict):
        raise ValueError("there is no verdict in it")
    if missing := [name for name in _SAID if name not in given]:
        raise ValueError(f"the verdict has no {missing[0]}")
    verdict = _VERDICT.validate_json(orjson.dumps(given), strict=True)
    if verdict.ruleset != ruleset or not verdict.ruleset_version:
        raise ValueError(f"the verdict is about the ruleset {verdict.ruleset[:64]!r}")
    if not (verdict.asked or by_nobody):
        raise ValueError("no reviewer was asked")
    _check(verdict)
    return verdict


def rulesets_in(body: bytes) -> dict[str, str]:
    """The names of the rulesets with their versions. Raises ValueError."""
    given = _object(body).get("rulesets")
    if not isinstance(given, list) or not given:
        raise ValueError("there are no rulesets in it")
    found = {}
    for each in given:
        name, version = (each.get("name"), each.get("version")) if isinstance(each, dict) else (None, None)
        if not (isinstance(name, str) and name and isinstance(version, str) and version):
            raise ValueError("a ruleset has no name or no version")
        found[name] = version
    return found


def fault_in(body: bytes) -> tuple[str, str]:
    """The code of a refusal and its sentence; empty when it has none."""
    try:
        said = _object(body)
    except ValueError:
        return "", ""
    code, sentence = said.get("code"), said.get("error")
    return (code if isinstance(code, str) else "", sentence[:300] if isinstance(sentence, str) else "")


def _check(verdict: Verdict) -> None:
    blocking = {reason.rule for reason in verdict.reasons if reason.action == "block"}
    if verdict.safe != (not verdict.codes):
        raise ValueError("the verdict says safe and lists codes, or neither")
    if not blocking <= {*verdict.codes}:
        raise ValueError("a reason of the verdict blocks and is not among its codes")
    # No ruleset can have rules with such ids of its own.
    about_minors = any(code.startswith("minors") for code in verdict.codes) or any(
        reason.category == MINORS and reason.action == "block" for reason in verdict.reasons
    )
    if verdict.minors != about_minors or (about_minors and verdict.releasable):
        raise ValueError("the verdict contradicts itself about minors")
    for number in (*verdict.scores.values(), *(reason.score for reason in verdict.reasons)):
        if not 0 <= number <= 1:
            raise ValueError("a score is not between 0 and 1")


def _object(body: bytes) -> Mapping[str, Any]:
    value = orjson.loads(body)
    if not isinstance(value, dict):
        raise ValueError("it is not an object")
    return value
