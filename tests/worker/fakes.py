"""A renderer that draws flat colours and lets a test stand between its steps; and what jobs and models look like."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from handler.contract import Job, job_to_wire
from handler.drawing import OnStep, Order, Stopped
from handler.models import Model, Models

PATIENCE = 10.0
"""No wait in these tests is longer, however busy the machine is."""


class FlatRenderer:
    """Follows `Renderer`. With a ``gate``, each step waits until the test lets it through."""

    sampler = "Flat"
    revision = "flat-1"

    def __init__(self, *, gate: threading.Semaphore | None = None, draw: Callable[[Order], Image.Image] | None = None):
        self._gate = gate
        self._draw = draw or self._flat
        self.orders: list[Order] = []
        self.at_work = 0
        self.most_at_work = 0
        self.step_begun = threading.Event()
        self.closed = False

    def cuts(self, prompt: str) -> bool:
        return len(prompt) > 1000

    def draw(self, order: Order, on_step: OnStep, stopping: Callable[[], bool]) -> Image.Image:
        self.orders.append(order)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            for step in range(order.steps):
                self.step_begun.set()
                if self._gate is not None:
                    assert self._gate.acquire(timeout=PATIENCE)
                on_step(step + 1, order.steps)
                if stopping():
                    raise Stopped
            return self._draw(order)
        finally:
            self.at_work -= 1

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _flat(order: Order) -> Image.Image:
        return Image.new("RGB", (order.width, order.height), (order.seed % 256, 10, 20))


def model(name: str = "flat", **changes: Any) -> Model:
    given = Model(name=name, source=str(Path("nowhere")), family="sd15", steps=4, max_steps=50, guidance=4.0)
    return replace(given, **changes)


def models(*given: Model, keep_loaded: int = 1) -> Models:
    given = given or (model(),)
    return Models(by_name={m.name: m for m in given}, warm=(given[0].name,), keep_loaded=keep_loaded)


def job(**changes: Any) -> Job:
    given = Job(
        id="run_1",
        request_id="req_1",
        model="flat",
        positive="a secret hill",
        negative="fog",
        width=64,
        height=64,
        seed=7,
    )
    return replace(given, **changes)


def sdk_job(given: Job | None = None, **changes: Any) -> dict[str, Any]:
    """As the SDK hands it to the handler."""
    return {"id": "sdk-1", "input": job_to_wire(given or job(**changes))}
