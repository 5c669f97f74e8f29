"""What makes a loaded model quicker or smaller: the settings of `Model` for it, each put to work in its one place."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from diffusers import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from handler.models import Model, ModelsError


def prepare(device: str, threads: int) -> None:
    """Once per process or more often. ``threads`` are the CPU's."""
    torch.set_num_threads(threads)
    if device == "cuda":
        # Of the GPU alone: the wider setting would make the CPU's products coarse too, and LoRAs are added up there.
        torch.backends.cuda.matmul.allow_tf32 = True
        torch.backends.cudnn.allow_tf32 = True
        torch.backends.cudnn.benchmark = True


def shrink(model: Model, denoiser: Any) -> None:
    """Before the weights move to the device, so that they never stand there whole. Raises `ModelsError`."""
    if not model.float8:
        return
    if model.compile:
        # What widens the weights for each layer can't be compiled with it: SDXL's architecture took three times as long
        # on an H200 as without either.
        raise ModelsError(f"models.{model.name}: float8 and compile together are slower than neither; leave one out")
    if not hasattr(denoiser, "enable_layerwise_casting"):
        raise _cannot(model, "float8", denoiser)
    denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=denoiser.dtype)


def tune(model: Model, pipeline: Any, denoiser: Any, device: str) -> None:
    """After the weights have moved. Raises `ModelsError` for what this model can't do."""
    if model.attention is not None:
        _choose_attention(model, model.attention, denoiser)
    if model.step_cache:
        _enable_step_cache(model, denoiser)
    if model.compile:
        if device == "cuda":
            _channels_last(pipeline)
        _compile(model, denoiser)


def _channels_last(pipeline: Any) -> None:
    """The order of numbers that convolutions on a GPU like best. Only for compiled code: torch's own group norm copies
    to the other order and back around each of them.
    """
    for name in ("unet", "vae"):
        # Convolutions over time have five dimensions and another such order.
        part = getattr(pipeline, name, None)
        if part is not None and not any(isinstance(module, torch.nn.Conv3d) for module in part.modules()):
            part.to(memory_format=torch.channels_last)


def _choose_attention(model: Model, backend: str, denoiser: Any) -> None:
    choices = sorted(each.value for each in AttentionBackendName if not each.value.startswith("_"))
    if backend not in [each.value for each in AttentionBackendName]:
        raise ModelsError(
            f"models.{model.name}.attention: {backend!r} is unknown; write one of {', '.join(choices)}"
        ) from None
    processors = getattr(denoiser, "attn_processors", {}).values()
    if not any(hasattr(each, "_attention_backend") for each in processors):
        raise _cannot(model, "attention", denoiser)
    try:
        # Setting it for one model also sets it for all that come after, unless this puts it back.
        with attention_backend("native"):
            denoiser.set_attention_backend(backend)
    except (RuntimeError, ValueError, ImportError) as exc:
        raise ModelsError(f"models.{model.name}.attention: {backend!r} can't be used here: {exc}") from exc


def _enable_step_cache(model: Model, denoiser: Any) -> None:
    if not hasattr(denoiser, "enable_cache"):
        raise _cannot(model, "step_cache", denoiser)
    try:
        denoiser.enable_cache(FirstBlockCacheConfig(threshold=model.step_cache))
    except (ValueError, IndexError) as exc:
        raise _cannot(model, "step_cache", denoiser) from exc


def _compile(model: Model, denoiser: Any) -> None:
    if getattr(denoiser, "_repeated_blocks", None) and not _is_unet(denoiser):
        # Orders come in many sizes: one program for all of them, rather than a minute's wait at each new one.
        # The step cache decides in Python whether to go on, in the middle of what would be one graph.
        denoiser.compile_repeated_blocks(fullgraph=not model.step_cache, dynamic=True)
    else:
        # Much of a UNet's work is done between its repeated blocks: SDXL's architecture with these alone was a sixth
        # quicker on an H200. The first size has a program for itself, all others have a second one.
        denoiser.compile()


def _is_unet(denoiser: Any) -> bool:
    return any(isinstance(module, torch.nn.GroupNorm) for module in denoiser.modules())


def _cannot(model: Model, key: str, denoiser: Any) -> ModelsError:
    return ModelsError(f"models.{model.name}.{key}: {type(denoiser).__name__} can't do it; leave it out")


@contextmanager
def fresh_step_cache(model: Model, pipeline: Any, denoiser: Any) -> Iterator[None]:
    """While a batch is drawn: no step of another one is remembered."""
    if not model.step_cache:
        yield
        return
    denoiser._reset_stateful_cache()
    if _names_its_calls(type(pipeline).__call__):
        yield
        return
    # The cache must know which of a step's calls it is in; with one call per step there is nothing to tell.
    with denoiser.cache_context("only"):
        yield


@cache
def _names_its_calls(call: Callable[..., Any]) -> bool:
    return "cache_context" in inspect.getsource(call)
