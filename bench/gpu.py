"""SDXL's architecture with random weights: pictures a second by plain diffusers, by the worker's renderer with each of
its speed keys, and what the chip could do at best. Run on a GPU: 1024x1024, 30 steps. On a CPU the same at toy size,
which shows that the script works and says nothing about speed.

The limit is measured: the floating-point operations of one denoiser call, counted by torch, over what a large bf16
matrix product reaches on the same chip in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import BPE
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from handler.drawing import Order
from handler.families import FAMILIES
from handler.models import Model
from handler.renderer import DiffusersRenderer

SEED = 7


@dataclass(frozen=True, kw_only=True, slots=True)
class Scale:
    """How much of SDXL there is; sizes in pixels."""

    side: int
    steps: int
    channels: tuple[int, int, int]
    layers: tuple[int, int, int]
    heads: tuple[int, int, int]
    text: tuple[int, int]
    depth: tuple[int, int]
    vae: tuple[int, int, int, int]


FULL = Scale(
    side=1024,
    steps=30,
    channels=(320, 640, 1280),
    layers=(1, 2, 10),
    heads=(5, 10, 20),
    text=(768, 1280),
    depth=(12, 32),
    vae=(128, 256, 512, 512),
)
TOY = Scale(
    side=128,
    steps=4,
    channels=(32, 64, 64),
    layers=(1, 1, 1),
    heads=(2, 4, 4),
    text=(32, 32),
    depth=(1, 1),
    vae=(32, 32, 32, 32),
)


def run(*, rounds: int) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scale = FULL if device == "cuda" else TOY
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU, toy size: no statement about speed"
    print(f"\nSDXL's architecture, random weights, {scale.side}x{scale.side}, {scale.steps} steps, on {name}")
    with tempfile.TemporaryDirectory() as folder:
        source = _folder(Path(folder), scale, device)
        plain = _plain(source, scale, device)
        base = _time(plain, rounds)
        _line("plain diffusers", base, base)
        limit = _limit(source, scale, device)
        del plain
        model = Model(name="xl", source=str(source), family=FAMILIES["sdxl"], steps=scale.steps, max_steps=scale.steps)
        for text, changed in (
            ("the worker", model),
            ("the worker, compile", replace(model, compile=True)),
            ("the worker, float8", replace(model, float8=True)),
        ):
            if device == "cpu" and changed.compile:
                print(f"{text:<36}left out on a CPU")
                continue
            _free()
            _line(text, _time(_ours(changed, scale), rounds), base)
        print(f"{'limit of the matrix units':<36}{1 / limit:>9.3f} pictures/s{base / limit:>8.2f} times plain")


def _plain(source: Path, scale: Scale, device: str) -> Callable[[], object]:
    """What the model cards tell people to write."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(source, dtype=_dtype(device)).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(
        "a hill",
        width=scale.side,
        height=scale.side,
        num_inference_steps=scale.steps,
        generator=torch.Generator("cpu").manual_seed(SEED),
    ).images[0]


def _ours(model: Model, scale: Scale) -> Callable[[], object]:
    renderer = DiffusersRenderer.load(model)
    order = Order(
        positive="a hill",
        negative="",
        width=scale.side,
        height=scale.side,
        seeds=(SEED,),
        steps=scale.steps,
        guidance=5.0,
    )
    return lambda: list(renderer.draw(order, _NobodyWatches()))


class _NobodyWatches:
    def stopping(self) -> bool:
        return False

    def step(self, picture: int, at_once: int, step: int, steps: int) -> None: ...

    def preview(self, picture: int, image: Image.Image) -> None: ...

    def warn(self, sentence: str) -> None:
        print(f"  note: {sentence}")

    def used_references(self, count: int) -> None: ...


@torch.no_grad()
def _limit(source: Path, scale: Scale, device: str) -> float:
    """Seconds of one picture if nothing but the denoiser's products took time, at the rate of one large product."""
    unet = UNet2DConditionModel.from_pretrained(source / "unet", dtype=_dtype(device)).to(device)
    latents = torch.randn(2, 4, scale.side // 8, scale.side // 8, device=device, dtype=unet.dtype)
    states = torch.randn(2, 77, sum(scale.text), device=device, dtype=unet.dtype)
    added = {
        "text_embeds": torch.randn(2, scale.text[1], device=device, dtype=unet.dtype),
        "time_ids": torch.zeros(2, 6, device=device, dtype=unet.dtype),
    }
    counter = FlopCounterMode(display=False)
    with counter:
        unet(latents, 500, encoder_hidden_states=states, added_cond_kwargs=added)
    return scale.steps * counter.get_total_flops() / _rate(device)


def _rate(device: str) -> float:
    """Floating-point operations a second of a large matrix product."""
    side = 8192 if device == "cuda" else 512
    a, b = (torch.randn(side, side, device=device, dtype=_dtype(device)) for _ in range(2))
    seconds = _time(lambda: a @ b, 20)
    return 2 * side**3 / seconds


def _time(work: Callable[[], object], rounds: int) -> float:
    for _ in range(2):
        work()
    times = []
    for _ in range(rounds):
        _wait()
        began = time.perf_counter()
        work()
        _wait()
        times.append(time.perf_counter() - began)
    return median(times)


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _dtype(device: str) -> torch.dtype:
    return torch.bfloat16 if device == "cuda" else torch.float32


def _line(text: str, seconds: float, base: float) -> None:
    print(f"{text:<36}{1 / seconds:>9.3f} pictures/s{base / seconds:>8.2f} times plain")


# The model


def _folder(folder: Path, scale: Scale, device: str) -> Path:
    """A diffusers folder with random weights, made on the device: a CPU would take minutes for two billion numbers."""
    torch.manual_seed(SEED)
    first, second = scale.text
    parts: dict[str, Any] = {
        "unet": UNet2DConditionModel(
            sample_size=scale.side // 8,
            in_channels=4,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            block_out_channels=scale.channels,
            transformer_layers_per_block=scale.layers,
            attention_head_dim=scale.heads,
            cross_attention_dim=first + second,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=second + 6 * 256,
        ),
        "vae": AutoencoderKL(
            block_out_channels=scale.vae,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            scaling_factor=0.13025,
            force_upcast=False,
        ),
        "text_encoder": CLIPTextModel(_text(first, scale.depth[0])),
        "text_encoder_2": CLIPTextModelWithProjection(_text(second, scale.depth[1])),
    }
    pipeline = StableDiffusionXLPipeline(
        **{name: part.to(device, _dtype(device)) for name, part in parts.items()},
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
    )
    pipeline.save_pretrained(folder)
    return folder


def _text(width: int, depth: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        projection_dim=width,
        num_hidden_layers=depth,
        num_attention_heads=max(1, width // 64),
        vocab_size=1000,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer() -> CLIPTokenizer:
    special = {"<|startoftext|>": 0, "<|endoftext|>": 1}
    letters = {
        letter + end: 2 + index for index, (letter, end) in enumerate((x, e) for x in "ahil" for e in ("", "</w>"))
    }
    Tokenizer(BPE(special | letters, []))  # refuses a vocabulary that can't be one
    return CLIPTokenizer(vocab=special | letters, merges=[], unk_token="<|endoftext|>", model_max_length=77)
