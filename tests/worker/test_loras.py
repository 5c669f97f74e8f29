"""LoRAs on real pipelines with random weights; what the libraries' own loader draws is the reference."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from handler.drawing import LoraUnfit
from handler.families import FAMILIES
from handler.loras import LoraShelf, LoraWeights, Wardrobe, read
from handler.models import LoraSource, Model
from tests.worker import tiny

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning"),
]

Latents = NDArray[np.float32]
BUILTIN = Path(__file__).parents[2] / "handler" / "builtin" / "model"
DENOISER = {"sd15": "unet", "sdxl": "unet", "flux": "transformer"}


def load(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {
        "sd15": tiny.build(root / "sd15"),
        "sdxl": tiny.build_xl(root / "sdxl"),
        "flux": tiny.build_flux(root / "flux"),
        "builtin": BUILTIN,
    }


@pytest.fixture(scope="module")
def pipelines(folders: Mapping[str, Path]) -> dict[str, Any]:
    """One of each kind for our own LoRAs."""
    return {kind: load(folder) for kind, folder in folders.items()}


@pytest.fixture(scope="module")
def references(folders: Mapping[str, Path]) -> dict[str, Any]:
    """One of each kind for the libraries' own loader."""
    return {kind: load(folder) for kind, folder in folders.items()}


def model(kind: str) -> Model:
    return Model(name=kind, source="", family=FAMILIES["sd15" if kind == "builtin" else kind])


def draw(pipeline: Any) -> Latents:
    picture = pipeline(
        prompt="a hill",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="latent",
    ).images[0]
    return picture.float().numpy()


def layers(part: nn.Module, *, only: str = "") -> dict[str, nn.Module]:
    return {
        name: module
        for name, module in part.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and only in name
    }


def halves(module: nn.Module, rank: int, chance: torch.Generator) -> tuple[Tensor, Tensor]:
    """A down and an up of some effect."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    down = torch.randn(rank, *weight.shape[1:], generator=chance)
    up = torch.randn(weight.shape[0], rank, *([1] * (weight.ndim - 2)), generator=chance)
    size = float(weight.detach().std()) / rank**0.5
    return down * 0.5, up * size


PARTS = {
    "sd15": ("unet", "text_encoder"),
    "builtin": ("unet", "text_encoder"),
    "sdxl": ("unet", "text_encoder", "text_encoder_2"),
    "flux": ("transformer", "text_encoder"),
}


def peft_named(pipeline: Any, kind: str, *, seed: int = 1, rank: int = 4, only: str = "") -> dict[str, Tensor]:
    chance, state = torch.Generator().manual_seed(seed), {}
    for part in PARTS[kind]:
        for name, module in layers(getattr(pipeline, part), only=only).items():
            down, up = halves(module, rank, chance)
            state[f"{part}.{name}.lora_A.weight"], state[f"{part}.{name}.lora_B.weight"] = down, up
    return state


def lora(folder: Path, state: Mapping[str, Tensor], kind: str, *, name: str = "aya", **notes: str) -> LoraWeights:
    path = folder / f"{name}.safetensors"
    save_file({key: value.contiguous() for key, value in state.items()}, path, notes or None)
    return read(LoraSource(name=name, source=str(path), family=model(kind).family), path)


def reference(pipeline: Any, folder: Path, strengths: Mapping[str, float]) -> Latents:
    """What diffusers and PEFT draw with the files of these names."""
    try:
        for name in strengths:
            pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(strengths), list(strengths.values()))
        return draw(pipeline)
    finally:
        pipeline.unload_lora_weights()


def assert_same(ours: Latents, theirs: Latents, plain: Latents) -> None:
    """Measured against what the LoRA changes at all."""
    effect = float(np.abs(theirs - plain).mean())
    assert effect > 0.02, f"the LoRA must have an effect to be compared, not {effect}"
    assert float(np.abs(ours - theirs).mean()) < 0.002 * effect


KINDS = pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux", "builtin"])


@KINDS
def test_a_peft_file_draws_what_the_libraries_draw_with_it(
    kind: str, pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    pipeline = pipelines[kind]
    weights = lora(tmp_path, peft_named(pipeline, kind), kind)
    wardrobe, before = Wardrobe(pipeline, model(kind)), draw(pipeline)
    wardrobe.wear([(weights, 0.8)])
    worn = draw(pipeline)
    wardrobe.wear([])
    theirs = reference(references[kind], tmp_path, {"aya": 0.8})
    assert_same(worn, theirs, before)
    assert (draw(pipeline) == before).all(), "the plain picture is the very same afterwards"


def kohya_named(state: Mapping[str, Tensor], *, alpha: float = 2.0) -> dict[str, Tensor]:
    """A peft-named file as kohya's scripts would have written it."""
    marks = {"unet": "lora_unet", "transformer": "lora_transformer", "text_encoder": "lora_te1"}
    named: dict[str, Tensor] = {}
    for key, value in state.items():
        part, _, rest = key.partition(".")
        path, half = rest.split(".lora_")
        mark = {**marks, "text_encoder_2": "lora_te2"}[part]
        if part == "text_encoder" and not path.startswith("text_model."):
            path = f"text_model.{path}"
        base = f"{mark}_{path.replace('.', '_')}"
        named[f"{base}.lora_{'down' if half.startswith('A') else 'up'}.weight"] = value
        named[f"{base}.alpha"] = torch.tensor(alpha)
    return named


def old_named(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The names of diffusers before PEFT, of attention alone: processors hold the halves."""
    places = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}
    named = {}
    for key, value in state.items():
        path, half = key.split(".lora_")
        for new, old in places.items():
            if path.endswith(f".{new}"):
                before = path.removesuffix(f".{new}")
                named[f"{before}.processor.{old}.{'down' if half.startswith('A') else 'up'}.weight"] = value
    return named


def assert_drawn_alike(pipeline: Any, their_pipeline: Any, weights: LoraWeights, kind: str, folder: Path) -> None:
    wardrobe, before = Wardrobe(pipeline, model(kind)), draw(pipeline)
    wardrobe.wear([(weights, 0.8)])
    worn = draw(pipeline)
    wardrobe.wear([])
    assert_same(worn, reference(their_pipeline, folder, {weights.name: 0.8}), before)
    assert (draw(pipeline) == before).all()


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "builtin"])
def test_a_kohya_file_with_alphas_draws_what_the_libraries_draw_with_it(
    kind: str, pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    # The library turns the underscores of these names back wrongly (time_emb_proj, add_embedding, to_out of text).
    state = {
        key: value
        for key, value in peft_named(pipelines[kind], kind, only="").items()
        if any(word in key for word in ("attn", "ff.", "mlp.", "proj_in", "proj_out"))
    }
    weights = lora(tmp_path, kohya_named(state), kind)
    assert {pair.scale for pair in weights.pairs} == {0.5}
    assert_drawn_alike(pipelines[kind], references[kind], weights, kind, tmp_path)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "builtin"])
def test_a_file_with_old_names_draws_what_the_libraries_draw_with_it(
    kind: str, pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    weights = lora(tmp_path, old_named(peft_named(pipelines[kind], kind)), kind)
    assert_drawn_alike(pipelines[kind], references[kind], weights, kind, tmp_path)


@KINDS
def test_two_at_once_with_their_strengths_draw_what_the_libraries_draw(
    kind: str, pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    pipeline = pipelines[kind]
    first = lora(tmp_path, peft_named(pipeline, kind, seed=1), kind, name="first")
    second = lora(tmp_path, peft_named(pipeline, kind, seed=2, rank=2, only="attn"), kind, name="second")
    wardrobe, before = Wardrobe(pipeline, model(kind)), draw(pipeline)
    wardrobe.wear([(first, 1.0)])
    wardrobe.wear([(first, 0.6), (second, -0.7)])
    worn = draw(pipeline)
    wardrobe.wear([])
    assert_same(worn, reference(references[kind], tmp_path, {"first": 0.6, "second": -0.7}), before)
    assert (draw(pipeline) == before).all()
