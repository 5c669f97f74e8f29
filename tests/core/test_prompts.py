"""The prompt syntax of the Imgen reference and its composition (resolutions I2-I4, I40-I42)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.core import prompts

ANY_TEXT = st.text(st.characters(), max_size=300)
SYNTAX = st.lists(
    st.sampled_from(
        ["@aya", "@bella", "@", "-fog", "- fog", "-", ",", " ", "a hill", "close-up", "a@b.c", "-5", "é", "\n"]
    ),
    max_size=20,
).map("".join)


@pytest.mark.parametrize(
    ("raw", "names", "positive", "negatives"),
    [
        pytest.param(
            "@aya black lingerie, on bed, warm lighting, -red dress, -ugly hands",
            ("aya",),
            "black lingerie, on bed, warm lighting",
            ("red dress", "ugly hands"),
            id="the-reference's-example",
        ),
        pytest.param("@AYA on a hill", ("aya",), "on a hill", (), id="names-are-case-insensitive"),
        pytest.param("on a hill,@aya", ("aya",), "on a hill", (), id="after-a-comma"),
        pytest.param("mail me@home.org", (), "mail me@home.org", (), id="mail-address-is-text"),
        pytest.param("@home.org here", (), "@home.org here", (), id="at-domain-is-text"),
        pytest.param("a lens @ 50mm", (), "a lens @ 50mm", (), id="lone-at-is-text"),
        pytest.param("portrait of @aya.", ("aya",), "portrait of .", (), id="full-stop-ends-a-name"),
        pytest.param(f"@{'a' * 65} x", (), f"@{'a' * 65} x", (), id="65-letters-are-no-name"),
        pytest.param("@aya @bella", ("aya", "bella"), "", (), id="two-names"),
        pytest.param("close-up, -5 degrees, - fog", (), "close-up, -5 degrees, - fog", (), id="not-negative"),
        pytest.param("-fog @aya, hill", ("aya",), "hill", ("fog",), id="a-name-inside-a-negative"),
        pytest.param(",, a ,,  b  ,", (), "a, b", (), id="empty-segments-go"),
        pytest.param("-fog", (), "", ("fog",), id="only-negative"),
    ],
)
def test_a_prompt_is_tokenised(raw, names, positive, negatives):
    parsed = prompts.parse(raw)
    assert (parsed.names, parsed.positive, parsed.negatives) == (names, positive, negatives)


def test_a_dash_inside_a_segment_is_reported_and_kept():
    parsed = prompts.parse("a hill -fog, close-up")
    assert parsed.positive == "a hill -fog, close-up"
    assert parsed.stray == ("-fog",)


def test_positive_is_composed_in_the_references_order():
    assert (
        prompts.compose_positive(trigger="t", character="c", prompt="p", style="s") == "t, c, p, s"
        and prompts.compose_positive(trigger="", character="", prompt="p", style="") == "p"
        and prompts.compose_positive(trigger="t", character="", prompt="", style="s") == "t, s"
    )


def test_negative_is_composed_in_the_references_order():
    negative = prompts.compose_negative(base="b", style="s", character="c", terms=("x", "y"), explicit="e")
    assert negative == "b, s, c, x, y, e"
    assert prompts.compose_negative(base="", style="", character="", terms=(), explicit="") == ""


def test_explicit_negatives_lose_one_leading_dash():
    assert prompts.explicit_negatives("-fog, rain,  --x, -5") == "fog, rain, --x, -5"


@given(ANY_TEXT | SYNTAX)
def test_nothing_is_lost(raw):
    """Every character that is not a blank, a comma, a name or the dash of a negative comes out again, in order."""
    text = prompts.clean(raw)
    parsed = prompts.parse(raw)
    kept = "".join(
        sorted(parsed.positive + "".join("-" + n for n in parsed.negatives) + "".join("@" + n for n in parsed.names))
    )
    strip = str.maketrans("", "", " ,")
    before = "".join(sorted(text.translate(strip).casefold()))
    after = "".join(sorted(kept.translate(strip).casefold()))
    assert after.strip() == before.strip()


@given(ANY_TEXT | SYNTAX)
def test_rendering_round_trips(raw):
    parsed = prompts.parse(raw)
    again = prompts.parse(prompts.render(parsed))
    assert (again.names, again.positive, again.negatives) == (parsed.names, parsed.positive, parsed.negatives)


@given(ANY_TEXT)
def test_cleaned_text_can_be_stored_and_sent_anywhere(raw):
    text = prompts.clean(raw)
    assert "\x00" not in text
    text.encode("utf-8")
    assert prompts.clean(text) == text


@given(ANY_TEXT | SYNTAX)
def test_names_are_always_plain(raw):
    assert all(name.isascii() and name == name.lower() and 1 <= len(name) <= 64 for name in prompts.parse(raw).names)
