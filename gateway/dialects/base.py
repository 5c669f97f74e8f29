"""What every dialect has: a path prefix, routes, and its own voice for errors."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar, Protocol

import anyio.to_thread
import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from gateway.errors import BodyTooLarge, GatewayError, InvalidField, InvalidJson

#: Bytes of JSON that are parsed on the spot; for more, the way to a thread is the smaller cost.
SHORT = 256 * 1024


class Dialect(Protocol):
    """One wire surface. ``prefix`` decides whose voice answers a fault below it."""

    prefix: ClassVar[str]

    def routes(self) -> list[BaseRoute]: ...

    def error(self, error: GatewayError, *, request_id: str) -> Response: ...


class Json(Response):
    """A JSON answer that nobody may cache."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(orjson.dumps(content), status_code, headers={"cache-control": "no-store", **(headers or {})})


def fault(error: GatewayError, *, request_id: str) -> dict[str, Any]:
    """What every surface with an envelope of its own choice says of a fault."""
    said: dict[str, Any] = {
        "error": error.message,
        "code": error.code,
        "fix": error.fix,
        "retryable": error.retryable,
        "request_id": request_id,
    }
    return said | ({"field": error.field} if isinstance(error, InvalidField) else {})


def iso(seconds: float) -> str:
    """UTC, to the second, as the reference prints it."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def read_body(request: Request, *, limit: int) -> bytes:
    """The body. Raises `BodyTooLarge` above ``limit`` bytes."""
    too_large = BodyTooLarge(fix=f"Send at most {limit} bytes.")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


async def read_object(request: Request, *, limit: int) -> dict[str, Any]:
    """The JSON object in the body. Raises `BodyTooLarge` above ``limit`` bytes and `InvalidJson`."""
    body = await read_body(request, limit=limit)
    try:
        value = orjson.loads(body) if len(body) <= SHORT else await anyio.to_thread.run_sync(orjson.loads, body)
    except orjson.JSONDecodeError as exc:
        raise InvalidJson from exc
    if not isinstance(value, dict):
        raise InvalidJson(fix='Send one JSON object, for example {"action": "models"}.')
    return value
