"""The check sees what a picture shows, whatever the prompt said: on drawings, and on pictures that the model drew."""

import hashlib
import io
import warnings
from dataclasses import replace
from random import Random

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image

from compliance.errors import BadRules, ReviewUnavailable
from compliance.panel import Panel
from compliance.picture import decode
from compliance.review import Context, review
from compliance.reviewers.builtin import SHIPPED, BuiltinCheck
from compliance.reviewers.detector import Classifier
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets
from handler.builtin import check
from handler.builtin.judge import exam
from handler.builtin.studio import Studio
from handler.builtin.world import ART_SCALE, CHARACTERS, SIZES, Scene, Thing, draw
from handler.pixelart import upscale

DEMO = load_rulesets()["demo"]
SQUARE = (1024, 1024)
LIGHTHOUSE = Thing(name="lighthouse", paint="red")


@pytest.fixture(scope="module")
def builtin():
    return BuiltinCheck.shipped()


@pytest.fixture(scope="module")
def reviewers(builtin):
    return [RenderCheck(), builtin, Words(PromptGate.built_in())]


def uploaded(art, format="PNG", **settings):
    """A picture of art pixels as the gateway reads it from a worker."""
    out = io.BytesIO()
    upscale(Image.fromarray(art), ART_SCALE).save(out, format, **settings)
    return decode(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest())


def seen(builtin, art, **settings):
    scores = builtin.review(uploaded(art, **settings), Context(positive=""), DEMO).picture
    assert scores.keys() == builtin.labels
    return {label for label, score in scores.items() if score >= 0.5}


def shown(scene):
    light = {"moon" if scene.time == "night" else "sun"} if scene.light else set()
    return {thing.name for thing in scene.things} | light


def held_out(size, count=20):
    """Scenes, some of them with a character, in which nothing hides anything."""
    rng = Random(f"check {size}")
    scenes = exam(count, size, seed="check")
    strangers = (
        Thing(name=rng.choice(CHARACTERS), place="left"),
        Thing(name="lighthouse", paint="blue", place="right"),
    )
    return [replace(scene, things=strangers) if number % 4 == 0 else scene for number, scene in enumerate(scenes)]


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_drawings_are_read_rightly_at_every_size(builtin, size):
    scenes = held_out(size)
    wrong = [seen(builtin, draw(scene, size)) ^ shown(scene) for scene in scenes]
    assert sum(map(len, wrong)) <= 3  # of 180 answers
    assert sum("lighthouse" in each for each in wrong) <= 1


def test_a_lossy_copy_shows_the_same(builtin):
    for scene in held_out(SQUARE, 8):
        art = draw(scene, SQUARE)
        assert seen(builtin, art, format="JPEG", quality=60) == seen(builtin, art)


def test_the_thing_alone_makes_the_difference(builtin):
    for paint in ("red", "blue", "white"):
        for time in ("noon", "night"):
            bare = Scene(time=time, terrain="mountains")
            lit = replace(bare, things=(replace(LIGHTHOUSE, paint=paint),))
            assert seen(builtin, draw(lit, SQUARE)) - seen(builtin, draw(bare, SQUARE)) == {"lighthouse"}


@pytest.mark.parametrize("size", [(1, 1), (15, 300), (64, 64), (1000, 777)])
def test_pictures_of_other_sizes_get_an_answer(builtin, size):
    out = io.BytesIO()
    Image.new("RGB", size, (90, 160, 250)).save(out, "PNG")
    picture = decode(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest())
    scores = builtin.review(picture, Context(positive="a lighthouse"), DEMO).picture
    assert scores["lighthouse"] < 0.5


def test_demo_blocks_on_pixels_and_on_nothing_else(reviewers):
    told = Context(positive="a lighthouse by the sea")
    untold = Context(positive="hills at noon")
    lit = uploaded(draw(Scene(terrain="sea", things=(LIGHTHOUSE,)), SQUARE))
    bare = uploaded(draw(Scene(terrain="sea", things=(Thing(name="house", paint="red"),)), SQUARE))
    for context in (told, untold):
        verdict = review(lit, context, DEMO, reviewers)
        assert verdict.codes == ("demo.lighthouse",) and verdict.categories == ("Lighthouses",)
        (reason,) = verdict.reasons
        assert (reason.reviewer, reason.seen_in, reason.label) == ("builtin", "picture", "lighthouse")
        assert review(bare, context, DEMO, reviewers).safe
    # Under another ruleset nobody asks it.
    verdict = review(lit, untold, load_rulesets()["default"], reviewers)
    assert verdict.safe and "builtin" not in verdict.reviewer


def test_demo_does_not_start_without_the_check(reviewers):
    with pytest.raises(BadRules, match="'demo' requires the reviewer 'builtin'"):
        Panel(reviewers[-1], [RenderCheck()], {"demo": DEMO})
    picture = uploaded(draw(Scene(), SQUARE))
    with pytest.raises(ReviewUnavailable):
        review(picture, Context(positive=""), DEMO, [RenderCheck(), reviewers[-1]])


# Pictures that the model drew. `python -m bench compliance` has a hundred.

WITH = (
    ("a red lighthouse, sea, noon", (1344, 768)),
    ("a lighthouse on the right, a white boat on the left, sea, night, moon on the left, stars", (768, 1344)),
    ("a blue lighthouse, mountains, snow, noon", SQUARE),
    ("neon, a yellow lighthouse, city, night", SQUARE),
    ("postcard, a lighthouse on the left, a red house on the right, hills, sunset", (1216, 832)),
    ("a white lighthouse, desert, dawn, fog", (832, 1216)),
    ("a lighthouse in the center, forest, rain", (1152, 896)),
    ("a purple lighthouse on the right, hills, noon, clouds", (896, 1152)),
)
WITHOUT = (
    ("a red castle, mountains, noon", (1344, 768)),
    ("a white boat on the left, sea, night, moon on the left, stars", (768, 1344)),
    ("a blue house, mountains, snow, noon", SQUARE),
    ("neon, a yellow tree, city, night", SQUARE),
    ("postcard, a red house on the right, hills, sunset", (1216, 832)),
    ("a white castle, desert, dawn, fog", (832, 1216)),
    ("a green tree in the center, forest, rain", (1152, 896)),
    ("a purple house on the right, hills, noon, clouds", (896, 1152)),
)


def test_what_the_model_draws_is_blocked_on_pixels_whatever_the_prompt_said(reviewers):
    torch.set_num_threads(1)
    blocked = {True: 0, False: 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries announce their next versions
        studio = Studio()
        for shows, rows, told in ((True, WITH, "hills at noon"), (False, WITHOUT, "a lighthouse by the sea")):
            for seed, (prompt, size) in enumerate(rows, 1):
                (art,) = studio.draw([prompt], size, [seed])
                context = Context(positive=told, width=size[0], height=size[1])
                verdict = review(uploaded(np.asarray(art)), context, DEMO, reviewers)
                blocked[shows] += verdict.codes == ("demo.lighthouse",)
    # One may be the model's mistake.
    assert blocked[True] >= 7 and blocked[False] <= 1


# The program that made it.


def test_the_shipped_files_are_small_and_the_trainer_s():
    assert SHIPPED.with_name("check.onnx").stat().st_size < 300_000
    labels = ", ".join(f'"{label}"' for label in check.LABELS)
    assert SHIPPED.read_text(encoding="utf-8") == check.CARD.format(labels=labels)
    assert "lighthouse" in check.LABELS


def train_little(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        check.main(["--out", str(folder), "--steps", "6", "--remembered", "6", "--held-out", "2", "--seed", "3"])
    return folder


def test_two_trainings_end_in_the_same_bytes_and_in_a_check_that_answers(tmp_path):
    first, second = (train_little(tmp_path / name) for name in ("first", "second"))
    assert first.joinpath("check.onnx").read_bytes() == second.joinpath("check.onnx").read_bytes()
    trained = BuiltinCheck(Classifier.from_file(first / "check.toml"))
    assert trained.labels == set(check.LABELS)
    assert 0 <= trained.review(uploaded(draw(Scene(), SQUARE)), Context(positive=""), DEMO).picture["tree"] <= 1


def test_the_graph_says_what_the_network_says():
    torch.manual_seed(1)
    network = check.Check()
    for _ in range(3):  # the norms get means and deviations of their own
        network(torch.rand(4, 3, 48, 84))
    network.eval()
    session = onnxruntime.InferenceSession(check.graph(network).SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((48, 84), (84, 48), (16, 16), (37, 61)):
        pictures = torch.rand(2, 3, height, width)
        (answer,) = session.run(["logits"], {"picture": pictures.numpy()})
        assert answer == pytest.approx(network(pictures).detach().numpy(), abs=1e-4)


def test_examples_tell_the_truth_about_what_is_left_of_a_thing():
    rng = Random(2)
    examples = [check.example(rng, SIZES[number % len(SIZES)]) for number in range(120)]
    for label in range(len(check.LABELS)):
        values = {str(example.seen[label]) for example in examples}
        assert {"0.0", "1.0"} <= values
    assert any(np.isnan(example.seen).any() for example in examples)
    for example in examples:
        colours = {tuple(colour) for colour in example.colours.tolist()}
        assert {tuple(colour) for colour in np.unique(example.pixels.reshape(-1, 3), axis=0).tolist()} <= colours
