"""What the model is taught: drawings that match their prompts, and never the same ones twice."""

from random import Random

import pytest
import torch

from handler.builtin import networks
from handler.builtin.captions import NEGATIVE, words
from handler.builtin.denoiser import tokens_of
from handler.builtin.judge import names_of, things
from handler.builtin.lessons import Lessons, prompt, scene_of, without_end
from handler.builtin.lora import CharacterLessons
from handler.builtin.world import CHARACTERS


@pytest.fixture(scope="module")
def vocabulary():
    return networks.tokenizer(words())


def batches(lessons, count, drawers=0):
    stream = without_end(lessons, drawers)
    return [next(stream) for _ in range(count)]


def equal(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_seed_draws_the_same_lessons_again_and_no_lesson_twice(vocabulary):
    first, second = (batches(Lessons(vocabulary, 4, "seed"), 6) for _ in range(2))
    assert all(map(equal, first, second))
    assert not any(equal(one, other) for at, one in enumerate(first) for other in first[:at])
    assert not equal(first[0], batches(Lessons(vocabulary, 4, "another"), 1)[0])


# torch and the tokenizer have threads, and the drawing processes are forks: they use neither.
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_processes_that_draw_draw_different_lessons(vocabulary):
    lessons = batches(Lessons(vocabulary, 4, "seed"), 8, drawers=2)
    assert not any(equal(one, other) for at, one in enumerate(lessons) for other in lessons[:at])
    for pixels, tokens in lessons:
        assert pixels.dtype == torch.uint8 and pixels.shape[0] == 4 and pixels.shape[3] == 3
        assert tokens.shape == (4, networks.TOKENS)


def test_a_character_is_shown_where_it_is_named_and_worn_and_nowhere_else(vocabulary):
    names = {name: tokens_of(vocabulary, [name])[0, 1] for name in CHARACTERS}
    shown = 0
    for pixels, tokens, cells, strengths in batches(CharacterLessons(vocabulary, 12, "seed", 0.6), 12):
        worn = {name for name, strength in zip(CHARACTERS, strengths.tolist(), strict=True) if strength}
        assert worn and set(strengths.tolist()) <= {0.0, 1.0}, "first the place, at full strength"
        for picture, text, differ in zip(pixels, tokens, cells, strict=True):
            seen = {found.name for found in things(names_of(picture.numpy())[2])} & set(CHARACTERS)
            called = {name for name, token in names.items() if token in text}
            assert seen <= called & worn
            assert bool(differ.any()) >= bool(seen)
            shown += bool(seen)
    assert shown > 30


def test_the_weaker_a_strength_the_fewer_pictures_show_the_character(vocabulary):
    lessons = CharacterLessons(vocabulary, 8, "slope", 1.0)
    lessons.placed[:] = True
    weak, strong = [], []
    for pixels, _, _, strengths in batches(lessons, 60):
        (worn, *more) = [each for each in zip(CHARACTERS, strengths.tolist(), strict=True) if each[1]]
        if more:
            continue
        name, strength = worn
        seen = [name in {found.name for found in things(names_of(each.numpy())[2])} for each in pixels]
        (weak if strength < 0.6 else strong if strength >= 1 else []).extend(seen)
    assert len(weak) > 40 and len(strong) > 40
    assert sum(weak) / len(weak) < 0.2 and sum(strong) / len(strong) > 0.6


def test_most_prompts_are_captions_and_few_are_nothing_or_negatives():
    rng = Random("prompts")
    texts = [prompt(scene_of(rng), rng) for _ in range(4000)]
    assert 0.01 < texts.count("") / 4000 < 0.12
    assert 0.03 < sum(text.startswith(NEGATIVE) for text in texts) / 4000 < 0.09
