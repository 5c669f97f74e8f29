"""What a prompt's vector costs and how true it is: MiniLM as shipped, in floats, and on torch; one thread each.

CPU time, the median of rounds in which all take turns, so that a busy machine wrongs none of them more than another.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from cache import minilm
from cache.encoder import Encoder, Vector
from cache.minilm import MiniLM
from cache.sentence import SentenceEncoder

FLOOR = 0.95
MINILM, SESSION, FLOATS, TORCH = "MiniLM", "its session, tokens ready", "in floats", "sentence-transformers, torch"
#: What opens each in a process of its own: only that imports what it needs, and the same asks for all what it took.
FRESH = {
    MINILM: "import pathlib, sys\nfrom cache.minilm import MiniLM\nencoder = MiniLM.open(pathlib.Path(sys.argv[1]))",
    FLOATS: "import pathlib, sys\nfrom cache.minilm import MiniLM, start, words\n"
    "graph = pathlib.Path(sys.argv[1], 'floats.onnx').read_bytes()\n"
    "encoder = MiniLM(start(graph), words(pathlib.Path(sys.argv[2])))\ndel graph",
    TORCH: "import sys\nfrom cache.sentence import SentenceEncoder\nencoder = SentenceEncoder.open(sys.argv[2])",
}
TELL = (
    "import time\nspent = time.process_time()\nimport psutil\nprint([spent, psutil.Process().memory_info().rss / 1e6])"
)
#: Prompts as people write them, of every kind that stands near the floor on one side or the other.
PAIRS = (
    # Light rewordings.
    ("a red fox sleeping in the snow", "red fox sleeping in snow"),
    ("a lighthouse on a cliff at night", "at night, a lighthouse on a cliff"),
    ("an old fisherman mending his nets by the harbour", "old fisherman mending nets by the harbour"),
    ("portrait of a young woman with freckles, soft light", "a portrait of a young woman with freckles in soft light"),
    (
        "a small wooden cabin in a pine forest, smoke from the chimney",
        "small wooden cabin in a pine forest with smoke from its chimney",
    ),
    ("a market street in the rain, neon signs", "market street in rain, neon signs"),
    ("knight in silver armour on a white horse", "a knight in silver armor on a white horse"),
    ("bowl of ramen with an egg and spring onions", "a bowl of ramen with egg and spring onion"),
    ("hot air balloons above the desert at sunrise", "hot-air balloons over the desert at sunrise"),
    ("a cat reading a newspaper in an armchair", "cat in an armchair reading a newspaper"),
    ("a dragon curled round a tower, stormy sky", "a dragon curled around a tower, stormy sky"),
    ("isometric view of a bakery, warm colours", "isometric view of a bakery in warm colors"),
    # Free rewordings.
    ("a boat on a calm lake at dusk", "still water in the evening with a little rowing boat on it"),
    ("a crowded subway train in the morning", "commuters packed into a metro carriage early in the day"),
    ("a child flying a kite on the beach", "on the shore, a kid holds a kite in the wind"),
    ("an abandoned factory overgrown with plants", "nature has taken back the ruins of an old plant"),
    ("a wizard studying in a tower library", "an old mage bent over books high up in his study"),
    ("a spaceship landing on a red planet", "a rocket touches down on Mars"),
    # One colour is another.
    ("a woman in a red dress", "a woman in a blue dress"),
    (
        "a woman in a red dress walking through a busy street in Paris at night, cinematic lighting, film grain",
        "a woman in a blue dress walking through a busy street in Paris at night, cinematic lighting, film grain",
    ),
    ("a green parrot on a branch, detailed feathers", "a yellow parrot on a branch, detailed feathers"),
    ("black cat with white paws on a windowsill", "white cat with black paws on a windowsill"),
    (
        "a yellow taxi in front of a brownstone house, autumn leaves, 35mm photo",
        "a black taxi in front of a brownstone house, autumn leaves, 35mm photo",
    ),
    ("a purple crystal glowing in a dark cave", "a green crystal glowing in a dark cave"),
    ("blue butterfly on a white flower, macro", "white butterfly on a blue flower, macro"),
    (
        "a castle with red roofs under a blue sky, pixel art, 16 colours",
        "a castle with blue roofs under a red sky, pixel art, 16 colours",
    ),
    # Another number.
    ("three apples on a table", "two apples on a table"),
    (
        "a family of four having a picnic in a park, sunny day, watercolour",
        "a family of five having a picnic in a park, sunny day, watercolour",
    ),
    ("two knights fighting on a bridge", "three knights fighting on a bridge"),
    ("one lonely tree on a hill, minimalist, wide shot", "two lonely trees on a hill, minimalist, wide shot"),
    ("a dozen candles around a mirror in a dark room", "a candle in front of a mirror in a dark room"),
    # Another subject.
    ("a dog running through a meadow", "a cat running through a meadow"),
    (
        "portrait of an old king with a crown, oil painting, dark background",
        "portrait of an old queen with a crown, oil painting, dark background",
    ),
    (
        "a wolf howling at the moon, snowy forest, highly detailed",
        "a bear roaring at the moon, snowy forest, highly detailed",
    ),
    ("a boy building a sandcastle", "a girl building a sandcastle"),
    (
        "a plate of sushi, studio photo, top view, high resolution, sharp focus",
        "a plate of tacos, studio photo, top view, high resolution, sharp focus",
    ),
    (
        "a robot watering flowers in a greenhouse, soft morning light",
        "a gardener watering flowers in a greenhouse, soft morning light",
    ),
    ("samurai standing in a field of grass", "viking standing in a field of grass"),
    # Left and right, who does what to whom.
    ("a window on the left and a door on the right", "a window on the right and a door on the left"),
    ("a cat chasing a dog", "a dog chasing a cat"),
    ("a robot painting a portrait of a woman", "a woman painting a portrait of a robot"),
    ("a mouse on top of an elephant", "an elephant on top of a mouse"),
    ("a boat in front of a lighthouse, sunset, pixel art", "a lighthouse in front of a boat, sunset, pixel art"),
    ("a tall man next to a short woman in a garden", "a short man next to a tall woman in a garden"),
    # With and without.
    ("a street with people", "a street without people"),
    ("an empty beach, no people, no boats", "a beach with people and boats"),
    ("a bald man with a beard, studio portrait", "a bald man without a beard, studio portrait"),
    ("a cake with candles on a table, party decorations", "a cake without candles on a table, party decorations"),
    ("a car with its headlights on in the fog", "a car with its headlights off in the fog"),
    # Another style, light, weather or time.
    ("a mountain village, oil painting", "a mountain village, watercolour"),
    ("a quiet harbour at night, long exposure", "a quiet harbour at noon, long exposure"),
    ("a forest path in summer, sunbeams, photorealistic, 8k", "a forest path in winter, sunbeams, photorealistic, 8k"),
    (
        "city skyline, cyberpunk, rain, neon, ultra detailed, concept art",
        "city skyline, steampunk, rain, neon, ultra detailed, concept art",
    ),
    ("a smiling clown holding balloons", "a sad clown holding balloons"),
    ("a ship in a storm, dramatic sky, engraving", "a ship on a calm sea, clear sky, engraving"),
    ("close-up of a tiger, black and white photograph", "close-up of a tiger, colour photograph"),
    # One word in a long prompt.
    (
        (
            "masterpiece, best quality, highly detailed, sharp focus, intricate, elegant, 1girl, silver hair, "
            "long hair, looking at viewer, sitting on a throne, gothic cathedral, volumetric light"
        ),
        (
            "masterpiece, best quality, highly detailed, sharp focus, intricate, elegant, 1girl, golden hair, "
            "long hair, looking at viewer, sitting on a throne, gothic cathedral, volumetric light"
        ),
    ),
    (
        (
            "a cosy living room with a fireplace, a cat on the rug, bookshelves along the wall, snow outside the "
            "window, warm light, illustration for a children's book"
        ),
        (
            "a cosy living room with a fireplace, a dog on the rug, bookshelves along the wall, snow outside the "
            "window, warm light, illustration for a children's book"
        ),
    ),
    (
        (
            "aerial view of a medieval town with a river, a stone bridge and a cathedral, morning mist, matte "
            "painting, wide angle, highly detailed"
        ),
        (
            "aerial view of a medieval town with a river, a stone bridge and a castle, morning mist, matte "
            "painting, wide angle, highly detailed"
        ),
    ),
    (
        "product photo of a ceramic mug on a marble table, soft shadows, beige background, minimal, high resolution",
        "product photo of a ceramic mug on a wooden table, soft shadows, beige background, minimal, high resolution",
    ),
    (
        (
            "an astronaut sitting on the edge of a crater, looking at the earth, stars, lens flare, cinematic, "
            "octane render"
        ),
        (
            "an astronaut standing on the edge of a crater, looking at the earth, stars, lens flare, cinematic, "
            "octane render"
        ),
    ),
    (
        "side-scrolling game background, jungle ruins, waterfall on the left, parallax layers, 32 colours, pixel art",
        (
            "side-scrolling game background, jungle ruins, waterfall on the right, parallax layers, 32 colours, "
            "pixel art"
        ),
    ),
    # Something added, or a slip of the pen.
    ("a red fox sleeping in the snow", "a red fox sleeping in the snow, highly detailed"),
    ("a lighthouse on a cliff at night", "a picture of a lighthouse on a cliff at night"),
    ("a portrait of a pirate captain, dramatic light", "a potrait of a pirate captian, dramatic light"),
    ("a steam train crossing a viaduct in the highlands", "a steam train crossing a viaduct in the highlands, autumn"),
    ("waterfall in a tropical jungle", "waterfal in a tropical jungel"),
    ("a garden with roses and a fountain, summer", "a garden with roses, a fountain and a bench, summer"),
    # Nothing to do with each other.
    ("a red fox sleeping in the snow", "product photo of a ceramic mug on a marble table"),
    ("two knights fighting on a bridge", "a bowl of ramen with an egg"),
    ("city skyline, cyberpunk, rain, neon", "a child flying a kite on the beach"),
    ("a wizard studying in a tower library", "aerial photograph of a motorway junction"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One way to a vector: milliseconds of CPU for a prompt; how far the similarities of `PAIRS` are from those of
    torch, and how many of them are on the other side of the floor; and what a fresh process spends until it has one.
    """

    name: str
    cpu_ms: float
    shift_mean: float
    shift_most: float
    flips: int
    start_s: float | None = None
    memory_mb: float | None = None


def measure(*, rounds: int = 5, fresh: bool = False) -> list[Row]:
    """All four; ``fresh`` starts a process for each but the session."""
    with tempfile.TemporaryDirectory() as folder:
        encoders = {name: _open(name, Path(folder)) for name in (MINILM, FLOATS, TORCH)}
        shipped = encoders[MINILM]
        assert isinstance(shipped, MiniLM)
        prompts = list(dict.fromkeys(prompt for pair in PAIRS for prompt in pair))
        tokens = {prompt: shipped.tokens(prompt) for prompt in prompts}
        ways: dict[str, Callable[[str], Vector]] = {name: encoder.encode for name, encoder in encoders.items()}
        ways[SESSION] = lambda prompt: shipped.embed(tokens[prompt])
        found = {name: {prompt: way(prompt) for prompt in prompts} for name, way in ways.items()}
        spent: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, way in ways.items():
                began = time.process_time()
                for prompt in prompts:
                    way(prompt)
                spent[name].append((time.process_time() - began) * 1000 / len(prompts))
        starts = {name: _start(name, Path(folder)) for name in encoders} if fresh else {}
    true = _similarities(found[TORCH])
    rows = []
    for name in (MINILM, SESSION, FLOATS, TORCH):
        here = _similarities(found[name])
        start_s, memory_mb = starts.get(name, (None, None))
        rows.append(
            Row(
                name=name,
                cpu_ms=median(spent[name]),
                shift_mean=float((here - true).mean()),
                shift_most=float(np.abs(here - true).max()),
                flips=int(((here > FLOOR) != (true > FLOOR)).sum()),
                start_s=start_s,
                memory_mb=memory_mb,
            )
        )
    return rows


def run(*, rounds: int) -> None:
    rows = measure(rounds=rounds, fresh=True)
    print(
        f"\nvectors of {len({prompt for pair in PAIRS for prompt in pair})} prompts; similarities of {len(PAIRS)} pairs"
    )
    print(f"\n{'':<30}{'CPU ms':>9}{'shift':>9}{'at most':>9}{'other side':>12}{'start s':>9}{'MB':>7}")
    for row in rows:
        start = "" if row.start_s is None else f"{row.start_s:>9.2f}{row.memory_mb:>7.0f}"
        print(f"{row.name:<30}{row.cpu_ms:>9.2f}{row.shift_mean:>+9.4f}{row.shift_most:>9.4f}{row.flips:>12}{start}")
    cost = {row.name: row.cpu_ms for row in rows}
    print(f"\n{MINILM} is {cost[MINILM] / cost[SESSION]:.2f} of its session alone, and", end=" ")
    print(f"torch {cost[TORCH] / cost[MINILM]:.1f} and floats {cost[FLOATS] / cost[MINILM]:.1f} times as dear as it")


def _open(name: str, folder: Path) -> Encoder:
    if name == MINILM:
        return MiniLM.open(folder)
    if name == TORCH:
        import torch

        torch.set_num_threads(1)
        return SentenceEncoder.open(str(minilm.installed()))
    graph = minilm.build(minilm.installed(), small=False)
    (folder / "floats.onnx").write_bytes(graph)
    return MiniLM(minilm.start(graph), minilm.words(minilm.installed()))


def _similarities(vectors: Mapping[str, Vector]) -> Vector:
    return np.array([vectors[one] @ vectors[other] for one, other in PAIRS], np.float32)


def _start(name: str, folder: Path) -> tuple[float, float]:
    """Seconds of CPU and megabytes of a fresh process once it has encoded a prompt."""
    code = f"{FRESH[name]}\nencoder.encode('a red fox')\n{TELL}"
    command = [sys.executable, "-c", code, str(folder), str(minilm.installed())]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    said = subprocess.run(command, capture_output=True, check=True, text=True, env=environment).stdout
    seconds, megabytes = json.loads(said)
    return seconds, megabytes
