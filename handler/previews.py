"""Small pictures of how far a drawing is. They cost one small decoding each and never change the drawing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

from handler.drawing import Order
from handler.log import fields, log
from handler.models import Model

LARGEST = 256
"""Pixels on the longer side."""

#: Samplers whose steps lead from one mixture of picture and noise to another of the same two, so that both can be told
#: from two steps. The first ones add noise in units of their sigmas, the second ones keep the whole at one.
_STRAIGHT = ("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler")
_CURVED = ("DDIMScheduler", "PNDMScheduler")


class Previews:
    """Of the first picture of one batch."""

    def __init__(self, pipeline: Any, order: Order, model: Model, finish: Callable[[Image.Image], Image.Image]) -> None:
        self._pipeline = pipeline
        self._every = order.preview_every
        self._size = (order.width // model.scale, order.height // model.scale)
        self._finish = finish
        self._last: torch.Tensor | None = None

    def after(self, step: int, steps: int, timestep: Any, latents: Any) -> Image.Image | None:
        """A preview when one is due; none after the last step, when the picture itself is near.

        ``timestep`` is where the step began, ``latents`` where it ended.
        """
        if not self._every or not isinstance(latents, torch.Tensor):
            return None
        last, self._last = self._last, latents[:1]
        if step % self._every or step >= steps:
            return None
        try:
            return self._draw(_clean(self._pipeline.scheduler, int(timestep), last, latents[:1]))
        except Exception as exc:  # noqa: BLE001 - nothing that goes wrong here may cost the picture
            log.debug("no preview", extra=fields(reason=repr(exc)))
            self._every = 0
            return None

    def _draw(self, latents: torch.Tensor) -> Image.Image:
        vae = self._pipeline.vae
        if vae.dtype == torch.float16 and getattr(vae.config, "force_upcast", False):
            raise ValueError("this autoencoder overflows in half precision")
        latents = _for_decoder(self._pipeline, latents.to(vae.dtype), self._size)
        pixels = vae.decode(_pooled(latents, self._size), return_dict=False)[0]
        if pixels.ndim == 5:
            pixels = pixels[:, :, 0]
        image: Image.Image = self._pipeline.image_processor.postprocess(pixels.detach(), output_type="pil")[0]
        image = self._finish(image.convert("RGB"))
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
        return image


def _clean(scheduler: Any, timestep: int, last: torch.Tensor | None, latents: torch.Tensor) -> torch.Tensor:
    """What the latents will be without their noise, where the sampler lets it be told; the latents as they are else."""
    config = scheduler.config
    # A configuration that was taken over from another sampler still has that one's settings.
    predicted: torch.Tensor | None = getattr(scheduler, "model_outputs", [None])[-1]
    if predicted is not None and (
        getattr(config, "predict_x0", False) or getattr(config, "algorithm_type", "").endswith("++")
    ):
        return predicted[:1].float()
    if last is None:
        return latents
    if type(scheduler).__name__ in _STRAIGHT:
        return _meeting(
            last, latents, *((1.0, float(scheduler.sigmas[scheduler.step_index - back])) for back in (1, 0))
        )
    if type(scheduler).__name__ in _CURVED:
        steps = config.num_train_timesteps // scheduler.num_inference_steps
        return _meeting(last, latents, *(_mixture(scheduler, timestep - back) for back in (0, steps)))
    return latents


def _meeting(
    last: torch.Tensor, latents: torch.Tensor, before: tuple[float, float], now: tuple[float, float]
) -> torch.Tensor:
    """The clean latents of which both are mixtures with the same noise, each given by the parts of the two in it."""
    return (now[1] * last.float() - before[1] * latents.float()) / (now[1] * before[0] - before[1] * now[0])


def _mixture(scheduler: Any, timestep: int) -> tuple[float, float]:
    left = float(scheduler.alphas_cumprod[timestep] if timestep >= 0 else scheduler.final_alpha_cumprod)
    return math.sqrt(left), math.sqrt(1 - left)


def _for_decoder(pipeline: Any, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """The latents of a denoiser in the shape and the range that the autoencoder decodes."""
    config = pipeline.vae.config
    if latents.ndim == 3:
        latents = _unpacked(pipeline, latents, size)
    if (norm := getattr(pipeline.vae, "bn", None)) is not None:
        spread = torch.sqrt(norm.running_var + config.batch_norm_eps)
        latents = latents * _channels(spread, latents) + _channels(norm.running_mean, latents)
        unpatched: torch.Tensor = pipeline._unpatchify_latents(latents)
        return unpatched
    scaling = getattr(config, "scaling_factor", None) or 1.0
    means, spreads = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if means is not None and spreads is not None:
        return latents * _channels(torch.tensor(spreads), latents) / scaling + _channels(torch.tensor(means), latents)
    return latents / scaling + (getattr(config, "shift_factor", None) or 0.0)


def _unpacked(pipeline: Any, latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    width, height = size
    if hasattr(pipeline, "_unpack_latents"):
        unpacked: torch.Tensor = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
        return unpacked
    side = pipeline.vae_scale_factor * 2
    return latents.transpose(1, 2).reshape(1, latents.shape[2], height // side, width // side)


def _channels(values: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return values.to(like.device, like.dtype).view(1, -1, *[1] * (like.ndim - 2))


def _pooled(latents: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Averaged in squares, so that the decoded picture is small."""
    side = min(math.ceil(max(size) / LARGEST), *latents.shape[-2:])
    if latents.ndim == 5:
        return torch.nn.functional.avg_pool3d(latents, (1, side, side))
    return torch.nn.functional.avg_pool2d(latents, side)
