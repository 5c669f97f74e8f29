"""A stand-in for a Qdrant server: its REST API over real HTTP, on the local mode of Qdrant's own client.

Routes, bodies and answers are those of qdrant_client/http/api; statuses and texts of errors are the server's.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

import uvicorn
from pydantic import BaseModel
from qdrant_client import QdrantClient, models
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

Answer = Callable[[Request], Awaitable[Any]]


class FakeQdrant:
    """Runs in a thread of its own. `stop` refuses connections, `start` takes them again at the same port."""

    def __init__(self, *, api_key: str | None = None) -> None:
        self.api_key = api_key
        #: Answer everything with this status and text.
        self.broken: tuple[int, str] | None = None
        #: Answer nothing as long as this is true.
        self.stuck = False
        #: Say that a collection is not there, as before another client made it.
        self.hidden = False
        #: What was asked: method and path.
        self.asked: list[tuple[str, str]] = []
        #: The schema of each indexed field, by collection.
        self.fields: dict[str, dict[str, Any]] = {}
        self.local = QdrantClient(":memory:")
        self._port = 0
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self.local.close()

    def start(self) -> None:
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(self._app(), lifespan="off", ws="none", log_config=None, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listener],), daemon=True)
        # Whoever connects before the thread runs waits in the listener's queue.
        self._thread.start()

    def stop(self) -> None:
        if self._server is not None and self._thread is not None:
            self.stuck = False
            self._server.should_exit = True
            self._thread.join(20)
            assert not self._thread.is_alive()
        self._server = self._thread = None

    def drop(self, collection: str) -> None:
        self.local.delete_collection(collection)
        self.fields.pop(collection, None)

    def _app(self) -> Starlette:
        def route(path: str, method: str, answer: Answer) -> Route:
            return Route(f"/collections/{{name}}{path}", self._answering(answer), methods=[method])

        return Starlette(
            routes=[
                route("/exists", "GET", self._exists),
                route("", "PUT", self._create),
                route("", "DELETE", self._delete_collection),
                route("/index", "PUT", self._index),
                route("/points", "PUT", self._upsert),
                route("/points/query", "POST", self._query),
                route("/points/scroll", "POST", self._scroll),
                route("/points/count", "POST", self._count),
                route("/points/delete", "POST", self._delete),
            ]
        )

    def _answering(self, answer: Answer) -> Callable[[Request], Awaitable[Response]]:
        async def answered(request: Request) -> Response:
            self.asked.append((request.method, request.url.path))
            while self.stuck:
                await asyncio.sleep(0.01)
            if self.broken:
                again = {"Retry-After": "1"} if self.broken[0] == 429 else None
                return Response(self.broken[1], self.broken[0], again, media_type="application/json")
            if self.api_key and "api-key" not in request.headers:
                return PlainTextResponse("Must provide an API key or an Authorization bearer token", 401)
            if self.api_key and request.headers["api-key"] != self.api_key:
                return PlainTextResponse("Invalid API key or JWT", 401)
            name = request.path_params["name"]
            made = request.url.path.endswith(f"/{name}") or request.url.path.endswith("/exists")
            if not made and not self.local.collection_exists(name):
                return _error(404, f"Not found: Collection `{name}` doesn't exist!")
            try:
                result = await answer(request)
            except FileExistsError:
                return _error(409, f"Wrong input: Collection `{name}` already exists!")
            except ValueError as exc:
                return _error(400, f"Wrong input: {exc}")
            return JSONResponse({"result": _json(result), "status": "ok", "time": 0.001})

        return answered

    async def _exists(self, request: Request) -> Any:
        return {"exists": not self.hidden and self.local.collection_exists(request.path_params["name"])}

    async def _create(self, request: Request) -> Any:
        asked = models.CreateCollection.model_validate_json(await request.body())
        name = request.path_params["name"]
        if self.local.collection_exists(name):
            raise FileExistsError(name)
        self.fields[name] = {}
        assert isinstance(asked.vectors, models.VectorParams)
        return self.local.create_collection(name, vectors_config=asked.vectors)

    async def _delete_collection(self, request: Request) -> Any:
        name = request.path_params["name"]
        there = self.local.collection_exists(name)
        self.drop(name)
        return there

    async def _index(self, request: Request) -> Any:
        asked = models.CreateFieldIndex.model_validate_json(await request.body())
        # Local mode has no indexes and warns of it.
        self.fields[request.path_params["name"]][asked.field_name] = asked.field_schema
        return models.UpdateResult(operation_id=0, status=models.UpdateStatus.COMPLETED)

    async def _upsert(self, request: Request) -> Any:
        assert request.query_params["wait"] == "true"
        asked = models.PointsList.model_validate_json(await request.body())
        return self.local.upsert(request.path_params["name"], asked.points)

    async def _query(self, request: Request) -> Any:
        asked = models.QueryRequest.model_validate_json(await request.body())
        return self.local.query_points(
            request.path_params["name"],
            query=asked.query,
            query_filter=asked.filter,
            limit=asked.limit or 10,
            score_threshold=asked.score_threshold,
            with_payload=False if asked.with_payload is None else asked.with_payload,
        )

    async def _scroll(self, request: Request) -> Any:
        asked = models.ScrollRequest.model_validate_json(await request.body())
        points, following = self.local.scroll(
            request.path_params["name"],
            scroll_filter=asked.filter,
            limit=asked.limit or 10,
            offset=asked.offset,
            with_payload=True if asked.with_payload is None else asked.with_payload,
        )
        return {"points": [_json(point) for point in points], "next_page_offset": following}

    async def _count(self, request: Request) -> Any:
        asked = models.CountRequest.model_validate_json(await request.body())
        return self.local.count(request.path_params["name"], count_filter=asked.filter, exact=asked.exact or False)

    async def _delete(self, request: Request) -> Any:
        assert request.query_params["wait"] == "true"
        asked = models.PointIdsList.model_validate_json(await request.body())
        return self.local.delete(request.path_params["name"], asked)


def _error(status: int, text: str) -> Response:
    return JSONResponse({"status": {"error": text}, "time": 0.001}, status)


def _json(result: Any) -> Any:
    return result.model_dump(mode="json") if isinstance(result, BaseModel) else result
