"""A contact sheet to look at: `python -m handler.builtin.sheet --out sheet.png "aya, on a hill" "a castle at night"`.

A row for each prompt, a column for each seed. What follows ` -- ` in a prompt is its negative.
"""

import argparse
from pathlib import Path

from PIL import Image

from handler.builtin.studio import GUIDANCE, MODEL, STEPS, Studio
from handler.pixelart import upscale


def sheet(rows: list[list[Image.Image]], scale: int = 3, gap: int = 4) -> Image.Image:
    width, height = (rows[0][0].width * scale + gap, rows[0][0].height * scale + gap)
    whole = Image.new("RGB", (width * len(rows[0]), height * len(rows)))
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            whole.paste(upscale(picture, scale), (x * width, y * height))
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prompts", nargs="+")
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", default="1024x1024")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    studio = Studio(options.model)
    rows = []
    for line in options.prompts:
        prompt, _, negative = line.partition(" -- ")
        pictures = studio.draw(
            [prompt] * options.seeds,
            (width, height),
            range(1, options.seeds + 1),
            negative=negative,
            steps=options.steps,
            guidance=options.guidance,
        )
        rows.append(list(pictures))
    sheet(rows).save(options.out)


if __name__ == "__main__":
    main()
