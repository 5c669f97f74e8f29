"""Pictures on a list are known again, also re-encoded, resized, brighter, turned and mirrored; others are not."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps

from compliance.errors import BadRules
from compliance.panel import Panel
from compliance.pdq import turned_hashes
from compliance.review import Context, review
from compliance.reviewers.known import DISTANCE, KnownPictures
from compliance.reviewers.words import Words
from compliance.rulesets import load_rulesets
from tests.compliance.samples import bytes_of, decoded, noise, scene

REFERENCE = json.loads(Path(__file__).with_name("pdq_reference.json").read_text(encoding="utf-8"))
RULESETS = {name: ruleset for name, ruleset in load_rulesets().items() if not ruleset.requires}
seeds = st.integers(0, 2**32 - 1)


def pattern(number, width, height):
    """A picture of whole numbers, the same to the bit everywhere."""
    x, y = np.arange(width)[None, :], np.arange(height)[:, None]
    colours = (x * x // (37 + number) + 3 * y, x * y // (50 + 7 * number), (x + y) * number // 5)
    return Image.fromarray(np.stack([colour % 256 for colour in colours], -1).astype(np.uint8))


def detailed(seed, width=320, height=240):
    """A scene with coarse and fine shapes, the finer the fainter, as in photographs."""
    chance, total = np.random.default_rng(seed), np.asarray(scene(width, height, seed), np.float64)
    for octave in (1, 2, 3):
        colours = Image.fromarray(chance.integers(0, 256, (3 << octave, 4 << octave, 3), dtype=np.uint8))
        total += np.asarray(colours.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 2**octave
    return Image.fromarray((total / 1.875).astype(np.uint8))


def hash_of(image):
    return turned_hashes(image)[0][0].tobytes().hex()


def distance(one, other):
    return (int(one, 16) ^ int(other, 16)).bit_count()


def listed(path, *lines):
    path.write_text("\n".join(lines), encoding="utf-8")
    return KnownPictures.from_file(path)


def seen(known, image, format="PNG", **settings):
    if format == "PNG":
        settings["compress_level"] = 1
    picture = decoded(bytes_of(image, format, **settings))
    return known.review(picture, Context(positive=""), RULESETS["default"]).picture


# The hash.


@pytest.mark.parametrize("case", REFERENCE, ids=lambda case: f"{case['width']}x{case['height']}")
def test_a_hash_is_the_one_of_the_reference_program(case):
    hashes, quality = turned_hashes(pattern(case["number"], case["width"], case["height"]))
    ours = [row.tobytes().hex() for row in hashes]
    assert quality == case["quality"]
    assert distance(ours[0], case["hashes"][0]) <= 2
    # The order of the turns is our own.
    for theirs in case["hashes"]:
        assert min(distance(theirs, each) for each in ours) <= 2
    assert len(set(ours)) == len(set(case["hashes"])) == 8


@given(seed=seeds, width=st.integers(32, 300), height=st.integers(32, 300))
@settings(max_examples=40, deadline=None)
def test_a_hash_is_that_of_the_reference_where_it_is_installed(seed, width, height):
    pdqhash = pytest.importorskip("pdqhash", reason="it has to be compiled; pip install pdqhash")
    image = scene(width, height, seed)
    theirs, quality = pdqhash.compute(np.asarray(image))
    ours, ours_quality = turned_hashes(image)
    assert abs(ours_quality - quality) <= 1
    if quality >= 50:
        assert int((np.unpackbits(ours[0]) != theirs).sum()) <= 2


@pytest.mark.parametrize("size", [(1, 1), (4, 300), (300, 4)])
def test_a_picture_of_a_few_pixels_has_no_quality(size):
    assert turned_hashes(noise(*size))[1] == 0


# The list.


@given(seed=seeds)
@settings(max_examples=12, deadline=None)
def test_a_listed_picture_is_known_again_and_no_other(tmp_path_factory, seed):
    image, path = detailed(seed), tmp_path_factory.mktemp("list") / "list.txt"
    known = listed(path, hash_of(image))
    assert seen(known, image) == {"known_bad": 1.0}
    assert seen(known, image, "JPEG", quality=50) == {"known_bad": 1.0}
    for changed in (
        image.resize((960, 720), Image.Resampling.BICUBIC),
        image.resize((240, 180), Image.Resampling.LANCZOS),
        ImageEnhance.Brightness(image).enhance(0.8),
        ImageOps.mirror(image),
        ImageOps.flip(image),
        image.rotate(90, expand=True),
        image.rotate(180),
        image.rotate(270, expand=True),
        image.transpose(Image.Transpose.TRANSPOSE),
        image.convert("L"),
    ):
        assert seen(known, changed) == {"known_bad": 1.0}
    for other in (detailed(seed + 1), scene(seed=seed), noise(seed=seed), ImageOps.invert(image)):
        assert seen(known, other) == {}


def test_the_distance_counts_bits(tmp_path):
    image = scene()
    whole = int(hash_of(image), 16)
    for bits, found in ((0, True), (DISTANCE, True), (DISTANCE + 1, False)):
        # Bits from all over the hash.
        changed = whole ^ sum(1 << (7 * bit) for bit in range(bits))
        assert bool(seen(listed(tmp_path / "list.txt", f"{changed:064x}"), image)) == found


@pytest.mark.parametrize("image", [Image.new("RGB", (300, 200), (9, 90, 200)), Image.linear_gradient("L"), noise(4, 4)])
def test_a_picture_with_too_little_in_it_matches_nothing(tmp_path, image):
    assert turned_hashes(image)[1] < 50
    assert seen(listed(tmp_path / "list.txt", hash_of(image)), image.convert("RGB")) == {}


def test_a_long_list_with_labels_and_remarks(tmp_path):
    chance = np.random.default_rng(5)
    first, last = scene(seed=8), scene(seed=9)
    lines = [chance.bytes(32).hex() for _ in range(100_000)]
    lines[:0] = ["\ufeff# from the exchange", "", f"  {hash_of(first).upper()}\tMINORS # case 4711"]
    known = listed(tmp_path / "list.txt", *lines, f"{hash_of(last)} known_bad", hash_of(first))
    assert seen(known, first) == {"minors": 1.0, "known_bad": 1.0}
    assert seen(known, last) == {"known_bad": 1.0}
    assert seen(known, scene(seed=10)) == {}


GOOD = "f8" * 32


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (GOOD[:-1], "is no PDQ hash"),
        (f"{GOOD}0", "is no PDQ hash"),
        (f"{GOOD}00", "is no PDQ hash"),
        (f"g{GOOD[1:]}", "is no PDQ hash"),
        (f"{GOOD},minors", "is no PDQ hash"),
        (f"{GOOD} minor", "'minor' is no label"),
        (f"{GOOD} minors known_bad", "'minors known_bad' is no label"),
        ("minors", "is no PDQ hash"),
    ],
)
def test_a_bad_line_is_named(tmp_path, line, says):
    with pytest.raises(BadRules, match=rf"list\.txt:3: .*{says}") as caught:
        listed(tmp_path / "list.txt", "# a list", GOOD, line, GOOD)
    assert "64 hex digits" in caught.value.fix


@pytest.mark.parametrize("content", [b"", b"# nothing yet\n", b"\xff\xfe\x00"], ids=["empty", "remarks", "binary"])
def test_a_list_without_hashes_stops_the_start(tmp_path, content):
    (tmp_path / "list.txt").write_bytes(content)
    for path in (tmp_path / "list.txt", tmp_path / "gone.txt", tmp_path):
        with pytest.raises(BadRules, match=str(path)) as caught:
            KnownPictures.from_file(path)
        assert caught.value.fix


@given(text=st.text(max_size=300) | st.lists(st.sampled_from([GOOD, "minors", " ", "\n", "#", "ff"])).map("".join))
@settings(max_examples=60, deadline=None)
def test_whatever_the_list_says_the_only_error_is_bad_rules(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "list.txt"
    path.write_text(text, encoding="utf-8", newline="")
    try:
        known = KnownPictures.from_file(path)
    except BadRules as exc:
        assert str(path) in exc.message and exc.fix
    else:
        assert GOOD in text
        assert seen(known, scene()) == {}


def test_the_version_changes_with_the_list(tmp_path):
    path = tmp_path / "list.txt"
    assert listed(path, GOOD).version == listed(path, GOOD).version != listed(path, GOOD, GOOD).version


def test_the_list_decides_about_uploads_and_drawn_pictures_under_every_ruleset(tmp_path, gate):
    abuse, bad, other = (decoded(bytes_of(scene(seed=seed))) for seed in (1, 2, 3))
    known = listed(tmp_path / "list.txt", f"{hash_of(abuse.pixels)} minors", hash_of(bad.pixels))
    panel = Panel(Words(gate), [known], RULESETS)
    for name in RULESETS:
        for verdict in (panel.upload(abuse, name), panel.review(abuse, Context(positive="a hill"), name)):
            assert (verdict.codes, verdict.minors, verdict.releasable) == (("minors.known",), True, False)
        assert panel.upload(other, name).safe
    assert panel.upload(bad, "default").codes == ("known_bad",)
    assert review(bad, Context(positive="a hill"), RULESETS["default"], [known]).codes == ("known_bad",)
