"""Train the check of this world's pictures: `python -m handler.builtin.check --out compliance/builtin --seed 0`.

The check says which things a picture shows, whatever the prompt said. It learns from drawings of the world alone, with
the mishaps that a model's pictures have: things that are cut, faint or in a wrong colour, stray pixels, things off the
grid, and, for a part of them, the way through the autoencoder with noise on the latents. What the denoiser drew is
never shown to it. One thread and one seed: two runs on one machine end in the same file.
"""

import argparse
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import numpy.typing as npt
import onnx
import torch
from diffusers import AutoencoderTiny
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from torch import Tensor, nn

from handler.builtin import networks
from handler.builtin.colours import palette
from handler.builtin.lessons import stacked, to_tensor
from handler.builtin.sprites import SPRITES
from handler.builtin.studio import MODEL
from handler.builtin.world import CHARACTERS, PLACES, SIZES, Pixels, Scene, Thing, draw, sample
from handler.pixelart import snap

LABELS = ("lighthouse", "house", "castle", "tree", "boat", "sun", "moon", "aya", "bella")
BATCH = 16
REMEMBERED = 6  # of each batch: examples that went through the autoencoder
#: A thing is there when this share of it can be seen, and not there below the other; in between nobody is asked.
THERE, GONE = 0.6, 0.25
#: The places with the most of a thing that are averaged; a sprite covers at least nine cells.
CELLS = 4
BLOCKS = ((3, 24, 5, 2), (24, 40, 3, 2), (40, 40, 3, 1), (40, 40, 3, 1), (40, 40, 3, 1))  # from, to, kernel, stride
CARD = """\
# The check of the built-in model's world: which of its things a picture shows, whatever the prompt said. Made by
# `python -m handler.builtin.check`; see README.md. The input is a picture of art pixels, one for each 16 x 16.
file = "check.onnx"
labels = [{labels}]
activation = "sigmoid"

[input]
resize = "none"
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """A picture of art pixels and, for each label, 1 where it is seen, 0 where not, and NaN where nobody could say."""

    pixels: Pixels
    seen: npt.NDArray[np.float32]
    colours: Pixels


class Block(nn.Module):
    """A convolution with its norm."""

    def __init__(self, before: int, after: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(before, after, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(after)

    def forward(self, features: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.convolution(features))
        return normed.relu()

    def folded(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of one convolution that does what both do."""
        mean, variance = self.norm.running_mean, self.norm.running_var
        assert mean is not None and variance is not None
        scale = self.norm.weight / (variance + self.norm.eps).sqrt()
        return self.convolution.weight * scale[:, None, None, None], self.norm.bias - mean * scale


class Check(nn.Module):
    """Convolutions to cells of four art pixels, a score for each label and cell, and the mean of the highest few."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [Block(*shape) for shape in BLOCKS]
        self.features = nn.Sequential(*self.blocks)
        self.head = nn.Conv2d(BLOCKS[-1][1], len(LABELS), 1, bias=False)
        self.bias = nn.Parameter(torch.full((len(LABELS),), -2.0))

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits for pictures of 0-1."""
        cells: Tensor = self.head(self.features(pictures)).flatten(2)
        return cells.topk(CELLS).values.mean(-1) + self.bias


# Examples


def example(rng: Random, size: tuple[int, int]) -> Example:
    """A drawing with mishaps."""
    scene = _scene(rng)
    whole = draw(scene, size)
    seen = np.zeros(len(LABELS), np.float32)
    faint = False
    for name, without, area in _parts(scene):
        bare = draw(without, size)
        spot = (whole != bare).any(-1)
        share = min(1.0, int(spot.sum()) / area)
        mishap = rng.choices((None, _cut, _recoloured, _faint), (62, 18, 8, 12))[0]
        if mishap and spot.any():
            share *= mishap(rng, whole, bare, spot, scene)
            faint = faint or mishap is _faint
        seen[LABELS.index(name)] = 1 if share >= THERE else 0 if share <= GONE else np.nan
    colours = np.array(list(palette(scene.time, scene.style).values()), np.uint8)
    if faint:
        whole = np.asarray(snap(Image.fromarray(whole), [colours], 1))
    return Example(pixels=whole, seen=seen, colours=colours)


def _scene(rng: Random) -> Scene:
    """A scene of the world, often with characters, which the base model's scenes have not."""
    scene = sample(rng)
    if rng.random() < 0.7:
        return scene
    strangers = rng.sample(CHARACTERS, rng.choice((1, 1, 2)))
    things = [*scene.things[: 3 - len(strangers)], *(Thing(name=name) for name in strangers)]
    places = rng.sample(PLACES, len(things))
    return replace(scene, things=tuple(replace(t, place=p) for t, p in zip(things, places, strict=True)))


def _parts(scene: Scene) -> Iterator[tuple[str, Scene, int]]:
    """Every label that the scene shows, the scene without it, and how many pixels it covers."""
    for thing in scene.things:
        rest = tuple(other for other in scene.things if other is not thing)
        yield thing.name, replace(scene, things=rest), _area(thing.name)
    if scene.light:
        name = "moon" if scene.time == "night" else "sun"
        yield name, replace(scene, light=""), _area(name)


def _area(name: str) -> int:
    return 112 if name == "sun" else sum(letter != "." for row in SPRITES[name] for letter in row)


Spot = npt.NDArray[np.bool_]


def _cut(rng: Random, whole: Pixels, bare: Pixels, spot: Spot, scene: Scene) -> float:
    """Takes away one side of a thing; answers the share that is left."""
    share = rng.uniform(0.1, 0.95)
    axis, last = rng.randrange(2), rng.random() < 0.5
    where = np.nonzero(spot)
    line = np.quantile(where[axis], 1 - share if last else share)
    gone = where[axis] >= line if last else where[axis] <= line
    lost = where[0][gone], where[1][gone]
    whole[lost] = bare[lost]
    return 1 - float(gone.mean())


def _recoloured(rng: Random, whole: Pixels, bare: Pixels, spot: Spot, scene: Scene) -> float:
    """Gives one colour of a thing another; answers the share that is as it was."""
    colours = np.array(list(palette(scene.time, scene.style).values()), np.uint8)
    old = whole[spot][rng.randrange(int(spot.sum()))]
    changed = spot & (whole == old).all(-1)
    whole[changed] = colours[rng.randrange(len(colours))]
    return 1 - float(changed.sum() / spot.sum())


def _faint(rng: Random, whole: Pixels, bare: Pixels, spot: Spot, scene: Scene) -> float:
    """Lets the background shine through; answers 1, 0, or a share of which nobody can say."""
    strength = rng.random()
    mixed = strength * whole[spot].astype(np.float32) + (1 - strength) * bare[spot].astype(np.float32)
    whole[spot] = np.round(mixed).astype(np.uint8)
    return 1.0 if strength > 0.8 else 0.0 if strength < 0.3 else (THERE + GONE) / 2


def jittered(given: Example, rng: Random) -> Example:
    """The same with stray pixels, now and then off the grid."""
    pixels = given.pixels.copy()
    height, width, _ = pixels.shape
    if rng.random() < 0.5:
        for _ in range(int(rng.random() ** 2 * 0.03 * height * width)):
            pixels[rng.randrange(height), rng.randrange(width)] = given.colours[rng.randrange(len(given.colours))]
    if rng.random() < 0.3:
        pixels = np.roll(pixels, (rng.randrange(4), rng.randrange(4)), (0, 1))
    return replace(given, pixels=pixels)


class Memory:
    """The model's autoencoder: an example goes in, and what it remembers of it, worse with noise, comes out."""

    def __init__(self, folder: Path) -> None:
        vae = AutoencoderTiny.from_pretrained(folder / "vae", torch_dtype=torch.float32)
        self._vae: Any = networks.without_graft(vae).requires_grad_(False).eval()

    def of(self, examples: Sequence[Example], noise: float, chance: torch.Generator) -> list[Example]:
        """The examples, all of one size, as the autoencoder gives them back, snapped to their palettes."""
        latents = self._vae.encode(to_tensor(stacked([each.pixels for each in examples]))).latents
        latents = latents + noise * torch.randn(latents.shape, generator=chance)
        drawn = (self._vae.decode(latents).sample.clamp(-1, 1) + 1) * 127.5
        pictures = drawn.round().byte().permute(0, 2, 3, 1).numpy()
        return [
            replace(each, pixels=np.asarray(snap(Image.fromarray(picture), [each.colours], 1)))
            for each, picture in zip(examples, pictures, strict=True)
        ]

    def shelf(self, count: int, size: tuple[int, int], rng: Random, chance: torch.Generator) -> list[Example]:
        shelf: list[Example] = []
        while len(shelf) < count:
            shelf += self.of(
                [example(rng, size) for _ in range(min(8, count - len(shelf)))], rng.uniform(0, 0.6), chance
            )
        return shelf


def batch(examples: Sequence[Example]) -> tuple[Tensor, Tensor]:
    """Pictures of 0-1 and what is to be seen in them."""
    pictures = torch.from_numpy(np.stack([each.pixels for each in examples])).permute(0, 3, 1, 2).float() / 255
    return pictures, torch.from_numpy(np.stack([each.seen for each in examples]))


# Training


def train(*, seed: int, steps: int, remembered: int, held_out: int, model: Path = MODEL) -> Check:
    """A check with fitted thresholds, ready to be written.

    `remembered` is the number of examples of each size that go through the autoencoder; each is seen several times.
    `held_out` is half the number of each size to which the thresholds are fitted.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    rng, chance, began = Random(seed), torch.Generator().manual_seed(seed), time.monotonic()
    memory = Memory(model)
    shelves = {size: memory.shelf(remembered, size, rng, chance) for size in SIZES}
    print(
        f"{time.monotonic() - began:.0f}s {remembered * len(SIZES)} examples went through the autoencoder", flush=True
    )
    check = Check()
    optimiser = torch.optim.AdamW(check.parameters(), lr=4e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 4e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        size = rng.choice(SIZES)
        drawn = [example(rng, size) for _ in range(BATCH - REMEMBERED)] + rng.sample(shelves[size], REMEMBERED)
        loss = _loss(check, *batch([jittered(each, rng) for each in drawn]))
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if step % 100 == 99:
            print(f"{time.monotonic() - began:.0f}s step {step + 1} loss {loss.item():.4f}", flush=True)
    check.eval()
    _fit_thresholds(check, memory, Random(f"held out {seed}"), chance, held_out)
    return check


def _loss(check: Check, pictures: Tensor, seen: Tensor) -> Tensor:
    known = ~seen.isnan()
    losses = nn.functional.binary_cross_entropy_with_logits(check(pictures), seen.nan_to_num(), reduction="none")
    return (losses * known).sum() / known.sum()


@torch.no_grad()
def _fit_thresholds(check: Check, memory: Memory, rng: Random, chance: torch.Generator, count: int) -> None:
    """Moves each label's bias so that 0.5 is right: the middle of the thresholds with the fewest errors."""
    logits, seen = [], []
    for size in SIZES:
        drawn = [jittered(each, rng) for each in [example(rng, size) for _ in range(count)]]
        drawn += memory.shelf(count, size, rng, chance)
        pictures, truth = batch(drawn)
        logits.append(check(pictures))
        seen.append(truth)
    all_logits, all_seen = torch.cat(logits), torch.cat(seen)
    for index, label in enumerate(LABELS):
        truth = all_seen[:, index]
        there, gone = all_logits[truth == 1, index], all_logits[truth == 0, index]
        lines = torch.cat([there, gone]).sort().values
        middles = (lines[1:] + lines[:-1]) / 2
        errors = (there < middles[:, None]).float().mean(1) + (gone >= middles[:, None]).float().mean(1)
        best = middles[errors == errors.min()]
        line = (best.min() + best.max()) / 2
        check.bias[index] -= line
        wrong = int((there < line).sum()), int((gone >= line).sum())
        print(f"{label:<12}missed {wrong[0]} of {len(there)}, imagined {wrong[1]} of {len(gone)}", flush=True)


# The file


def graph(check: Check) -> onnx.ModelProto:
    """The check as an ONNX graph of a few old operators, with the norms folded into the convolutions."""
    nodes, weights, name = [], [], "picture"
    for index, (block, (_, _, kernel, stride)) in enumerate(zip(check.blocks, BLOCKS, strict=True)):
        weights += _weights(f"{index}", *block.folded())
        nodes.append(_convolution(f"{index}", name, f"summed{index}", kernel, stride))
        nodes.append(helper.make_node("Relu", [f"summed{index}"], [name := f"features{index}"]))
    weights += _weights("head", check.head.weight, check.bias)
    weights.append(numpy_helper.from_array(np.array([0, len(LABELS), -1], np.int64), "flat"))
    weights.append(numpy_helper.from_array(np.array([CELLS], np.int64), "cells"))
    nodes += [
        _convolution("head", name, "map", 1, 1),
        helper.make_node("Reshape", ["map", "flat"], ["list"]),
        helper.make_node("TopK", ["list", "cells"], ["highest", "places"], axis=2),
        helper.make_node("ReduceMean", ["highest"], ["logits"], axes=[2], keepdims=0),
    ]
    inputs = [helper.make_tensor_value_info("picture", TensorProto.FLOAT, ["count", 3, "height", "width"])]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["count", len(LABELS)])]
    whole = helper.make_graph(nodes, "check", inputs, outputs, weights)
    model = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="imgen")
    onnx.checker.check_model(model)
    return model


def _convolution(name: str, source: str, target: str, size: int, stride: int) -> onnx.NodeProto:
    names = [source, f"{name}.weight", f"{name}.bias"]
    return helper.make_node(
        "Conv", names, [target], kernel_shape=[size] * 2, strides=[stride] * 2, pads=[size // 2] * 4
    )


def _weights(name: str, weight: Tensor, bias: Tensor) -> list[onnx.TensorProto]:
    pairs = (("weight", weight), ("bias", bias))
    return [numpy_helper.from_array(tensor.detach().numpy(), f"{name}.{part}") for part, tensor in pairs]


def write(check: Check, folder: Path) -> None:
    """`check.onnx` and `check.toml`, as `compliance.reviewers.builtin` reads them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "check.onnx").write_bytes(graph(check).SerializeToString(deterministic=True))
    labels = ", ".join(f'"{label}"' for label in LABELS)
    (folder / "check.toml").write_text(CARD.format(labels=labels), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--remembered", type=int, default=300, help="examples of each size through the autoencoder")
    parser.add_argument("--held-out", type=int, default=64, help="half of those of each size that fit the thresholds")
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder whose autoencoder is taken")
    given = parser.parse_args(arguments)
    check = train(
        seed=given.seed, steps=given.steps, remembered=given.remembered, held_out=given.held_out, model=given.model
    )
    write(check, given.out)


if __name__ == "__main__":
    main()
