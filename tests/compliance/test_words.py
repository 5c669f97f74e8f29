"""The labelled set and the ordinary prompts: what the word rules find, and what they leave in peace."""

import pytest

from compliance.review import Context
from compliance.reviewers.words import Words
from tests.compliance.words import labelled
from tests.compliance.words.benign import KINDS, prompts
from tests.compliance.words.tricks import TRICKS

CASES = labelled.cases()


@pytest.mark.parametrize("case", [pytest.param(each, id=f"{n}-{each.kind}") for n, each in enumerate(CASES)])
def test_a_labelled_case_gets_its_labels(gate, case):
    assert case.is_right(gate), (case, gate.check(case.text, case.negative))


def test_the_set_has_every_trick_and_many_languages():
    assert len(CASES) >= 400
    assert {case.kind for case in CASES} == {"plain", "adult", "negative", "benign trap", *TRICKS}
    for kind in ("plain", "benign trap"):
        assert len({case.language for case in CASES if case.kind == kind}) >= 12
    assert len({(case.text, case.negative) for case in CASES}) == len(CASES)


def test_ordinary_prompts_are_hardly_ever_refused(gate):
    seen = labelled.benign(gate)
    assert len(seen.refused) <= labelled.TOLERATED * seen.prompts, seen.refused
    assert sum(seen.others.values()) <= labelled.TOLERATED * seen.prompts


def test_the_ordinary_prompts_are_many_of_every_kind_and_the_same_for_a_seed():
    made = list(prompts(labelled.BENIGN))
    assert len({prompt for _, prompt in made}) == labelled.BENIGN >= 2000
    assert {kind for kind, _ in made} == KINDS.keys()
    assert made == list(prompts(labelled.BENIGN))
    assert made != list(prompts(labelled.BENIGN, seed=1))
    words = {word for _, prompt in made for word in prompt.lower().split()}
    assert len(words) > 1000


def test_the_reviewer_says_what_the_rules_found(gate):
    words = Words(gate)
    for case in CASES[:40]:
        said = words.read(Context(positive=case.text, negative=case.negative)).prompt
        assert {label for label in said if label.isupper()} == {
            v.category for v in gate.check(case.text, case.negative)
        }
        assert set(said) <= words.labels and set(said.values()) <= {1.0}
