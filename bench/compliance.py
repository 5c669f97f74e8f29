"""What the reviewers on this machine cost, and how right the built-in check is about pictures that the model drew.

The pictures are drawn with the shipped model from captions of held-out scenes, half of them with a lighthouse, and are
reviewed under the ruleset `demo`, which blocks lighthouses on pixels. What the review is told of the prompt is true for
every other picture and the opposite for the rest: a lighthouse that nobody mentions, and words without one.
"""

from __future__ import annotations

import hashlib
import io
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import torch
from PIL import Image

from compliance.picture import Raw, decode
from compliance.review import Context, Reviewer, review
from compliance.reviewers.builtin import BuiltinCheck
from compliance.reviewers.known import KnownPictures
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets
from handler.builtin.captions import caption
from handler.builtin.judge import fair, names_of, things
from handler.builtin.studio import Studio
from handler.builtin.world import ART_SCALE, CHARACTERS, SIZES, Scene, Thing, sample
from handler.pixelart import upscale

OBJECT = "lighthouse"
NOBODY = "cat"  # a word that a caption may have and that means nothing to the model
LISTED = 100_000
WORDS = {
    "render": "broken renders",
    "builtin": "the built-in check",
    "hashes": f"known pictures, {LISTED:,} listed",
    "text": "the word rules",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """A picture to draw, and what a review is told that its prompt was."""

    prompt: str
    told: str
    size: tuple[int, int]
    character: str
    shows: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """A picture that was drawn; `seen` says whether the judge, who compares shapes, finds the object in it."""

    order: Order
    raw: Raw
    seen: bool


def run(*, each: int = 50) -> None:
    torch.set_num_threads(1)
    drawn = list(draw(orders(each)))
    with tempfile.TemporaryDirectory() as folder:
        reviewers: list[Reviewer] = [RenderCheck(), BuiltinCheck.shipped(), _list(Path(folder) / "list.txt")]
    reviewers.append(Words(PromptGate.built_in()))
    table(drawn, reviewers)


def orders(each: int, seed: str = "confusion") -> list[Order]:
    """`each` pictures with the object and as many without, in every size, a fifth of them with a character."""
    rng = Random(seed)
    return [_order(rng, number, shows) for number in range(each) for shows in (True, False)]


def draw(wanted: list[Order]) -> Iterator[Drawn]:
    """Drawn as the worker draws, and read as the gateway reads what a worker uploads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries announce their next versions
        studio = Studio()
        for seed, order in enumerate(sorted(wanted, key=lambda order: order.character)):
            studio.wear({order.character: 1.0} if order.character else {})
            (art,) = studio.draw([order.prompt], order.size, [seed])
            seen = any(found.name == OBJECT for found in things(names_of(np.asarray(art))[2]))
            yield Drawn(order=order, raw=_uploaded(upscale(art, ART_SCALE)), seen=seen)


def table(drawn: list[Drawn], reviewers: list[Reviewer]) -> None:
    """Prints who was blocked, what is right, and the median milliseconds of each reviewer."""
    demo = load_rulesets()["demo"]
    blocked = {(shows, is_told): [0, 0] for shows in (True, False) for is_told in (True, False)}
    times: dict[str, list[float]] = {}
    for each in drawn:
        width, height = each.order.size
        verdict = review(each.raw, Context(positive=each.order.told, width=width, height=height), demo, reviewers)
        row = blocked[each.order.shows, OBJECT in each.order.told]
        row["demo.lighthouse" not in verdict.codes] += 1
        for asked in verdict.asked:
            times.setdefault(asked.name, []).append(asked.latency_ms)
    title = f"{len(drawn)} pictures drawn by the built-in model; demo blocks lighthouses"
    print(f"\n{title:<68}{'blocked':>8}{'passed':>8}")
    for (shows, is_told), (no, yes) in blocked.items():
        words = "names it" if is_told else "does not name it"
        print(f"{f'{_with(shows)} a lighthouse, the prompt {words}':<68}{no:>8}{yes:>8}")
    for shows in (True, False):
        no, yes = (sum(column) for column in zip(blocked[shows, True], blocked[shows, False], strict=True))
        share = 100 * (no if shows else yes) / (no + yes)
        drew = sum(each.seen == shows for each in drawn if each.order.shows == shows)
        print(f"{f'right {_with(shows)} one (the model drew as ordered in {drew} by their shapes)':<68}{share:>8.0f} %")
    print("\nmilliseconds of each reviewer on this machine, one thread (median, least, most)")
    for name, spent in times.items():
        print(f"{WORDS[name]:<44}{median(spent):>8.2f} ms  ({min(spent):.2f}-{max(spent):.2f})")


def _with(shows: bool) -> str:
    return "with" if shows else "without"


def _order(rng: Random, number: int, shows: bool) -> Order:
    size = SIZES[number % len(SIZES)]
    scene = fair(_scene(rng, shows), size)
    other = fair(_scene(rng, not shows), size)
    character = CHARACTERS[number // 5 % 2] if number % 5 == 4 else ""
    if character:
        things = tuple(replace(thing, place="right") for thing in scene.things[:1])
        prompt = f"{character} on the left, {caption(replace(scene, things=things), rng, [NOBODY])}"
    else:
        prompt = caption(scene, rng, [NOBODY])
    told = prompt if number % 2 else caption(other, rng, [NOBODY])
    return Order(prompt=prompt, told=told, size=size, character=character, shows=shows)


def _scene(rng: Random, shows: bool) -> Scene:
    scene = sample(rng)
    others = [thing for thing in scene.things if thing.name != OBJECT]
    if not shows:
        return replace(scene, things=tuple(others))
    free = [place for place in ("center", "left", "right") if place not in {thing.place for thing in others[:2]}]
    paint = rng.choice(("red", "blue", "green", "yellow", "purple", "white"))
    return replace(scene, things=(Thing(name=OBJECT, paint=paint, place=free[0]), *others[:2]))


def _uploaded(image: Image.Image) -> Raw:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return decode(out.getvalue(), hashlib.sha256(out.getvalue()).hexdigest())


def _list(path: Path) -> KnownPictures:
    chance = np.random.default_rng(0)
    path.write_text("".join(f"{chance.bytes(32).hex()}\n" for _ in range(LISTED)), encoding="utf-8")
    return KnownPictures.from_file(path)
