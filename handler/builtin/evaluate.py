"""How well the model does what it is told: `python -m handler.builtin.evaluate`, or `make eval-model`.

Every picture is asked for as the gateway asks for it and read by `judge`. Held-out scenes, two seeds, all seven sizes;
beside each figure stands its target and, where it can be had, what true drawings of the same scenes get. Each process
draws with one thread.
"""

import argparse
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from random import Random

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch

from handler.builtin.captions import NEGATIVE, caption
from handler.builtin.judge import Sight, Size, exam, explicit, fair, judge_of, marks
from handler.builtin.studio import GUIDANCE, LORAS, MODEL, STEPS, Studio, negative_prompt
from handler.builtin.world import CHARACTERS, PLACES, SIZES, Scene, Thing, draw

BATCH = 14
SQUARE = (1024, 1024)
NEGATIVES = (
    ("night", "moon"), ("night", "stars"), ("night", "moon, stars"), ("noon", "sun"), ("dawn", "sun"),
    ("sunset", "sun"), ("clouds", "sun"), ("noon", "clouds"), ("noon", "fog"),
)  # fmt: skip
MARKED = NEGATIVES[:3]
AGAINST = (
    ("moon", "night"), ("stars", "night"), ("sun", "noon"), ("clouds", "noon"), ("house", "noon"), ("tree", "noon"),
)  # fmt: skip
STRENGTHS = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.3)
LANDS = ("", "hills", "mountains", "desert", "sea", "forest", "city")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """Pictures of one size that are asked for in the same way, and the row that they count for."""

    row: tuple[str, ...]
    size: Size
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    scenes: tuple[Scene, ...] = ()
    negative: str = ""
    loras: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Setup:
    """What every process draws with."""

    model: Path
    loras: Path
    steps: int
    guidance: float
    curves: bool


_studio: Studio
_setup: Setup


def _begin(setup: Setup) -> None:
    global _studio, _setup
    torch.set_num_threads(1)
    _studio, _setup = Studio(setup.model, curves=setup.curves), setup


def _look(task: Task) -> list[Sight]:
    judge = judge_of(task.size)
    _studio.wear(task.loras, _setup.loras)
    pictures = _studio.draw(
        task.prompts,
        task.size,
        task.seeds,
        negative=task.negative,
        steps=_setup.steps,
        guidance=_setup.guidance,
        at_once=BATCH,
    )
    return [judge.look(np.asarray(picture)) for picture in pictures]


def _look_at_drawings(task: Task) -> list[Sight]:
    return [judge_of(task.size).look(draw(scene, task.size)) for scene in task.scenes]


# What is asked


def asked(each: int, seeds: int) -> list[Task]:
    """Every attribute told, and as people write: with synonyms, omissions, names of strangers and empty praise."""
    tasks = []
    for size in SIZES:
        scenes = exam(each, size)
        told = [explicit(scene) for scene in scenes]
        short = [caption(scene, Random(index)) for index, scene in enumerate(scenes)]
        for seed in range(seeds):
            numbers = tuple(1000 * seed + index for index in range(each))
            for kind, prompts in (("explicit", told), ("short", short)):
                tasks += _cut(
                    Task(row=(kind, name(size)), size=size, prompts=tuple(prompts), seeds=numbers, scenes=tuple(scenes))
                )
    return tasks


def removals(seeds: int) -> list[Task]:
    """Prompts that do not say what the negative takes away, without and with it, over all lands and three shapes."""
    tasks = []
    for mood, unwanted in NEGATIVES:
        marked = negative_prompt(NEGATIVE, unwanted)
        for negative in ("", unwanted, *([marked] if (mood, unwanted) in MARKED else [])):
            row = ("negative", mood, unwanted, {"": "without", marked: "marked"}.get(negative, "with"))
            for size in SIZES[:3]:
                prompts = tuple(f"{land} {mood}".strip() for land in LANDS for _ in range(seeds))
                tasks += _cut(Task(row=row, size=size, prompts=prompts, seeds=_seeds(prompts), negative=negative))
    for word, mood in AGAINST:
        for negative in ("", word):
            row = ("against", mood, word, "with" if negative else "without")
            prompts = tuple(f"{word}, {land}, {mood}" for land in LANDS[1:4] for _ in range(4))
            tasks += _cut(Task(row=row, size=SQUARE, prompts=prompts, seeds=_seeds(prompts), negative=negative))
    return tasks


def characters(each: int, strengths: Iterable[float]) -> list[Task]:
    tasks = []
    for size in SIZES:
        for index, character in enumerate(CHARACTERS):
            scenes = tuple(_with(character, scene, size, Random(i)) for i, scene in enumerate(exam(each, size, "lora")))
            prompts = tuple(explicit(scene) for scene in scenes)
            empty = tuple(replace(scene, things=scene.things[1:]) for scene in scenes)
            ordinary = Task(row=(), size=size, prompts=prompts, seeds=_seeds(prompts, 50 * index), scenes=scenes)
            tasks += [
                replace(ordinary, row=(character, f"{strength}"), loras={character: strength}) for strength in strengths
            ]
            tasks.append(replace(ordinary, row=(character, "no LoRA")))
            plain = tuple(explicit(scene) for scene in empty)
            tasks.append(
                replace(ordinary, row=(character, "no trigger"), prompts=plain, scenes=empty, loras={character: 1.0})
            )
        both = tuple(_with_both(scene, index % 2 == 0) for index, scene in enumerate(exam(each, size, "both")))
        prompts = tuple(explicit(scene) for scene in both)
        worn = dict.fromkeys(CHARACTERS, 1.0)
        tasks.append(
            Task(row=("both", "1.0"), size=size, prompts=prompts, seeds=_seeds(prompts), scenes=both, loras=worn)
        )
    return tasks


def _with(character: str, scene: Scene, size: Size, rng: Random) -> Scene:
    """The scene with the character first, and at most one thing beside it."""
    places = rng.sample(PLACES, 2)
    things = [Thing(name=character, place=places[0])]
    things += [replace(thing, place=places[1]) for thing in scene.things[:1]]
    return fair(replace(scene, things=tuple(things)), size)


def _with_both(scene: Scene, aya_first: bool) -> Scene:
    first, second = CHARACTERS if aya_first else CHARACTERS[::-1]
    return replace(scene, things=(Thing(name=first, place="left"), Thing(name=second, place="right")))


def name(size: Size) -> str:
    return f"{size[0]}x{size[1]}"


def _seeds(prompts: tuple[str, ...], first: int = 0) -> tuple[int, ...]:
    return tuple(range(first, first + len(prompts)))


def _cut(task: Task) -> list[Task]:
    """In parts of one batch each, so that both processes stay busy to the end."""
    spans = [slice(first, first + BATCH) for first in range(0, len(task.prompts), BATCH)]
    return [
        replace(task, prompts=task.prompts[span], seeds=task.seeds[span], scenes=task.scenes[span]) for span in spans
    ]


# What was seen


class Tally:
    """Shares of right answers by row and mark."""

    def __init__(self) -> None:
        self.answers: dict[tuple[str, ...], dict[str, list[bool]]] = {}

    def add(self, row: tuple[str, ...], right: Mapping[str, bool]) -> None:
        for mark, yes in right.items():
            self.answers.setdefault(row, {}).setdefault(mark, []).append(yes)

    def share(self, *row: str, mark: str) -> float:
        """Over every row that begins so; nan if there is none."""
        found = [
            yes for key, answers in self.answers.items() if key[: len(row)] == row for yes in answers.get(mark, [])
        ]
        return sum(found) / len(found) if found else float("nan")

    def count(self, *row: str, mark: str = "everything") -> int:
        return sum(len(answers.get(mark, [])) for key, answers in self.answers.items() if key[: len(row)] == row)


def tally_of(tasks: Iterable[Task], sights: Iterable[list[Sight]]) -> Tally:
    tally = Tally()
    for task, seen in zip(tasks, sights, strict=True):
        kind = task.row[0]
        for index, sight in enumerate(seen):
            if kind in ("negative", "against"):
                tally.add(task.row, {"shown": any(_shows(sight, word) for word in task.row[2].split(", "))})
                continue
            scene = task.scenes[index]
            right = marks(scene, sight, sky=kind != "short")
            tally.add(task.row, right)
            tally.add(("style", scene.style), {"style": right["style"]}) if kind == "explicit" else None
            if kind in CHARACTERS:
                tally.add(task.row, _of_character(kind, scene, sight))
    return tally


def _of_character(character: str, scene: Scene, sight: Sight) -> dict[str, bool]:
    found = [thing for thing in sight.things if thing.name == character]
    asked = [thing.place for thing in scene.things if thing.name == character]
    others = marks(replace(scene, things=tuple(t for t in scene.things if t.name != character)), sight)
    return {
        "appears": bool(found),
        "face": any(thing.fit >= 0.9 for thing in found),
        "one, in place": [thing.place for thing in found] == asked,
        "rest": all(right for mark, right in others.items() if mark not in ("nothing else", "everything")),
    }


def _shows(sight: Sight, word: str) -> bool:
    if word in ("sun", "moon"):
        return bool(sight.lights)
    if word == "stars":
        return sight.stars >= 2
    if word in ("clouds", "fog"):
        return sight.weather == {"clouds": "cloudy"}.get(word, word)
    return any(thing.name == word for thing in sight.things)


# The report


def report(tally: Tally, drawings: Tally, strengths: Iterable[float]) -> str:
    return "\n\n".join(
        [
            _asked_table(tally, drawings),
            _size_table(tally, drawings),
            _negative_table(tally),
            _character_table(tally, strengths),
        ]
    )


def _asked_table(tally: Tally, drawings: Tally) -> str:
    total = tally.count("explicit") + tally.count("short")
    lines = [f"| {total} pictures | target | explicit | short | drawings |", "|---|---|---|---|---|"]
    for mark, target in (
        ("time", 0.99), ("terrain", 0.99), ("weather", 0.99), ("style", 0.95), ("one of each", 0.97), ("place", 0.97),
        ("paint", 0.97), ("light", None), ("stars", None), ("nothing else", None),
    ):  # fmt: skip
        cells = [_share(each) for each in (tally.share("explicit", mark=mark), tally.share("short", mark=mark))]
        cells.append(_share(drawings.share("explicit", mark=mark)))
        lines.append(f"| {mark} | {'' if target is None else f'>= {target:.2f}'} | " + " | ".join(cells) + " |")
    for style in ("", "neon", "postcard"):
        cells = [
            _share(tally.share("style", style, mark="style")),
            "",
            _share(drawings.share("style", style, mark="style")),
        ]
        lines.append(f"| style: {style or 'none'} asked | >= 0.95 | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _size_table(tally: Tally, drawings: Tally) -> str:
    lines = ["| everything right at once | explicit (>= 0.90) | short (>= 0.85) | drawings |", "|---|---|---|---|"]
    for size in map(name, SIZES):
        cells = [tally.share(kind, size, mark="everything") for kind in ("explicit", "short")]
        cells.append(drawings.share("explicit", size, mark="everything"))
        lines.append(f"| {size} | " + " | ".join(map(_share, cells)) + " |")
    return "\n".join(lines)


def _negative_table(tally: Tally) -> str:
    lines = [
        f"| prompt, over all lands | negative | shown without it | with it (<= 0.10) | with it after `{NEGATIVE}` |",
        "|---|---|---|---|---|",
    ]
    for mood, word in NEGATIVES:
        cells = [
            _share(tally.share("negative", mood, word, way, mark="shown")) for way in ("without", "with", "marked")
        ]
        lines.append(f"| {mood} | {word} | " + " | ".join(cells) + " |")
    for word, mood in AGAINST:
        cells = [_share(tally.share("against", mood, word, way, mark="shown")) for way in ("without", "with")]
        lines.append(f"| {word}, {mood} (against its own word) | {word} | " + " | ".join(cells) + " | |")
    return "\n".join(lines)


def _character_table(tally: Tally, strengths: Iterable[float]) -> str:
    lines = [
        "| LoRA and strength | target | appears | recognisable (0.9 of its pixels) | one, in place | the rest right |",
        "|---|---|---|---|---|---|",
    ]
    for character in CHARACTERS:
        for way in ("no LoRA", "no trigger", *map(str, strengths)):
            target = {"1.0": ">= 0.95", "no LoRA": "<= 0.02", "no trigger": "<= 0.02", "0.0": "<= 0.02"}.get(way, "")
            marks = ("appears", "face", "one, in place", "rest")
            cells = [_share(tally.share(character, way, mark=mark)) for mark in marks]
            lines.append(f"| {character} {way} | {target} | " + " | ".join(cells) + " |")
    cells = [_share(tally.share("both", mark=mark)) for mark in ("one of each", "place", "everything")]
    lines.append(f"| both at once | | {cells[0]} (one of each) | | {cells[1]} | {cells[2]} (everything) |")
    return "\n".join(lines)


def _share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL)
    parser.add_argument("--loras", type=Path, default=LORAS)
    parser.add_argument("--each", type=int, default=36, help="scenes for each size")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--each-character", type=int, default=10, help="scenes for each size and strength")
    parser.add_argument("--strengths", type=float, nargs="+", default=STRENGTHS)
    parser.add_argument("--raw", action="store_true", help="strengths are weights: what a curve is read from")
    parser.add_argument("--parts", nargs="+", default=["asked", "negatives", "characters"])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--guidance", type=float, default=GUIDANCE)
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    options = parser.parse_args()
    tasks = asked(options.each, options.seeds) if "asked" in options.parts else []
    tasks += removals(options.seeds) if "negatives" in options.parts else []
    if "characters" in options.parts and options.loras.is_dir():
        tasks += characters(options.each_character, options.strengths)
    setup = Setup(
        model=options.model,
        loras=options.loras,
        steps=options.steps,
        guidance=options.guidance,
        curves=not options.raw,
    )
    begin = time.monotonic()
    # Tasks of one size lie together: a process then learns the drawings of few sizes.
    tasks.sort(key=lambda task: SIZES.index(task.size))
    with get_context("spawn").Pool(options.processes, _begin, (setup,)) as pool:
        sights = pool.map(_look, tasks, chunksize=1)
        true = [task for task in tasks if task.row[0] == "explicit"]
        drawings = tally_of(true, pool.map(_look_at_drawings, true, chunksize=1))
    print(report(tally_of(tasks, sights), drawings, options.strengths))
    print(f"\n{options.steps} steps, guidance {options.guidance:g}, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    main()
