"""The moderation reviewer, through the SDK and over HTTP, against a server with OpenAI's wire format."""

import json
import subprocess
import sys
import traceback
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compliance.errors import BadRules, ReviewUnavailable
from compliance.review import Context, review
from compliance.reviewers.moderation import Moderation, pieces, shipped_categories
from compliance.reviewers.openai_client import LONGEST_TEXT, retry_after
from compliance.rulesets import load_rulesets
from tests.compliance.fake_openai import (
    CATEGORIES,
    FAULTS,
    KEY,
    TEXT_MODERATION,
    FakeOpenAI,
    Reply,
    azure_filter,
    error,
    moderated,
    result,
)
from tests.compliance.samples import bytes_of, decoded, scene

ROOT = Path(__file__).parents[2]
RULESETS = {name: rules for name, rules in load_rulesets().items() if not rules.requires}
PICTURE = decoded(bytes_of(scene()))
CONTEXT = Context(positive="a hill, fog", negative="nude, gore")


@pytest.fixture
def server():
    with FakeOpenAI() as server:
        yield server


def moderation(server, **settings):
    return Moderation(**{"base_url": server.url, "api_key": KEY, "timeout": 10.0, **settings})


def opinion(server, context=CONTEXT, picture=PICTURE, **settings):
    return moderation(server, **settings).review(picture, context, RULESETS["default"])


def test_the_prompt_and_the_picture_are_asked_about_apart(server):
    server.moderation = lambda given: {"violence": 0.6} if isinstance(given, str) else {"sexual": 0.9}
    seen = opinion(server)
    assert server.asked[0].body["input"] == "a hill, fog"
    assert [len(each.pictures) for each in server.asked] == [0, 1]
    assert (seen.prompt["violence"], seen.picture["violence"]) == (0.6, 0.0001)
    assert (seen.prompt["sexual"], seen.picture["sexual"]) == (0.0001, 0.9)
    assert seen.prompt.keys() == set(CATEGORIES)


def test_what_the_model_can_not_see_in_a_picture_is_no_opinion(server):
    assert opinion(server).picture.keys() == {
        *("self-harm", "self-harm/instructions", "self-harm/intent", "sexual", "violence", "violence/graphic")
    }


@pytest.mark.parametrize("where", ["prompt", "picture"])
def test_a_score_above_the_threshold_blocks(server, where):
    server.moderation = lambda given: {"sexual": 0.95} if isinstance(given, str) == (where == "prompt") else {}
    verdict = review(PICTURE, CONTEXT, RULESETS["default"], [moderation(server)])
    assert verdict.codes == ("adult.explicit",)
    assert (verdict.reasons[0].seen_in, verdict.reasons[0].score) == (where, 0.95)


def test_sexual_content_with_minors_blocks_under_every_ruleset(server):
    server.moderation = lambda given: {"sexual/minors": 0.3} if isinstance(given, str) else {}
    for ruleset in RULESETS.values():
        verdict = review(PICTURE, CONTEXT, ruleset, [moderation(server)])
        assert (verdict.safe, verdict.minors, verdict.releasable) == (False, True, False)


def test_a_large_picture_is_sent_small_and_keeps_its_shape(server):
    opinion(server, picture=decoded(bytes_of(scene(1600, 400))))
    assert server.asked[1].pictures[0].size == (1024, 256)


def test_a_small_picture_is_sent_as_it_is(server):
    opinion(server)
    assert server.asked[1].pictures[0].size == PICTURE.size


def test_a_provider_without_pictures_gets_only_the_prompt_and_has_no_opinion_about_them(server):
    seen = opinion(server, images=False, model=TEXT_MODERATION)
    assert [each.path for each in server.asked] == ["/v1/moderations"]
    assert seen.prompt
    assert seen.picture == {}


def test_a_provider_without_pictures_that_is_sent_one_gives_no_verdict(server):
    with pytest.raises(ReviewUnavailable, match="takes pictures"):
        opinion(server, model=TEXT_MODERATION)


def test_an_empty_prompt_is_not_sent(server):
    assert opinion(server, Context(positive=" \n")).prompt == {}
    assert len(server.asked) == 1


def test_half_a_surrogate_in_a_prompt_does_not_stop_the_review(server):
    assert opinion(server, Context(positive="a \ud800 hill")).prompt
    assert server.asked[0].body["input"] == "a ? hill"


def test_a_long_prompt_is_sent_in_pieces_and_the_worst_one_counts(server):
    server.moderation = lambda given: {"sexual": 0.9} if isinstance(given, str) and "nude" in given else {}
    seen = opinion(server, Context(positive="a hill, " * 900 + "nude, " + "a hill, " * 300))
    assert len(server.asked[0].body["input"]) > 4
    assert seen.prompt["sexual"] == 0.9


def test_a_prompt_too_long_to_be_looked_at_gives_no_verdict(server):
    with pytest.raises(ReviewUnavailable) as caught:
        opinion(server, Context(positive="a" * (LONGEST_TEXT + 1)))
    assert (caught.value.again, caught.value.outage, server.asked) == (False, False, [])


@given(st.text(min_size=1, max_size=9000).filter(str.strip), st.data())
def test_every_phrase_is_whole_in_a_piece(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    phrase = text[start : start + 200]
    assert any(phrase in piece for piece in pieces(text))
    assert all(0 < len(piece) < 2000 for piece in pieces(text))


# What other providers answer.


def mistral(**scores):
    return {"categories": {name: score > 0.5 for name, score in scores.items()}, "category_scores": scores}


def test_the_names_of_another_provider_become_ours_and_unknown_ones_stay(server):
    told = {"sexual": 0.1, "hate_and_discrimination": 0.2, "violence_and_threats": 0.3, "selfharm": 0.4, "pii": 0.5}
    server.script(moderated(mistral(**told)))
    seen = opinion(server, images=False)
    assert seen.prompt == {"sexual": 0.1, "hate": 0.2, "violence": 0.3, "self-harm": 0.4, "pii": 0.5}


def test_a_setting_names_more_categories(server):
    server.script(moderated(mistral(erotica=0.7, sexual=0.2)))
    assert opinion(server, images=False, categories={"erotica": "sexual"}).prompt == {"sexual": 0.7}


def test_flags_count_where_there_are_no_scores(server):
    server.script(moderated({"flagged": True, "categories": {"sexual": True, "hate": False, "illicit": None}}))
    assert opinion(server, images=False).prompt == {"sexual": 1.0, "hate": 0.0}


def test_a_flag_counts_where_its_own_score_is_missing(server):
    server.script(moderated({"categories": {"sexual": True}, "category_scores": {"hate": 0.1, "sexual": None}}))
    assert opinion(server, images=False).prompt == {"sexual": 1.0, "hate": 0.1}


def test_every_shipped_name_leads_to_a_category_of_openai():
    assert set(shipped_categories().values()) <= set(CATEGORIES)
    assert not shipped_categories().keys() & set(CATEGORIES)


# No answer, no verdict.


@pytest.mark.parametrize(("fault", "again", "outage"), FAULTS.values(), ids=FAULTS)
def test_a_fault_gives_no_verdict_and_says_nothing_of_the_key(server, fault, again, outage):
    server.default = fault
    with pytest.raises(ReviewUnavailable) as caught:
        review(PICTURE, CONTEXT, RULESETS["default"], [moderation(server, timeout=0.3 if fault == "hang" else 10.0)])
    assert (caught.value.again, caught.value.outage) == (again, outage)
    logged = "".join(traceback.format_exception(caught.value))
    assert KEY not in logged
    assert "127.0.0.1" not in logged


GOOD = result({})


def changed(**members):
    return GOOD | members


@pytest.mark.parametrize(
    "results",
    [
        [],
        [GOOD, GOOD],
        [{}],
        [{"flagged": False}],
        [{"categories": {}, "category_scores": {}}],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": 1.2})],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": -0.1})],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": float("nan")})],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": float("inf")})],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": "0.1"})],
        [changed(category_scores=GOOD["category_scores"] | {"sexual": True})],
        [changed(category_scores=[0.1])],
        [changed(categories={"sexual": "no"}, category_scores={})],
        None,
    ],
)
@pytest.mark.parametrize("call", [0, 1], ids=["of-the-prompt", "of-the-picture"])
def test_a_nonsense_answer_gives_no_verdict(server, results, call):
    server.script(*[None] * call, Reply({"id": "modr-1", "model": "m", "results": results}))
    with pytest.raises(ReviewUnavailable) as caught:
        review(PICTURE, CONTEXT, RULESETS["default"], [moderation(server)])
    assert (caught.value.again, caught.value.outage) == (True, True)
    assert len(server.asked) == call + 1


def test_a_picture_that_the_model_did_not_look_at_gives_no_verdict(server):
    server.script(None, moderated(result({}, ())))
    with pytest.raises(ReviewUnavailable, match="without scores"):
        opinion(server)


def test_the_service_is_asked_once(server):
    server.default = error(500)
    with pytest.raises(ReviewUnavailable):
        opinion(server)
    assert len(server.asked) == 1


def test_a_picture_does_not_follow_a_redirect(server):
    with FakeOpenAI() as elsewhere:
        server.default = Reply(b"", 307, {"Location": f"{elsewhere.url}/moderations"})
        with pytest.raises(ReviewUnavailable, match="Check the address"):
            opinion(server)
        assert elsewhere.received == 0


def test_a_service_that_is_not_there_gives_no_verdict(server):
    with FakeOpenAI() as gone:
        pass
    with pytest.raises(ReviewUnavailable, match="can't be reached") as caught:
        opinion(gone)
    assert caught.value.again


def test_a_key_that_does_not_fit_names_the_fix(server):
    with pytest.raises(ReviewUnavailable, match="valid key") as caught:
        opinion(server, api_key="sk-wrong-0815")
    assert "0815" not in str(caught.value)


@pytest.mark.parametrize("refusal", [azure_filter(), error(400, "content_policy_violation")], ids=["azure", "openai"])
@pytest.mark.parametrize("call", [0, 1], ids=["prompt", "picture"])
def test_a_refusal_by_the_provider_s_policy_blocks_under_every_ruleset(server, refusal, call):
    for ruleset in RULESETS.values():
        server.script(*[None] * call, refusal, *[None] * (1 - call))
        verdict = review(PICTURE, CONTEXT, ruleset, [moderation(server)])
        assert verdict.codes == ("provider.refused",)
        assert verdict.reasons[0].seen_in == ("prompt", "picture")[call]
        assert (verdict.minors, verdict.releasable) == (False, False)


# Its settings.


def test_the_sdk_is_not_imported_before_somebody_needs_it():
    text = "import sys, compliance.reviewers.moderation, compliance.reviewers.judge; print('openai' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    "address", ["", "api.example.com/v1", "ftp://x/v1", "http://", "http://[::1/v1", "http://x:y/v1"]
)
def test_an_address_that_is_none_stops_the_start(address):
    with pytest.raises(BadRules, match="address"):
        Moderation(base_url=address, api_key=KEY)


def test_a_password_in_the_address_stops_the_start_and_is_not_repeated():
    with pytest.raises(BadRules, match="Take it out") as caught:
        Moderation(base_url="https://me:geheim@example.com/v1", api_key=KEY)
    assert "geheim" not in str(caught.value)


def test_the_version_changes_with_what_decides_an_opinion(server):
    versions = [
        moderation(server, **settings).version
        for settings in ({}, {"model": "other"}, {"images": False}, {"categories": {"a": "b"}})
    ]
    assert len(set(versions)) == 4
    assert moderation(server, timeout=1.0).version == versions[0]


def test_an_account_in_the_environment_is_not_sent_to_another_provider(server, monkeypatch):
    monkeypatch.setenv("OPENAI_ORG_ID", "org-ours")
    monkeypatch.setenv("OPENAI_PROJECT_ID", "proj-ours")
    opinion(server)
    assert "ours" not in json.dumps(server.asked[0].headers)


def test_no_negative_prompt_is_sent(server):
    opinion(server, replace(CONTEXT, negative="unmistakable"))
    assert "unmistakable" not in json.dumps([each.body for each in server.asked])


# How long to wait.


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "7"}, 7),
        ({"retry-after": " 0.25 "}, 0.25),
        ({"retry-after": "-7"}, 0),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "9" * 40}, 0),
        ({"retry-after": "Fri, 27 Nov 2026 02:00:30 GMT", "date": "Fri, 27 Nov 2026 02:00:00 GMT"}, 30),
        ({"retry-after": "Fri, 27 Nov 2026 02:00:00 GMT", "date": "Fri, 27 Nov 2026 02:00:30 GMT"}, 0),
        ({"retry-after": "Fri, 27 Nov 2026 02:00:30 GMT"}, 0),
        ({"retry-after": "Fri, 27 Nov 2026 02:00:30 GMT", "date": "Fri, 27 Nov 2026 02:00:00"}, 0),
    ],
)
def test_the_wait_that_a_provider_asks_for(headers, seconds):
    assert retry_after(headers) == seconds


@given(st.text(), st.text())
def test_no_header_breaks_the_wait(given_wait, date):
    assert retry_after({"retry-after": given_wait, "date": date}) >= 0


NUMBER = st.one_of(st.none(), st.booleans(), st.floats(), st.integers(-2, 2), st.text(max_size=3))
SCORES = st.one_of(st.none(), st.dictionaries(st.sampled_from([*CATEGORIES, "other"]), NUMBER, max_size=4))


@pytest.fixture(scope="module")
def lasting():
    with FakeOpenAI() as server:
        yield server, moderation(server, images=False)


@given(st.lists(st.fixed_dictionaries({}, optional={"categories": SCORES, "category_scores": SCORES}), max_size=2))
def test_whatever_comes_is_an_opinion_in_range_or_none(lasting, results):
    server, reviewer = lasting
    server.default = moderated(*results)
    try:
        seen = reviewer.review(PICTURE, CONTEXT, RULESETS["default"])
    except ReviewUnavailable:
        return
    assert len(results) == 1
    assert seen.prompt
    assert all(0 <= score <= 1 for score in seen.prompt.values())
