"""Draws with any diffusers text-to-image folder. The one module of the worker that imports torch and diffusers."""

from __future__ import annotations

import gc
import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from handler import pixelart
from handler.drawing import OnStep, Order, OutOfMemory, Stopped
from handler.models import Model, ModelsError

#: A file up to this size goes into the revision whole; of a larger one its length, its beginning and its end.
_HASHED_WHOLE = 32 * 2**20


class DiffusersRenderer:
    """A pipeline that was loaded once and draws many pictures. Made by `load`."""

    def __init__(self, model: Model, pipeline: Any, revision: str) -> None:
        self._model = model
        self._pipeline = pipeline
        self._accepts = frozenset(inspect.signature(pipeline.__call__).parameters)
        self._finish = _finisher(model)
        self._revision = revision
        if missing := {"prompt", "width", "height", "num_inference_steps", "generator"} - self._accepts:
            raise ModelsError(
                f"models.{model.name}.source: {type(pipeline).__name__} does not draw from text"
                f" (it takes no {', '.join(sorted(missing))}); choose a text-to-image model"
            )
        # A pipeline with "true" guidance beside its own heeds a negative prompt only through that, which stays off.
        if model.negative and ("negative_prompt" not in self._accepts or "true_cfg_scale" in self._accepts):
            raise ModelsError(
                f"models.{model.name}.negative: {type(pipeline).__name__} heeds no negative prompt; write false"
            )

    @classmethod
    def load(cls, model: Model, *, threads: int = 1) -> DiffusersRenderer:
        """Blocks for seconds to minutes. Raises `ModelsError` if the model can't be what ``models.toml`` says."""
        torch.set_num_threads(threads)
        diffusers.utils.logging.disable_progress_bar()
        transformers.utils.logging.disable_progress_bar()
        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            folder = _download(model) if model.hub else Path(model.source)
            # Review is a stage of its own behind the worker; a checker here would only blacken pictures unseen.
            checked = "safety_checker" in DiffusionPipeline.load_config(folder)
            pipeline = DiffusionPipeline.from_pretrained(
                folder,
                dtype=_dtype(model.dtype, device),
                variant=model.variant,
                # Pickled weights run code when they are loaded, so only safetensors are.
                use_safetensors=True,
                local_files_only=True,
                **({"safety_checker": None, "requires_safety_checker": False} if checked else {}),
            )
        except (OSError, ValueError) as exc:
            raise ModelsError(f"models.{model.name}.source: {model.source} can't be loaded: {exc}") from exc
        if model.sampler is not None:
            pipeline.scheduler = _sampler(model, pipeline.scheduler)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.to(device)
        # The hub's cache names a folder after the commit in it.
        return cls(model, pipeline, folder.name[:12] if model.hub else _folder_revision(folder))

    @property
    def sampler(self) -> str:
        scheduler = getattr(self._pipeline, "scheduler", None)
        return type(scheduler).__name__ if scheduler is not None else "unknown"

    @property
    def revision(self) -> str:
        return self._revision

    def cuts(self, prompt: str) -> bool:
        """See `Renderer.cuts`. A model with another reader beside CLIP's reads far more than CLIP's 77 tokens."""
        parts = self._pipeline.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        return bool(tokenizers) and all(
            isinstance(each, CLIPTokenizer) and len(each(prompt).input_ids) > each.model_max_length
            for each in tokenizers
        )

    def draw(self, order: Order, on_step: OnStep, stopping: Callable[[], bool]) -> Image.Image:
        """See `Renderer.draw`. The same order gives the same bytes on the same kind of device."""
        if stopping():
            raise Stopped

        def after_step(pipeline: Any, step: int, _timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
            # Some samplers take more steps than they were asked for; the pipeline knows its real number.
            on_step(step + 1, getattr(pipeline, "num_timesteps", order.steps))
            if stopping():
                raise Stopped
            return kwargs

        wishes = {
            "prompt": order.positive,
            "negative_prompt": order.negative,
            "width": order.width // self._model.scale,
            "height": order.height // self._model.scale,
            "num_inference_steps": order.steps,
            "guidance_scale": order.guidance,
            # A generator of the CPU gives the same noise whatever the device is.
            "generator": torch.Generator("cpu").manual_seed(order.seed),
            "callback_on_step_end": after_step,
        }
        image = self._run({k: v for k, v in wishes.items() if k in self._accepts})
        if image is None:
            # Only here, where the fault's frames no longer hold the tensors, can their memory be given back.
            self._free()
            raise OutOfMemory
        return self._finish(image.convert("RGB"))

    def _run(self, wishes: dict[str, Any]) -> Image.Image | None:
        """None when the memory is not enough."""
        try:
            image: Image.Image = self._pipeline(**wishes).images[0]
        except (torch.OutOfMemoryError, MemoryError):
            return None
        except RuntimeError as exc:
            # The CPU's allocator has no error type of its own.
            if "can't allocate memory" in str(exc):
                return None
            raise
        return image

    def close(self) -> None:
        self._pipeline = None
        self._free()

    def _free(self) -> None:
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


def _download(model: Model) -> Path:
    """The model's folder in the hub's cache, where it may already be: then no network is needed."""
    return Path(
        DiffusionPipeline.download(
            model.source,
            revision=model.revision,
            variant=model.variant,
            use_safetensors=True,
            safety_checker=None,
        )
    )


def _dtype(name: str, device: str) -> torch.dtype:
    if name != "auto":
        dtype = getattr(torch, name)
        assert isinstance(dtype, torch.dtype)
        return dtype
    if device == "cpu":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def _sampler(model: Model, given: Any) -> Any:
    choices = {kind.__name__: kind for kind in getattr(given, "compatibles", ())}
    if model.sampler not in choices:
        raise ModelsError(
            f"models.{model.name}.sampler: {model.sampler!r} does not fit this model;"
            f" write one of {', '.join(sorted(choices))}"
        )
    return choices[model.sampler].from_config(given.config)


def _finisher(model: Model) -> Callable[[Image.Image], Image.Image]:
    """What happens to the pipeline's picture: nothing for most models, palette and whole pixels for pixel art."""
    if model.palette is None:
        return partial(pixelart.upscale, factor=model.scale) if model.scale > 1 else lambda image: image
    try:
        palettes = pixelart.read_palettes(model.palette)
    except (OSError, ValueError, TypeError) as exc:
        raise ModelsError(f"models.{model.name}.palette: {model.palette} is no palette file: {exc}") from exc

    def finish(image: Image.Image) -> Image.Image:
        return pixelart.upscale(pixelart.snap(image, palettes, model.cell), model.cell * model.scale)

    return finish


def _folder_revision(folder: Path) -> str:
    """A short name for exactly these weights: it changes when a file does."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in {".json", ".safetensors", ".txt"}):
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
        with path.open("rb") as file:
            if size <= _HASHED_WHOLE:
                digest.update(file.read())
            else:
                digest.update(file.read(2**20))
                file.seek(-(2**20), 2)
                digest.update(file.read())
    return digest.hexdigest()[:12]
