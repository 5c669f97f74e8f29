"""A contact sheet to look at: `python -m handler.builtin.sheet --out sheet.png "a red house" "a castle at night"`.

A row for each prompt, a column for each seed. What follows ` -- ` in a prompt goes into its negative; what follows
` @ ` are LoRAs with their strengths ("aya, on a hill @ aya=0.5"). `--gallery` writes the sheets that the README shows.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from PIL import Image

from handler.builtin.studio import GUIDANCE, LORAS, MODEL, STEPS, Studio, negative_prompt
from handler.builtin.world import SIZES
from handler.pixelart import upscale

SQUARE = (1024, 1024)


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """One picture of a sheet."""

    prompt: str
    negative: tuple[str, ...] = ()
    loras: dict[str, float] = field(default_factory=dict)
    size: tuple[int, int] = SQUARE
    seed: int = 1


def read(line: str) -> Wish:
    """`prompt -- negative @ name=strength name=strength`, the last two where they are wanted."""
    rest, _, loras = line.partition(" @ ")
    prompt, _, negative = rest.partition(" -- ")
    pairs = (pair.split("=") for pair in loras.split())
    return Wish(
        prompt=prompt,
        negative=(negative,) if negative else (),
        loras={name: float(strength) for name, strength in pairs},
    )


def picture(studio: Studio, wish: Wish, *, loras: Path, steps: int, guidance: float) -> Image.Image:
    studio.wear(wish.loras, loras)
    negative = negative_prompt(*wish.negative)
    drawn = studio.draw([wish.prompt], wish.size, [wish.seed], negative=negative, steps=steps, guidance=guidance)
    return next(drawn)


def sheet(rows: Sequence[Sequence[Image.Image]], scale: int = 3, gap: int = 2) -> Image.Image:
    """Rows of pictures at art resolution on a white ground, enlarged by whole pixels."""
    widths = [sum(art.width + gap for art in row) - gap for row in rows]
    heights = [max(art.height for art in row) for row in rows]
    whole = Image.new("RGB", (max(widths), sum(heights) + gap * (len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for art in row:
            whole.paste(art, (left, top))
            left += art.width + gap
        top += height + gap
    return upscale(whole, scale)


def gallery() -> dict[str, list[list[Wish]]]:
    """Examples; sizes; styles and negatives; characters and strengths."""
    wide = (1344, 768)
    both = {"aya": 1.0, "bella": 1.0}
    examples = [
        [
            Wish(prompt="aya, on a hill", size=wide, loras={"aya": 1.0}),
            Wish(prompt="a boat, sea, sunset, sun on the left", size=wide),
            Wish(prompt="a lighthouse, sea, night, moon, stars", size=wide),
        ],
        [
            Wish(prompt="bella, forest, snow", size=wide, loras={"bella": 1.0}),
            Wish(prompt="aya on the left, bella on the right, mountains, dawn", size=wide, loras=both),
            Wish(prompt="a red castle, hills, night, moon, stars", size=wide),
        ],
    ]
    scenes = (
        "a red castle on the left, a yellow tree on the right, mountains, sunset, sun on the left",
        "a lighthouse on the right, a white boat on the left, sea, night, moon on the left, stars",
    )
    sizes = [[Wish(prompt=scene, size=size, seed=3) for size in SIZES[:4]] for scene in scenes[:1]]
    sizes += [[Wish(prompt=scene, size=size, seed=3) for size in SIZES[4:]] for scene in scenes[1:]]
    moods = ("a house on the left, hills, noon", "a castle, mountains, sunset", "a boat, sea, night, moon, stars")
    styles = [[Wish(prompt=f"{mood}{style}") for mood in moods] for style in ("", ", neon", ", postcard")]
    night, noon = "hills at night", "a tree, hills, noon"
    styles.append([
        Wish(prompt=night, seed=9, negative=terms) for terms in ((), ("moon",), ("moon", "stars"))
    ])  # fmt: skip
    styles = [[*row, *extra] for row, extra in zip(styles, [
        [Wish(prompt=f"forest in the {weather}") for weather in ("rain", "snow")],
        [Wish(prompt=f"neon, city, {time}, a red tree") for time in ("noon", "night")],
        [Wish(prompt="postcard, desert, dawn"), Wish(prompt="framed, winter, a blue house in the forest")],
        [Wish(prompt=noon), Wish(prompt=noon, negative=("sun",))],
    ], strict=True)]  # fmt: skip
    strengths = (0.0, 0.25, 0.5, 0.75, 1.0)
    slopes = [
        [Wish(prompt=f"{name}, {land}", loras={name: strength}, seed=seed) for strength in strengths]
        for name, land, seeds in (("aya", "on a hill", (1, 2)), ("bella", "forest, sunset", (3, 4)))
        for seed in seeds
    ]
    slopes.append([
        Wish(prompt="aya on the left and bella on the right, beach", loras=both),
        Wish(prompt="bella on the left, aya on the right, city at night, moon", loras=both),
        Wish(prompt="neon, aya, mountains, dawn", loras={"aya": 1.0}),
        Wish(prompt="postcard, bella, a house on the right, winter", loras={"bella": 1.0}),
        Wish(prompt="aya on the left, a red castle on the right, sunset", loras={"aya": 1.0}),
    ])  # fmt: skip
    return {"examples": examples, "model-sizes": sizes, "model-styles": styles, "model-characters": slopes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="*")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--loras", type=Path, default=LORAS)
    parser.add_argument("--out", type=Path, required=True, help="the file, or with --gallery the folder, to write")
    parser.add_argument("--gallery", action="store_true")
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    studio = Studio(options.model)

    def draw(wish: Wish) -> Image.Image:
        return picture(studio, wish, loras=options.loras, steps=options.steps, guidance=options.guidance)

    if options.gallery:
        for name, rows in gallery().items():
            sheet([[draw(wish) for wish in row] for row in rows]).save(options.out / f"{name}.png", optimize=True)
    else:
        seeds = range(1, options.seeds + 1)
        wishes = [[replace(read(line), size=(width, height), seed=seed) for seed in seeds] for line in options.prompts]
        sheet([[draw(wish) for wish in row] for row in wishes]).save(options.out)


if __name__ == "__main__":
    main()
