"""From a drawn picture to a verdict."""

import json
from dataclasses import replace
from itertools import count

import pytest
from PIL import Image

from compliance.errors import BadRules, BrokenRender, ReviewUnavailable
from compliance.picture import Blocked, Reviewed
from compliance.review import Case, Opinion, PictureCheck, TextRules, load_rulesets, review
from compliance.rules import MINORS, Violation
from compliance.verdict import Verdict
from compliance.watermark import mark
from tests.compliance.samples import bytes_of, decoded, scene

RULESETS = load_rulesets()


@pytest.fixture
def case():
    return Case(
        raw=decoded(bytes_of(scene())),
        positive="a hill, fog",
        negative="ugly",
        width=256,
        height=192,
        ruleset=RULESETS["default"],
    )


@pytest.fixture
def reviewers(gate):
    return [PictureCheck(), TextRules(gate)]


def test_a_harmless_picture_goes_on(case, reviewers, gate):
    reviewed = review(case, reviewers, clock=count(step=0.25).__next__)
    assert isinstance(reviewed, Reviewed)
    assert mark(reviewed).pixels is case.raw.pixels
    assert reviewed.verdict == Verdict(
        safe=True,
        ruleset="default",
        ruleset_version=RULESETS["default"].version,
        reviewer="picture+text-rules",
        reviewer_version=f"1+{gate.version}",
        latency_ms=250.0,
    )


def test_a_blocked_picture_says_why_in_ids_and_in_words(case, reviewers):
    blocked = review(replace(case, positive="rape scene"), reviewers)
    assert isinstance(blocked, Blocked)
    assert blocked.verdict.codes == ("sexual_violence",)
    assert blocked.verdict.categories == ("Sexual violence and illegal sexual content",)
    assert not blocked.verdict.releasable


@pytest.mark.parametrize("ruleset", RULESETS.values(), ids=RULESETS)
def test_minors_block_under_every_ruleset(case, reviewers, ruleset):
    loose = replace(ruleset, block=frozenset())
    for rules in (ruleset, loose):
        blocked = review(replace(case, positive="nude child", ruleset=rules), reviewers)
        assert isinstance(blocked, Blocked)
        assert not blocked.verdict.releasable
        assert blocked.verdict.categories[0] == "Sexual content involving minors"


def test_a_ruleset_decides_about_the_rest(case, reviewers):
    nude = replace(case, positive="a nude woman")
    assert review(nude, reviewers).verdict.findings == ("adult.explicit",)
    strict = review(replace(nude, ruleset=RULESETS["strict"]), reviewers)
    assert isinstance(strict, Blocked)
    assert strict.verdict.releasable


def test_what_the_composition_adds_is_reviewed_too(case, reviewers):
    composed = "a schoolgirl" + ", masterpiece" * 300 + ", nude"
    assert isinstance(review(replace(case, positive=composed), reviewers), Blocked)


@pytest.mark.parametrize(
    "image",
    [
        Image.new("RGB", (256, 192)),
        Image.new("RGB", (256, 192), (120, 119, 121)),
        scene(255, 192),
        scene(192, 256),
        scene(1, 1),
    ],
    ids=["black", "grey", "narrow", "turned", "dot"],
)
def test_a_broken_render_is_an_error_and_no_verdict(case, reviewers, image):
    with pytest.raises(BrokenRender) as caught:
        review(replace(case, raw=decoded(bytes_of(image))), reviewers)
    assert caught.value.retryable


def test_a_dark_picture_with_something_in_it_is_no_broken_render(case, reviewers):
    night = Image.new("RGB", (256, 192), (2, 2, 6))
    night.paste((90, 90, 80), (200, 20, 204, 24))
    assert isinstance(review(replace(case, raw=decoded(bytes_of(night))), reviewers), Reviewed)


class Seer:
    """A reviewer as a later one will be: it looks at the picture and has scores."""

    name, version = "seer", "7"

    def __init__(self, answer):
        self.answer = answer

    def review(self, case):
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


GORE = Violation(rule="seen.gore", category="GORE", name="Gore")


def test_opinions_of_several_reviewers_come_together(case, reviewers):
    seer = Seer(Opinion(violations=(GORE, GORE), scores={"GORE": 0.9}))
    verdict = review(replace(case, positive="a nude woman"), [*reviewers, seer]).verdict
    assert verdict.safe
    assert verdict.findings == ("adult.explicit", "seen.gore")
    assert verdict.scores == {"GORE": 0.9}
    assert (verdict.reviewer, verdict.reviewer_version.split("+")[-1]) == ("picture+text-rules+seer", "7")
    blocking = replace(RULESETS["default"], block=frozenset({"GORE"}))
    assert review(replace(case, ruleset=blocking), [*reviewers, seer]).verdict.codes == ("seen.gore",)


def test_a_reviewer_that_sees_a_minor_blocks_under_every_ruleset(case):
    seen = Violation(rule="seen.minor", category=MINORS, name="Minor", releasable=False)
    assert isinstance(review(case, [Seer(Opinion(violations=(seen,)))]), Blocked)


@pytest.mark.parametrize("error", [ReviewUnavailable("the model does not answer"), RuntimeError("a bug")])
def test_without_an_answer_of_every_reviewer_there_is_no_picture(case, reviewers, error):
    with pytest.raises(type(error)):
        review(case, [*reviewers, Seer(error)])


def test_without_reviewers_there_is_no_picture(case):
    with pytest.raises(ReviewUnavailable):
        review(case, [])


def test_a_verdict_can_be_stored_and_read_back(case, reviewers):
    verdict = review(replace(case, positive="rape scene, nude"), reviewers).verdict
    stored = json.loads(json.dumps(verdict.as_dict()))
    assert Verdict.from_dict(stored | {"added_later": 1}) == verdict


# Rulesets as files.


def test_the_built_in_rulesets_name_known_categories(gate):
    assert {"default", "strict"} == load_rulesets(categories=gate.categories).keys()


def ruleset(folder, name="default", block='["GORE"]', file=None):
    text = f'name = "{name}"\ntitle = "Rules"\nblock = {block}\n'
    (folder / f"{file or name}.toml").write_text(text, encoding="utf-8")


def test_a_changed_file_has_another_version(tmp_path):
    ruleset(tmp_path)
    before = load_rulesets(tmp_path)["default"].version
    ruleset(tmp_path, block='["GORE", "ADULT_NSFW"]')
    assert load_rulesets(tmp_path)["default"].version != before


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ([], "no ruleset 'default'"),
        ([{"name": "other"}], "no ruleset 'default'"),
        ([{}, {"file": "again"}], "two rulesets"),
        ([{"block": '"GORE"'}], "block as a list"),
        ([{"block": "[1]"}], "block as a list"),
        ([{"block": "["}], "can't be read"),
        ([{"block": '["GROE"]'}], "GROE"),
    ],
    ids=["none", "no-default", "twice", "no-list", "numbers", "no-toml", "misspelt"],
)
def test_a_mistake_in_a_ruleset_is_named(tmp_path, files, says):
    for file in files:
        ruleset(tmp_path, **file)
    with pytest.raises(BadRules, match=says):
        load_rulesets(tmp_path, categories={"GORE"})
