"""What is done when the memory is not enough, and which faults say so."""

from __future__ import annotations

import gc
from typing import Any

import torch

from handler.drawing import OutOfMemory, Watch
from handler.log import fields, log
from handler.models import Model

#: The allocators of the CPU and of CUDA's libraries have no error type of their own.
_SHORTAGES = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")
#: After these every further call fails too, until another process makes a context of its own.
_LOSSES = (
    "CUDA error",
    "device-side assert",
    "unspecified launch failure",
    "illegal memory access",
    "STATUS_EXECUTION_FAILED",
    "STATUS_INTERNAL_ERROR",
    "STATUS_MAPPING_ERROR",
)
_FORGIVES_AFTER = 20
"""Orders. What filled the memory may have been another program's, and it may have gone."""


def is_shortage(fault: BaseException) -> bool:
    """Whether there was not enough memory, on the device or beside it."""
    if isinstance(fault, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in _SHORTAGES)


def is_loss(fault: BaseException) -> bool:
    """Whether the GPU's context is broken. A shortage is none."""
    if is_shortage(fault):
        return False
    if isinstance(fault, torch.AcceleratorError):
        return True
    return isinstance(fault, RuntimeError) and any(sign in str(fault) for sign in _LOSSES)


def free() -> None:
    """Give back what nothing holds any more. Of use only after the fault's frames are gone."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Ladder:
    """What was given up because the memory was not enough, rung by rung: pictures at once, whole decoding, and that
    the whole model stays on the device. Larger pictures meet what smaller ones do not, so rungs belong to a size."""

    def __init__(self, model: Model, pipeline: Any, *, can_offload: bool) -> None:
        self._model = model
        self._pipeline = pipeline
        self._can_offload = can_offload and model.offload == "auto"
        self._forget()

    @property
    def offloaded(self) -> bool:
        return self._offloaded

    _offloaded = False

    def _forget(self) -> None:
        self._most_pixels: float = float("inf")
        self._tiled_from: float = float("inf")
        self._orders = 0

    def begin(self, pixels: int, watch: Watch) -> None:
        """Before the first step of an order of pictures with so many pixels each."""
        self._orders += 1
        if self._orders > _FORGIVES_AFTER:
            self._forget()
        if self._tile(pixels):
            watch.warn(_TILED)

    def at_once(self, pictures: int, pixels: int) -> int:
        """How many of the pictures to draw at once."""
        fitting = max(1, int(min(self._model.batch, self._most_pixels // pixels)))
        return min(pictures, fitting)

    def climb(self, at_once: int, pixels: int, watch: Watch) -> None:
        """After the memory was not enough for so many pictures. Raises `OutOfMemory` from the last rung."""
        rung = self._climb(at_once, pixels)
        log.warning("memory not enough", extra=fields(model=self._model.name, at_once=at_once, now=rung))
        watch.warn(rung)

    def _climb(self, at_once: int, pixels: int) -> str:
        self._orders = 0
        if at_once > 1:
            self._most_pixels = at_once // 2 * pixels
            return f"the memory was not enough for {at_once} pictures at once; {at_once // 2} at a time were drawn"
        if pixels < self._tiled_from and _can_tile(self._pipeline):
            self._tiled_from = pixels
            self._tile(pixels)
            return _TILED
        if self._can_offload and not self._offloaded:
            self._offloaded = True
            self._pipeline.enable_model_cpu_offload()
            return "the memory was not enough; parts of the model waited in main memory, which takes longer"
        raise OutOfMemory

    def _tile(self, pixels: int) -> bool:
        if not _can_tile(self._pipeline):
            return False
        tiled = pixels >= self._tiled_from
        vae = self._pipeline.vae
        for switch in (vae.enable_tiling, vae.enable_slicing) if tiled else (vae.disable_tiling, vae.disable_slicing):
            switch()
        return tiled


_TILED = "the memory was not enough; the picture was put together from tiles, whose seams can show"


def _can_tile(pipeline: Any) -> bool:
    # Every autoencoder has the methods; those that can't do it lack the state.
    vae = getattr(pipeline, "vae", None)
    return hasattr(vae, "use_tiling") and hasattr(vae, "use_slicing")
