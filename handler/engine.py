"""The worker's way to torch: importing this module takes seconds, so that is done after all that can fail quickly."""

from __future__ import annotations

import torch

from handler.loras import LoraShelf
from handler.models import Model, Models
from handler.renderer import DiffusersRenderer
from handler.settings import Settings


class DiffusersEngine:
    """Follows `handler.start.Engine`."""

    def __init__(self, settings: Settings, models: Models) -> None:
        self._threads = settings.threads
        self._warm_loras = models.warm_loras
        self._shelf = LoraShelf(models.loras, memory=models.lora_memory)

    def free_gpu_memory(self) -> list[int]:
        if not torch.cuda.is_available():
            return []
        return [torch.cuda.mem_get_info(device)[0] for device in range(torch.cuda.device_count())]

    def load(self, model: Model) -> DiffusersRenderer:
        return DiffusersRenderer.load(model, shelf=self._shelf, threads=self._threads)

    def warm_loras(self) -> None:
        for name in self._warm_loras:
            self._shelf.take(name)
