"""The rules that are in every ruleset, whatever its file says."""

import pytest

from compliance.errors import BadRules
from compliance.rulesets import PROVIDER_POLICY, REFUSED, load_ruleset, load_rulesets, standing_rules


def file(folder, rule=""):
    path = folder / "house.toml"
    path.write_text(f'name = "house"\ntitle = "House"\n{rule}', encoding="utf-8")
    return path


def test_every_ruleset_begins_with_them_even_an_empty_one(tmp_path):
    ids = [rule.id for rule in standing_rules()]
    assert ids == ["minors.prompt", "minors.picture", "minors.known", "provider.refused"]
    for ruleset in [*load_rulesets().values(), load_ruleset(file(tmp_path))]:
        assert [rule.id for rule in ruleset.rules[:4]] == ids


def test_a_provider_s_refusal_blocks_for_every_tier_and_is_not_about_minors():
    (refused,) = [rule for rule in standing_rules() if rule.category == PROVIDER_POLICY]
    assert (refused.action, refused.except_tiers, refused.releasable, refused.minors) == (
        "block",
        frozenset(),
        False,
        False,
    )
    assert refused.reviewers == {"moderation": {REFUSED: 1.0}, "judge": {REFUSED: 1.0}}


@pytest.mark.parametrize(
    ("id", "category"),
    [
        ("provider.refused", "X"),
        ("provider.mine", "X"),
        ("mine", PROVIDER_POLICY),
        ("minors.mine", "X"),
        ("mine", "MINORS"),
    ],
)
def test_no_rule_of_an_operator_stands_in_for_one(tmp_path, id, category):
    rule = (
        f'[[rules]]\nid = "{id}"\ncategory = "{category}"\nname = "N"\naction = "flag"\n[rules.reviewers]\njudge = 1\n'
    )
    with pytest.raises(BadRules, match=r"house\.toml:3: .*always on"):
        load_ruleset(file(tmp_path, rule))
