"""Uploads against a real HTTP server."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from handler.contract import Upload
from handler.uploads import UploadFailed, put_picture

pytestmark = pytest.mark.anyio


@dataclass
class Server:
    """Answers with the given statuses one after the other, then with 200."""

    statuses: list[int] = field(default_factory=list)
    url: str = ""
    requests: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    async def put(self, request: web.Request) -> web.Response:
        self.addresses.append(request.raw_path)
        self.requests.append((dict(request.headers), await request.read()))
        status = self.statuses.pop(0) if self.statuses else 200
        return web.Response(status=status, headers={"Location": "/elsewhere"} if status == 302 else {})


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    given = Server()
    app = web.Application(client_max_size=2**26)
    app.router.add_put("/{path:.*}", given.put)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    given.url = f"http://127.0.0.1:{runner.addresses[0][1]}/raw?sig=secret"
    yield given
    await runner.cleanup()


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def test_the_bytes_arrive_with_their_length_and_the_signed_headers(
    server: Server, session: aiohttp.ClientSession
) -> None:
    png = b"\x89PNG" + bytes(3_000_000)
    await put_picture(session, Upload(url=server.url, headers={"x-signed": "1"}), png)
    ((headers, body),) = server.requests
    assert body == png
    assert headers["Content-Length"] == str(len(png))
    assert headers["x-signed"] == "1"
    assert headers["Content-Type"] == "image/png"


async def test_a_signed_content_type_replaces_ours_however_it_is_spelt(
    server: Server, session: aiohttp.ClientSession
) -> None:
    await put_picture(session, Upload(url=server.url, headers={"content-type": "application/x-raw"}), b"1")
    ((headers, _),) = server.requests
    assert [v for k, v in headers.items() if k.lower() == "content-type"] == ["application/x-raw"]


async def test_a_signed_address_is_sent_as_it_came(server: Server, session: aiohttp.ClientSession) -> None:
    path = "/raw/a%2Fb%20c/%C3%A4.png?X-Amz-Credential=k%2F20261120%2Feu&X-Amz-Signature=a%3d+b~"
    await put_picture(session, Upload(url=server.url.partition("/raw")[0] + path), b"picture")
    assert server.addresses == [path]


async def test_a_gateway_that_is_restarting_is_waited_for(server: Server, session: aiohttp.ClientSession) -> None:
    server.statuses = [503, 503]
    await put_picture(session, Upload(url=server.url), b"picture")
    assert [body for _, body in server.requests] == [b"picture"] * 3


async def test_an_answer_that_passes_is_waited_for(server: Server, session: aiohttp.ClientSession) -> None:
    server.statuses = [429, 408]
    await put_picture(session, Upload(url=server.url), b"picture")
    assert len(server.requests) == 3


@pytest.mark.parametrize("status", [302, 400, 403, 404, 409, 413])
async def test_an_answer_that_another_try_cannot_change_is_final(
    server: Server, session: aiohttp.ClientSession, status: int
) -> None:
    server.statuses = [status]
    with pytest.raises(UploadFailed, match=f"answered {status}") as caught:
        await put_picture(session, Upload(url=server.url), b"picture")
    assert len(server.requests) == 1
    assert "secret" not in str(caught.value)


async def test_patience_ends(server: Server, session: aiohttp.ClientSession) -> None:
    server.statuses = [500] * 100
    with pytest.raises(UploadFailed, match="answered 500 for 0 s") as caught:
        await put_picture(session, Upload(url=server.url), b"picture", patience=0.4)
    assert caught.value.retryable
    assert len(server.requests) >= 2


async def test_an_address_where_nobody_listens_is_tried_until_patience_ends(session: aiohttp.ClientSession) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}/raw?sig=secret"
        with pytest.raises(UploadFailed, match="can't be reached") as caught:
            await put_picture(session, Upload(url=url), b"picture", patience=0.3)
    assert caught.value.retryable
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "nowhere", "file:///etc/passwd", "http://", "http://[::1", "http://a:b/"])
async def test_what_is_no_address_is_refused_at_once(session: aiohttp.ClientSession, url: str) -> None:
    with pytest.raises(UploadFailed, match="malformed") as caught:
        await put_picture(session, Upload(url=url), b"picture")
    assert not caught.value.retryable


async def test_a_header_that_would_be_two_is_refused(server: Server, session: aiohttp.ClientSession) -> None:
    with pytest.raises(UploadFailed, match="malformed"):
        await put_picture(session, Upload(url=server.url, headers={"x-a": "1\r\nx-b: 2"}), b"picture")
    assert server.requests == []
