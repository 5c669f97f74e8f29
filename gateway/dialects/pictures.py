"""`PictureDialect`: stable addresses of pictures, which lead to fresh signed ones."""

from __future__ import annotations

import re
from typing import ClassVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.core.access import Access
from gateway.core.images import Caller, Job
from gateway.core.service import GenerationService
from gateway.dialects.base import Json, fault
from gateway.errors import (
    AccessDenied,
    BadId,
    BadRequest,
    GatewayError,
    InvalidField,
    JobNotFound,
    MethodNotAllowed,
    NotFound,
    PictureNotFound,
    PictureNotReady,
    Unavailable,
)

_PUBLIC = re.compile(r"run_[A-Za-z0-9_-]{1,128}|cache_[0-9a-f]{32}")
_GEN_ID = re.compile(r"[a-z0-9]{20}")
_INDEX = re.compile(r"[0-9]{1,3}")
_TYPES = ("signed", "thumbnail")
#: Seconds after which an unfinished picture may be asked for again.
_RETRY_AFTER = {PictureNotReady: "2", Unavailable: "5"}

#: The first class that fits decides.
HTTP_STATUS: tuple[tuple[type[GatewayError], int], ...] = (
    (AccessDenied, 401),
    (NotFound, 404),
    (MethodNotAllowed, 405),
    (PictureNotReady, 409),
    (BadRequest, 400),
    (Unavailable, 503),
)


class PictureDialect:
    """``GET /i/{id}``, where id is what generate answered as ``id`` or as ``gen_id``."""

    prefix: ClassVar[str] = "/i"

    def __init__(self, service: GenerationService, access: Access) -> None:
        self._service = service
        self._access = access

    def routes(self) -> list[BaseRoute]:
        return [Route("/i/{id}", self._redirect, methods=["GET"])]

    def error(self, error: GatewayError, *, request_id: str) -> Response:
        """The envelope of the imgen API, so that a front end reads one kind of fault."""
        status = next((code for kind, code in HTTP_STATUS if isinstance(error, kind)), 500)
        body = fault(error, request_id=request_id) | ({"fix": "Send a GET."} if status == 405 else {})
        headers = {
            name: value
            for name, value in {
                "www-authenticate": "Bearer" if status == 401 else "",
                "allow": "GET, HEAD" if status == 405 else "",
                "retry-after": next((s for kind, s in _RETRY_AFTER.items() if isinstance(error, kind)), ""),
            }.items()
            if value
        }
        return Json(body, status, headers)

    async def _redirect(self, request: Request) -> Response:
        caller = await self._access.caller(request.headers.get("authorization"))
        named: str = request.path_params["id"]
        kind = request.query_params.get("type", "signed")
        index = request.query_params.get("index")
        if kind not in _TYPES:
            raise InvalidField("type", f"must be one of {', '.join(_TYPES)}")
        if index is not None and not _INDEX.fullmatch(index):
            raise InvalidField("index", "must be a whole number from 0")
        job = await self._job(caller, named)
        picture = self._service.picture(job, type=kind, index=None if index is None else int(index))
        url, _ = self._service.link(picture)
        # Kept by nobody: the address that it leads to dies, and is good for this key only.
        headers = {"location": url, "cache-control": "private, no-store", "referrer-policy": "no-referrer"}
        return Response(status_code=302, headers=headers)

    async def _job(self, caller: Caller, named: str) -> Job:
        try:
            if _PUBLIC.fullmatch(named):
                return await self._service.find(caller, "imgen", named)
            if _GEN_ID.fullmatch(named):
                return await self._service.get(caller, named)
        except JobNotFound:
            raise PictureNotFound from None
        raise BadId
