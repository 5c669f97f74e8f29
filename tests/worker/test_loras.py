"""LoRAs on real pipelines with random weights; what the libraries' own loader draws is the reference."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from huggingface_hub.errors import LocalEntryNotFoundError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from handler import loras
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
    size = float(weight.detach().float().std()) / rank**0.5
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
    assert effect > 0.002, f"the LoRA must have an effect to be compared, not {effect}"
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


def test_every_layer_of_a_kohya_file_gets_what_a_peft_file_gives_it(
    pipelines: Mapping[str, Any], tmp_path: Path
) -> None:
    for kind in ("sd15", "sdxl", "flux"):
        pipeline, state = pipelines[kind], peft_named(pipelines[kind], kind)
        wardrobe = Wardrobe(pipeline, model(kind))
        wardrobe.wear([(lora(tmp_path, state, kind, name="peft"), 0.8)])
        expected = numbers(pipeline)
        wardrobe.wear([(lora(tmp_path, kohya_named(state, alpha=4.0), kind, name="kohya"), 0.8)])
        assert equal(numbers(pipeline), expected)
        wardrobe.wear([])


def numbers(pipeline: Any) -> dict[str, Tensor]:
    return {
        f"{part}.{name}": value.clone()
        for part, module in pipeline.components.items()
        if isinstance(module, nn.Module)
        for name, value in module.state_dict().items()
    }


def equal(ones: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> bool:
    """To the last bit."""
    return ones.keys() == others.keys() and all(
        torch.equal(one.contiguous().view(torch.uint8), others[name].contiguous().view(torch.uint8))
        for name, one in ones.items()
        if one.ndim
    )


def test_names_of_another_program_go_through_the_librarys_conversion(
    pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    blocks = {
        "input_blocks_3_1_transformer_blocks_0_attn1_to_k": "down_blocks.1.attentions.0.transformer_blocks.0.attn1"
        ".to_k",
        "input_blocks_3_1_transformer_blocks_0_ff_net_2": "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2",
        "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
        "middle_block_1_transformer_blocks_0_attn2_to_v": "mid_block.attentions.0.transformer_blocks.0.attn2.to_v",
        "output_blocks_0_1_proj_in": "up_blocks.0.attentions.0.proj_in",
    }
    pipeline, chance, state = pipelines["sdxl"], torch.Generator().manual_seed(3), {}
    for name, module in blocks.items():
        base = f"lora_unet_{name}"
        down, up = halves(pipeline.unet.get_submodule(module), 4, chance)
        state |= {
            f"{base}.lora_down.weight": down,
            f"{base}.lora_up.weight": up * 3,
            f"{base}.alpha": torch.tensor(2.0),
        }
    weights = lora(tmp_path, state, "sdxl")
    assert_drawn_alike(pipeline, references["sdxl"], weights, "sdxl", tmp_path)


def of_flux(transformer: nn.Module, names: Sequence[str], *, base: str, half: Sequence[str]) -> dict[str, Tensor]:
    """One pair over several layers, as programs write it that have these layers in one."""
    chance = torch.Generator().manual_seed(4)
    modules = [transformer.get_submodule(name) for name in names]
    down, _ = halves(modules[0], 4, chance)
    up = torch.cat([halves(module, 4, chance)[1] for module in modules])
    return {f"{base}.{half[0]}.weight": down, f"{base}.{half[1]}.weight": up * 10}


QKV = [f"transformer_blocks.0.attn.to_{letter}" for letter in "qkv"]


@pytest.mark.parametrize("half", [("lora_down", "lora_up"), ("lora_A", "lora_B")], ids=["comfyui", "ai-toolkit"])
def test_one_pair_over_several_layers_of_flux_is_divided(
    half: Sequence[str], pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    pipeline = pipelines["flux"]
    transformer, names = pipeline.transformer, ("lora_down", "lora_up")
    kohya = of_flux(transformer, QKV, base="lora_unet_double_blocks_0_img_attn_qkv", half=names)
    other = of_flux(transformer, QKV, base="diffusion_model.double_blocks.0.img_attn.qkv", half=half)
    weights = lora(tmp_path, kohya, "flux", name="kohya")
    assert_drawn_alike(pipeline, references["flux"], weights, "flux", tmp_path)
    wardrobe = Wardrobe(pipeline, model("flux"))
    wardrobe.wear([(weights, 1.0)])
    expected = numbers(pipeline)
    wardrobe.wear([(lora(tmp_path, other, "flux"), 1.0)])
    assert equal(numbers(pipeline), expected)
    wardrobe.wear([])


def test_the_four_layers_of_a_real_single_block_of_flux_get_their_rows(tmp_path: Path) -> None:
    with torch.device("meta"):
        transformer = FluxTransformer2DModel(num_layers=0, num_single_layers=1)
    # Memory that nobody touches costs nothing.
    transformer = transformer.to(torch.bfloat16).to_empty(device="cpu")
    pipeline = FluxPipeline(FlowMatchEulerDiscreteScheduler(), None, None, None, None, None, transformer)
    up, down = torch.arange(3 * 3072 + 12288, dtype=torch.float32)[:, None], torch.ones(1, 3072)
    base = "lora_unet_single_blocks_0_linear1"
    weights = lora(tmp_path, {f"{base}.lora_down.weight": down, f"{base}.lora_up.weight": up}, "flux")
    changes = Wardrobe(pipeline, model("flux"))._place(weights)
    names = {module: name for name, module in transformer.named_modules()}
    assert {names[change.module]: int(change.up[0]) for change in changes} == {
        "single_transformer_blocks.0.attn.to_q": 0,
        "single_transformer_blocks.0.attn.to_k": 3072,
        "single_transformer_blocks.0.attn.to_v": 6144,
        "single_transformer_blocks.0.proj_mlp": 9216,
    }


def test_a_file_with_two_namings_is_worn_whole_where_the_library_leaves_out_half(
    pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    pipeline, theirs = pipelines["builtin"], references["builtin"]
    state = {key: value for key, value in peft_named(pipeline, "builtin").items() if key.startswith("unet.")}
    mixed = {
        key.replace("lora_A", "lora.down").replace("lora_B", "lora.up") if "attn" in key else key: value
        for key, value in state.items()
    }
    wardrobe = Wardrobe(pipeline, model("builtin"))
    wardrobe.wear([(lora(tmp_path, state, "builtin", name="plain"), 1.0)])
    expected = numbers(pipeline)
    wardrobe.wear([(lora(tmp_path, mixed, "builtin", name="mixed"), 1.0)])
    assert equal(numbers(pipeline), expected)
    wardrobe.wear([])
    try:
        with warnings.catch_warnings(action="ignore", category=RuntimeWarning):
            theirs.load_lora_weights(tmp_path, weight_name="mixed.safetensors", adapter_name="mixed")
        loaded = [name for name in theirs.unet.state_dict() if "lora_A" in name]
    finally:
        theirs.unload_lora_weights()
    assert 0 < len(loaded) < len(state) // 2, "if the library has learnt it, this test has lost its point"


def test_alphas_in_the_notes_of_the_header_count(
    pipelines: Mapping[str, Any], references: Mapping[str, Any], tmp_path: Path
) -> None:
    pipeline = pipelines["sd15"]
    state = {key: value for key, value in peft_named(pipeline, "sd15", only="attn").items() if key.startswith("unet.")}
    notes = {
        "unet.r": 4,
        "unet.lora_alpha": 8,
        "unet.alpha_pattern": {"attn2.to_q": 1},
        "unet.use_rslora": True,
        "unet.target_modules": sorted({key.split(".lora_")[0].removeprefix("unet.") for key in state}),
    }
    weights = lora(tmp_path, state, "sd15", lora_adapter_metadata=json.dumps(notes))
    assert {pair.scale for pair in weights.pairs} == {4.0, 0.5}
    assert_drawn_alike(pipeline, references["sd15"], weights, "sd15", tmp_path)


# Wearing and taking off


@pytest.fixture
def net() -> Any:
    """A pipeline of a few layers; two share a weight."""
    torch.manual_seed(0)
    unet = nn.Module()
    unet.first, unet.second, unet.conv = nn.Linear(8, 8), nn.Linear(8, 8), nn.Conv2d(8, 16, 3)
    unet.tied = nn.Linear(8, 8)
    unet.tied.weight = unet.first.weight
    return SimpleNamespace(components={"unet": unet}, unet=unet)


def few(net: Any, tmp_path: Path, *, name: str = "aya", seed: int = 1, names: Sequence[str] = ()) -> LoraWeights:
    chance, state = torch.Generator().manual_seed(seed), {}
    for module in names or ("first", "second", "conv"):
        down, up = halves(net.unet.get_submodule(module), 2, chance)
        state |= {f"unet.{module}.lora_A.weight": down, f"unet.{module}.lora_B.weight": up}
    return lora(tmp_path, state, "sd15", name=name)


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
)
def test_weights_of_any_format_are_changed_and_put_back_to_the_bit(
    dtype: torch.dtype, net: Any, tmp_path: Path
) -> None:
    net.unet.to(dtype).to(memory_format=torch.channels_last)
    weights, before = few(net, tmp_path), numbers(net)
    wardrobe = Wardrobe(net, model("sd15"))
    wardrobe.wear([(weights, 1.5)])
    pairs = {pair.base.removeprefix("unet."): pair for pair in weights.pairs}
    for name, pair in pairs.items():
        old, new = before[f"unet.{name}.weight"].float(), net.unet.get_submodule(name).weight.float()
        wanted = old + 1.5 * (pair.up.flatten(1) @ pair.down.flatten(1)).view(old.shape)
        step = torch.finfo(dtype).eps * (1 if dtype.itemsize == 1 else 0.5001)
        assert ((new - wanted).abs() <= wanted.abs() * step + torch.finfo(dtype).smallest_normal + 1e-6).all()
    wardrobe.wear([])
    assert equal(numbers(net), before)


def test_a_change_that_is_less_than_a_step_of_eight_bits_is_there_on_average(tmp_path: Path) -> None:
    unet = nn.Module()
    unet.wide = nn.Linear(256, 256)
    unet.wide.weight.data.fill_(1.0)
    unet.to(torch.float8_e4m3fn)
    net = SimpleNamespace(components={"unet": unet}, unet=unet)
    state = {"unet.wide.lora_A.weight": torch.full((1, 256), 0.01), "unet.wide.lora_B.weight": torch.ones(256, 1)}
    Wardrobe(net, model("sd15")).wear([(lora(tmp_path, state, "sd15"), 1.0)])
    assert float(unet.wide.weight.data.float().mean()) == pytest.approx(1.01, abs=0.001)


def test_weights_that_the_lora_leaves_alone_keep_their_eight_bits(tmp_path: Path) -> None:
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn)
    every = every[every.float().isfinite()][:252].view(63, 4)
    unet = nn.Module()
    unet.all = nn.Linear(4, 63).to(torch.float8_e4m3fn)
    unet.all.weight.data.copy_(every)
    net = SimpleNamespace(components={"unet": unet}, unet=unet)
    up = torch.zeros(63, 1)
    up[0] = 1.0
    state = {"unet.all.lora_A.weight": torch.ones(1, 4), "unet.all.lora_B.weight": up}
    Wardrobe(net, model("sd15")).wear([(lora(tmp_path, state, "sd15"), 1.0)])
    assert torch.equal(unet.all.weight.data[1:].float(), every[1:].float())


def test_a_weight_that_two_layers_share_is_changed_once_for_each_pair_and_put_back(net: Any, tmp_path: Path) -> None:
    before, wardrobe = numbers(net), Wardrobe(net, model("sd15"))
    weights = few(net, tmp_path, names=("first", "tied"))
    wardrobe.wear([(weights, 1.0)])
    one, two = weights.pairs
    wanted = before["unet.first.weight"] + one.up @ one.down + two.up @ two.down
    assert torch.allclose(net.unet.first.weight, wanted, atol=1e-6)
    assert net.unet.tied.weight is net.unet.first.weight
    wardrobe.wear([])
    assert equal(numbers(net), before)


def test_strength_zero_is_not_worn_and_the_same_set_again_does_nothing(
    net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, wardrobe, weights = numbers(net), Wardrobe(net, model("sd15")), few(net, tmp_path)
    wardrobe.wear([(weights, 0.0)])
    assert equal(numbers(net), before)
    wardrobe.wear([(weights, 0.5)])
    worn = numbers(net)

    def never(*_: object) -> None:
        raise AssertionError("it changed weights")

    monkeypatch.setattr(loras, "_add", never)
    wardrobe.wear([(weights, 0.5)])
    assert equal(numbers(net), worn)


def test_a_fault_halfway_leaves_the_plain_model(net: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, wardrobe = numbers(net), Wardrobe(net, model("sd15"))
    wardrobe.wear([(few(net, tmp_path, name="old", seed=2), 1.0)])
    real, calls = loras._add, count()

    def breaking(weight: Tensor, changes: Any) -> None:
        real(weight, changes)
        if next(calls) == 1:
            raise MemoryError

    monkeypatch.setattr(loras, "_add", breaking)
    with pytest.raises(MemoryError):
        wardrobe.wear([(few(net, tmp_path), 1.0)])
    assert equal(numbers(net), before)
    monkeypatch.setattr(loras, "_add", real)
    wardrobe.wear([(few(net, tmp_path), 1.0)])
    assert not equal(numbers(net), before)
    wardrobe.wear([])
    assert equal(numbers(net), before)


def test_a_compiled_model_is_not_compiled_again_for_a_lora(pipelines: Mapping[str, Any], tmp_path: Path) -> None:
    # Dynamo decides what must be compiled again, whoever generates the code; "eager" needs no C++ compiler.
    pipeline = pipelines["flux"]
    wardrobe, weights = Wardrobe(pipeline, model("flux")), lora(tmp_path, peft_named(pipeline, "flux"), "flux")
    plain = pipeline.transformer
    pipeline.transformer = torch.compile(plain, backend="eager")
    try:
        before = draw(pipeline)
        with torch._dynamo.config.patch(error_on_recompile=True):
            frames = torch._dynamo.utils.counters["frames"]["total"]
            wardrobe.wear([(weights, 1.0)])
            worn = draw(pipeline)
            wardrobe.wear([])
            assert (draw(pipeline) == before).all()
            assert torch._dynamo.utils.counters["frames"]["total"] == frames > 0
    finally:
        pipeline.transformer = plain
    assert np.abs(worn - before).mean() > 0.002


# Refusals


def unfit(folder: Path, state: Mapping[str, Tensor], message: str, *, kind: str = "sd15") -> None:
    with pytest.raises(LoraUnfit, match=message) as caught:
        lora(folder, state, kind)
    assert str(folder) not in str(caught.value) and "'aya'" in str(caught.value)


A_PAIR = {"unet.first.lora_A.weight": torch.ones(2, 8), "unet.first.lora_B.weight": torch.ones(8, 2)}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        pytest.param({"unet.first.dora_scale": torch.ones(8)}, "is a DoRA", id="dora"),
        pytest.param({"unet.first.lora_magnitude_vector": torch.ones(8)}, "is a DoRA", id="peft-dora"),
        pytest.param({"unet.second.lokr_w1": torch.ones(2, 2)}, "is a LoKr", id="lokr"),
        pytest.param({"unet.second.hada_w1_a": torch.ones(2, 2)}, "is a LoHa", id="loha"),
        pytest.param({"unet.conv.lora_mid.weight": torch.ones(2, 2, 3, 3)}, "third matrix", id="tucker"),
        pytest.param({"unet.second.diff_b": torch.ones(8)}, "1 of 3 tensors .* 'unet.second.diff_b'", id="bias"),
        pytest.param({"unet.second.lora_A.weight": torch.ones(2, 8)}, "1 of 3 tensors", id="half-a-pair"),
        pytest.param({"unet.second.alpha": torch.ones(1)}, "1 of 3 tensors", id="alpha-alone"),
        pytest.param({"unet.first.alpha": torch.ones(3)}, "alpha that is no number", id="alpha"),
        pytest.param({"unet.first.alpha": torch.tensor(torch.inf)}, "no numbers", id="endless-alpha"),
        pytest.param({"unet.first.lora_B.weight": torch.ones(8, 3)}, "two halves of 'unet.first'", id="ranks"),
        pytest.param({"unet.first.lora_B.weight": torch.full((8, 2), torch.nan)}, "no numbers", id="nan"),
    ],
)
def test_what_is_no_plain_lora_is_refused(more: dict[str, Tensor], message: str, tmp_path: Path) -> None:
    unfit(tmp_path, {**A_PAIR, **more}, message)


@pytest.mark.parametrize("alpha", ["1" + "0" * 400, "NaN", "Infinity"])
def test_an_alpha_in_the_notes_that_is_no_number_is_refused(alpha: str, tmp_path: Path) -> None:
    with pytest.raises(LoraUnfit, match="alpha that is no number"):
        lora(tmp_path, A_PAIR, "sd15", lora_adapter_metadata=f'{{"unet.lora_alpha": {alpha}}}')


def test_zeros_that_belong_nowhere_change_nothing(net: Any, tmp_path: Path) -> None:
    nowhere = {"unet.gone.lora_A.weight": torch.ones(2, 8), "unet.gone.lora_B.weight": torch.zeros(8, 2)}
    weights = lora(tmp_path, {**A_PAIR, **nowhere, "unet.second.diff_b": torch.zeros(8)}, "sd15")
    Wardrobe(net, model("sd15")).wear([(weights, 1.0)])


def test_a_whole_model_is_no_lora(tmp_path: Path) -> None:
    unfit(tmp_path, {"model.diffusion_model.out.2.weight": torch.ones(4, 4)}, r"it is a whole model")


def test_a_lora_of_another_model_is_refused_with_how_much_of_it(net: Any, tmp_path: Path) -> None:
    before, wardrobe = numbers(net), Wardrobe(net, model("sd15"))
    missing = {"unet.gone.lora_A.weight": torch.ones(2, 8), "unet.gone.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(LoraUnfit, match=r"1 of its 2 layers have no place in it, such as 'unet\.gone'"):
        wardrobe.wear([(lora(tmp_path, {**A_PAIR, **missing}, "sd15"), 1.0)])
    wide = {"unet.first.lora_A.weight": torch.ones(2, 9), "unet.first.lora_B.weight": torch.ones(8, 2)}
    with pytest.raises(LoraUnfit, match=r"1 of its 1 layers"):
        wardrobe.wear([(lora(tmp_path, wide, "sd15"), 1.0)])
    with pytest.raises(LoraUnfit, match="is for sdxl models and model 'sd15' is sd15"):
        wardrobe.wear([(lora(tmp_path, A_PAIR, "sdxl"), 1.0)])
    assert equal(numbers(net), before)


def test_a_quantized_model_takes_no_lora(net: Any, tmp_path: Path) -> None:
    weights = few(net, tmp_path, names=("first",))
    net.unet.first.weight = nn.Parameter(torch.zeros(8, 8, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(LoraUnfit, match="quantized"):
        Wardrobe(net, model("sd15")).wear([(weights, 1.0)])


def source(path: Path, **more: Any) -> LoraSource:
    return LoraSource(name="aya", source=str(path), family=FAMILIES["sd15"], **more)


def test_a_file_that_is_another_or_cut_or_gone_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "aya.safetensors"
    weights = lora(tmp_path, A_PAIR, "sd15")
    content = path.read_bytes()
    assert weights.sha256 == hashlib.sha256(content).hexdigest()
    assert read(source(path, sha256=weights.sha256), path).sha256 == weights.sha256
    with pytest.raises(LoraUnfit, match=r"is another file than models\.toml names"):
        read(source(path, sha256="0" * 64), path)
    path.write_bytes(content[:-1])
    with pytest.raises(LoraUnfit, match="does not lie in the file"):
        read(source(path), path)
    path.write_bytes(b"<!DOCTYPE html><title>Sign in</title>")
    with pytest.raises(LoraUnfit, match="no safetensors file"):
        read(source(path), path)
    path.unlink()
    with pytest.raises(LoraUnfit, match="put its file back"):
        read(source(path), path)


def test_a_file_that_is_far_too_large_is_not_even_read(tmp_path: Path) -> None:
    path = tmp_path / "aya.safetensors"
    with path.open("wb") as file:
        file.truncate(5 * 2**30)
    with pytest.raises(LoraUnfit, match=r"5\.0 GiB, too much"):
        read(source(path), path)


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["F32", "F16"])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={key: LEAVES | st.lists(LEAVES, max_size=3) for key in ("dtype", "shape", "data_offsets", "x")},
)
HEADERS = st.dictionaries(
    st.sampled_from(["a.lora_A.weight", "a.lora_B.weight", "a.alpha", "__metadata__", "x"]), LEAVES | ENTRIES
)


EMPTY_AND_HUGE = (
    b'{"a.lora_A.weight":{"dtype":"F32","shape":[0,4503599627370496,4503599627370496],"data_offsets":[0,0]}}'
)


@given(
    st.binary(max_size=200)
    | st.builds(lambda size, rest: size.to_bytes(8, "little") + rest, st.integers(0, 300), st.binary(max_size=200))
    | st.builds(
        lambda header, rest: len(text := json.dumps(header).encode()).to_bytes(8, "little") + text + rest,
        HEADERS,
        st.binary(max_size=64),
    )
    | st.just((20000).to_bytes(8, "little") + b"[" * 20000)
    | st.just(len(EMPTY_AND_HUGE).to_bytes(8, "little") + EMPTY_AND_HUGE)
    | st.just((20000).to_bytes(8, "little") + b"9" * 20000)
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_garbage_is_refused_and_nothing_else_happens(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "aya.safetensors"
    path.write_bytes(content)
    with contextlib.suppress(LoraUnfit):
        read(source(path), path)


# The shelf


def test_the_shelf_gives_the_weight_at_which_a_strength_is_worn(tmp_path: Path) -> None:
    lora(tmp_path, A_PAIR, "sd15")
    bent = source(tmp_path / "aya.safetensors", curve=((0.5, 0.7), (1.0, 1.0)))
    shelf = LoraShelf({"aya": bent}, memory=2**20)
    assert shelf.worn("aya", 0.5) == (shelf.take("aya"), 0.7)


def test_the_shelf_keeps_what_was_used_last_within_its_bytes(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        lora(tmp_path, A_PAIR, "sd15", name=name)
    sources = {name: replace(source(tmp_path / f"{name}.safetensors"), name=name) for name in ("one", "two", "three")}
    size = (tmp_path / "one.safetensors").stat().st_size
    shelf = LoraShelf(sources, memory=2 * size)
    one, two = shelf.take("one"), shelf.take("two")
    assert shelf.take("one") is one
    shelf.take("three")
    assert shelf.bytes == 2 * size
    assert shelf.take("one") is one
    assert shelf.take("two") is not two, "it was used least recently"
    small = LoraShelf(sources, memory=size - 1)
    assert small.take("one").pairs and small.bytes == 0, "one that is too large is worn, but not kept"


def test_a_file_that_changed_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "aya.safetensors"
    first = lora(tmp_path, A_PAIR, "sd15")
    shelf = LoraShelf({"aya": source(path)}, memory=2**20)
    assert shelf.take("aya") is shelf.take("aya")
    lora(tmp_path, {key: value * 2 for key, value in A_PAIR.items()}, "sd15")
    os.utime(path, ns=(1, 1))
    assert shelf.take("aya").sha256 != first.sha256
    path.unlink()
    with pytest.raises(LoraUnfit, match="put its file back"):
        shelf.take("aya")


def test_an_unknown_name_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(LoraUnfit, match="'bea' is unknown to this worker; use one of: aya"):
        LoraShelf({"aya": source(Path("x"))}, memory=1).take("bea")


def test_a_file_of_the_hub_comes_from_its_cache_and_only_then_from_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora(tmp_path, A_PAIR, "sd15")
    asked: list[bool] = []

    def download(repository: str, filename: str, *, revision: str | None, local_files_only: bool = False) -> str:
        assert (repository, filename, revision) == ("someone/loras", "old/aya.safetensors", "v1")
        asked.append(local_files_only)
        if local_files_only and len(asked) == 1:
            raise LocalEntryNotFoundError("not in the cache")
        return str(tmp_path / "aya.safetensors")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    there = replace(source(Path()), source="someone/loras/old/aya.safetensors", hub=True, revision="v1")
    LoraShelf({"aya": there}, memory=0).take("aya")
    assert asked == [True, False]
    LoraShelf({"aya": there}, memory=0).take("aya")
    assert asked == [True, False, True]


def test_a_hub_that_can_not_be_reached_is_told_with_what_to_check(monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: object, **__: object) -> str:
        raise LocalEntryNotFoundError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    there = replace(source(Path()), source="someone/loras/aya.safetensors", hub=True)
    with pytest.raises(LoraUnfit, match="'aya' can't be fetched from the hub"):
        LoraShelf({"aya": there}, memory=0).take("aya")
