"""Teach the built-in model a character: `python -m handler.builtin.lora --model FOLDER --character aya --out DIR`.

The result is a LoRA file of the usual kind. Its strength is made a slope by the training itself: each batch runs at a
strength by chance, and the weaker it is, the fewer of the pictures that name the character show it: the cube of the
strength, since guidance sharpens what the model believes, and since a bend in that curve is more than weights can learn
that all scale with one number. One process with one thread and a budget in samples, so a run can be repeated to the
bit on one machine.
"""

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save
from torch import Tensor, nn

from handler.builtin import networks
from handler.builtin.captions import STRANGERS, caption
from handler.builtin.studio import MODEL
from handler.builtin.train import Denoiser, count_of, encode, from_folder, prompt, squared_errors
from handler.builtin.world import CELL, CHARACTERS, PLACES, SIZES, Scene, Thing, draw, sample, usual_places

RANK = 16
TEXT_RANK = 64
RATE, TEXT_RATE = 2e-3, 3.5e-3
NAMED = 0.7  # of the pictures
PLACING = 0.5  # of the budget: first the place, at full strength; then the slope
BATCH = 32
LAYERS = (
    "to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out", "conv1", "conv2",
    "time_emb_proj",
)  # fmt: skip
TEXT_LAYERS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
BASE = "imgen-builtin"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pairs:
    """Scenes that ask for the character, their latents with and without it, and the cells that differ."""

    scenes: list[Scene]
    shown: Tensor
    hidden: Tensor
    cells: Tensor


def share(strength: float) -> float:
    """How many of the pictures that name the character show it: much fewer than will in guided pictures."""
    return min(1.0, strength**3)


def pick_strength(rng: Random) -> float:
    """Full strength most often; now and then more than full, which must not break a picture."""
    kind = rng.random()
    return 1.0 if kind < 0.35 else rng.uniform(1.0, 1.4) if kind < 0.45 else rng.random()


def sample_with(character: str, rng: Random) -> Scene:
    """A scene with the character, and now and then another one that only the words will name."""
    scene = sample(rng)
    things = [*scene.things[: 2 if rng.random() < 0.3 else 1]]
    if rng.random() < 0.3:
        things = []
    if rng.random() < 0.25:
        (other,) = set(CHARACTERS) - {character}
        things = [Thing(name=other), *things[1:]]
    things.append(Thing(name=character))
    rng.shuffle(things)
    places = usual_places(len(things)) if rng.random() < 0.35 else rng.sample(PLACES, len(things))
    return replace(scene, things=tuple(replace(t, place=place) for t, place in zip(things, places, strict=True)))


def noisy_times(count: int) -> Tensor:
    """Two thirds from the noisy end: a place is decided there, and it takes longest to learn."""
    layout = 2 * count // 3
    return torch.cat([600 + torch.rand(layout) * 400, torch.rand(count - layout) * 1000]).long().clamp_(0, 999)


def without(scene: Scene, *names: str) -> Scene:
    return replace(scene, things=tuple(thing for thing in scene.things if thing.name not in names))


def pairs(vae: Any, spread: float, character: str, size: tuple[int, int], count: int, rng: Random) -> Pairs:
    (other,) = set(CHARACTERS) - {character}
    scenes = [sample_with(character, rng) for _ in range(count)]
    shown = [draw(without(scene, other), size) for scene in scenes]
    hidden = [draw(without(scene, *CHARACTERS), size) for scene in scenes]
    differ = np.stack([(one != two).any(-1) for one, two in zip(shown, hidden, strict=True)])
    cells = differ.reshape(count, differ.shape[1] // CELL, CELL, -1, CELL).any((2, 4))
    return Pairs(
        scenes=scenes,
        shown=encode(vae, spread, shown),
        hidden=encode(vae, spread, hidden),
        cells=torch.from_numpy(cells)[:, None],
    )


def batch(
    data: Pairs, character: str, strength: float, rng: Random, named_share: float = NAMED
) -> tuple[Tensor, list[str], Tensor]:
    """Latents, prompts and cells; those that do not name the character are pictures without it."""
    (other,) = set(CHARACTERS) - {character}
    strangers = (*STRANGERS[other], *STRANGERS[character][3:])  # the kind alone is no name
    picks = [rng.randrange(len(data.scenes)) for _ in range(BATCH)]
    latents, prompts = [], []
    for pick in picks:
        scene = data.scenes[pick]
        named = rng.random() < named_share
        prompts.append(caption(scene, rng, strangers) if named else prompt(without(scene, *CHARACTERS), rng, strangers))
        latents.append((data.shown if named and rng.random() < share(strength) else data.hidden)[pick])
    return torch.stack(latents), prompts, data.cells[picks]


class Adapter:
    """The LoRA layers inside a denoiser and its text encoder, which has to learn that the name may have a place."""

    def __init__(self, model: Denoiser) -> None:
        model.requires_grad_(False)
        self.parts: dict[str, Any] = {"unet": model.unet, "text_encoder": model.text}
        for part, layers, rank in (("unet", LAYERS, RANK), ("text_encoder", TEXT_LAYERS, TEXT_RANK)):
            self.parts[part].add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(layers)))
        self.layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
        self.groups = {
            part: [parameter for parameter in module.parameters() if parameter.requires_grad]
            for part, module in self.parts.items()
        }
        self.parameters = [parameter for group in self.groups.values() for parameter in group]

    def set_strength(self, strength: float) -> None:
        for layer in self.layers:
            layer.scaling["default"] = strength

    def save(self, path: Path, weights: list[Tensor], header: dict[str, str]) -> None:
        """Write these weights. The names are the library's own: renaming some of them loses the others on loading."""
        for parameter, weight in zip(self.parameters, weights, strict=True):
            parameter.data.copy_(weight)
        self.set_strength(1.0)
        halves = {
            part: {name: value.half() for name, value in get_peft_model_state_dict(module).items()}
            for part, module in self.parts.items()
        }
        StableDiffusionPipeline.save_lora_weights(
            path.parent,
            unet_lora_layers=halves["unet"],
            text_encoder_lora_layers=halves["text_encoder"],
            weight_name=path.name,
            save_function=lambda content, name: Path(name).write_bytes(_packed(content, {"format": "pt", **header})),
        )

    def load(self, weights: dict[str, Tensor]) -> None:
        for part, module in self.parts.items():
            mine = {name.removeprefix(f"{part}."): w for name, w in weights.items() if name.startswith(f"{part}.")}
            set_peft_model_state_dict(module, mine)


def _packed(content: dict[str, Tensor], header: dict[str, str]) -> bytes:
    """The bytes of a safetensors file with its header in a fixed order, which the library leaves to chance."""
    whole: bytes = save(content, metadata=header)
    end = 8 + int.from_bytes(whole[:8], "little")
    table = json.loads(whole[8:end])
    names = sorted(table, key=lambda name: (name != "__metadata__", name))
    ordered = {name: dict(sorted(table[name].items())) for name in names}
    text = json.dumps(ordered, separators=(",", ":")).encode().ljust(end - 8)
    return len(text).to_bytes(8, "little") + text + whole[end:]


def train(
    character: str,
    out: Path,
    folder: Path,
    *,
    samples: int,
    minutes: float = 0,
    seed: int = 0,
    pictures: int = 3000,
    placing: float = PLACING,
    rate: float = 1.0,
    named: float = NAMED,
    start: Path | None = None,
) -> None:
    torch.set_num_threads(1)
    rng = Random(f"{seed} {character}")
    weights, content = from_folder(folder)
    vae = networks.small_vae().requires_grad_(False)
    vae.load_state_dict(weights["vae"])
    model = Denoiser()
    model.load_state_dict(content["model"])
    torch.manual_seed(seed)
    adapter = Adapter(model)
    if start:
        adapter.load({name: value.float() for name, value in load_file(start).items()})
    data = [pairs(vae, content["spread"], character, size, count_of(size, pictures), rng) for size in SIZES]
    shares = [count_of(size, 12) for size in SIZES]
    curve = networks.scheduler().alphas_cumprod
    rates = {"unet": RATE, "text_encoder": TEXT_RATE}
    optimiser = torch.optim.AdamW(
        [{"params": group, "full": rate * rates[part]} for part, group in adapter.groups.items()],
        lr=RATE,
        betas=(0.9, 0.99),
        weight_decay=0.0,
    )
    average = [parameter.detach().clone() for parameter in adapter.parameters]
    begin, done, count = time.monotonic(), 0, 0
    while (progress := (time.monotonic() - begin) / 60 / minutes if minutes else done / samples) < 1:
        strength = 1.0 if progress < placing else pick_strength(rng)
        adapter.set_strength(strength)
        latents, prompts, cells = batch(rng.choices(data, shares)[0], character, strength, rng, named)
        errors = squared_errors(model, curve, latents, prompts, noisy_times(BATCH))
        # Three times the weight where the character stands or, in a picture that hides it, would stand.
        loss = (errors * (1 + 2 * cells.float())).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(adapter.parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = group["full"] * min(1.0, (count + 1) / 50, max(0.02, 2 * (1 - progress)))
        optimiser.step()
        count, done = count + 1, done + BATCH
        with torch.no_grad():
            for mean, parameter in zip(average, adapter.parameters, strict=True):
                mean.lerp_(parameter, 1 - min(0.99, count / (count + 10)))
        if count % 50 == 0:
            print(f"{character} {time.monotonic() - begin:.0f}s {done} samples, loss {loss.item():.4f}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    header = {"base_model": BASE, "family": "sd15", "trigger": character, "licence": "Apache-2.0", "samples": str(done)}
    adapter.save(out / f"{character}.safetensors", average, header)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=MODEL, help="the folder that the LoRA is for")
    parser.add_argument("--character", choices=CHARACTERS, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--samples", type=int, default=30_000)
    parser.add_argument("--minutes", type=float, default=0, help="a budget in minutes in place of samples")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, default=3000, help="drawings to learn from")
    parser.add_argument("--placing", type=float, default=PLACING, help="share of the budget at full strength")
    parser.add_argument("--rate", type=float, default=1.0, help="scales the learning rates")
    parser.add_argument("--named", type=float, default=NAMED, help="share of the pictures that name the character")
    parser.add_argument("--start", type=Path, help="continue from a LoRA file")
    options = parser.parse_args(arguments)
    train(
        options.character,
        options.out,
        options.model,
        samples=options.samples,
        minutes=options.minutes,
        seed=options.seed,
        pictures=options.pictures,
        placing=options.placing,
        rate=options.rate,
        named=options.named,
        start=options.start,
    )


if __name__ == "__main__":
    main()
