"""What every storage does, over real HTTP where there is an address: one suite for the folder and for S3."""

from __future__ import annotations

import asyncio
import shutil
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import aiohttp
import anyio
import httpx
import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette

from gateway.core.ports import Storage
from gateway.storage.disk import DiskStorage
from gateway.storage.s3 import S3Storage
from handler.contract import Reference, Upload
from handler.references import fetch
from handler.uploads import UploadFailed, put_picture
from tests.storage.conftest import PNG, SECRET, signed
from tests.storage.fake_s3 import FakeS3, running
from tests.storage.sigv4 import ends

pytestmark = pytest.mark.anyio

DATA = b"\xff\xd8\xff" + bytes(range(256)) * 200
KEY = "out/job1/0.jpg"
RAW = "raw/job1/0/0.png"


@dataclass
class Rig:
    """A storage under test, a client that reaches its addresses, and its clock's lead over ours, seconds."""

    storage: Storage
    http: httpx.AsyncClient
    turn: dict[str, float] = field(default_factory=lambda: {"ahead": 0.0})
    s3: FakeS3 | None = None
    empty: Callable[[], object] = lambda: None

    def later(self, seconds: float) -> None:
        self.turn["ahead"] = seconds
        if self.s3 is not None:
            self.s3.ahead = seconds

    def ends(self, url: str) -> int:
        return ends(url) if self.s3 is not None else int(parse_qs(urlsplit(url).query)["expires"][0])


def soon(seconds: float = 600) -> float:
    return float(int(time.time() + seconds))


@asynccontextmanager
async def served(storage: DiskStorage, listener: socket.socket) -> AsyncIterator[None]:
    config = uvicorn.Config(
        Starlette(routes=storage.routes()), lifespan="off", ws="none", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        with anyio.fail_after(10):
            while not server.started:
                await anyio.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        await serving


@pytest.fixture(scope="module")
def moto() -> Iterator[FakeS3]:
    with running() as s3:
        yield s3


@pytest.fixture(scope="module", params=["disk", "s3", "s3 with a prefix that checks no sums"])
async def opened(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, anyio_backend: str, moto: FakeS3
) -> AsyncIterator[Rig]:
    async with AsyncExitStack() as stack:
        http = await stack.enter_async_context(httpx.AsyncClient(timeout=30))
        if request.param == "disk":
            listener = socket.create_server(("127.0.0.1", 0))
            base, root = f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path_factory.mktemp("disk")
            turn = {"ahead": 0.0}
            disk = DiskStorage(
                root, secret=SECRET, public_url=base, internal_url=base, now=lambda: time.time() + turn["ahead"]
            )
            await stack.enter_async_context(disk.open())
            await stack.enter_async_context(served(disk, listener))
            yield Rig(disk, http, turn, empty=lambda: [shutil.rmtree(path) for path in root.glob("[a-z]*")])
            return
        moto.checks = request.param == "s3"
        place = moto.place(prefix="" if moto.checks else "imgen/test/")
        storage = S3Storage(place)
        await stack.enter_async_context(storage.open())
        readiness = await storage.readiness()
        assert readiness.ready, readiness.reason
        yield Rig(storage, http, s3=moto, empty=lambda: moto.empty(place.bucket))


@pytest.fixture
def rig(opened: Rig) -> Rig:
    """Empty, and with its clock set to ours."""
    opened.later(0)
    opened.empty()
    return opened


# Pictures for callers


async def test_what_is_published_is_downloaded_as_it_is(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    end = soon()
    url = rig.storage.link(KEY, filename="job1.jpg", expires_at=end + 0.7)
    assert rig.ends(url) == end
    answer = await rig.http.get(url)
    assert (answer.status_code, answer.content) == (200, DATA)
    assert answer.headers["content-type"] == "image/jpeg"
    assert answer.headers["content-disposition"] == 'inline; filename="job1.jpg"'
    visibility, _, age = answer.headers["cache-control"].partition(", max-age=")
    assert visibility == "private" and 0 < int(age) <= 600
    assert answer.headers["etag"]


@pytest.mark.parametrize("name", ['a".jpg', "a\r\nSet-Cookie: x=1", "naïve 图.jpg", "a;b.jpg"])
async def test_a_filename_can_not_break_out_of_its_header(rig: Rig, name: str) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    answer = await rig.http.get(rig.storage.link(KEY, filename=name, expires_at=soon()))
    assert answer.status_code == 200 and "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"].lower().startswith("inline; filename*=utf-8''")
    assert answer.headers["content-disposition"].endswith(quote(name))


async def test_a_part_of_a_picture_can_be_had(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    url = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    answer = await rig.http.get(url, headers={"Range": "bytes=10-19"})
    assert (answer.status_code, answer.content) == (206, DATA[10:20])
    assert answer.headers["content-range"] == f"bytes 10-19/{len(DATA)}"


async def test_a_picture_that_the_caller_has_is_not_sent_again(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    url = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    etag = (await rig.http.get(url)).headers["etag"]
    answer = await rig.http.get(url, headers={"If-None-Match": etag})
    assert (answer.status_code, answer.content) == (304, b"")


async def test_publishing_twice_is_publishing_once(rig: Rig) -> None:
    for _ in range(2):
        await rig.storage.publish(KEY, signed(DATA))
    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(rig.storage.publish, "out/job1/1.jpg", signed(DATA))
    for key in (KEY, "out/job1/1.jpg"):
        assert (await rig.http.get(rig.storage.link(key, filename="a.jpg", expires_at=soon()))).content == DATA


async def test_an_address_dies_on_time(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    link = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    slot = rig.storage.slot(RAW, expires_at=soon())
    rig.later(590)
    assert (await rig.http.get(link)).status_code == 200
    rig.later(601)
    assert (await rig.http.get(link)).status_code == 403
    assert (await rig.http.put(slot.url, content=PNG, headers=slot.headers)).status_code == 403
    assert await _read_in_time(rig, RAW) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param("job1", "job2", id="another key"),
        pytest.param("out/", "unsafe/", id="another folder"),
        pytest.param("a.jpg", "b.exe", id="another filename"),
    ],
)
async def test_a_tampered_address_opens_nothing(rig: Rig, old: str, new: str) -> None:
    for key in (KEY, "out/job2/0.jpg", "unsafe/job1/0.jpg"):
        await rig.storage.publish(key, signed(DATA))
    url = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    assert old in url
    answer = await rig.http.get(url.replace(old, new))
    assert answer.status_code == 403 and DATA not in answer.content
    assert (await rig.http.get(url.partition("?")[0])).status_code == 403


async def test_an_address_for_reading_takes_nothing_and_one_for_writing_gives_nothing(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    await rig.storage.keep(RAW, PNG)
    link = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    loan = rig.storage.loan(RAW, expires_at=soon())
    slot = rig.storage.slot(RAW, expires_at=soon())
    for url in (link, loan):
        assert (await rig.http.put(url, content=b"x", headers=slot.headers)).status_code in (403, 405)
        assert (await rig.http.delete(url)).status_code in (403, 405)
    assert (await rig.http.get(slot.url)).status_code in (403, 405)
    assert (await rig.http.get(link)).content == DATA
    assert await rig.storage.read(RAW) == PNG


@pytest.mark.parametrize("key", ["raw/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png"])
async def test_what_is_private_has_no_address(rig: Rig, key: str) -> None:
    with pytest.raises(ValueError, match="private"):
        rig.storage.link(key, filename="a.png", expires_at=soon())
    with pytest.raises(ValueError, match="no place"):
        await rig.storage.publish(key, signed())


async def test_only_what_is_signed_gets_to_where_links_lead(rig: Rig) -> None:
    for key in (KEY, "unsafe/job1/0.jpg"):
        with pytest.raises(ValueError, match="only what is signed"):
            await rig.storage.keep(key, b"pixels")
    with pytest.raises(ValueError, match="no place"):
        await rig.storage.publish("out/job1/0.png", signed())


# The worker


async def test_the_worker_uploads_to_a_slot_and_a_second_time_too(rig: Rig) -> None:
    slot = rig.storage.slot(RAW, expires_at=soon())
    async with aiohttp.ClientSession() as session:
        for png in (PNG, PNG + b"again"):
            await put_picture(session, Upload(url=slot.url, headers=slot.headers), png)
            assert await rig.storage.read(RAW) == png


async def test_the_worker_gives_up_at_once_where_a_slot_is_over(rig: Rig) -> None:
    slot = rig.storage.slot(RAW, expires_at=soon())
    rig.later(700)
    async with aiohttp.ClientSession() as session:
        with pytest.raises(UploadFailed, match="needs a new upload address"):
            await put_picture(session, Upload(url=slot.url, headers=slot.headers), PNG)


async def test_the_worker_reads_what_it_is_lent(rig: Rig, tmp_path: Path) -> None:
    Image.new("RGB", (64, 48), (200, 30, 30)).save(tmp_path / "reference.png")
    data = (tmp_path / "reference.png").read_bytes()
    await rig.storage.keep("raw/job1/references/0.png", data)
    end = soon()
    url = rig.storage.loan("raw/job1/references/0.png", expires_at=end)
    assert rig.ends(url) == end
    async with aiohttp.ClientSession() as session:
        reference = Reference(url=url, sha256=sha256(data).hexdigest(), strength=0.5, role="init")
        (guide,) = await fetch(session, (reference,))
    assert guide.image.size == (64, 48)


@pytest.mark.parametrize("key", ["out/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png", "raw/job1/0.jpg"])
async def test_a_worker_gets_addresses_of_raw_pngs_only(rig: Rig, key: str) -> None:
    with pytest.raises(ValueError, match="upload"):
        rig.storage.slot(key, expires_at=soon())
    with pytest.raises(ValueError, match="lent"):
        rig.storage.loan(key, expires_at=soon())


async def test_a_slot_for_one_picture_takes_no_other(rig: Rig) -> None:
    slot = rig.storage.slot(RAW, expires_at=soon())
    answer = await rig.http.put(slot.url.replace("0/0.png", "0/1.png"), content=PNG, headers=slot.headers)
    assert answer.status_code == 403
    assert await rig.storage.read("raw/job1/0/1.png") is None


# What is private


async def test_what_is_kept_can_be_read_and_is_replaced(rig: Rig) -> None:
    for data in (b"pixels", b"other pixels", b""):
        await rig.storage.keep("master/job1/0.png", data)
        assert await rig.storage.read("master/job1/0.png") == data


async def test_what_is_not_there_reads_as_none(rig: Rig) -> None:
    await rig.storage.keep("master/job1/0.png", b"pixels")
    for key in ("master/job1/1.png", "master/job1", "master/job1/0.png/deeper"):
        assert await rig.storage.read(key) is None
    answer = await rig.http.get(rig.storage.link("out/job9/0.jpg", filename="a.jpg", expires_at=soon()))
    assert answer.status_code == 404


async def test_purge_takes_what_is_below_and_leaves_what_is_to_be_kept(rig: Rig) -> None:
    keys = ("raw/job1/0/0.png", "raw/job1/1/0.png", "raw/job10/0/0.png", "master/job1/0.png")
    for key in keys:
        await rig.storage.keep(key, b"pixels")
    await rig.storage.purge("raw/job1/", keep=frozenset({"raw/job1/1/0.png"}))
    assert await _left(rig, keys) == [*keys[1:]]
    for _ in range(2):
        await rig.storage.purge("raw/job1")
        assert await _left(rig, keys) == [*keys[2:]]


async def test_a_single_object_can_be_purged(rig: Rig) -> None:
    keys = ("master/job1/0.png", "master/job1/1.png")
    for key in keys:
        await rig.storage.keep(key, b"pixels")
    await rig.storage.purge(keys[0], keep=frozenset({keys[0]}))
    assert await _left(rig, keys) == [*keys]
    await rig.storage.purge(keys[0])
    assert await _left(rig, keys) == [keys[1]]


async def test_a_purged_picture_is_404(rig: Rig) -> None:
    await rig.storage.publish(KEY, signed(DATA))
    url = rig.storage.link(KEY, filename="a.jpg", expires_at=soon())
    await rig.storage.purge("out/job1")
    assert (await rig.http.get(url)).status_code == 404


@pytest.mark.parametrize("prefix", ["", "/", "raw", "raw/", ".", "raw/..", "../raw/job1", "raw//", "*"])
async def test_purge_never_means_everything(rig: Rig, prefix: str) -> None:
    await rig.storage.keep("raw/job1/0.png", b"pixels")
    with pytest.raises(ValueError, match="not a storage key"):
        await rig.storage.purge(prefix)
    assert await rig.storage.read("raw/job1/0.png") == b"pixels"


async def test_writing_and_purging_at_once_never_fails(rig: Rig) -> None:
    async def write() -> None:
        for _ in range(8):
            await rig.storage.keep(RAW, b"pixels")
            await rig.storage.publish(KEY, signed(DATA))

    async def purge() -> None:
        for _ in range(8):
            await rig.storage.purge("raw/job1")
            await rig.storage.purge("out/job1")

    async with anyio.create_task_group() as tasks:
        for work in (write, write, purge):
            tasks.start_soon(work)
    await write()
    assert await rig.storage.read(RAW) == b"pixels"


@pytest.mark.parametrize(
    "key",
    ["", "out", "/out/a.png", "raw/../a.png", "raw//a.png", "raw/./a.png", "raw/a%2f..png", "raw/A.png", "raw/\n"],
)
async def test_no_name_leads_elsewhere(rig: Rig, key: str) -> None:
    with pytest.raises(ValueError):
        await rig.storage.keep(key, b"x")
    with pytest.raises(ValueError):
        await rig.storage.read(key)
    with pytest.raises(ValueError):
        await rig.storage.publish(key, signed())
    for address in (rig.storage.slot, rig.storage.loan):
        with pytest.raises(ValueError):
            address(key, expires_at=soon())
    with pytest.raises(ValueError):
        rig.storage.link(key, filename="a.png", expires_at=soon())


async def test_a_storage_that_works_is_ready(rig: Rig) -> None:
    assert (await rig.storage.readiness()).ready


async def _left(rig: Rig, keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if await rig.storage.read(key) is not None]


async def _read_in_time(rig: Rig, key: str) -> bytes | None:
    rig.later(0)
    return await rig.storage.read(key)
