"""The two servers that the gateway is measured against: a bare route, and a GPU endpoint that costs nothing."""

from __future__ import annotations

import itertools
import os

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

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
