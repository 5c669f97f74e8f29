"""Draw with an exported folder the way the worker does: an eighth of the size, snapped to a palette, LoRAs by name."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import logging
from PIL import Image

from handler.models import read_models
from handler.pixelart import read_palettes, snap
from handler.settings import SHIPPED_MODELS

MODEL = Path(__file__).parent / "model"
LORAS = Path(__file__).parent / "loras"
STEPS = 14
GUIDANCE = 3.5
SCALE = 8  # product pixels to a pixel of the pipeline
CELL = 2  # pixels of the pipeline to an art pixel


def negative_prompt(*terms: str) -> str:
    """A negative prompt as the gateway composes it."""
    return ", ".join(terms)


class Studio:
    """A loaded pipeline and its palettes."""

    def __init__(self, folder: Path = MODEL, *, curves: bool = True) -> None:
        """Without ``curves``, a LoRA is worn at the strength as it is asked for."""
        logging.set_verbosity_error()
        self.pipeline: Any = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
        self.pipeline.set_progress_bar_config(disable=True)
        self.worn: set[str] = set()
        self.palettes = read_palettes(folder / "palette.json")
        self.curves = read_models(SHIPPED_MODELS).loras if curves else {}

    def wear(self, strengths: Mapping[str, float], folder: Path = LORAS) -> None:
        """Draw with these LoRAs from now on, at the weights that models.toml has for these strengths; a file is read
        once.
        """
        missing = set(strengths) - self.worn
        for name in sorted(missing):
            self.pipeline.load_lora_weights(folder / f"{name}.safetensors", adapter_name=name)
        self.worn |= missing
        if strengths:
            self.pipeline.enable_lora()
            weights = [
                self.curves[name].worn(strength) if name in self.curves else strength
                for name, strength in strengths.items()
            ]
            self.pipeline.set_adapters(list(strengths), weights)
        elif self.worn:
            self.pipeline.disable_lora()

    def draw(
        self,
        prompts: Sequence[str],
        size: tuple[int, int],
        seeds: Sequence[int],
        *,
        negative: str = "",
        steps: int = STEPS,
        guidance: float = GUIDANCE,
        at_once: int = 8,
    ) -> Iterator[Image.Image]:
        """One picture of art pixels for each prompt and seed."""
        for first in range(0, len(prompts), at_once):
            some = list(prompts[first : first + at_once])
            pictures = self.pipeline(
                some,
                negative_prompt=[negative] * len(some),
                width=size[0] // SCALE,
                height=size[1] // SCALE,
                num_inference_steps=steps,
                guidance_scale=guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[first : first + at_once]],
            ).images
            for picture in pictures:
                yield snap(picture, self.palettes, CELL)
