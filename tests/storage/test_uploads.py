"""``PUT /uploads/…``: a whole PNG from a worker, or nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path

import anyio
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette

from gateway.storage import web
from gateway.storage.disk import DiskStorage
from gateway.storage.links import Links
from tests.storage.conftest import INTERNAL, PNG, SECRET, Clock, files, local

pytestmark = pytest.mark.anyio

KEY = "raw/job1/0/0.png"
EXPIRES = 1_000_600.0


@pytest.fixture
def url(storage: DiskStorage) -> str:
    return storage.slot(KEY, expires_at=EXPIRES).url


async def test_an_uploaded_picture_can_be_read_and_is_not_public(
    client: httpx.AsyncClient, storage: DiskStorage, root: Path
) -> None:
    slot = storage.slot(KEY, expires_at=EXPIRES)
    assert slot.url.startswith(f"{INTERNAL}/uploads/{KEY}?")
    answer = await client.put(local(slot.url), content=PNG, headers=slot.headers)
    assert answer.status_code == 201
    assert answer.json() == {"bytes": len(PNG), "sha256": sha256(PNG).hexdigest()}
    assert await storage.read(KEY) == PNG
    assert files(root) == [KEY]


async def test_a_second_upload_replaces_the_first(client: httpx.AsyncClient, storage: DiskStorage, url: str) -> None:
    await client.put(local(url), content=PNG)
    await client.put(local(url), content=PNG + b"again")
    assert await storage.read(KEY) == PNG + b"again"


async def test_a_large_picture_arrives_whole(client: httpx.AsyncClient, storage: DiskStorage, url: str) -> None:
    large = PNG * 500

    async def pieces() -> AsyncIterator[bytes]:
        for start in range(0, len(large), 65_521):
            yield large[start : start + 65_521]

    answer = await client.put(local(url), content=pieces())
    assert answer.json()["sha256"] == sha256(large).hexdigest()
    assert await storage.read(KEY) == large


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(PNG[:7], id="half a magic number"),
        pytest.param(b"\xff\xd8\xff jpeg", id="jpeg"),
        pytest.param(b"<svg/>", id="svg"),
        pytest.param(b" " + PNG, id="shifted"),
    ],
)
async def test_what_is_no_png_is_refused(client: httpx.AsyncClient, root: Path, url: str, body: bytes) -> None:
    answer = await client.put(local(url), content=body, headers={"Content-Type": "image/png"})
    assert answer.status_code == 415
    assert answer.json()["code"] == "unsupported_media_type"
    assert files(root) == []


async def test_a_png_in_tiny_pieces_is_a_png(client: httpx.AsyncClient, storage: DiskStorage, url: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for start in range(20):
            yield PNG[start : start + 1]

    assert (await client.put(local(url), content=pieces())).status_code == 201
    assert await storage.read(KEY) == PNG[:20]


@pytest.mark.parametrize("honest", [True, False], ids=["told before", "found out"])
async def test_a_body_over_the_limit_is_refused(
    client: httpx.AsyncClient, root: Path, url: str, monkeypatch: pytest.MonkeyPatch, honest: bool
) -> None:
    monkeypatch.setattr(web, "MOST_BYTES", len(PNG) - 1)

    async def pieces() -> AsyncIterator[bytes]:
        yield PNG

    answer = await client.put(local(url), content=PNG if honest else pieces())
    assert answer.status_code == 413
    assert answer.json()["code"] == "body_too_large"
    assert files(root) == []


async def test_an_expired_or_tampered_slot_is_refused(
    client: httpx.AsyncClient, clock: Clock, root: Path, url: str
) -> None:
    answer = await client.put(local(url).replace("0/0.png", "0/1.png"), content=PNG)
    assert (answer.status_code, answer.json()["error"]) == (403, "Bad signature")
    clock.time = EXPIRES
    answer = await client.put(local(url), content=PNG)
    assert (answer.status_code, answer.json()["error"]) == (403, "Link expired")
    assert files(root) == []


async def test_a_signature_for_a_download_takes_no_upload(client: httpx.AsyncClient, root: Path) -> None:
    forged = Links(SECRET, "download", f"{INTERNAL}/uploads").make(KEY, expires_at=EXPIRES)
    assert (await client.put(local(forged), content=PNG)).status_code == 403
    assert files(root) == []


@pytest.mark.parametrize("key", ["out/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png", "raw/job1/0.sh"])
async def test_nothing_else_can_be_written_even_when_signed(client: httpx.AsyncClient, root: Path, key: str) -> None:
    signed = Links(SECRET, "upload", f"{INTERNAL}/uploads").make(key, expires_at=EXPIRES)
    assert (await client.put(local(signed), content=PNG)).status_code == 403
    assert files(root) == []


async def test_an_upload_can_not_be_read_back(client: httpx.AsyncClient, url: str) -> None:
    await client.put(local(url), content=PNG)
    assert (await client.get(local(url))).status_code == 405
    assert (await client.get(local(url).replace("/uploads/", "/files/"))).status_code == 403


async def test_a_full_disk_is_said_and_leaves_nothing(client: httpx.AsyncClient, root: Path, url: str) -> None:
    (root / "raw").write_bytes(b"a file where a folder should be")
    answer = await client.put(local(url), content=PNG)
    assert (answer.status_code, answer.json()["retryable"]) == (503, True)
    assert files(root) == ["raw"]


@asynccontextmanager
async def served(storage: DiskStorage) -> AsyncIterator[int]:
    """The storage's routes behind a real server; its port."""
    config = uvicorn.Config(
        Starlette(routes=storage.routes()), port=0, lifespan="off", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    try:
        async with asyncio.timeout(10):
            while not server.started:
                await asyncio.sleep(0.01)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await serving


async def _until_gone(folder: Path) -> None:
    with anyio.fail_after(10):
        while any(folder.iterdir()):
            await anyio.sleep(0.01)


async def test_a_worker_that_dies_while_it_uploads_leaves_nothing(storage: DiskStorage, root: Path, url: str) -> None:
    async with served(storage) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        head = f"PUT {local(url)} HTTP/1.1\r\nHost: x\r\nContent-Length: {10 * len(PNG)}\r\n\r\n"
        writer.write(head.encode() + PNG)
        await writer.drain()
        with anyio.fail_after(10):
            while not files(root):
                await anyio.sleep(0.01)
        assert files(root)[0].startswith(".unfinished/")
        assert await storage.read(KEY) is None
        writer.transport.abort()
        await _until_gone(root / ".unfinished")
        assert files(root) == []


async def test_uploads_at_once_never_mix(storage: DiskStorage, root: Path, url: str) -> None:
    bodies = [PNG + bytes([n]) * 300_000 for n in range(8)]
    seen: set[bytes | None] = set()
    async with served(storage) as port, httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:

        async def put(body: bytes) -> None:
            assert (await client.put(local(url), content=body)).status_code == 201
            seen.add(await storage.read(KEY))

        async with anyio.create_task_group() as tasks:
            for body in bodies:
                tasks.start_soon(put, body)
    assert seen <= set(bodies)
    assert files(root) == [KEY]
