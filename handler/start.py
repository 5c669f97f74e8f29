"""The start of a worker: what is looked at, imported, loaded and drawn before the first job, in which order.

Everything that takes milliseconds and can fail comes first, then torch's import, then the weights. All of it is handed
to the SDK as fitness checks (`checks`): a failure is told to RunPod with its sentence and ends the process at once.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from handler import fitness
from handler.drawing import Renderer
from handler.log import fields, log
from handler.models import Model, Models
from handler.settings import Settings
from handler.warm import draw_once
from handler.worker import Worker


class Engine(Protocol):
    """What loads models. Made by importing torch."""

    def free_gpu_memory(self) -> list[int]:
        """Bytes, one number for each GPU that can be used."""
        ...

    def load(self, model: Model) -> Renderer: ...

    def warm_loras(self) -> None:
        """Read the LoRAs that must be there before the first job. Raises `LoraUnfit`."""
        ...


class Start:
    """One start. ``import_engine`` imports torch and makes the engine."""

    def __init__(self, settings: Settings, models: Models, import_engine: Callable[[Settings, Models], Engine]) -> None:
        self._settings = settings
        self._models = models
        self._import_engine = import_engine
        self._engine: Engine | None = None
        self._ready = False
        self._began = time.perf_counter()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def timed(self, phase: str) -> Iterator[None]:
        """Adds what is done meanwhile to the seconds of a phase."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - begun

    def engine(self) -> Engine:
        if self._engine is None:
            with self.timed("import_torch"), _no_collection():
                self._engine = self._import_engine(self._settings, self._models)
        return self._engine

    def load(self, model: Model) -> Renderer:
        """The worker's loader. Before the first job a model also draws a picture, if the operator wants that."""
        engine = self.engine()
        if self._ready:
            return engine.load(model)
        with self.timed("load"):
            renderer = engine.load(model)
        if self._settings.warm_picture is not None:
            with self.timed("first_picture"):
                draw_once(renderer, model, self._settings.warm_picture)
        return renderer

    def checks(self, worker: Worker) -> list[Callable[[], None]]:
        """In their order; the SDK logs their names. They raise `fitness.Unfit`, the last one `ModelsError`, `LoraUnfit`
        and what drawing raises."""
        settings, models = self._settings, self._models

        def model_files() -> None:
            with self.timed("checks"):
                warm = [models.by_name[name] for name in models.warm]
                fitness.check_models(warm, hub_cache=settings.hub_cache, offline=settings.offline)
                fitness.check_loras(models.loras[name] for name in models.warm_loras)

        def disk_space() -> None:
            with self.timed("checks"):
                fitness.check_disk(settings.hub_cache, settings.min_disk)

        def gateway_answers() -> None:
            with self.timed("gateway"):
                fitness.check_gateway(settings.gateway_url)

        def gpu() -> None:
            engine = self.engine()
            with self.timed("gpu"):
                free = engine.free_gpu_memory() if settings.require_gpu or settings.min_gpu_memory else []
                fitness.check_gpu(free, require=settings.require_gpu, least=settings.min_gpu_memory)

        def models_are_loaded() -> None:
            worker.warm()
            with self.timed("load"):
                self.engine().warm_loras()
            self._ready = True
            self._tell()

        return [model_files, disk_space, gateway_answers, gpu, models_are_loaded]

    def _tell(self) -> None:
        total = time.perf_counter() - self._began
        log.info(
            "worker ready",
            extra=fields(
                models=list(self._models.by_name),
                loras=list(self._models.loras),
                warm=[*self._models.warm, *self._models.warm_loras],
                threads=self._settings.threads,
                seconds={phase: round(each, 3) for phase, each in {**self.seconds, "total": total}.items()},
            ),
        )


@contextmanager
def _no_collection() -> Iterator[None]:
    """What imports make stays for good: to look for garbage among it again and again takes a sixth of their time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.freeze()
