"""``GET /files/…``: only what we signed, and only as long as it lasts."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from urllib.parse import quote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.types import Message

from gateway.storage.disk import DiskStorage
from gateway.storage.keys import is_key
from gateway.storage.links import Links
from tests.storage.conftest import PNG, PUBLIC, SECRET, Clock, local, signed

pytestmark = pytest.mark.anyio

DATA = b"\xff\xd8\xff" + bytes(range(256)) * 1000
EXPIRES = 1_000_600.0


@pytest.fixture
async def link(storage: DiskStorage) -> str:
    await storage.publish("out/job1/0.jpg", signed(DATA))
    return storage.link("out/job1/0.jpg", filename="job1.jpg", expires_at=EXPIRES)


async def test_a_link_is_absolute_and_leads_to_the_picture(client: httpx.AsyncClient, link: str) -> None:
    assert link.startswith(f"{PUBLIC}/files/out/job1/0.jpg?")
    answer = await client.get(local(link))
    assert answer.status_code == 200
    assert answer.content == DATA
    assert {name: answer.headers[name] for name in answer.headers if name != "last-modified"} == {
        "accept-ranges": "bytes",
        "cache-control": "private, max-age=600",
        "content-disposition": 'inline; filename="job1.jpg"',
        "content-length": str(len(DATA)),
        "content-type": "image/jpeg",
        "cross-origin-resource-policy": "cross-origin",
        "etag": f'"{sha256(DATA).hexdigest()}"',
        "x-content-type-options": "nosniff",
    }


async def test_head_gives_the_same_headers_and_no_body(client: httpx.AsyncClient, link: str) -> None:
    whole, head = await client.get(local(link)), await client.head(local(link))
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers == whole.headers


@pytest.mark.parametrize(
    ("asked", "part"),
    [
        pytest.param("bytes=0-99", DATA[:100], id="first"),
        pytest.param("bytes=1000-", DATA[1000:], id="rest"),
        pytest.param("bytes=-5", DATA[-5:], id="last"),
    ],
)
async def test_a_range_is_answered_with_that_part(
    client: httpx.AsyncClient, link: str, asked: str, part: bytes
) -> None:
    answer = await client.get(local(link), headers={"Range": asked})
    assert answer.status_code == 206
    assert answer.content == part
    assert answer.headers["content-range"].endswith(f"/{len(DATA)}")


async def test_a_range_beyond_the_end_is_416(client: httpx.AsyncClient, link: str) -> None:
    answer = await client.get(local(link), headers={"Range": f"bytes={len(DATA)}-"})
    assert answer.status_code == 416


async def test_a_picture_that_the_caller_has_is_not_sent_again(client: httpx.AsyncClient, link: str) -> None:
    etag = (await client.head(local(link))).headers["etag"]
    answer = await client.get(local(link), headers={"If-None-Match": f'W/"old", {etag}'})
    assert (answer.status_code, answer.content, answer.headers["etag"]) == (304, b"", etag)


async def test_a_picture_that_was_replaced_has_another_etag(
    client: httpx.AsyncClient, storage: DiskStorage, link: str
) -> None:
    before = await client.head(local(link))
    await storage.publish("out/job1/0.jpg", signed(b"\xff\xd8\xff" + b"x" * (len(DATA) - 3)))
    assert (await client.head(local(link))).headers["etag"] != before.headers["etag"]


async def test_a_link_dies_on_time(client: httpx.AsyncClient, clock: Clock, link: str) -> None:
    clock.time = EXPIRES - 1
    answer = await client.get(local(link))
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "private, max-age=1")
    clock.time = EXPIRES
    answer = await client.get(local(link))
    assert answer.status_code == 403
    assert answer.json()["error"] == "Link expired"
    assert answer.json()["code"] == "link_expired"
    assert answer.headers["cache-control"] == "no-store"


def _without(url: str, name: str) -> str:
    parts = urlsplit(url)
    return f"{parts.path}?" + "&".join(p for p in parts.query.split("&") if not p.startswith(f"{name}="))


@pytest.mark.parametrize(
    "tamper",
    [
        pytest.param(lambda url: url.replace("job1/0", "job2/0"), id="another key"),
        pytest.param(lambda url: url.replace("expires=1000600", "expires=9000600"), id="a longer life"),
        pytest.param(lambda url: url.replace("expires=1000600", "expires=01000600"), id="the same number"),
        pytest.param(lambda url: url.replace("expires=1000600", "expires=never"), id="no number"),
        pytest.param(lambda url: url.replace("filename=job1.jpg", "filename=evil.exe"), id="another filename"),
        pytest.param(lambda url: url[:-2] + ("aA" if url[-2:] != "aA" else "bB"), id="another signature"),
        pytest.param(lambda url: url + "%20", id="a longer signature"),
        pytest.param(lambda url: url + "\u00e9", id="a signature that is no ASCII"),
        pytest.param(lambda url: _without(url, "signature"), id="no signature"),
        pytest.param(lambda url: _without(url, "expires"), id="no end"),
        pytest.param(lambda url: _without(url, "filename"), id="no filename"),
        pytest.param(lambda url: urlsplit(url).path, id="no query"),
    ],
)
async def test_a_tampered_link_is_refused(client: httpx.AsyncClient, link: str, tamper) -> None:
    tampered = tamper(local(link))
    assert tampered != local(link)
    answer = await client.get(tampered)
    assert answer.status_code == 403
    assert answer.json()["error"] == "Bad signature"
    assert b"\xff\xd8" not in answer.content


async def test_a_tampered_link_is_not_told_that_it_expired(client: httpx.AsyncClient, clock: Clock, link: str) -> None:
    clock.time = EXPIRES + 1
    answer = await client.get(local(link).replace("job1/0", "job2/0"))
    assert answer.json()["error"] == "Bad signature"


async def test_another_secret_signs_for_nothing(client: httpx.AsyncClient, link: str) -> None:
    forged = Links(b"another secret, just as long.....", "download", f"{PUBLIC}/files")
    url = forged.make("out/job1/0.jpg", expires_at=EXPIRES, filename="job1.jpg")
    assert (await client.get(local(url))).status_code == 403


async def test_a_signature_for_an_upload_opens_no_download(client: httpx.AsyncClient, link: str) -> None:
    uploads = Links(SECRET, "upload", f"{PUBLIC}/files")
    url = uploads.make("out/job1/0.jpg", expires_at=EXPIRES, filename="job1.jpg")
    assert (await client.get(local(url))).status_code == 403


@pytest.mark.parametrize("key", ["raw/job1/0.png", "master/job1/0.png", "quarantine/job1/0.png"])
async def test_private_files_are_not_served_even_when_signed(
    client: httpx.AsyncClient, storage: DiskStorage, key: str
) -> None:
    await storage.keep(key, PNG)
    url = Links(SECRET, "download", f"{PUBLIC}/files").make(key, expires_at=EXPIRES, filename="a.png")
    assert (await client.get(local(url))).status_code == 404


async def test_a_signed_copy_of_a_blocked_picture_has_a_link_too(
    client: httpx.AsyncClient, storage: DiskStorage
) -> None:
    await storage.publish("unsafe/job1/0.jpg", signed())
    url = storage.link("unsafe/job1/0.jpg", filename="blocked.jpg", expires_at=EXPIRES)
    answer = await client.get(local(url))
    assert (answer.content, answer.headers["content-type"]) == (signed().data, "image/jpeg")


async def test_a_removed_picture_is_404(client: httpx.AsyncClient, storage: DiskStorage, link: str) -> None:
    await storage.purge("out/job1")
    answer = await client.get(local(link))
    assert answer.status_code == 404
    assert answer.json()["error"] == "Not found"


async def test_a_folder_is_not_served(client: httpx.AsyncClient, storage: DiskStorage, link: str) -> None:
    url = storage.link("out/job1", filename="job1", expires_at=EXPIRES)
    assert (await client.get(local(url))).status_code == 404


@pytest.mark.parametrize("name", ['a".jpg', "a\r\nSet-Cookie: x=1", "naïve 图.jpg", "a;b.jpg"])
async def test_a_filename_can_not_break_out_of_its_header(
    client: httpx.AsyncClient, storage: DiskStorage, link: str, name: str
) -> None:
    answer = await client.get(local(storage.link("out/job1/0.jpg", filename=name, expires_at=EXPIRES)))
    assert answer.status_code == 200
    assert "set-cookie" not in answer.headers
    assert answer.headers["content-disposition"] == f"inline; filename*=utf-8''{quote(name)}"


async def test_other_methods_are_not_taken(client: httpx.AsyncClient, link: str) -> None:
    assert (await client.post(local(link))).status_code == 405
    assert (await client.delete(local(link))).status_code == 405


async def _ask(app: Starlette, method: str, path: str, query: str) -> tuple[int, bytes]:
    """Straight into the application: a client would tidy the path up first."""
    sent: list[Message] = []
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": []}

    async def receive() -> Message:
        return {"type": "http.request", "body": PNG, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    parts=st.lists(st.sampled_from(["..", ".", "", "out", "raw", "secret.txt", "0.png", "\\..", "\0", "%2e%2e", "~"])),
    method=st.sampled_from(["GET", "PUT"]),
    signs=st.booleans(),
)
@example(parts=["..", "secret.txt"], method="GET", signs=True)
@example(parts=["out", "..", "..", "secret.txt"], method="GET", signs=True)
@example(parts=["raw", "..", "..", "0.png"], method="PUT", signs=True)
@example(parts=["", "etc", "passwd"], method="GET", signs=True)
async def test_no_url_leads_out_of_the_folder(
    storage: DiskStorage, root: Path, parts: list[str], method: str, signs: bool
) -> None:
    outside = root.parent / "secret.txt"
    outside.write_bytes(b"secret")
    key = "/".join(parts)
    place, purpose = ("uploads", "upload") if method == "PUT" else ("files", "download")
    query = "expires=1000600&signature=x"
    if signs:
        query = Links(SECRET, purpose, "").make(key, expires_at=EXPIRES).split("?")[1]
    status, body = await _ask(Starlette(routes=storage.routes()), method, f"/{place}/{key}", query)
    if status == 201:
        assert is_key(key)
        assert parts[0] == "raw"
    else:
        assert status in (403, 404)
    assert b"secret" not in body
    assert sorted(path.name for path in root.parent.iterdir()) == [root.name, "secret.txt"]
    assert outside.read_bytes() == b"secret"
