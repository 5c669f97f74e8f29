"""Random prompts from the shipped catalogue: everything comes, nothing against each other, nothing that is refused."""

from __future__ import annotations

import re
from collections import Counter

import pytest

from compliance.rules import PromptGate
from gateway.core import prompts
from gateway.core.catalog import SLOT, Catalog, load, parse
from gateway.core.random_prompts import RandomPrompts
from gateway.errors import CatalogError

DRAWS = 10_000


@pytest.fixture(scope="module")
def catalog() -> Catalog:
    return load()


@pytest.fixture(scope="module")
def drawn(catalog: Catalog) -> list[str]:
    draws = RandomPrompts(catalog)
    # With a character by chance and with none, turn by turn.
    return [draws.draw(None if seed % 2 else "", seed).prompt for seed in range(DRAWS)]


def test_every_phrase_of_every_list_appears_in_ten_thousand_draws(catalog: Catalog, drawn: list[str]) -> None:
    texts = [prompts.parse(prompt).positive for prompt in drawn]
    unseen = []
    for name, phrases in catalog.random.items():
        for phrase in phrases:
            # A phrase with places to fill is seen where something stands in them.
            pattern = re.sub(r"\\{[a-z0-9_\\-]+\\}", "[a-z, ]*", re.escape(phrase.text))
            if not any(re.search(rf"\b{pattern}", text) for text in texts):
                unseen.append((name, phrase.text))
    assert not unseen


def test_every_character_and_no_character_appears(catalog: Catalog, drawn: list[str]) -> None:
    names = Counter(prompts.parse(prompt).names for prompt in drawn)
    assert {(name,) for name in catalog.characters} <= set(names)
    draws = RandomPrompts(catalog)
    for seed in range(200):
        assert "@" not in draws.draw("", seed).prompt
        assert draws.draw("bella", seed).prompt.startswith("@bella ")


def test_nothing_comes_together_that_excludes_each_other(drawn: list[str]) -> None:
    for prompt in drawn:
        words = set(re.findall(r"\w+", prompt))
        assert not {"sun", "night"} <= words, prompt
        assert "moon" not in words or "night" in words, prompt
        assert "stars" not in words or ("night" in words and not words & {"clouds", "fog", "rain", "snow"}), prompt
        assert "boat" not in words or "sea" in words, prompt
        assert len(words & {"noon", "dawn", "sunset", "night"}) <= 1, prompt
        for thing in ("house", "castle", "tree", "lighthouse", "boat"):
            assert len(re.findall(rf"\b{thing}\b", prompt)) <= 1, prompt


def test_the_prompt_gate_refuses_none(drawn: list[str]) -> None:
    gate = PromptGate.built_in()
    refused = [prompt for prompt in drawn if gate.check(prompts.parse(prompt).positive)]
    assert not refused


def test_no_prompt_has_a_place_left_open_and_each_reads_back(drawn: list[str]) -> None:
    for prompt in drawn:
        assert not SLOT.search(prompt)
        assert prompts.render(prompts.parse(prompt)) == prompt
        assert ", ," not in prompt and not prompt.endswith(",")


def test_a_seed_gives_the_same_prompt_again_and_most_seeds_another(catalog: Catalog) -> None:
    draws, others = RandomPrompts(catalog), RandomPrompts(load())
    assert [draws.draw(seed=seed) for seed in range(50)] == [others.draw(seed=seed) for seed in range(50)]
    assert len({draws.draw(seed=seed).prompt for seed in range(50)}) > 40
    free = draws.draw()
    assert draws.draw(seed=free.seed) == free


def _catalog(random: str) -> Catalog:
    import tomllib

    text = f'version = 1\n[characters.aya]\nlabel = "Aya"\n[models.m]\nlabel = "M"\nworker = "w"\n{random}'
    return parse(tomllib.loads(text), "my.toml", text)


def test_a_catalogue_without_words_gives_a_character_alone() -> None:
    draws = RandomPrompts(_catalog(""))
    assert draws.draw(seed=1).prompt == "@aya"
    assert draws.draw("", 1).prompt == ""


def test_a_place_that_nothing_fits_stays_empty() -> None:
    draws = RandomPrompts(
        _catalog('[random]\nprompt = ["a hill, {sky}, {sky}"]\nsky = [{ text = "a moon", needs = ["night"] }]')
    )
    assert draws.draw("", 1).prompt == "a hill"


@pytest.mark.parametrize(
    ("random", "told"),
    [
        pytest.param('[random]\nsky = ["sun"]', "random: has no list prompt", id="no-prompt"),
        pytest.param('[random]\nprompt = ["{sky}"]', "random.prompt: names {sky}, which is no list", id="unknown-list"),
        pytest.param(
            '[random]\nprompt = ["{a}"]\na = ["x {b}"]\nb = ["y {a}"]', "random.a: leads to itself", id="circle"
        ),
        pytest.param('[random]\nprompt = ["{prompt}"]', "random.prompt: leads to itself", id="itself"),
        pytest.param('[random]\nprompt = ["a"]\nsky = ["sun"]', "random.sky: is never used", id="unused"),
        pytest.param(
            '[random]\nprompt = [{ text = "a", characters = ["zoe"] }]', "'zoe', which is not a character", id="who"
        ),
        pytest.param('[random]\nprompt = ["@aya a"]', "must be plain words", id="name"),
        pytest.param('[random]\nprompt = ["a, -b"]', "must be plain words", id="negative"),
        pytest.param("[random]\nprompt = []", "random.prompt", id="empty"),
        pytest.param('[random]\nprompt = [{ text = "a", weight = 0 }]', "greater than 0", id="weight"),
    ],
)
def test_a_grammar_that_cannot_work_stops_the_start_and_says_where(random: str, told: str) -> None:
    with pytest.raises(CatalogError) as stopped:
        _catalog(random)
    assert told in stopped.value.message and stopped.value.message.startswith("my.toml:")
