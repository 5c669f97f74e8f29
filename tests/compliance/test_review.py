"""From a drawn picture to a verdict: what reviewers say, what a ruleset makes of it, and that nothing else decides."""

import json
from dataclasses import replace
from itertools import count

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compliance.errors import BadRules, BrokenRender, ReviewUnavailable
from compliance.panel import Panel
from compliance.picture import Blocked, Reviewed
from compliance.review import Context, Opinion, decide, judged, review
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import Rule, Ruleset, load_rulesets, standing_rules
from compliance.verdict import Asked, Verdict
from compliance.watermark import mark
from tests.compliance.samples import bytes_of, decoded, scene

NOTHING = Opinion()
# Those for which the words are enough.
RULESETS = {name: ruleset for name, ruleset in load_rulesets().items() if not ruleset.requires}
HARMLESS = Context(positive="a hill, fog", negative="ugly", width=256, height=192)
PICTURE = decoded(bytes_of(scene()))


class Seer:
    """A reviewer that says what a test wants, and remembers that it was asked."""

    version = "7"

    def __init__(self, name="judge", answer=NOTHING, *, labels=None, always=False):
        self.name, self.labels, self.always = name, labels, always
        self.answer = answer
        self.asked = []

    def review(self, picture, context, ruleset):
        self.asked.append((context, ruleset.name))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def rule(id, reviewers, **more):
    return Rule(id=id, category=more.pop("category", "OTHER"), name=id.title(), reviewers=reviewers, **more)


def house(*rules, requires=()):
    """A ruleset of these rules, as a file would give it."""
    return Ruleset(
        name="house", title="House", version="v1", rules=(*standing_rules(), *rules), requires=frozenset(requires)
    )


@pytest.fixture
def words(gate):
    return Words(gate)


@pytest.fixture
def reviewers(words):
    return [RenderCheck(), words]


def asking(positive, negative="", **more):
    return replace(HARMLESS, positive=positive, negative=negative, **more)


# A verdict.


def test_a_harmless_picture_goes_on(reviewers, gate):
    verdict = review(PICTURE, HARMLESS, RULESETS["default"], reviewers, clock=count(step=0.25).__next__)
    assert verdict == Verdict(
        safe=True,
        ruleset="default",
        ruleset_version=RULESETS["default"].version,
        reviewer="render+text",
        reviewer_version=f"1+{gate.version}",
        asked=(
            Asked(name="render", version="1", latency_ms=250.0),
            Asked(name="text", version=gate.version, latency_ms=250.0),
        ),
        latency_ms=500.0,
    )
    reviewed = judged(PICTURE, verdict)
    assert isinstance(reviewed, Reviewed)
    assert mark(reviewed).pixels is PICTURE.pixels


def test_a_blocked_picture_says_why_in_ids_in_words_and_in_numbers(reviewers):
    verdict = review(PICTURE, asking("rape scene"), RULESETS["default"], reviewers)
    assert (verdict.safe, verdict.releasable, verdict.minors) == (False, False, False)
    assert verdict.codes == ("sexual_violence",)
    assert verdict.categories == ("Sexual violence and illegal sexual content",)
    (reason,) = verdict.reasons
    assert (reason.rule, reason.category, reason.action, reason.seen_in) == (
        "sexual_violence",
        "ILLEGAL_SEXUAL",
        "block",
        "prompt",
    )
    assert (reason.reviewer, reason.label, reason.score, reason.threshold) == ("text", "ILLEGAL_SEXUAL", 1.0, 0.5)
    assert verdict.scores["text.prompt.ILLEGAL_SEXUAL"] == 1.0
    blocked = judged(PICTURE, verdict)
    assert isinstance(blocked, Blocked)
    assert blocked.raw is PICTURE


def test_neither_type_takes_the_other_ones_verdict(reviewers):
    safe = review(PICTURE, HARMLESS, RULESETS["default"], reviewers)
    with pytest.raises(ValueError):
        Blocked(raw=PICTURE, verdict=safe)
    with pytest.raises(ValueError):
        Reviewed(pixels=PICTURE.pixels, verdict=replace(safe, safe=False))


def test_what_the_composition_adds_is_reviewed_too(reviewers):
    composed = asking("a schoolgirl" + ", masterpiece" * 300 + ", nude")
    assert not review(PICTURE, composed, RULESETS["default"], reviewers).safe


def test_a_verdict_can_be_stored_and_read_back(reviewers):
    verdict = review(PICTURE, asking("rape scene, nude", tier="pro"), RULESETS["default"], reviewers)
    assert verdict.codes and verdict.findings
    stored = json.loads(json.dumps(verdict.as_dict()))
    assert Verdict.from_dict(stored | {"added_later": 1}) == verdict
    stored["reasons"][0]["added_later"] = 1
    assert Verdict.from_dict(stored) == verdict


# Minors.


@pytest.mark.parametrize("tier", ["standard", "pro", "", "anything"])
@pytest.mark.parametrize("ruleset", [*load_rulesets().values(), house()], ids=[*load_rulesets(), "without rules"])
def test_minors_block_under_every_ruleset_and_tier(reviewers, ruleset, tier):
    stripped = replace(ruleset, requires=frozenset())
    verdict = review(PICTURE, asking("nude child", tier=tier), stripped, reviewers)
    assert verdict.minors and not verdict.safe and not verdict.releasable
    assert verdict.codes[0] == "minors.prompt"
    assert verdict.categories[0] == "Sexual content involving minors"


@pytest.mark.parametrize(
    ("name", "label", "score"),
    [
        ("judge", "minors", 0.2),
        ("moderation", "sexual/minors", 0.2),
        ("detector", "minors", 0.9),
        ("hashes", "minors", 1.0),
    ],
)
def test_a_reviewer_that_sees_a_minor_blocks_whatever_the_ruleset(reviewers, name, label, score):
    seer = Seer(name, Opinion(picture={label: score}), always=True)
    verdict = review(PICTURE, HARMLESS, house(), [*reviewers, seer])
    assert verdict.minors and not verdict.releasable
    assert verdict.reasons[0].seen_in == "picture"


def test_one_who_may_know_of_minors_is_asked_although_another_has_blocked_already(reviewers):
    seer = Seer("hashes", Opinion(picture={"minors": 1.0}), always=True)
    verdict = review(PICTURE, asking("rape scene"), RULESETS["default"], [*reviewers, seer])
    assert seer.asked
    assert verdict.codes == ("minors.known", "sexual_violence")


# Rules.


def test_a_rule_applies_from_its_threshold_on():
    rules = house(rule("gore", {"judge": {"gore": 0.6}}))
    for score, safe in ((0.59, True), (0.6, False), (1.0, False)):
        assert decide({"judge": Opinion(picture={"gore": score})}, [], "", rules).safe is safe


def test_a_rule_looks_only_where_it_says():
    for looks_at, prompt, picture in (("prompt", False, True), ("picture", True, False), ("both", False, False)):
        rules = house(rule("gore", {"judge": {"gore": 0.6}}, looks_at=looks_at))
        assert decide({"judge": Opinion(prompt={"gore": 1})}, [], "", rules).safe is prompt
        assert decide({"judge": Opinion(picture={"gore": 1})}, [], "", rules).safe is picture


def test_a_flag_is_a_finding_and_blocks_nothing():
    rules = house(rule("gore", {"judge": {"gore": 0.6}}, action="flag"))
    verdict = decide({"judge": Opinion(picture={"gore": 1})}, [], "", rules)
    assert (verdict.safe, verdict.codes, verdict.findings) == (True, (), ("gore",))
    assert verdict.reasons[0].action == "flag"


def test_for_an_excepted_tier_a_block_is_a_flag(reviewers):
    nude = asking("a nude woman")
    assert review(PICTURE, nude, RULESETS["default"], reviewers).codes == ("adult.explicit",)
    pro = review(PICTURE, replace(nude, tier="pro"), RULESETS["default"], reviewers)
    assert (pro.safe, pro.findings) == (True, ("adult.explicit",))
    assert not review(PICTURE, replace(nude, tier="pro"), RULESETS["strict"], reviewers).safe
    assert review(PICTURE, nude, RULESETS["adult-allowed"], reviewers).findings == ("adult.explicit",)


def test_the_strongest_sight_is_the_reason():
    rules = house(rule("gore", {"judge": {"gore": 0.6}, "detector": {"blood": 0.5, "wound": 0.5}}))
    opinions = {"judge": Opinion(picture={"gore": 0.7}), "detector": Opinion(picture={"blood": 0.6, "wound": 0.9})}
    (reason,) = decide(opinions, [], "", rules).reasons
    assert (reason.reviewer, reason.label, reason.score) == ("detector", "wound", 0.9)


def test_opinions_of_several_reviewers_come_together(reviewers):
    seer = Seer("moderation", Opinion(picture={"violence/graphic": 0.9, "violence": 0.85}))
    verdict = review(PICTURE, asking("a nude woman", tier="pro"), RULESETS["default"], [*reviewers, seer])
    assert verdict.codes == ("gore",)
    assert verdict.findings == ("adult.explicit", "violence")
    assert verdict.scores["moderation.picture.violence/graphic"] == 0.9
    assert (verdict.reviewer, verdict.reviewer_version.split("+")[-1]) == ("render+text+moderation", "7")


def test_a_name_for_people_is_said_once():
    rules = house(*(replace_name(rule(id, {"judge": {"gore": 0.5}}), "Gore") for id in ("one", "two")))
    verdict = decide({"judge": Opinion(picture={"gore": 1})}, [], "", rules)
    assert (verdict.codes, verdict.categories) == (("one", "two"), ("Gore",))


def replace_name(rule, name):
    return rule.model_copy(update={"name": name})


SCORES = st.dictionaries(st.sampled_from(["minors", "gore", "sexual/minors", "MINORS"]), st.floats(0, 1))


@settings(max_examples=200, deadline=None)
@given(SCORES, SCORES, st.sampled_from(["standard", "pro"]), st.sampled_from(list(RULESETS.values())))
def test_no_ruleset_lets_pass_what_the_rules_about_minors_alone_block(prompt, picture, tier, ruleset):
    opinions = {name: Opinion(prompt=prompt, picture=picture) for name in ("text", "judge", "moderation", "detector")}
    alone = decide(opinions, [], tier, house())
    verdict = decide(opinions, [], tier, ruleset)
    assert verdict.minors == alone.minors
    assert verdict.safe <= alone.safe
    assert set(alone.codes) <= set(verdict.codes)


# Who is asked.


def test_only_reviewers_that_a_rule_names_are_asked_and_those_that_always_are(reviewers):
    named, other, always = Seer("judge"), Seer("builtin"), Seer("extra", always=True)
    review(PICTURE, HARMLESS, RULESETS["default"], [*reviewers, named, other, always])
    assert named.asked == always.asked == [(HARMLESS, "default")]
    assert other.asked == []


def test_a_required_reviewer_that_is_not_there_means_no_verdict(reviewers):
    with pytest.raises(ReviewUnavailable, match="requires judge"):
        review(PICTURE, HARMLESS, house(requires=["judge"]), reviewers)
    assert review(PICTURE, HARMLESS, house(requires=["judge"]), [*reviewers, Seer("judge")]).safe


@pytest.mark.parametrize("error", [ReviewUnavailable("the model does not answer"), RuntimeError("a bug")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_without_an_answer_of_every_reviewer_there_is_no_verdict(reviewers, error, place):
    reviewers.insert(place, Seer("judge", error))
    with pytest.raises(type(error)):
        review(PICTURE, HARMLESS, RULESETS["default"], reviewers)


@pytest.mark.parametrize("reviewers", [[], [Seer("builtin")]], ids=["none", "none that is named"])
def test_without_anybody_to_ask_there_is_no_verdict(reviewers):
    with pytest.raises(ReviewUnavailable):
        review(PICTURE, HARMLESS, RULESETS["default"], reviewers)


# Broken renders.


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
def test_a_broken_render_is_an_error_and_no_verdict(reviewers, image):
    with pytest.raises(BrokenRender) as caught:
        review(decoded(bytes_of(image)), HARMLESS, RULESETS["default"], reviewers)
    assert caught.value.retryable


def test_any_size_will_do_where_nobody_asked_for_one(reviewers):
    context = Context(positive="a hill")
    assert review(decoded(bytes_of(scene(64, 200))), context, RULESETS["default"], reviewers).safe


def test_a_dark_picture_with_something_in_it_is_no_broken_render(reviewers):
    night = Image.new("RGB", (256, 192), (2, 2, 6))
    night.paste((90, 90, 80), (200, 20, 204, 24))
    assert review(decoded(bytes_of(night)), HARMLESS, RULESETS["default"], reviewers).safe


# The panel.


def panel(gate, *others, rulesets=RULESETS):
    return Panel(Words(gate), [RenderCheck(), *others], rulesets)


def test_the_panel_reviews_under_a_ruleset_by_its_name(gate):
    assert panel(gate).review(PICTURE, HARMLESS, "default").safe
    assert not panel(gate).review(PICTURE, asking("a nude woman"), "strict").safe
    with pytest.raises(ReviewUnavailable, match="no ruleset"):
        panel(gate).review(PICTURE, HARMLESS, "none")


@pytest.mark.parametrize("ruleset", RULESETS)
def test_the_gate_refuses_minors_before_anything_is_drawn(gate, ruleset):
    verdict = panel(gate).gate(asking("n.u.d.e ch1ld", tier="pro"), ruleset)
    assert verdict.minors and verdict.codes == ("minors.prompt",)
    assert [each.name for each in verdict.asked] == ["text"]
    assert panel(gate).gate(HARMLESS, ruleset).safe


def test_the_gate_leaves_to_the_review_what_no_rule_refuses_early(gate):
    nude = asking("a nude woman")
    assert panel(gate).gate(nude, "default").safe
    assert not panel(gate).review(PICTURE, nude, "default").safe
    early = house(
        rule("nudity", {"text": {"adult.explicit": 0.5}}, refuse_prompt=True, except_tiers=frozenset({"pro"}))
    )
    own = panel(gate, rulesets={"house": early})
    assert own.gate(nude, "house").codes == ("nudity",)
    assert own.gate(replace(nude, tier="pro"), "house").findings == ("nudity",)


def test_the_gate_counts_what_is_taken_away_as_that(gate):
    assert panel(gate).gate(asking("portrait", "nude, child"), "default").safe
    assert panel(gate).gate(asking("nude woman", "adult"), "default").minors


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=200), st.text(max_size=200))
def test_no_text_makes_the_gate_raise(positive, negative):
    assert PANEL.gate(Context(positive=positive, negative=negative), "default").ruleset == "default"


PANEL = panel(PromptGate.built_in())


def test_an_upload_is_compared_with_the_list_of_known_pictures_alone(gate):
    judge = Seer("judge", RuntimeError("nobody asked"))
    assert panel(gate, judge).upload(PICTURE, "default").safe
    known = panel(gate, judge, Seer("hashes", Opinion(picture={"known_bad": 1.0}), always=True))
    assert known.upload(PICTURE, "default").codes == ("known_bad",)
    worse = panel(gate, Seer("hashes", Opinion(picture={"minors": 1.0}), always=True))
    assert worse.upload(PICTURE, "adult-allowed").minors


def test_a_ruleset_that_its_reviewers_don_t_fit_stops_the_start(gate):
    with pytest.raises(BadRules, match="requires the reviewer 'judge'"):
        panel(gate, rulesets={"house": house(requires=["judge"])})
    with pytest.raises(BadRules, match=r"text never says 'adult\.explict'"):
        panel(gate, rulesets={"house": house(rule("nudity", {"text": {"adult.explict": 0.5}}))})


# The words as a reviewer.


def test_the_words_say_rules_and_categories(words):
    opinion = words.review(PICTURE, asking("nude child"), RULESETS["default"])
    assert opinion == words.read(asking("nude child"))
    assert opinion.picture == {}
    assert {"MINORS", "minors.sexualised", "ADULT_NSFW", "adult.explicit"} <= opinion.prompt.keys() <= words.labels
    assert words.read(HARMLESS) == Opinion()


def test_the_words_version_is_that_of_their_lists(words, gate, tmp_path):
    own = tmp_path / "own.toml"
    own.write_text("", encoding="utf-8")
    assert words.version == gate.version != Words(PromptGate.from_file(own)).version
