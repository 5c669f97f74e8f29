"""Loads a diffusers folder or a hub model, and knows how its pipelines want to be called."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline
from PIL import Image
from transformers import CLIPTokenizer

from handler.drawing import Order
from handler.guides import Reach, Steering, workable
from handler.log import fields, log
from handler.models import Model, ModelsError

#: A file up to this size goes into the revision whole; of a larger one its length, its beginning and its end.
_HASHED_WHOLE = 32 * 2**20
_NEEDED = frozenset({"prompt", "width", "height", "num_inference_steps", "generator"})
_NOTHING = Image.new("RGB", (64, 64))
"""What an IP-Adapter looks at, with no weight, when there is nothing to look at."""


class Pipelines:
    """The pipelines over one set of weights: ``text`` draws from nothing but text, ``start`` from a picture, ``edit``
    looks at pictures itself. The last two are None where the model can't."""

    def __init__(self, model: Model, given: Any) -> None:
        self._model = model
        self.given = given
        self.text = _without_references(model, given)
        self.edit = given if _edits(given) else None
        self.start = None if self.edit is not None else _image_to_image(given)
        for pipeline in {id(p): p for p in (given, self.text, self.start) if p is not None}.values():
            pipeline.set_progress_bar_config(disable=True)
            if hasattr(pipeline, "watermark"):
                # The gateway marks its pictures itself; a second mark would only spoil pixels.
                pipeline.watermark = None
        self.reach = Reach(
            edits=self.edit is not None, starts=self.start is not None, looks=model.ip_adapter is not None
        )
        if missing := _NEEDED - accepted(self.text):
            raise ModelsError(
                f"models.{model.name}.source: {type(self.text).__name__} does not draw from text"
                f" (it takes no {', '.join(sorted(missing))}); choose a text-to-image model"
            )
        if model.negative and not _heeds_negatives(model, self.text):
            raise ModelsError(
                f"models.{model.name}.negative: {type(self.text).__name__} heeds no negative prompt; write false"
            )

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that is called at every step."""
        network = getattr(self.given, "transformer", None) or getattr(self.given, "unet", None)
        if not isinstance(network, torch.nn.Module):
            raise ModelsError(f"models.{self._model.name}.source: {type(self.given).__name__} has no denoiser")
        return network

    def chosen(self, steering: Steering) -> Any:
        """The pipeline for these references."""
        if steering.edited:
            return self.edit
        return self.text if steering.start is None else self.start

    def arguments(self, order: Order, seeds: tuple[int, ...], steering: Steering) -> dict[str, Any]:
        """What to call the `chosen` pipeline with."""
        accepts = accepted(self.chosen(steering))
        scale = _guidance_argument(self._model, accepts)
        wishes: dict[str, Any] = {
            "prompt": order.positive,
            "negative_prompt": _negative(order, scale),
            "width": order.width // self._model.scale,
            "height": order.height // self._model.scale,
            "num_inference_steps": order.steps,
            "num_images_per_prompt": len(seeds),
            "max_sequence_length": self._model.family.max_tokens,
            # A generator of the CPU gives the same noise whatever the device is.
            "generator": [torch.Generator("cpu").manual_seed(seed) for seed in seeds],
        }
        if scale is not None:
            wishes[scale] = order.guidance
        if steering.edited:
            wishes["image"] = list(steering.edited)
        elif steering.start is not None:
            # One for each picture: with a single one, pipelines take the noise of the encoder from the first seed only.
            wishes["image"] = [steering.start] * len(seeds)
            wishes["strength"] = workable(steering.strength, order.steps)
        if self._model.ip_adapter is not None:
            wishes["ip_adapter_image"] = [list(steering.looked_at) or _NOTHING]
        return {k: v for k, v in wishes.items() if k in accepts and v is not None}

    def cuts(self, prompt: str) -> bool:
        """Whether every one of the model's readers stops before the end of the prompt."""
        parts = self.given.components.items()
        tokenizers = [part for name, part in parts if name.startswith("tokenizer") and part is not None]
        return bool(tokenizers) and all(self._stops_early(each, prompt) for each in tokenizers)

    def _stops_early(self, tokenizer: Any, prompt: str) -> bool:
        if isinstance(tokenizer, CLIPTokenizer):
            return len(tokenizer(prompt).input_ids) > int(tokenizer.model_max_length)
        family = self._model.family
        if family.max_tokens is None:
            return False
        # What looks at pictures too brings its tokenizer along.
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        before = _chat_before(tokenizer) if family.templated else ""
        return bool(len(tokenizer(before + prompt).input_ids) > family.max_tokens)


def accepted(pipeline: Any) -> frozenset[str]:
    """The arguments that the pipeline takes."""
    return _parameters(type(pipeline).__call__)


@cache
def _parameters(call: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(call).parameters)


def _chat_before(tokenizer: Any) -> str:
    """What a chat puts before the words of its user."""
    mark = "\0"
    chat = [{"role": "user", "content": mark}]
    text: str = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return text.partition(mark)[0]


def available_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def load(model: Model) -> tuple[Any, str]:
    """A pipeline in main memory, and a short name of its weights. Raises `ModelsError`."""
    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        folder = _download(model) if model.hub else Path(model.source)
        # Review is a stage of its own behind the worker; a checker here would only blacken pictures unseen.
        checked = "safety_checker" in DiffusionPipeline.load_config(folder)
        pipeline = DiffusionPipeline.from_pretrained(
            folder,
            dtype=_dtype(model.dtype, available_device()),
            variant=model.variant,
            # Pickled weights run code when they are loaded, so only safetensors are.
            use_safetensors=True,
            local_files_only=True,
            **({"safety_checker": None, "requires_safety_checker": False} if checked else {}),
        )
        if model.ip_adapter is not None:
            _load_ip_adapter(model, model.ip_adapter, pipeline)
    except ModelsError:
        raise
    except (OSError, ValueError, ImportError) as exc:
        raise ModelsError(f"models.{model.name}.source: {model.source} can't be loaded: {exc}") from exc
    if model.sampler is not None:
        pipeline.scheduler = _sampler(model, pipeline.scheduler)
    # The hub's cache names a folder after the commit in it.
    return pipeline, folder.name[:12] if model.hub else _folder_revision(folder)


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


def _load_ip_adapter(model: Model, file: Path, pipeline: Any) -> None:
    if not hasattr(pipeline, "load_ip_adapter"):
        raise ModelsError(f"models.{model.name}.ip_adapter: {type(pipeline).__name__} takes none; leave it out")
    if file.suffix != ".safetensors":
        raise ModelsError(
            f"models.{model.name}.ip_adapter: {file.name} is no .safetensors file;"
            " others can run code when they are read"
        )
    encoder = file.parent / "image_encoder"
    if not encoder.is_dir() and getattr(pipeline, "image_encoder", None) is None:
        raise ModelsError(
            f"models.{model.name}.ip_adapter: no folder image_encoder beside {file.name}; put the encoder there that it"
            " was trained with"
        )
    where = _encoder(pipeline, encoder if encoder.is_dir() else None)
    pipeline.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, local_files_only=True, **where)
    pipeline.set_ip_adapter_scale(0.0)


def _encoder(pipeline: Any, folder: Path | None) -> dict[str, Any]:
    """The arguments that say where the encoder is: their names differ between pipelines."""
    parameters = inspect.signature(pipeline.load_ip_adapter).parameters
    if "image_encoder_folder" in parameters:
        return {"image_encoder_folder": None if folder is None else folder.name}
    if "image_encoder_pretrained_model_name_or_path" in parameters:
        path = None if folder is None else str(folder)
        return {"image_encoder_pretrained_model_name_or_path": path, "image_encoder_dtype": pipeline.dtype}
    return {}


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
        fix = f"write one of {', '.join(sorted(choices))}" if choices else "leave it out"
        raise ModelsError(f"models.{model.name}.sampler: {model.sampler!r} does not fit this model; {fix}")
    kind = choices[model.sampler]
    # Some clip to the range of pixels unless told otherwise, which latents leave.
    clips = {"clip_sample": False} if "clip_sample" in inspect.signature(kind).parameters else {}
    return kind.from_config(given.config, **clips)


def _without_references(model: Model, given: Any) -> Any:
    """The given pipeline, or where that can't do without a reference the one that the family draws with then."""
    if model.family.from_text is None or type(given).__name__ == model.family.from_text:
        return given
    kind = getattr(diffusers, model.family.from_text)
    parts = {name: part for name, part in given.components.items() if name in inspect.signature(kind).parameters}
    return kind(**{**parts, "scheduler": _another_scheduler(given)})


def _edits(given: Any) -> bool:
    """Whether the pipeline looks at pictures itself: it takes some, and no strength, which would be a start."""
    return "image" in accepted(given) and "strength" not in accepted(given)


def _image_to_image(given: Any) -> Any:
    """The pipeline over the same components that starts from a picture; None where diffusers has none."""
    try:
        # A scheduler keeps the place where it began; the two kinds of drawing must not meet in one.
        sibling = AutoPipelineForImage2Image.from_pipe(given, scheduler=_another_scheduler(given))
    except ValueError as exc:
        log.debug("no image-to-image", extra=fields(pipeline=type(given).__name__, reason=str(exc)))
        return None
    return sibling if {"image", "strength"} <= accepted(sibling) else None


def _another_scheduler(pipeline: Any) -> Any:
    return type(pipeline.scheduler).from_config(pipeline.scheduler.config)


def _guidance_argument(model: Model, accepts: frozenset[str]) -> str | None:
    names = (model.family.guidance_argument, "guidance_scale", "true_cfg_scale")
    return next((name for name in names if name in accepts), None)


def _heeds_negatives(model: Model, pipeline: Any) -> bool:
    accepts = accepted(pipeline)
    if "negative_prompt" not in accepts:
        return False
    # Beside a distilled guidance, negative prompts are heeded only through the true one.
    return "true_cfg_scale" not in accepts or _guidance_argument(model, accepts) == "true_cfg_scale"


def _negative(order: Order, guidance_argument: str | None) -> str | None:
    if guidance_argument == "true_cfg_scale" and order.guidance > 1:
        # Without any negative prompt there would be no guidance at all.
        return order.negative or " "
    return order.negative


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
