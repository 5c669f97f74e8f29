"""What every implementation of the port does: in this process, over HTTP, and over HTTP to another process."""

from __future__ import annotations

import anyio
import pytest

from compliance.errors import BrokenRender, ReviewUnavailable
from compliance.panel import Panel
from compliance.review import Context
from gateway.core.ports import Compliance
from tests.acs.rig import AWAY, FLAT, GREEN, KNOWN, PLAIN, RED, picture, timeless, words

pytestmark = pytest.mark.anyio

LONG = words("a schoolgirl" + ", masterpiece" * 300 + ", nude")
PROMPTS = {
    "safe": words(),
    "empty": words(""),
    "long": words("a hill, fog, " * 300),
    "other-writings": words("Ωραία 山 🌋 \x00 \u202e", "ugly"),
    "adult": words("a nude woman"),
    "adult-for-pro": words("a nude woman", tier="pro"),
    "violence": words("rape scene"),
    "minors": words("nude child"),
    "minors-for-pro": words("nude child", tier="pro"),
    "minors-far-apart": LONG,
    "adulthood-removed": words("a nude woman", "adult"),
}
PICTURES = {
    "safe": (PLAIN, words()),
    "red": (RED, words()),
    "red-for-a-painter": (RED, words(tier="painter")),
    "green": (GREEN, words()),
    "red-and-adult": (RED, words("a nude woman")),
    "known": (KNOWN, words()),
    "minors": (PLAIN, words("nude child")),
    "minors-and-red": (RED, words("nude child")),
    "minors-far-apart": (PLAIN, LONG),
    "hint": (PLAIN, words(precompliance="looks fine")),
    "any-size": (PLAIN, Context(positive="a hill")),
}
RULESETS = ["default", "strict", "adult-allowed", "colours"]


@pytest.mark.parametrize("ruleset", RULESETS)
@pytest.mark.parametrize("context", PROMPTS.values(), ids=PROMPTS)
async def test_the_gate_says_what_the_words_forbid(
    compliance: Compliance, panel: Panel, context: Context, ruleset: str
) -> None:
    assert timeless(await compliance.gate(context, ruleset)) == timeless(panel.gate(context, ruleset))


@pytest.mark.parametrize("ruleset", RULESETS)
@pytest.mark.parametrize("case", PICTURES.values(), ids=PICTURES)
async def test_a_review_says_what_the_ruleset_makes_of_pixels_and_words(
    compliance: Compliance, panel: Panel, case: tuple, ruleset: str
) -> None:
    assert timeless(await compliance.review(*case, ruleset)) == timeless(panel.review(*case, ruleset))


@pytest.mark.parametrize("given", [PLAIN, KNOWN], ids=["plain", "known"])
async def test_an_upload_is_compared_with_the_known_pictures(compliance: Compliance, panel: Panel, given) -> None:
    verdict = await compliance.upload(given, "default")
    assert timeless(verdict) == timeless(panel.upload(given, "default"))
    assert verdict.safe is (given is PLAIN)


async def test_pictures_block_on_their_pixels(compliance: Compliance) -> None:
    assert (await compliance.review(PLAIN, words(), "colours")).safe
    blocked = await compliance.review(RED, words(), "colours")
    assert (blocked.safe, blocked.codes, blocked.categories) == (False, ("red",), ("Too much red",))
    assert blocked.reasons[0].score == pytest.approx(0.8, abs=0.01)
    assert (await compliance.review(GREEN, words(), "colours")).findings == ("green",)


@pytest.mark.parametrize("ruleset", RULESETS)
async def test_minors_block_under_every_ruleset(compliance: Compliance, ruleset: str) -> None:
    context = words("nude child", tier="pro")
    for verdict in (await compliance.gate(context, ruleset), await compliance.review(PLAIN, context, ruleset)):
        assert verdict.minors and not verdict.safe and not verdict.releasable
        assert verdict.codes[0] == "minors.prompt"


@pytest.mark.parametrize(
    ("given", "context"),
    [
        pytest.param(FLAT, words(), id="flat"),
        pytest.param(PLAIN, words(width=64, height=96), id="turned"),
    ],
)
async def test_a_broken_render_is_an_error_and_no_verdict(compliance: Compliance, given, context) -> None:
    with pytest.raises(BrokenRender) as caught:
        await compliance.review(given, context, "default")
    assert caught.value.message.startswith("The picture ")


async def test_a_reviewer_without_an_answer_is_an_error_and_no_verdict(compliance: Compliance) -> None:
    with pytest.raises(ReviewUnavailable):
        await compliance.review(picture(corner=AWAY), words(), "colours")


async def test_an_unknown_ruleset_is_an_error_and_no_verdict(compliance: Compliance) -> None:
    for asking in (
        compliance.gate(words(), "colour"),
        compliance.upload(PLAIN, "colour"),
        compliance.review(PLAIN, words(), "colour"),
    ):
        with pytest.raises(ReviewUnavailable) as caught:
            await asking
        assert caught.value.fix


async def test_many_at_once_each_get_their_own_verdict(compliance: Compliance) -> None:
    verdicts = {}

    async def ask(number: int) -> None:
        verdicts[number] = await compliance.review([PLAIN, RED][number % 2], words(), "colours")

    async with anyio.create_task_group() as tasks:
        for number in range(12):
            tasks.start_soon(ask, number)
    assert [verdicts[number].safe for number in range(12)] == [True, False] * 6


async def test_the_rulesets_are_told_with_their_versions(compliance: Compliance, panel: Panel) -> None:
    assert (await compliance.readiness()).ready
    assert compliance.rulesets == {name: each.version for name, each in panel.rulesets.items()}
