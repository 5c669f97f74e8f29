"""A renderer that draws flat colours and lets a test stand between its steps; and what jobs and models look like."""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from aiohttp import web
from PIL import Image

from handler.contract import Job, Reference, job_to_wire
from handler.drawing import Order, Stopped, Watch
from handler.families import FAMILIES
from handler.models import LoraSource, Model, Models

PATIENCE = 10.0
"""No wait in these tests is longer, however busy the machine is."""


class FlatRenderer:
    """Follows `Renderer`, one picture at a time. With a ``gate``, each step waits until the test lets it through."""

    sampler = "Flat"
    revision = "flat-1"

    def __init__(
        self, *, gate: threading.Semaphore | None = None, paint: Callable[[Order, int], Image.Image] | None = None
    ):
        self._gate = gate
        self._paint = paint or self._flat
        self.orders: list[Order] = []
        self.at_work = 0
        self.most_at_work = 0
        self.step_begun = threading.Event()
        self.closed = False

    def cuts(self, prompt: str) -> bool:
        return len(prompt) > 1000

    def draw(self, order: Order, watch: Watch) -> Iterator[Image.Image]:
        self.orders.append(order)
        if order.guides:
            watch.used_references(1)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            for picture, seed in enumerate(order.seeds):
                for step in range(order.steps):
                    self.step_begun.set()
                    if self._gate is not None:
                        assert self._gate.acquire(timeout=PATIENCE)
                    image = self._flat(order, seed)
                    if order.preview_every and (step + 1) % order.preview_every == 0:
                        watch.preview(picture, image)
                    self.after_step(watch, picture, step + 1, order)
                    if watch.stopping():
                        raise Stopped
                yield self._paint(order, seed)
        finally:
            self.at_work -= 1

    def after_step(self, watch: Watch, picture: int, step: int, order: Order) -> None:
        watch.step(picture, 1, step, order.steps)

    def close(self) -> None:
        self.closed = True

    @staticmethod
    def _flat(order: Order, seed: int) -> Image.Image:
        return Image.new("RGB", (order.width, order.height), (seed % 256, 10, 20))


def model(name: str = "flat", **changes: Any) -> Model:
    given = Model(name=name, source=str(Path("nowhere")), family=FAMILIES["sd15"], steps=4, max_steps=50, guidance=4.0)
    return replace(given, **changes)


def models(*given: Model, keep_loaded: int = 1, loras: Mapping[str, str] | None = None) -> Models:
    """``loras`` are names with the families that they are for."""
    given = given or (model(),)
    sources = {
        name: LoraSource(name=name, source=f"{name}.safetensors", family=FAMILIES[family])
        for name, family in (loras or {}).items()
    }
    return Models(by_name={m.name: m for m in given}, warm=(given[0].name,), keep_loaded=keep_loaded, loras=sources)


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


class Gallery:
    """Serves reference pictures at addresses that look signed."""

    def __init__(self) -> None:
        self.url = ""
        self.statuses: dict[str, list[int]] = {}
        self._bodies: dict[str, bytes] = {}

    async def open(self) -> None:
        app = web.Application()
        app.router.add_get("/{name}", self._get)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def close(self) -> None:
        await self._runner.cleanup()

    def reference(self, name: str, image: Image.Image, **changes: Any) -> Reference:
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return replace(self.hang_up(name, buffer.getvalue()), **changes)

    def hang_up(self, name: str, body: bytes) -> Reference:
        self._bodies[name] = body
        return Reference(url=f"{self.url}/{name}?sig=abc%2Fdef", sha256=hashlib.sha256(body).hexdigest())

    async def _get(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        # A signed address must arrive as it was signed.
        if request.raw_path != f"/{name}?sig=abc%2Fdef":
            return web.Response(status=403)
        if self.statuses.get(name):
            return web.Response(status=self.statuses[name].pop(0), headers={"Location": "/elsewhere"})
        return web.Response(body=self._bodies[name])
