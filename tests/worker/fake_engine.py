"""``python fake_engine.py KIND``: the worker's own main program around a renderer without torch.

``lost`` breaks its GPU at the second picture; ``flat`` draws. Started by the tests, in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from PIL import Image

from handler.__main__ import main
from handler.drawing import DeviceLost, Order, Watch
from handler.models import Model, Models
from handler.settings import Settings
from tests.worker.fakes import FlatRenderer


class Breaking(FlatRenderer):
    def draw(self, order: Order, watch: Watch) -> Iterator[Image.Image]:
        if len(self.orders) == 1:
            raise DeviceLost from RuntimeError("CUDA error: an illegal memory access was encountered")
        return super().draw(order, watch)


class FakeEngine:
    def __init__(self, kind: str) -> None:
        self._kind = kind

    def free_gpu_memory(self) -> list[int]:
        return [24 * 2**30]

    def load(self, model: Model) -> FlatRenderer:
        return Breaking() if self._kind == "lost" else FlatRenderer()

    def warm_loras(self) -> None:
        pass


def import_engine(settings: Settings, models: Models) -> FakeEngine:
    return FakeEngine(sys.argv.pop(1))


if __name__ == "__main__":
    sys.exit(main(import_engine))
