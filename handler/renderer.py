"""Draws with any diffusers text-to-image folder. See `handler.drawing.Renderer`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from handler import memory, pixelart, speed
from handler.drawing import DeviceLost, Order, OutOfMemory, Stopped, Watch
from handler.guides import Steering, cover, steer, warning
from handler.log import fields, log
from handler.loras import LoraShelf, Wardrobe
from handler.memory import Ladder
from handler.models import Model, ModelsError
from handler.pipelines import Pipelines, available_device, load
from handler.previews import Previews

Finish = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Batch:
    """Some pictures of an order that are drawn at once; ``first`` is the index of the first."""

    order: Order
    first: int
    seeds: tuple[int, ...]
    steering: Steering


class DiffusersRenderer:
    """A model that was loaded once and draws many pictures. Made by `load`."""

    def __init__(
        self, model: Model, pipelines: Pipelines, revision: str, *, device: str, shelf: LoraShelf | None
    ) -> None:
        self._model = model
        self._pipelines = pipelines
        self._revision = revision
        self._shelf = shelf
        self._wardrobe = None if shelf is None else Wardrobe(pipelines.given, model)
        self._ladder = Ladder(model, pipelines.given, can_offload=device != "cpu")
        self._always_offloaded = device != "cpu" and model.offload == "always"
        self._snap, self._finish = _finishers(model)

    @classmethod
    def load(cls, model: Model, *, shelf: LoraShelf | None = None, threads: int = 1) -> DiffusersRenderer:
        """Blocks for seconds to minutes. Raises `ModelsError` if the model can't be what ``models.toml`` says."""
        clock = _Clock()
        given, revision = load(model)
        clock.lap("weights")
        return cls.over(model, given, revision, shelf=shelf, threads=threads, clock=clock)

    @classmethod
    def over(
        cls,
        model: Model,
        given: Any,
        revision: str,
        *,
        shelf: LoraShelf | None = None,
        threads: int = 1,
        clock: _Clock | None = None,
    ) -> DiffusersRenderer:
        """Over a pipeline that is in main memory already. Raises `ModelsError`."""
        clock = clock or _Clock()
        device = available_device()
        speed.prepare(device, threads)
        pipelines = Pipelines(model, given)
        speed.shrink(model, pipelines.denoiser)
        if model.offload == "always" and device != "cpu":
            given.enable_model_cpu_offload()
        else:
            given.to(device)
        clock.lap("move")
        speed.tune(model, given, pipelines.denoiser, device)
        clock.lap("speed")
        log.info("load timing", extra=fields(model=model.name, device=device, seconds=clock.laps))
        return cls(model, pipelines, revision, device=device, shelf=shelf)

    @property
    def sampler(self) -> str:
        return type(self._pipelines.text.scheduler).__name__

    @property
    def revision(self) -> str:
        return self._revision

    def cuts(self, prompt: str) -> bool:
        """See `Renderer.cuts`."""
        return self._pipelines.cuts(prompt)

    def draw(self, order: Order, watch: Watch) -> Iterator[Image.Image]:
        """See `Renderer.draw`. The same order gives the same bytes on the same kind of device."""
        if watch.stopping():
            raise Stopped
        self._dress(order)
        steering = self._steer(order, watch)
        pixels = order.width * order.height
        self._ladder.begin(pixels, watch)
        first = 0
        while first < len(order.seeds):
            at_once = self._ladder.at_once(len(order.seeds) - first, pixels)
            batch = _Batch(order=order, first=first, seeds=order.seeds[first : first + at_once], steering=steering)
            images = self._attempt(partial(self._draw_batch, batch, watch))
            if images is None:
                # Only here, where the fault's frames no longer hold the tensors, can their memory be given back.
                memory.free()
                self._ladder.climb(at_once, pixels, watch)
                continue
            for image in images:
                yield self._finish(image.convert("RGB"))
            first += at_once

    def close(self) -> None:
        del self._pipelines, self._wardrobe, self._ladder
        memory.free()

    def _dress(self, order: Order) -> None:
        def wear() -> bool:
            if self._shelf is None or self._wardrobe is None:
                assert not order.loras, "an order with LoRAs needs a shelf"
                return True
            self._wardrobe.wear([self._shelf.worn(lora.name, lora.strength) for lora in order.loras])
            return True

        if self._attempt(wear) is None:
            memory.free()
            raise OutOfMemory

    def _steer(self, order: Order, watch: Watch) -> Steering:
        size = (order.width // self._model.scale, order.height // self._model.scale)
        steering = steer(order.guides, self._pipelines.reach, size)
        if order.guides:
            watch.used_references(steering.used)
            if sentence := warning(self._model.name, len(order.guides), steering.used):
                watch.warn(sentence)
        return steering

    def _attempt(self, work: Callable[[], Any]) -> Any:
        """None when the memory is not enough."""
        try:
            return work()
        except (RuntimeError, MemoryError) as exc:
            if memory.is_shortage(exc):
                return None
            if memory.is_loss(exc):
                raise DeviceLost(str(exc)) from exc
            raise

    def _draw_batch(self, batch: _Batch, watch: Watch) -> list[Image.Image]:
        pipeline = self._pipelines.chosen(batch.steering)
        # A preview from parts that wait in main memory would move the whole model out of the way and back.
        every = 0 if self._offloaded else batch.order.preview_every
        previews = Previews(pipeline, replace(batch.order, preview_every=every), self._model, self._snap)

        def after_step(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            # Some samplers take more steps than they were asked for; the pipeline knows its real number.
            steps = getattr(pipeline, "num_timesteps", batch.order.steps)
            watch.step(batch.first, len(batch.seeds), step + 1, steps)
            if watch.stopping():
                raise Stopped
            if (preview := previews.after(step + 1, steps, timestep, tensors.get("latents"))) is not None:
                watch.preview(batch.first, preview)
            return tensors

        arguments = self._pipelines.arguments(batch.order, batch.seeds, batch.steering)
        if self._model.ip_adapter is not None:
            pipeline.set_ip_adapter_scale(batch.steering.weight)
        try:
            with speed.fresh_step_cache(self._model, pipeline, self._pipelines.denoiser):
                images = pipeline(**arguments, callback_on_step_end=after_step).images
        finally:
            if self._model.ip_adapter is not None:
                pipeline.set_ip_adapter_scale(0.0)
            self._rest()
        # A pipeline that chose another size than it was asked for.
        size = (batch.order.width // self._model.scale, batch.order.height // self._model.scale)
        return [cover(image, size) for image in images]

    @property
    def _offloaded(self) -> bool:
        return self._ladder.offloaded or self._always_offloaded

    def _rest(self) -> None:
        """Parts that wait in main memory go back there, though the drawing broke off or was another pipeline's."""
        if self._offloaded:
            self._pipelines.given.maybe_free_model_hooks()


class _Clock:
    """Seconds of each part of a longer work."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._mark = time.perf_counter()

    def lap(self, part: str) -> None:
        now = time.perf_counter()
        self.laps[part] = round(now - self._mark, 3)
        self._mark = now


def _finishers(model: Model) -> tuple[Finish, Finish]:
    """What makes a preview of the pipeline's picture, and what makes the picture: nothing for most models, palette and
    whole pixels for pixel art."""
    if model.palette is None:
        return _as_it_is, partial(pixelart.upscale, factor=model.scale) if model.scale > 1 else _as_it_is
    try:
        palettes = pixelart.read_palettes(model.palette)
    except (OSError, ValueError, TypeError) as exc:
        raise ModelsError(f"models.{model.name}.palette: {model.palette} is no palette file: {exc}") from exc

    def snap(image: Image.Image) -> Image.Image:
        return pixelart.snap(image, palettes, model.cell)

    def finish(image: Image.Image) -> Image.Image:
        return pixelart.upscale(snap(image), model.cell * model.scale)

    return snap, finish


def _as_it_is(image: Image.Image) -> Image.Image:
    return image
