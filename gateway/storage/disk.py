"""`DiskStorage`: pictures in a folder of this machine, behind addresses that the gateway signs and serves itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import anyio.to_thread
from starlette.routing import Route

from gateway.core.images import Readiness, Slot
from gateway.errors import StorageUnavailable
from gateway.storage.files import Folder
from gateway.storage.keys import SIGNED, checked, folder_of, mime_of
from gateway.storage.links import Links
from gateway.storage.web import Downloads, Loans, Uploads

if TYPE_CHECKING:
    from compliance.picture import Signed

T = TypeVar("T")

#: With less than this the storage is not ready: a picture in the making must not end on a full disk.
ROOM = 200 * 2**20


class DiskStorage:
    """The port `Storage` on a folder. Open it before use; replicas that share the folder share the secret too.

    Signed pictures lie under ``out/`` and, where a review blocked them, under ``unsafe/``: only these two have an
    address for callers. Originals lie under ``master/`` and ``quarantine/``, the worker's uploads and its references
    under ``raw/``. ``public_url`` is how callers reach the gateway, ``internal_url`` how the worker does.
    """

    def __init__(
        self, root: Path, *, secret: bytes, public_url: str, internal_url: str, now: Callable[[], float]
    ) -> None:
        self._folder = Folder(root)
        self._downloads = Downloads(self._folder, Links(secret, "download", f"{public_url.rstrip('/')}/files"), now)
        self._uploads = Uploads(self._folder, Links(secret, "upload", f"{internal_url.rstrip('/')}/uploads"), now)
        self._loans = Loans(self._folder, Links(secret, "loan", f"{internal_url.rstrip('/')}/loans"), now)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[DiskStorage]:
        await self._run(self._folder.prepare)
        yield self

    def routes(self) -> list[Route]:
        """``GET /files/…``, ``PUT /uploads/…`` and ``GET /loans/…``, for the application."""
        return [
            Route("/files/{key:path}", self._downloads.serve, methods=["GET"]),
            Route("/uploads/{key:path}", self._uploads.receive, methods=["PUT"]),
            Route("/loans/{key:path}", self._loans.serve, methods=["GET"]),
        ]

    async def publish(self, key: str, picture: Signed) -> None:
        if folder_of(checked(key)) not in SIGNED or mime_of(key) != picture.mime:
            raise ValueError(f"{key!r} is no place for a published {picture.mime}")
        await self._run(partial(self._folder.write, key, picture.data))

    def link(self, key: str, *, filename: str, expires_at: float) -> str:
        if folder_of(checked(key)) not in SIGNED:
            raise ValueError(f"{key!r} is private")
        return self._downloads.links.make(key, expires_at=expires_at, filename=filename)

    def slot(self, key: str, *, expires_at: float) -> Slot:
        return Slot(
            url=self._uploads.links.make(self._uploads.writable(key), expires_at=expires_at),
            headers={"Content-Type": "image/png"},
        )

    def loan(self, key: str, *, expires_at: float) -> str:
        return self._loans.links.make(self._loans.readable(key), expires_at=expires_at)

    async def keep(self, key: str, data: bytes) -> None:
        if folder_of(checked(key)) in SIGNED:
            raise ValueError(f"{key!r} has an address: only what is signed goes there")
        await self._run(partial(self._folder.write, key, data))

    async def read(self, key: str) -> bytes | None:
        return await self._run(partial(self._folder.read, key))

    async def purge(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> None:
        await self._run(partial(self._folder.purge, prefix, keep))

    async def readiness(self) -> Readiness:
        try:
            await self._run(self._folder.try_out)
            free = await self._run(lambda: shutil.disk_usage(self._folder.root).free)
        except StorageUnavailable as error:
            cause = error.__cause__
            why = cause.strerror if isinstance(cause, OSError) else ""
            return Readiness(ready=False, reason=f"pictures can't be written: {why}")
        if free < ROOM:
            return Readiness(ready=False, reason=f"the disk for pictures has only {free // 2**20} MB left")
        return Readiness(ready=True)

    async def _run(self, work: Callable[[], T]) -> T:
        try:
            return await anyio.to_thread.run_sync(work)
        except OSError as error:
            raise StorageUnavailable from error
