"""The road has one direction: a stage that is skipped or swapped does not type-check."""

import re
import sys
from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parents[2]

RIGHT = """
from datetime import UTC, datetime
from compliance.encode import EncodeOptions, encode
from compliance.picture import Blocked, Raw, Signed, decode
from compliance.review import Context, Reviewer, judged, review
from compliance.rulesets import Ruleset
from compliance.sign import Provenance, Signer
from compliance.watermark import mark

def finish(
    raw: Raw, context: Context, ruleset: Ruleset, reviewers: list[Reviewer], signer: Signer
) -> Signed | Blocked:
    reviewed = judged(raw, review(raw, context, ruleset, reviewers))
    if isinstance(reviewed, Blocked):
        return reviewed
    marked = mark(reviewed)
    encoded = encode(marked, EncodeOptions(format="png"))
    return signer.sign(encoded, Provenance(gen_id="x", model="m", created=datetime.now(UTC)))
"""
WRONG = {
    "unreviewed": ("mark(reviewed)", "mark(raw)"),
    "blocked": ("    if isinstance(reviewed, Blocked):\n        return reviewed\n", ""),
    "unmarked": ("encode(marked, ", "encode(reviewed, "),
    "sign before encode": ("signer.sign(encoded, ", "signer.sign(marked, "),
    "unsigned": (
        'return signer.sign(encoded, Provenance(gen_id="x", model="m", created=datetime.now(UTC)))',
        "return encoded",
    ),
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What mypy says about the right program and about each wrong one, in one run."""
    folder = tmp_path_factory.mktemp("stages")
    programs = {"right": RIGHT} | {name: RIGHT.replace(*change) for name, change in WRONG.items()}
    for name, program in programs.items():
        (folder / f"{name.replace(' ', '_')}.py").write_text(program, encoding="utf-8")
    options = [
        "--strict",
        "--config-file=",
        "--no-error-summary",
        "--follow-imports=silent",
        "--ignore-missing-imports",
    ]
    cache = ["--cache-dir", str(folder / "cache"), "--python-executable", sys.executable]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MYPYPATH", str(ROOT))
        said, crashed, _ = api.run([*options, *cache, *map(str, sorted(folder.glob("*.py")))])
    assert not crashed
    return said


def test_the_road_type_checks(complaints):
    assert not re.search(r"right\.py", complaints)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_turn_does_not_type_check(complaints, name):
    assert RIGHT.count(WRONG[name][0]) == 1
    assert re.search(rf"{name.replace(' ', '_')}\.py:\d+: error: (Argument|Incompatible)", complaints)
