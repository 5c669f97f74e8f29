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

BUILTIN = Path(__file__).parents[2] / "handler" / "builtin" / "model"
DENOISER = {"sd15": "unet", "sdxl": "unet", "flux": "transformer"}


def load(folder: Path) -> Any:
    pipeline = (
        DiffusionPipeline.from_pretrained(folder, safety_checker=None, requires_safety_checker=False)
        if (folder / "unet").is_dir() and not (folder / "text_encoder_2").is_dir()
        else DiffusionPipeline.from_pretrained(folder)
    )
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


def draw(pipeline: Any) -> NDArray[np.float32]:
    picture = pipeline(
        prompt="a hill",
        width=64,
        height=64,
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=torch.Generator("cpu").manual_seed(7),
        output_type="np",
    ).images[0]
    return np.asarray(picture, np.float32)


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


def reference(pipeline: Any, folder: Path, strengths: Mapping[str, float]) -> NDArray[np.float32]:
    """What diffusers and PEFT draw with the files of these names."""
    try:
        for name in strengths:
            pipeline.load_lora_weights(folder, weight_name=f"{name}.safetensors", adapter_name=name)
        pipeline.set_adapters(list(strengths), list(strengths.values()))
        return draw(pipeline)
    finally:
        pipeline.unload_lora_weights()


def close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> bool:
    return float(np.abs(ours - theirs).max()) < 2e-3


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "flux", "builtin"])
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
    assert close(worn, theirs)
    assert float(np.abs(worn - before).mean()) > 0.005, "it must have an effect to be compared"
    assert (draw(pipeline) == before).all(), "the plain picture is the very same afterwards"
