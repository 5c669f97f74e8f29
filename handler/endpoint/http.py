"""What the routes for clients and for workers share: keys, bodies, JSON, errors."""

from __future__ import annotations

import hmac
import json
import logging
import re
from typing import Any, NoReturn

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

log = logging.getLogger("imgen.endpoint")

_IDENTIFIER = re.compile(r"[A-Za-z0-9._:-]{1,128}", re.ASCII)


def require_key(request: Request, key: str) -> None:
    """Accept the key raw and as a Bearer token, as RunPod does. A HEAD is refused: it would take and not get."""
    if request.method == "HEAD":
        raise HTTPException(405, "Method Not Allowed")
    given = request.headers.get("authorization", "").strip()
    scheme, _, rest = given.partition(" ")
    if scheme.lower() == "bearer":
        given = rest.strip()
    if not hmac.compare_digest(given.encode("utf-8"), key.encode("utf-8")):
        raise HTTPException(401, "the Authorization header does not carry this endpoint's key")


def identifier(request: Request, name: str) -> str | None:
    """A path part that can be the id of something, else None."""
    value = str(request.path_params[name])
    return value if _IDENTIFIER.fullmatch(value) else None


async def read_body(request: Request, limit: int) -> tuple[bytes, int]:
    """The body and its size. Of one that is larger than `limit` only the size: it is read to its end and dropped,
    because a client that still sends does not see an early answer."""
    kept, size = bytearray(), 0
    async for part in request.stream():
        size += len(part)
        if size <= limit:
            kept += part
        else:
            kept.clear()
        if size > 20 * limit:
            raise HTTPException(400, f"the body is larger than {limit} bytes")
    return bytes(kept), size


def parse_json(body: bytes) -> Any:
    """Parse strict JSON: no NaN, nothing too deep. Raises ValueError."""
    try:
        return json.loads(body, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def json_text(value: Any) -> str:
    """JSON in ASCII, so that any text can be stored and sent. Raises ValueError for what JSON can't say."""
    try:
        return json.dumps(value, allow_nan=False, separators=(",", ":"))
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


def json_bytes(body: bytes, status: int = 200) -> Response:
    return Response(body, status, media_type="application/json")


async def on_http_exception(request: Request, exc: Exception) -> Response:
    if isinstance(exc, HTTPException):
        if exc.status_code in {204, 304}:
            return Response(status_code=exc.status_code)
        return JSONResponse({"error": exc.detail}, exc.status_code, headers=exc.headers)
    return await on_error(request, exc)


async def on_disconnect(request: Request, exc: Exception) -> Response:
    """Nobody reads this answer."""
    return JSONResponse({"error": "the body ended early"}, 400)


async def on_error(request: Request, exc: Exception) -> Response:
    log.error("request failed", exc_info=exc, extra={"path": request.url.path})
    return JSONResponse({"error": "internal error of the endpoint; its log has the cause"}, 500)


EXCEPTION_HANDLERS = {HTTPException: on_http_exception, ClientDisconnect: on_disconnect, Exception: on_error}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
