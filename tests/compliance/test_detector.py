"""A picture classifier that an operator brings: what it may look like, what it says, and what stops the start."""

import hashlib
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from compliance.errors import BadRules, ReviewUnavailable
from compliance.panel import Panel
from compliance.review import Context, review
from compliance.reviewers.detector import COMMON, Detector
from compliance.reviewers.words import Words
from compliance.rulesets import load_rulesets
from tests.compliance.classifiers import means
from tests.compliance.samples import bytes_of, decoded, scene

RULESETS = load_rulesets()
SHIPPED = {name: ruleset for name, ruleset in RULESETS.items() if not ruleset.requires}
COLOURS = """\
file = "means.onnx"
labels = ["red", "green", "blue"]
activation = "none"

[input]
width = 8
height = 4
"""


@pytest.fixture
def write(tmp_path):
    def write(text=COLOURS, **model):
        means(tmp_path / "means.onnx", **model)
        path = tmp_path / "detector.toml"
        path.write_text(text, encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(write):
    return lambda text=COLOURS, **model: Detector.from_file(write(text, **model))


def plain(colour, size=(32, 16)):
    return decoded(bytes_of(Image.new("RGB", size, colour)))


def seen(detector, picture):
    return detector.review(picture, Context(positive=""), RULESETS["default"]).picture


def test_it_says_what_its_model_says(load):
    assert seen(load(), plain((255, 51, 0))) == pytest.approx({"red": 1.0, "green": 0.2, "blue": 0.0})


@pytest.mark.parametrize("size", [(8, 4), (300, 17), (1, 1)])
def test_pictures_of_every_size_are_resized(load, size):
    for resize in ("stretch", "crop"):
        detector = load(f'{COLOURS}resize = "{resize}"\n', size=(4, 8))
        assert seen(detector, plain((0, 255, 0), size)) == pytest.approx({"red": 0, "green": 1, "blue": 0})


def test_padding_keeps_the_whole_picture_and_its_sides(load):
    detector = load(f'{COLOURS}resize = "pad"\n', size=(4, 8))
    # A square fills half of 8 x 4.
    assert seen(detector, plain((255, 255, 255), (60, 60)))["red"] == pytest.approx(0.5, abs=0.01)


def test_a_model_may_take_pictures_as_they_are(load):
    detector = load(COLOURS.replace("width = 8\nheight = 4", 'resize = "none"'))
    for size in ((8, 4), (33, 65)):
        assert seen(detector, plain((0, 0, 255), size))["blue"] == 1


@pytest.mark.parametrize("kind", ["float", "float16", "uint8"])
@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_layouts_colours_and_kinds_of_numbers(load, layout, kind):
    text = f'{COLOURS}layout = "{layout}"\ncolours = "bgr"\nscale = 1\n'
    detector = load(text, layout=layout, kind=kind, size=(4, 8), gain=1 / 255)
    assert seen(detector, plain((255, 0, 51))) == pytest.approx({"red": 0.2, "green": 0, "blue": 1}, abs=1e-3)


def test_mean_and_std_come_after_the_scale(load):
    text = COLOURS.replace('"none"', '"sigmoid"') + "mean = [0.5, 0, 0]\nstd = [0.25, 1, 1]\n"
    assert seen(load(text), plain((255, 0, 0))) == pytest.approx(
        {"red": 1 / (1 + math.exp(-2)), "green": 0.5, "blue": 0.5}, abs=1e-5
    )


@given(st.lists(st.floats(-80, 80, width=32), min_size=3, max_size=3))
@settings(max_examples=50, deadline=None)
def test_activations_give_scores(tmp_path_factory, logits):
    folder = tmp_path_factory.mktemp("activations")
    means(folder / "means.onnx")
    # A black picture: minus the mean is what the model answers.
    told = f"mean = {[-logit for logit in logits]}\n"
    for activation in ("softmax", "sigmoid"):
        path = folder / f"{activation}.toml"
        path.write_text(COLOURS.replace('"none"', f'"{activation}"') + told, encoding="utf-8")
        scores = list(seen(Detector.from_file(path), plain((0, 0, 0))).values())
        powers = [math.exp(logit - max(logits)) for logit in logits]
        expected = [power / sum(powers) for power in powers]
        if activation == "sigmoid":
            expected = [1 / (1 + math.exp(-logit)) for logit in logits]
        assert scores == pytest.approx(expected, abs=1e-4)


def test_labels_get_our_names_and_count_together(load):
    rename = '[rename]\nred = "explicit"\nblue = "explicit"\n'
    detector = load(COLOURS + rename)
    assert (detector.labels - COMMON, detector.never_said) == ({"green"}, {"suggestive", "minors"})
    highest = seen(load(COLOURS + rename), plain((255, 0, 102)))
    assert highest == pytest.approx({"explicit": 1.0, "green": 0.0})
    exclusive = seen(load(COLOURS.replace('"none"', '"softmax"') + rename, gain=0), plain((1, 2, 3)))
    assert exclusive == pytest.approx({"explicit": 2 / 3, "green": 1 / 3}, abs=1e-5)


def test_labels_may_be_places_of_the_outputs_that_matter(load):
    text = COLOURS.replace('["red", "green", "blue"]', "{ sky = 2 }")
    detector = load(text, outputs=7)
    assert (detector.labels - COMMON, seen(detector, plain((0, 0, 255)))) == ({"sky"}, {"sky": 1.0})


def test_the_version_changes_with_the_file_and_with_the_model(load):
    versions = {load().version, load(COLOURS + "# again\n").version, load(gain=0.5).version, load().version}
    assert len(versions) == 3


def test_the_hash_of_the_model_is_checked(load, write):
    model = write().with_name("means.onnx").read_bytes()
    right = hashlib.sha256(model).hexdigest()
    assert load(f'sha256 = "{right}"\n{COLOURS}').labels
    with pytest.raises(BadRules, match=r"detector\.toml:1: means\.onnx has the sha256") as caught:
        load(f'sha256 = "{right[::-1]}"\n{COLOURS}')
    assert right in str(caught.value)


@pytest.mark.parametrize(
    ("text", "model", "says"),
    [
        ("file = [", {}, r"detector\.toml: .*end of document"),
        (COLOURS.replace("means", "gone"), {}, r"detector\.toml:1: .*gone\.onnx can't be read"),
        (COLOURS.replace("labels", "label"), {}, r"detector\.toml:1: labels: Field required"),
        (COLOURS.replace(', "blue"', ""), {}, r"detector\.toml:2: means\.onnx has 3 outputs, and labels speaks of 2"),
        (COLOURS.replace("blue", "red"), {}, r"detector\.toml:2: labels has a label twice"),
        (COLOURS.replace('["red", "green", "blue"]', "{ sky = 3 }"), {}, r"detector\.toml:2: .* speaks of 4"),
        (COLOURS.replace('["red", "green", "blue"]', "{ sky = -1 }"), {}, r"detector\.toml:2: .*below 0"),
        (COLOURS.replace('"none"', '"relu"'), {}, r"detector\.toml:3: activation: .*softmax"),
        (COLOURS, {"gain": 7}, r"detector\.toml:3: .* a score is 0-1"),
        (COLOURS.replace('"none"', '"sigmoid"'), {"gain": math.nan}, r"detector\.toml:3: .*no number"),
        (COLOURS.replace("width", "breadth"), {}, r"detector\.toml:6: input\.breadth: Extra"),
        (COLOURS.replace("width = 8\n", ""), {}, r"detector\.toml:5: input: width and height are missing"),
        (COLOURS + 'resize = "none"\n', {}, r"detector\.toml:5: input: resize"),
        (COLOURS + "std = [1, 0, 1]\n", {}, r"detector\.toml:5: input: std divides"),
        (COLOURS + "mean = [1, 1]\n", {}, r"detector\.toml:8: input\.mean"),
        (COLOURS, {"size": (8, 4)}, r"detector\.toml:5: .*shape \[1, 3, 4, 8\]; its input is \['count', 3, 8, 4\]"),
        (COLOURS, {"size": (4, 8), "layout": "nhwc"}, r"detector\.toml:5: .*does not take pictures"),
        (COLOURS, {"inputs": 2}, r"detector\.toml:1: .*inputs picture of tensor\(float\), mask"),
        (COLOURS + '[rename]\npurple = "minors"\n', {}, "rename has 'purple', which is not in labels"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_stops_the_start_with_the_line_and_a_fix(load, text, model, says):
    with pytest.raises(BadRules, match=says) as caught:
        load(text, **model)
    assert caught.value.fix


@pytest.mark.parametrize("content", [b"", b"not a model", b"\0" * 300])
def test_what_is_no_model_stops_the_start(write, content):
    path = write()
    path.with_name("means.onnx").write_bytes(content)
    with pytest.raises(BadRules, match=r"detector\.toml:1: onnxruntime can't load it"):
        Detector.from_file(path)


@given(
    st.text(max_size=200)
    | st.sampled_from(COLOURS.splitlines()).flatmap(lambda line: st.just(COLOURS.replace(line, "")))
)
@settings(max_examples=60, deadline=None)
def test_whatever_the_file_says_the_only_error_is_bad_rules(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "detector.toml"
    means(path.with_name("means.onnx"))
    path.write_text(text, encoding="utf-8", newline="")
    try:
        Detector.from_file(path)
    except BadRules as exc:
        assert str(path) in exc.message and exc.fix


@pytest.mark.parametrize(("gain", "says"), [(1e38, "no number"), (2, "a score is 0-1")])
def test_an_answer_that_is_no_score_is_no_review(load, gain, says):
    # Grey, which is 0 here, is tried at the start; white is not.
    detector = load(COLOURS + "scale = 1\nmean = [127, 127, 127]\n", gain=gain)
    with pytest.raises(ReviewUnavailable, match=says) as caught:
        seen(detector, plain((255, 255, 255)))
    assert caught.value.retryable


def test_a_model_that_fails_is_no_review(load):
    detector = load(COLOURS.replace("width = 8\nheight = 4", 'resize = "none"'), size=(64, 64))
    assert seen(detector, plain((0, 0, 0), (64, 64)))
    with pytest.raises(ReviewUnavailable, match=r"means\.onnx failed"):
        seen(detector, plain((0, 0, 0), (65, 64)))


def test_one_session_serves_many_threads(load):
    detector = load()
    pictures = [plain((red, 0, 255 - red)) for red in range(0, 256, 17)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda picture: seen(detector, picture), pictures * 4))
    for picture, answer in zip(pictures * 4, answers, strict=True):
        red = picture.pixels.getpixel((0, 0))[0]
        assert answer == pytest.approx({"red": red / 255, "green": 0, "blue": 1 - red / 255}, abs=1e-5)


def test_what_it_sees_of_minors_blocks_under_every_ruleset_and_never_leaves(load, gate):
    detector = load(f'{COLOURS}[rename]\nred = "minors"\n')
    panel = Panel(Words(gate), [detector], SHIPPED)
    red, grey = plain((255, 0, 0)), decoded(bytes_of(scene()))
    for name in SHIPPED:
        verdict = panel.review(red, Context(positive="a hill"), name)
        assert (verdict.codes, verdict.releasable, verdict.minors) == (("minors.picture",), False, True)
    loose = load(f'{COLOURS}[rename]\nred = "other"\n')
    assert review(grey, Context(positive="a hill"), RULESETS["default"], [loose]).safe
