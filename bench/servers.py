"""What the gateway is measured against: a bare route, an endpoint that costs nothing, and one that has drawn before."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import io
import itertools
import os
from typing import Any

import httpx
import numpy as np
import orjson
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from handler import contract

_ids = itertools.count()


async def _echo(request: Request) -> Response:
    return Response(orjson.dumps(orjson.loads(await request.body())), media_type="application/json")


async def _run(request: Request) -> Response:
    return Response(
        orjson.dumps({"id": f"{os.getpid()}-{next(_ids)}-e1", "status": "IN_QUEUE"}), media_type="application/json"
    )


async def _status(request: Request) -> Response:
    return Response(
        orjson.dumps({"id": request.path_params["job"], "status": "IN_QUEUE"}), media_type="application/json"
    )


#: What a Starlette route costs that parses JSON and answers it.
echo = Starlette(routes=[Route("/api/v2", _echo, methods=["POST"])])
#: Takes every job and never draws one.
endpoint = Starlette(
    routes=[
        Route("/v2/bench/run", _run, methods=["POST"]),
        Route("/v2/bench/status/{job}", _status),
    ]
)


def photo(width: int, height: int, seed: int = 1) -> Image.Image:
    """Something with the statistics of a photograph: noise whose power falls with the frequency, and some grain."""
    chance = np.random.default_rng(seed)
    rows, columns = np.fft.fftfreq(height)[:, None] * height, np.fft.rfftfreq(width)[None, :] * width
    falling = 1 / np.maximum(1, np.hypot(rows, columns)) ** 1.3
    waves = [np.fft.rfft2(chance.standard_normal((height, width))) * falling for _ in range(4)]
    planes = [np.fft.irfft2(waves[3] + 0.4 * wave, (height, width)) for wave in waves[:3]]
    values = np.stack([45 * (plane - plane.mean()) / plane.std() + 128 for plane in planes], -1)
    return Image.fromarray(np.clip(values + chance.normal(0, 1.5, values.shape), 0, 255).astype(np.uint8))


@functools.cache
def _drawn(width: int, height: int) -> bytes:
    out = io.BytesIO()
    photo(width, height).save(out, "PNG", compress_level=1)
    return out.getvalue()


class Painter:
    """Uploads a picture for each job at once, and says that it is done when it is told to."""

    def __init__(self) -> None:
        self._orders: dict[str, contract.Job] = {}
        self._uploads: set[asyncio.Task[Any]] = set()
        self._told = False

    def routes(self) -> list[Route]:
        return [
            Route("/v2/bench/run", self._run, methods=["POST"]),
            Route("/v2/bench/status/{job}", self._status),
            Route("/uploaded", self._all),
            Route("/go", self._go, methods=["POST"]),
        ]

    async def _run(self, request: Request) -> Response:
        order = contract.job_from_wire(orjson.loads(await request.body())["input"])
        name = f"{next(_ids)}-e1"
        self._orders[name] = order
        task = asyncio.create_task(self._upload(order))
        self._uploads.add(task)
        task.add_done_callback(self._uploads.discard)
        return _json({"id": name, "status": "IN_QUEUE"})

    async def _upload(self, order: contract.Job) -> None:
        (slot,) = order.uploads
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            data = _drawn(order.width, order.height)
            (await http.put(slot.url, content=data, headers=dict(slot.headers))).raise_for_status()

    async def _all(self, request: Request) -> Response:
        """Answers when everything is uploaded."""
        await asyncio.gather(*self._uploads)
        return _json(True)

    async def _status(self, request: Request) -> Response:
        name = request.path_params["job"]
        if not self._told:
            return _json({"id": name, "status": "IN_PROGRESS"})
        order = self._orders[name]
        data = _drawn(order.width, order.height)
        picture = contract.Picture(
            index=0, seed=order.seed, sha256=hashlib.sha256(data).hexdigest(), width=order.width, height=order.height,
            bytes=len(data),
        )  # fmt: skip
        result = contract.Result(
            pictures=(picture,), steps=1, guidance=1.0, sampler="none", family="none", revision="0"
        )
        return _json({"id": name, "status": "COMPLETED", "output": contract.result_to_wire(result)})

    async def _go(self, request: Request) -> Response:
        self._told = True
        return _json(True)


def _json(value: Any) -> Response:
    return Response(orjson.dumps(value), media_type="application/json")


#: Has drawn every picture before it is asked.
painter = Starlette(routes=Painter().routes())
