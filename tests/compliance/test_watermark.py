"""Visible marks: in their box and nowhere else, never outside the picture, and as they always looked."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from compliance.errors import LogoRefused
from compliance.logo import MOST_BYTES, Logo, badge, kept_logo, read_logo
from compliance.picture import Blocked, Marked, Reviewed
from compliance.verdict import Verdict
from compliance.watermark import POSITIONS, Placement, VisibleMark, beside, laid, mark, mark_blocked

GOLDEN = Path(__file__).parent / "golden" / "watermarks.png"
SAFE = Verdict(safe=True, ruleset="default", ruleset_version="1")
UNSAFE = Verdict(safe=False, ruleset="default", ruleset_version="1", codes=("r",))


def encoded(image: Image.Image, kind: str = "PNG", **saved: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **saved)
    return out.getvalue()


def logo(size: tuple[int, int] = (40, 20), colour: tuple[int, ...] = (255, 0, 0, 255)) -> Logo:
    return read_logo(encoded(Image.new("RGBA", size, colour)))


def arrow() -> Logo:
    """A logo that looks different from every side."""
    image = Image.new("RGBA", (120, 60), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    pen.polygon([(0, 20), (80, 20), (80, 0), (119, 30), (80, 59), (80, 40), (0, 40)], fill=(200, 30, 60, 255))
    pen.rectangle((0, 44, 30, 59), fill=(20, 60, 220, 128))
    return read_logo(encoded(image))


def ground(size: tuple[int, int]) -> Image.Image:
    """A picture in which every pixel's neighbours differ."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    return Image.fromarray(np.stack([x * 7 % 256, y * 11 % 256, (x + y) * 5 % 256], -1).astype(np.uint8))


def marked(picture: Image.Image, *marks: tuple[Logo, Placement]) -> Marked:
    reviewed = Reviewed(pixels=picture, verdict=SAFE)
    return mark(reviewed, [VisibleMark(logo=one, placement=place, what="A mark") for one, place in marks])


def changed(before: Image.Image, after: Image.Image) -> tuple[int, int, int, int] | None:
    """The box around all pixels that differ."""
    difference = (np.asarray(before) != np.asarray(after)).any(-1)
    return Image.fromarray(difference).getbbox()


@pytest.mark.parametrize(
    ("position", "box"),
    [
        ("top-left", (10, 20, 50, 40)),
        ("top-right", (350, 20, 390, 40)),
        ("bottom-left", (10, 160, 50, 180)),
        ("bottom-right", (350, 160, 390, 180)),
        ("center", (180, 90, 220, 110)),
    ],
)
def test_a_mark_has_its_box(position, box):
    """Ten percent of 400 pixels are 40; the paddings count from the edges that the position names."""
    picture = Image.new("RGB", (400, 200), "white")
    after = marked(picture, (logo(), Placement(position=position, scale=10, padding_x=10, padding_y=20)))
    assert changed(picture, after.pixels) == box
    assert after.pixels.getpixel(box[:2]) == (255, 0, 0)
    assert [(edit.action, edit.description) for edit in after.edits] == [("c2pa.edited", f"A mark, {position}")]


def test_the_box_is_measured_after_the_rotation_which_is_clockwise():
    picture = Image.new("RGB", (400, 200), "white")
    half = Image.new("RGBA", (40, 20), (255, 0, 0, 255))
    half.paste((0, 0, 255, 255), (0, 0, 20, 20))  # its left half is blue
    place = Placement(position="top-left", scale=10, rotation=90, padding_x=0, padding_y=0)
    after = marked(picture, (read_logo(encoded(half)), place)).pixels
    assert changed(picture, after) == (0, 0, 20, 40)
    assert (after.getpixel((10, 5)), after.getpixel((10, 35))) == ((0, 0, 255), (255, 0, 0))


@pytest.mark.parametrize(("opacity", "seen"), [(100, (255, 0, 0)), (50, (255, 127, 127)), (1, (255, 252, 252))])
def test_transparency_is_opacity_in_percent(opacity, seen):
    picture = Image.new("RGB", (400, 200), "white")
    after = marked(picture, (logo(), Placement(scale=10, opacity=opacity))).pixels
    assert np.abs(np.subtract(after.getpixel((370, 180)), seen)).max() <= 1


def test_a_mark_that_can_not_be_seen_is_none():
    picture = ground((64, 64))
    after = marked(picture, (logo(), Placement(opacity=0)))
    assert after.pixels is picture and after.edits == ()


def test_the_picture_of_the_stage_before_is_left_alone():
    picture = ground((64, 64))
    before = picture.tobytes()
    marked(picture, (logo(), Placement(scale=50)), (badge(), Placement(position="top-left", scale=50)))
    assert picture.tobytes() == before


@settings(max_examples=150, deadline=None)
@given(
    frame=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    position=st.sampled_from(POSITIONS),
    scale=st.integers(1, 100),
    opacity=st.integers(0, 100),
    rotation=st.integers(-360, 360),
    padding=st.tuples(st.integers(0, 500), st.integers(0, 500)),
)
def test_no_mark_leaves_its_box_or_the_picture(frame, size, position, scale, opacity, rotation, padding):
    place = Placement(
        position=position,
        scale=scale,
        opacity=opacity,
        rotation=rotation,
        padding_x=padding[0],
        padding_y=padding[1],
    )
    one, picture = logo(size), ground(frame)
    layer, box = laid(one, place, frame)
    assert 0 <= box[0] < box[2] <= frame[0] and 0 <= box[1] < box[3] <= frame[1]
    assert layer.size == (box[2] - box[0], box[3] - box[1])
    after = marked(picture, (one, place)).pixels
    assert after.size == frame and after.mode == "RGB"
    outside = np.ones(frame[::-1], bool)
    outside[box[1] : box[3], box[0] : box[2]] = False
    assert (np.asarray(after)[outside] == np.asarray(picture)[outside]).all()


def sheet() -> Image.Image:
    """Each position, then scales, rotations and opacities, twenty small pictures in all."""
    places = [Placement(position=position, scale=25) for position in POSITIONS]
    places += [Placement(position="center", scale=scale) for scale in (1, 10, 40, 75, 100)]
    places += [Placement(position="center", scale=40, rotation=angle) for angle in (-360, -90, 30, 135, 200)]
    places += [Placement(position="top-left", scale=60, opacity=opacity) for opacity in (0, 10, 50, 90, 100)]
    whole = Image.new("RGB", (5 * 132, 4 * 80))
    for (row, column), place in zip(product(range(4), range(5)), places, strict=True):
        whole.paste(marked(ground((132, 80)), (arrow(), place)).pixels, (column * 132, row * 80))
    return whole


def test_marks_look_as_they_always_looked():
    """When they shall look otherwise: look at both, then save `sheet()` over the golden picture."""
    golden, now = (np.asarray(image.convert("RGB")).astype(int) for image in (Image.open(GOLDEN), sheet()))
    assert np.abs(golden - now).max() <= 6 and np.abs(golden - now).mean() < 0.1


def test_the_badge_can_be_read_on_light_and_on_dark():
    for colour in ("white", "black"):
        shown = marked(Image.new("RGB", (1344, 768), colour), (badge(), Placement(scale=6))).pixels
        box = laid(badge(), Placement(scale=6), (1344, 768))[1]
        luminance = np.asarray(shown.crop(box).convert("L"))
        assert luminance.max() - luminance.min() > 150
        assert 0.1 < (luminance > 200).mean() < 0.6, "letters and frame"
    assert badge().sha256 == badge().sha256 and beside("bottom-right") == "bottom-left"
    assert all(beside(position) != position for position in POSITIONS)


def test_a_blocked_picture_is_marked_too_and_one_that_nobody_may_see_is_not_handed_out():
    raw = logo((32, 32)).over("white")
    place = VisibleMark(logo=logo((2, 2), (0, 0, 255, 255)), placement=Placement(scale=50), what="A mark")
    assert changed(raw.pixels, mark_blocked(Blocked(raw=raw, verdict=UNSAFE), [place]).pixels)
    never = Verdict(safe=False, ruleset="default", ruleset_version="1", codes=("r",), releasable=False)
    with pytest.raises(ValueError, match="no way out"):
        mark_blocked(Blocked(raw=raw, verdict=never), [place])


# What callers send


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_a_logo_is_taken_upright_and_bare(kind):
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    exif[0x010E] = "a secret place"
    taken = read_logo(encoded(Image.new("RGB", (40, 20), "blue"), kind, exif=exif))
    assert taken.pixels.size == (20, 40) and taken.pixels.mode == "RGBA"
    assert b"secret" not in taken.data and not taken.pixels.info
    assert read_logo(taken.data) == taken, "what was kept reads as what was sent"


def test_a_logo_that_grows_when_it_is_kept_is_read_again_and_no_other_is():
    chance = np.random.default_rng(1)
    photo = Image.fromarray(chance.integers(0, 256, (1024, 1024, 3), dtype=np.uint8))
    taken = read_logo(encoded(photo, "JPEG", quality=60))
    assert len(taken.data) > MOST_BYTES
    assert kept_logo(taken.data, taken.sha256).pixels.tobytes() == taken.pixels.tobytes()
    with pytest.raises(LogoRefused, match="not the one"):
        kept_logo(logo().data, taken.sha256)


def test_reviewers_see_a_logo_turned_as_it_is_laid_without_its_empty_margin_and_large():
    half = Image.new("RGBA", (60, 40), (0, 0, 0, 1))
    half.paste((255, 0, 0, 255), (10, 10, 50, 30))
    half.paste((0, 0, 255, 255), (10, 10, 30, 30))
    one = read_logo(encoded(half))
    seen = [one.over("white", rotation).pixels for rotation in (0, 90, -180)]
    assert [each.size for each in seen] == [(1344, 672), (672, 1344), (1344, 672)]
    assert [each.getpixel((99, 99)) for each in seen] == [(0, 0, 255), (0, 0, 255), (255, 0, 0)]
    assert read_logo(encoded(Image.new("RGBA", (8, 4)))).over("white").size == (1344, 672), (
        "nothing at all is a logo too"
    )


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that says it has this size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    body = zlib.compress(bytes(64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


FRAMES = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
GOOD = encoded(ground((64, 64)))
BAD = {
    "empty": (b"", "", "is empty"),
    "large-picture": (bomb(9000, 9000), "", "has 9000x9000 pixels"),
    "bomb": (bomb(30_000, 30_000), "", "has too many pixels"),
    "monster": (bomb(2**31 - 1, 2**31 - 1), "", "pixels"),
    "no-pixels": (bomb(0, 0), "", "damaged|has no pixels"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "", "is an SVG"),
    "svg-with-prologue": (b"\xef\xbb\xbf <?xml version='1.0'?><svg/>", "", "is an SVG"),
    "gif": (encoded(FRAMES[0], "GIF"), "", "is no picture of a type"),
    "html": (b"<script>alert(1)</script>", "", "is no picture of a type"),
    "truncated": (GOOD[: len(GOOD) // 2], "", "damaged or cut short"),
    "cut-jpeg": (encoded(ground((64, 64)), "JPEG")[:400], "", "damaged or cut short"),
    "wrong-type": (GOOD, "image/jpeg", "declared as image/jpeg, but is image/png"),
    "animated-png": (encoded(FRAMES[0], "PNG", save_all=True, append_images=FRAMES[1:]), "", "animated"),
    "animated-webp": (encoded(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "", "animated"),
    "large": (b"\x89PNG\r\n\x1a\n" + bytes(MOST_BYTES), "", f"has {MOST_BYTES + 8} bytes"),
}


@pytest.mark.parametrize(("data", "declared", "problem"), BAD.values(), ids=BAD.keys())
def test_what_is_no_logo_is_refused_with_a_reason(data, declared, problem):
    with pytest.raises(LogoRefused, match=problem) as caught:
        read_logo(data, declared)
    assert caught.value.fix


@settings(max_examples=200, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=8), st.booleans())
def test_a_damaged_logo_is_refused_or_read_and_nothing_else(at, noise, cut):
    data = GOOD[:at] + noise + (b"" if cut else GOOD[at + len(noise) :])
    try:
        assert read_logo(data).pixels.mode == "RGBA"
    except LogoRefused:
        pass


@pytest.mark.parametrize(
    "wrong", [{"position": "left"}, {"scale": 0}, {"scale": 101}, {"opacity": 101}, {"padding_x": -1}], ids=str
)
def test_a_placement_holds_its_limits(wrong):
    with pytest.raises(ValueError, match="must be"):
        Placement(**wrong)
