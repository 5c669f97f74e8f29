"""The doors of the disk storage: signed downloads for callers, signed uploads and loans for workers.

They answer in plain JSON of their own, since they belong to no dialect: ``{"error", "code", "fix", "retryable"}``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread
import structlog
from starlette.datastructures import QueryParams
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response

from gateway.storage.files import Folder, Unfinished
from gateway.storage.keys import RAW, SIGNED, checked, folder_of, mime_of
from gateway.storage.links import LinkExpired, LinkRefused, Links

log = structlog.get_logger(__name__)

MOST_BYTES = 64 * 2**20
_PNG = b"\x89PNG\r\n\x1a\n"
#: Pixels cross to a thread in pieces of this size.
_PIECE = 2**20


class Downloads:
    """``GET /files/{key}``: published files, to whoever holds a signed address that has not expired."""

    def __init__(self, folder: Folder, links: Links, now: Callable[[], float]) -> None:
        self.links = links
        self._folder = folder
        self._now = now

    async def serve(self, request: Request) -> Response:
        key: str = request.path_params["key"]
        filename = request.query_params.get("filename", "")
        try:
            left = _seconds_left(self.links, key, request.query_params, filename, self._now())
        except LinkRefused as error:
            return _not_allowed(error)
        if folder_of(key) not in SIGNED:
            return _gone()
        try:
            found = await anyio.to_thread.run_sync(self._folder.look, key)
        except OSError:
            log.exception("file can't be read", key=key)
            return _unavailable()
        if found is None:
            return _gone()
        facts, sha256 = found
        headers = {
            "ETag": f'"{sha256}"',
            "Cache-Control": f"private, max-age={int(left)}",
            "X-Content-Type-Options": "nosniff",
            "Cross-Origin-Resource-Policy": "cross-origin",
        }
        if _has(request.headers.get("if-none-match", ""), headers["ETag"]):
            return Response(status_code=304, headers=headers)
        return FileResponse(
            self._folder.path(key),
            headers=headers,
            media_type=mime_of(key),
            filename=filename or key.rpartition("/")[2],
            stat_result=facts,
            content_disposition_type="inline",
        )


class Uploads:
    """``PUT /uploads/{key}``: one raw PNG from a worker. It is there completely and durably, or not at all."""

    def __init__(self, folder: Folder, links: Links, now: Callable[[], float]) -> None:
        self.links = links
        self._folder = folder
        self._now = now

    @staticmethod
    def writable(key: str) -> str:
        """`ValueError` for a key that no worker may write to."""
        if folder_of(checked(key)) != RAW or mime_of(key) != "image/png":
            raise ValueError(f"{key!r} is no place for an upload")
        return key

    async def receive(self, request: Request) -> Response:
        key: str = request.path_params["key"]
        try:
            _seconds_left(self.links, key, request.query_params, "", self._now())
            self.writable(key)
        except (LinkRefused, ValueError) as error:
            return _not_allowed(error)
        try:
            return await self._store(key, request)
        except _TooLarge:
            return _refusal(413, "Upload too large", "body_too_large", f"Send {MOST_BYTES} bytes at most.")
        except _NotPng:
            return _refusal(415, "Not a PNG", "unsupported_media_type", "Upload the picture as PNG.")
        except ClientDisconnect:
            return _refusal(400, "Upload broken off", "upload_incomplete", "Send the whole picture again.")
        except OSError:
            log.exception("upload can't be stored", key=key)
            return _unavailable()

    async def _store(self, key: str, request: Request) -> Response:
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > MOST_BYTES:
            raise _TooLarge
        unfinished = await anyio.to_thread.run_sync(self._folder.begin, key)
        try:
            size, sha256 = await _pour(request, unfinished)
            await anyio.to_thread.run_sync(unfinished.finish)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(unfinished.discard)
        return JSONResponse({"bytes": size, "sha256": sha256}, status_code=201)


class Loans:
    """``GET /loans/{key}``: one reference picture, to the worker of the job that it belongs to."""

    def __init__(self, folder: Folder, links: Links, now: Callable[[], float]) -> None:
        self.links = links
        self._folder = folder
        self._now = now

    @staticmethod
    def readable(key: str) -> str:
        """`ValueError` for a key that is not lent to workers."""
        if folder_of(checked(key)) != RAW or mime_of(key) != "image/png":
            raise ValueError(f"{key!r} is not lent")
        return key

    async def serve(self, request: Request) -> Response:
        key: str = request.path_params["key"]
        try:
            _seconds_left(self.links, key, request.query_params, "", self._now())
            self.readable(key)
        except (LinkRefused, ValueError) as error:
            return _not_allowed(error)
        try:
            data = await anyio.to_thread.run_sync(self._folder.read, key)
        except OSError:
            log.exception("file can't be read", key=key)
            return _unavailable()
        if data is None:
            return _gone()
        return Response(data, media_type="image/png", headers={"Cache-Control": "no-store"})


class _TooLarge(Exception):
    pass


class _NotPng(Exception):
    pass


async def _pour(request: Request, unfinished: Unfinished) -> tuple[int, str]:
    """Write a request's body; its size and SHA-256."""
    size, digest, piece = 0, hashlib.sha256(), bytearray()

    def write(data: bytes) -> None:
        digest.update(data)
        unfinished.write(data)

    async for chunk in request.stream():
        if size < len(_PNG) and not (piece + chunk).startswith(_PNG[: len(piece) + len(chunk)]):
            raise _NotPng
        size += len(chunk)
        if size > MOST_BYTES:
            raise _TooLarge
        piece += chunk
        if len(piece) >= _PIECE:
            await anyio.to_thread.run_sync(partial(write, bytes(piece)))
            piece.clear()
    if size < len(_PNG):
        raise _NotPng
    await anyio.to_thread.run_sync(partial(write, bytes(piece)))
    return size, digest.hexdigest()


def _seconds_left(links: Links, key: str, query: QueryParams, filename: str, now: float) -> float:
    return links.check(
        key, expires=query.get("expires", ""), signature=query.get("signature", ""), filename=filename, now=now
    )


def _has(if_none_match: str, etag: str) -> bool:
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in if_none_match.split(","))


def _not_allowed(error: Exception) -> Response:
    if isinstance(error, LinkExpired):
        return _refusal(
            403, "Link expired", "link_expired", "Ask for the job's status again: it gives a fresh address."
        )
    return _refusal(403, "Bad signature", "bad_signature", "Use the address exactly as it was given.")


def _gone() -> Response:
    return _refusal(404, "Not found", "file_not_found", "The picture was removed; generate it again.")


def _unavailable() -> Response:
    return _refusal(503, "The picture storage does not answer", "storage_unavailable", "Try again.", retryable=True)


def _refusal(status: int, error: str, code: str, fix: str, *, retryable: bool = False) -> Response:
    body = {"error": error, "code": code, "fix": fix, "retryable": retryable}
    return JSONResponse(body, status_code=status, headers={"Cache-Control": "no-store"})
