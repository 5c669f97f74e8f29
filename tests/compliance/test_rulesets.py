"""Rulesets as files: what they say, and that every mistake in one is told with its file, its line and what to do."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compliance.errors import BadRules
from compliance.rules import PromptGate
from compliance.rulesets import (
    LIKELY,
    MINORS,
    MINORS_FILE,
    PROVIDER_FILE,
    REVIEWERS,
    SHIPPED,
    content_version,
    fit,
    load_ruleset,
    load_rulesets,
    standing_rules,
)

HOUSE = """\
name = "house"
title = "House rules"
requires = ["judge"]

[[rules]]
id = "weapons"
category = "VIOLENCE"
name = "Weapons"
description = "Guns that are pointed at somebody."
looks_at = "picture"
action = "flag"
refuse_prompt = true
releasable = false
except_tiers = ["pro"]
[rules.reviewers]
moderation = { violence = 0.7, "violence/graphic" = 0.4 }
detector = ["gun", "knife"]
judge = 0.6

[[rules]]
id = "plain"
category = "OTHER"
name = "Plain"
[rules.reviewers]
text = ["ADULT_NSFW"]
"""


def written(folder, text=HOUSE, name="house.toml"):
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_rule_says_what_its_file_says(tmp_path):
    ruleset = load_ruleset(written(tmp_path))
    assert (ruleset.name, ruleset.title, ruleset.requires) == ("house", "House rules", {"judge"})
    weapons, plain = ruleset.rules[len(standing_rules()) :]
    assert (weapons.id, weapons.category, weapons.name) == ("weapons", "VIOLENCE", "Weapons")
    assert (weapons.action, weapons.refuse_prompt, weapons.releasable) == ("flag", True, False)
    assert weapons.reviewers == {
        "moderation": {"violence": 0.7, "violence/graphic": 0.4},
        "detector": {"gun": LIKELY, "knife": LIKELY},
        "judge": {"weapons": 0.6},
    }
    assert (plain.looks_at, plain.action, plain.refuse_prompt, plain.releasable) == ("both", "block", False, True)
    assert plain.looks_at_part("prompt") and plain.looks_at_part("picture")
    assert weapons.looks_at_part("picture") and not weapons.looks_at_part("prompt")


def test_a_tier_turns_a_block_into_a_flag(tmp_path):
    text = HOUSE.replace('action = "flag"', 'action = "block"')
    (rule,) = (rule for rule in load_ruleset(written(tmp_path, text)).rules if rule.id == "weapons")
    assert (rule.action_for("standard"), rule.action_for("pro"), rule.action_for("")) == ("block", "flag", "block")


def test_a_ruleset_knows_its_reviewers_and_labels(tmp_path):
    ruleset = load_ruleset(written(tmp_path))
    assert {"moderation", "detector", "judge", "text"} <= ruleset.uses <= REVIEWERS.keys()
    assert {"gun", "knife"} <= ruleset.labels("detector")
    assert ruleset.labels("builtin") == frozenset()
    assert [rule.id for rule in ruleset.at_the_gate().rules] == ["minors.prompt", "weapons"]
    assert ruleset.at_the_gate().version == ruleset.version


@pytest.mark.parametrize("ruleset", load_rulesets().values(), ids=load_rulesets())
def test_the_rules_about_minors_are_in_front_of_every_ruleset(ruleset):
    assert ruleset.rules[: len(standing_rules())] == standing_rules()
    ours = [rule for rule in standing_rules() if rule.minors]
    for rule in ours:
        assert rule.category == MINORS
        assert rule.action == "block" and not rule.except_tiers and not rule.releasable
    assert any(rule.refuse_prompt and "text" in rule.reviewers for rule in ours)


def test_the_shipped_rulesets_are_those_that_are_told_of_and_fit_the_words():
    shipped = load_rulesets()
    assert {"default", "strict", "adult-allowed"} <= shipped.keys()
    assert len(shipped) == len(list(SHIPPED.glob("*.toml")))
    fit([each for each in shipped.values() if not each.requires], {"text": PromptGate.built_in().labels})
    assert all(rule.description or rule.action == "flag" for each in shipped.values() for rule in each.rules)


# Versions.


def test_a_changed_file_has_another_version_and_the_same_file_the_same(tmp_path):
    before = load_ruleset(written(tmp_path)).version
    assert load_ruleset(written(tmp_path, name="copy.toml")).version == before
    assert load_ruleset(written(tmp_path, HOUSE + "\n# a remark\n")).version != before
    assert len(before) == 12


def test_the_version_counts_the_rules_about_minors(tmp_path):
    path = written(tmp_path)
    assert load_ruleset(path).version == content_version(MINORS_FILE, PROVIDER_FILE, path) != content_version(path)


# Folders.


def test_an_operators_folder_adds_rulesets_and_may_replace_a_shipped_one(tmp_path):
    written(tmp_path)
    written(tmp_path, HOUSE.replace('"house"', '"default"'), "mine.toml")
    found = load_rulesets(tmp_path)
    assert found.keys() == {*load_rulesets(), "house"}
    assert found["default"].title == "House rules"
    assert found["default"].rules[: len(standing_rules())] == standing_rules()


def test_a_missing_folder_is_told(tmp_path):
    with pytest.raises(BadRules, match="no such folder") as caught:
        load_rulesets(tmp_path / "none")
    assert caught.value.fix


def test_two_files_of_one_folder_can_t_have_one_name(tmp_path):
    written(tmp_path)
    written(tmp_path, name="again.toml")
    with pytest.raises(BadRules, match="house' too") as caught:
        load_rulesets(tmp_path)
    assert str(tmp_path) in caught.value.message and caught.value.fix


# Mistakes.

MISTAKES = {
    "no toml": (("[[rules]]\nid", "[rules]]\nid"), None, "line 5"),
    "no name": (('name = "house"\n', ""), 1, "name: Field required"),
    "no title": (('title = "House rules"\n', ""), 1, "title: Field required"),
    "a name with spaces": (('"house"', '"my house"'), 1, "name"),
    "an unknown member": (('title = "House', 'colour = "red"\ntitle = "House'), 2, "colour: Extra inputs"),
    "an unknown member of a rule": (('looks_at = "picture"', 'look_at = "picture"'), 10, "look_at: Extra inputs"),
    "no category": (('category = "VIOLENCE"\n', ""), 5, "category: Field required"),
    "a category in lower case": (('"VIOLENCE"', '"violence"'), 7, "category"),
    "an id in capitals": (('"weapons"', '"WEAPONS"'), 6, "id"),
    "another action": (('"flag"', '"warn"'), 11, "'block' or 'flag'"),
    "something else to look at": (('looks_at = "picture"', 'looks_at = "sound"'), 10, "'picture'"),
    "an unknown reviewer": (("judge = 0.6", "jury = 0.6"), 5, "no reviewer 'jury'"),
    "no reviewer": (("[rules.reviewers]\ntext = ", "other = "), 20, "reviewers: Field required"),
    "a threshold above 1": (("judge = 0.6", "judge = 6"), 18, "less than or equal to 1"),
    "a threshold of 0": (("violence = 0.7", "violence = 0"), 16, "greater than 0"),
    "a threshold of words": (("judge = 0.6", 'judge = "high"'), 18, "judge"),
    "tiers that are no list": (('except_tiers = ["pro"]', 'except_tiers = "pro"'), 14, "except_tiers"),
    "an id twice": (('id = "plain"', 'id = "weapons"'), 20, "there twice"),
    "the category of minors": (('"OTHER"', '"MINORS"'), 20, "about minors"),
    "the id of a rule about minors": (('"plain"', '"minors.prompt"'), 20, "about minors"),
    "an unknown reviewer required": (('["judge"]', '["jury"]'), 3, "'jury', which is no reviewer"),
}


@pytest.mark.parametrize(("change", "line", "says"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_with_file_line_and_fix(tmp_path, change, line, says):
    assert change[0] in HOUSE
    path = written(tmp_path, HOUSE.replace(*change, 1))
    with pytest.raises(BadRules) as caught:
        load_ruleset(path)
    assert caught.value.message.startswith(f"{path}:{line}: " if line else f"{path}: ")
    assert says in caught.value.message
    assert caught.value.fix


@pytest.mark.parametrize("name", ["missing.toml", "binary.toml", "folder.toml"])
def test_what_can_t_be_read_is_told(tmp_path, name):
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.toml").mkdir()
    with pytest.raises(BadRules, match=f"{name}: can't be read") as caught:
        load_ruleset(tmp_path / name)
    assert caught.value.fix


LINES = HOUSE.splitlines()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(LINES) | st.text(max_size=20), max_size=30))
def test_any_file_is_a_ruleset_or_a_mistake_that_is_told(tmp_path_factory, lines):
    path = written(tmp_path_factory.getbasetemp(), "\n".join(lines).encode("utf-8", "replace").decode(), "any.toml")
    try:
        ruleset = load_ruleset(path)
    except BadRules as exc:
        assert str(path) in exc.message and exc.fix
    else:
        assert ruleset.rules[: len(standing_rules())] == standing_rules()


# Rulesets and the reviewers that are there.


def test_a_required_reviewer_must_be_configured(tmp_path):
    house = load_ruleset(written(tmp_path))
    with pytest.raises(BadRules, match="requires the reviewer 'judge'") as caught:
        fit([house], {"text": None})
    assert "vision model" in caught.value.fix
    fit([house], {"text": None, "judge": None})


def test_a_label_that_a_reviewer_never_gives_is_told(tmp_path):
    house = load_ruleset(written(tmp_path))
    with pytest.raises(BadRules, match="detector never says 'knife'") as caught:
        fit([house], {"judge": None, "detector": {"gun", "minors"}})
    assert "gun" in caught.value.fix
    fit([house], {"judge": None, "detector": {"gun", "knife", "minors"}})


def test_a_reviewer_that_is_not_there_is_passed_over(tmp_path):
    text = HOUSE.replace('requires = ["judge"]\n', "")
    fit([load_ruleset(written(tmp_path, text))], {"text": PromptGate.built_in().labels})
