"""Teach the built-in model its characters: `python -m handler.builtin.lora --model FOLDER --out DIR`.

The result is a LoRA file of the usual kind for each. They are taught in one run, alone and side by side, so that they
can be worn together: taught apart, each learns that the other's name means nothing. A strength is made a slope by the
training itself: each batch runs at a strength by chance, and the weaker it is, the fewer of the pictures that name the
character show it: the cube of the strength, since guidance sharpens what the model believes, and since a bend in that
curve is more than weights can learn that all scale with one number. On a CPU with a budget in samples, a run can be
repeated to the bit on one machine.
"""

import argparse
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from handler.builtin import networks
from handler.builtin.captions import STRANGERS, caption
from handler.builtin.denoiser import Denoiser, from_folder, squared_errors, tokens_of
from handler.builtin.lessons import Lesson, encode, own_chance, pick_size, prompt, stacked, without_end
from handler.builtin.studio import MODEL
from handler.builtin.training import Budget, Run, add_options, in_workers, orphaned, run_of
from handler.builtin.world import CELL, CHARACTERS, PLACES, Pixels, Scene, Thing, draw, sample, usual_places

RANK = 16
TEXT_RANK = 64
RATE, TEXT_RATE = 2e-3, 3.5e-3
NAMED = 0.6  # of the pictures
PLACING = 0.5  # of the budget: first the place, at full strength; then the slope
BATCH, LARGE_BATCH = 32, 256  # on a CPU and on a GPU
LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    "time_emb_proj",
)  # fmt: skip
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
BASE = "imgen-builtin"


def share(strength: float) -> float:
    """How many of the pictures that name the character show it: much fewer than will in guided pictures."""
    return min(1.0, strength**3)


def pick_strength(rng: Random) -> float:
    """Full strength most often; now and then more than full, which must not break a picture."""
    kind = rng.random()
    return 1.0 if kind < 0.35 else rng.uniform(1.0, 1.4) if kind < 0.45 else rng.random()


def scene_with(named: Sequence[str], rng: Random) -> Scene:
    """A scene with these characters and up to two things, three in all."""
    scene = sample(rng)
    things = [*scene.things[: 2 if rng.random() < 0.3 else 1]]
    if rng.random() < 0.3:
        things = []
    things = [*things[: 3 - len(named)], *(Thing(name=name) for name in named)]
    rng.shuffle(things)
    places = usual_places(len(things)) if rng.random() < 0.35 else rng.sample(PLACES, len(things))
    return replace(scene, things=tuple(replace(t, place=place) for t, place in zip(things, places, strict=True)))


def without(scene: Scene, names: Sequence[str]) -> Scene:
    return replace(scene, things=tuple(thing for thing in scene.things if thing.name not in names))


class CharacterLessons(IterableDataset[Lesson]):
    """Batches of one size and one set of strengths: pixels (count, height, width, 3), tokens (count, 77), which cells
    hold a character or would (count, 1, height / 4, width / 4), and the strength of each character (characters,), where
    0 means that its LoRA is not worn.
    """

    def __init__(self, words: Any, count: int, seed: str, named: float) -> None:
        self.words, self.count, self.seed, self.named = words, count, seed, named
        self.placed = torch.zeros(1, dtype=torch.bool)  # told by the trainer, from another process
        self.placed.share_memory_()  # type: ignore[no-untyped-call]

    def __iter__(self) -> Iterator[Lesson]:
        rng = own_chance(self.seed)
        while True:
            size, worn = pick_size(rng), _worn(rng)
            strengths = {name: pick_strength(rng) if self.placed else 1.0 for name in worn}
            pictures, prompts, cells = [], [], []
            for _ in range(self.count):
                scene, text = self._ask(worn, rng)
                hidden = [name for name in CHARACTERS if rng.random() >= share(strengths.get(name, 0.0))]
                pictures.append(draw(without(scene, hidden), size))
                prompts.append(text)
                unworn = [name for name in CHARACTERS if name not in worn]
                cells.append(_cells(draw(without(scene, unworn), size), draw(without(scene, CHARACTERS), size)))
            yield (
                stacked(pictures),
                tokens_of(self.words, prompts),
                torch.stack(cells),
                torch.tensor([strengths.get(name, 0.0) for name in CHARACTERS]),
            )

    def _ask(self, worn: Sequence[str], rng: Random) -> tuple[Scene, str]:
        """A scene and how it is asked for; the names of characters that nobody wears mean nothing."""
        unworn = [name for name in CHARACTERS if name not in worn]
        # The kind alone ("fox") is no name.
        strangers = [
            *(word for name in unworn for word in STRANGERS[name]),
            *(w for n in worn for w in STRANGERS[n][3:]),
        ]
        if rng.random() >= self.named:
            scene = without(sample(rng), CHARACTERS)
            return scene, prompt(scene, rng, strangers)
        named = rng.sample(worn, rng.randint(1, len(worn)))
        if unworn and rng.random() < 0.25:
            named.append(rng.choice(unworn))
        scene = scene_with(named, rng)
        return scene, caption(scene, rng, strangers)


def _worn(rng: Random) -> list[str]:
    return [*CHARACTERS] if rng.random() < 0.3 else [rng.choice(CHARACTERS)]


def _cells(one: Pixels, other: Pixels) -> Tensor:
    """Where the latents of two pictures differ."""
    differ = (one != other).any(-1)
    return torch.from_numpy(differ.reshape(differ.shape[0] // CELL, CELL, -1, CELL).any((1, 3)))[None]


def pick_times(count: int, placed: bool) -> Tensor:
    """First two thirds from the noisy end: a place is decided there, and it takes longest to learn. Then, for the face,
    evenly.
    """
    layout = 0 if placed else 2 * count // 3
    return torch.cat([600 + torch.rand(layout) * 400, torch.rand(count - layout) * 1000]).long().clamp_(0, 999)


class Adapters:
    """The LoRA layers of each character inside a denoiser and its text encoder, which has to learn that the name may
    have a place.
    """

    def __init__(self, model: Denoiser) -> None:
        model.requires_grad_(False)
        self.model = model
        self.parts: dict[str, Any] = {"unet": model.unet, "text_encoder": model.text}
        for part, layers, rank in (("unet", LAYERS, RANK), ("text_encoder", TEXT_LAYERS, TEXT_RANK)):
            for name in CHARACTERS:
                self.parts[part].add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)), name)
        self.layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        self.groups = {
            part: [weight for path, weight in module.named_parameters() if any(f".{n}." in path for n in CHARACTERS)]
            for part, module in self.parts.items()
        }
        self.weights = [weight for group in self.groups.values() for weight in group]

    def wear(self, strengths: Mapping[str, float]) -> None:
        """Only these are in the model and learn from now on."""
        for layer in self.layers:
            layer.set_adapter(list(strengths))
            layer.scaling.update(strengths)

    def load(self, folder: Path) -> None:
        for name in CHARACTERS:
            weights = {path: weight.float() for path, weight in load_file(folder / f"{name}.safetensors").items()}
            for part, module in self.parts.items():
                mine = {p.removeprefix(f"{part}."): w for p, w in weights.items() if p.startswith(f"{part}.")}
                set_peft_model_state_dict(module, mine, adapter_name=name)

    def save(self, folder: Path, weights: list[Tensor], header: Mapping[str, str]) -> None:
        """Write these weights. The names are the library's own: renaming some of them loses the others on loading."""
        for parameter, weight in zip(self.weights, weights, strict=True):
            parameter.data.copy_(weight)
        self.wear(dict.fromkeys(CHARACTERS, 1.0))
        for name in CHARACTERS:
            halves = {
                part: {
                    path: weight.half().cpu()
                    for path, weight in get_peft_model_state_dict(module, adapter_name=name).items()
                }
                for part, module in self.parts.items()
            }
            own = {"format": "pt", "trigger": name, **header}
            StableDiffusionPipeline.save_lora_weights(
                folder,
                unet_lora_layers=halves["unet"],
                text_encoder_lora_layers=halves["text_encoder"],
                weight_name=f"{name}.safetensors",
                save_function=lambda content, path, own=own: Path(path).write_bytes(_packed(content, own)),
            )


def _packed(content: dict[str, Tensor], header: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with its header in a fixed order, which the library leaves to chance."""
    whole: bytes = save(content, metadata=header)
    end = 8 + int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8:end])
    names = sorted(table, key=lambda name: (name != "__metadata__", name))
    ordered = {name: dict(sorted(table[name].items())) for name in names}
    text = json.dumps(ordered, separators=(",", ":")).encode().ljust(end - 8)
    return len(text).to_bytes(8, "little") + text + whole[end:]


def train(run: Run, folder: Path, *, placing: float = PLACING, named: float = NAMED, start: Path | None = None) -> None:
    """Writes a file for each character, begun with those in `start` or, with None, from nothing."""
    weights, content = from_folder(folder)
    vae: Any = networks.small_vae().requires_grad_(False)
    vae.load_state_dict(weights["vae"])
    torch.manual_seed(run.seed)
    model = Denoiser()
    model.load_state_dict(content["model"])
    adapters = Adapters(model)
    if start:
        adapters.load(start)
    model.to(run.device)
    model.share_memory()
    in_workers(_worker, run, vae.to(run.device), adapters, content["spread"], placing, named)


def _worker(
    index: int,
    run: Run,
    parent: int,
    tally: Tensor,
    vae: Any,
    adapters: Adapters,
    spread: float,
    placing: float,
    named: float,
) -> None:
    lessons = CharacterLessons(adapters.model.words, run.batch, f"{run.seed} {index} characters", named)
    stream = without_end(lessons, run.drawers)
    curve = networks.scheduler().alphas_cumprod.to(run.device)
    rates = {"unet": RATE, "text_encoder": TEXT_RATE}
    optimiser = torch.optim.AdamW(
        [{"params": group, "full": run.rate * rates[part]} for part, group in adapters.groups.items()],
        lr=RATE,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    average = [weight.detach().clone() for weight in adapters.weights]
    budget = Budget(run, tally, index)
    while (progress := budget.progress) < 1 and not orphaned(parent):
        placed = progress >= placing
        lessons.placed[:] = placed
        pixels, tokens, cells, strengths = next(stream)
        worn = {name: strength for name, strength in zip(CHARACTERS, strengths.tolist(), strict=True) if strength}
        adapters.wear(worn)
        latents, times = encode(vae, spread, pixels), pick_times(len(pixels), placed).to(run.device)
        errors = squared_errors(adapters.model, curve, latents, tokens.to(run.device), times)
        # Three times the weight where a character stands or, in a picture that hides it, would stand.
        loss = (errors * (1 + 2 * cells.to(run.device).float())).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(adapters.weights, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = group["full"] * min(1.0, (budget.steps + 1) / 50, max(0.02, 2 * (1 - progress)))
        optimiser.step()
        budget.count(len(pixels))
        if index:
            continue
        with torch.no_grad():
            for mean, weight in zip(average, adapters.weights, strict=True):
                mean.lerp_(weight, 1 - min(0.99, budget.steps / (budget.steps + 10)))
        if budget.steps % 50 == 0:
            print(f"lora {budget.seconds:.0f}s {budget.samples} samples, loss {loss.item():.4f}", flush=True)
    if index == 0:
        header = {"base_model": BASE, "family": "sd15", "licence": "Apache-2.0", "samples": str(budget.samples)}
        adapters.save(run.out, average, header)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    batches = {"batch": BATCH, "large_batch": LARGE_BATCH}
    add_options(parser, **batches)
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder that the LoRAs are for")
    parser.add_argument("--samples", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=0, help="a budget in minutes in place of samples")
    parser.add_argument("--placing", type=float, default=PLACING, help="share of the budget at full strength")
    parser.add_argument("--named", type=float, default=NAMED, help="share of the pictures that name a character")
    parser.add_argument("--start", type=Path, help="continue from the LoRA files of a folder")
    given = parser.parse_args(arguments)
    run = replace(run_of(parser, given, **batches), samples=given.samples, minutes=given.minutes)
    train(run, given.model, placing=given.placing, named=given.named, start=given.start)


if __name__ == "__main__":
    main()
