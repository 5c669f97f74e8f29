"""A disk storage in a temporary folder, with a clock that a test can turn, and a client in front of its routes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette

from compliance.picture import Signed
from gateway.storage.disk import DiskStorage

SECRET = b"0123456789abcdef0123456789abcdef"
PUBLIC = "https://pictures.example/imgen"
INTERNAL = "http://gateway.internal:8080"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 40


@dataclass
class Clock:
    time: float = 1_000_000.0

    def __call__(self) -> float:
        return self.time


def signed(data: bytes = b"\xff\xd8\xff picture") -> Signed:
    return Signed(
        data=data,
        mime="image/jpeg",
        extension="jpg",
        width=8,
        height=8,
        quality=95,
        lossless=False,
        sha256=sha256(data).hexdigest(),
        manifest=b"",
        label="urn:c2pa:test",
    )


def local(url: str) -> str:
    """The part of an address that reaches the application: a proxy in front took the rest."""
    return url.removeprefix(PUBLIC).removeprefix(INTERNAL)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


@pytest.fixture
async def storage(root: Path, clock: Clock, anyio_backend: str) -> AsyncIterator[DiskStorage]:
    storage = DiskStorage(root, secret=SECRET, public_url=PUBLIC, internal_url=INTERNAL, now=clock)
    async with storage.open():
        yield storage


@pytest.fixture
async def client(storage: DiskStorage) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(Starlette(routes=storage.routes()))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client


def files(root: Path) -> list[str]:
    """All that lies in the folder."""
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
