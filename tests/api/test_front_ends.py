"""What browsers need of a gateway: origins that may call, pages that ask nobody else, and headers that say so."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from gateway.core import access
from gateway.errors import SettingsError
from gateway.settings import Settings
from tests.api.conftest import BASE, KEY, Gateway

pytestmark = pytest.mark.anyio
SITE = "https://shop.example"
LOCAL = "http://localhost:3000"
PAGES = ("/verify", "/example")


@pytest.fixture
async def shared(open_gateway: Callable[..., Any]) -> Gateway:
    return await open_gateway(IMGEN_CORS_ORIGINS=f"{SITE}, {LOCAL}")


@pytest.mark.parametrize("origin", [SITE, LOCAL])
@pytest.mark.parametrize(("path", "method"), [("/api/v2", "POST"), ("/api/verify", "POST"), ("/i/run_abc", "GET")])
async def test_a_named_origin_may_ask_with_a_key_and_without_cookies(
    shared: Gateway, origin: str, path: str, method: str
) -> None:
    asked = {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": "authorization,content-type",
    }
    answer = await shared.http.options(path, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == origin
    assert method in answer.headers["access-control-allow-methods"].split(", ")
    assert "access-control-allow-credentials" not in answer.headers
    assert "Origin" in answer.headers["vary"]


@pytest.mark.parametrize("origin", ["https://evil.example", "https://shop.example.evil.example", "null", SITE.upper()])
async def test_any_other_origin_is_left_out(shared: Gateway, origin: str) -> None:
    asked = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    preflight = await shared.http.options("/api/v2", headers=asked)
    plain = await shared.http.post("/api/v2", json={"action": "models"}, headers={"Origin": origin})
    assert preflight.status_code == 400
    for answer in (preflight, plain):
        assert "access-control-allow-origin" not in answer.headers
        assert "Origin" in answer.headers["vary"]


async def test_an_answer_to_a_named_origin_shows_what_a_page_must_read(shared: Gateway) -> None:
    answer = await shared.http.post("/api/v2", json={"action": "models"}, headers={"Origin": SITE})
    assert answer.status_code == 401 and answer.headers["access-control-allow-origin"] == SITE
    shown = answer.headers["access-control-expose-headers"].split(", ")
    assert {"retry-after", "x-request-id", "etag"} <= set(shown)


async def test_pictures_can_be_read_by_a_named_origin_and_never_come_from_a_cache_of_another(shared: Gateway) -> None:
    meta = await shared.picture()
    headers = {"Origin": SITE, "Authorization": f"Bearer {KEY}"}
    redirect = await shared.http.get(f"/i/{meta['id']}", headers=headers)
    assert redirect.status_code == 302 and redirect.headers["access-control-allow-origin"] == SITE
    with_origin = await shared.http.get(redirect.headers["location"], headers=headers)
    without = await shared.http.get(redirect.headers["location"])
    assert with_origin.headers["access-control-allow-origin"] == SITE
    assert without.headers["vary"] == with_origin.headers["vary"] == "Origin"


async def test_a_fault_of_ours_can_be_read_from_a_named_origin_too(
    shared: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: access.Access, authorization: str | None) -> None:
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(access.Access, "caller", broken)
    answer = await shared.http.post("/api/v2", json={"action": "models"}, headers={"Origin": SITE})
    assert answer.status_code == 500 and "secret" not in answer.text
    assert answer.headers["access-control-allow-origin"] == SITE
    assert answer.headers["x-request-id"] == answer.json()["request_id"]


async def test_nobody_may_call_from_elsewhere_unless_told(gateway: Gateway) -> None:
    asked = {"Origin": SITE, "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in (await gateway.http.options("/api/v2", headers=asked)).headers


@pytest.mark.parametrize(
    "value",
    [
        "*",
        "null",
        f"{SITE}, *",
        "https://*.example",
        "shop.example",
        f"{SITE}/",
        f"{SITE}/app",
        "https://Shop.example",
        "https://me:secret@shop.example",
        "https://shop.example:443",
        "http://localhost:80",
        "http://localhost:99999",
        "ftp://shop.example",
        f"{SITE} {LOCAL}",
    ],
)
def test_an_origin_that_no_browser_sends_stops_the_start(value: str) -> None:
    with pytest.raises(SettingsError, match=r"^IMGEN_CORS_ORIGINS: "):
        Settings.from_environ({"IMGEN_CORS_ORIGINS": value})


def test_origins_are_read_as_they_were_meant() -> None:
    given = {
        "IMGEN_CORS_ORIGINS": " https://shop.example ,,http://localhost:3000, http://[::1]:8080,https://xn--bcher-kva.example"
    }
    assert Settings.from_environ(given).origins() == (
        SITE,
        LOCAL,
        "http://[::1]:8080",
        "https://xn--bcher-kva.example",
    )


@pytest.mark.parametrize("path", PAGES)
async def test_a_page_asks_nobody_else_and_runs_nothing_but_its_own(gateway: Gateway, path: str) -> None:
    page = await gateway.http.get(path)
    assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(part.split(" ", 1) for part in page.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == "'self'"
    # Where pictures lie is asked of the storage: on this one, it is the gateway.
    assert policy["connect-src"] == ("'self'" if path == "/verify" else f"'self' {BASE}")
    assert "unsafe" not in page.headers["content-security-policy"]
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"
    assert "{{" not in page.text
    assert re.search(r"<script(?![^>]*\bsrc=)|<style|\son\w+=|\sstyle=", page.text) is None
    linked = re.findall(r'(?:href|src)="(/pages/[^"]+)"', page.text)
    assert re.findall(r'(?:href|src)="(?!/|#)', page.text) == [] and len(linked) == 3
    for part in linked:
        answer = await gateway.http.get(part)
        kinds = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8", "svg": "image/svg+xml"}
        assert answer.headers["content-type"] == kinds[part.rpartition(".")[2]]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", [*PAGES, "/pages/verify.js", "/pages/verify.css", "/pages/pin.svg"])
async def test_what_a_browser_has_is_not_sent_again(gateway: Gateway, path: str) -> None:
    first = await gateway.http.get(path)
    assert first.headers["cache-control"] == "no-cache"
    again = await gateway.http.get(path, headers={"If-None-Match": f'"old", W/{first.headers["etag"]}'})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers.get("content-security-policy") == first.headers.get("content-security-policy")
    other = await gateway.http.get(path, headers={"If-None-Match": '"old"'})
    assert other.status_code == 200 and other.content == first.content
    head = await gateway.http.head(path)
    assert (head.status_code, head.content) == (200, b"") and head.headers["etag"] == first.headers["etag"]


@pytest.mark.parametrize(
    "path", ["/pages/site.py", "/pages/__init__.py", "/pages/verify.html", "/pages/..%2Fapp.py", "/pages/"]
)
async def test_nothing_else_of_the_package_is_served(gateway: Gateway, path: str) -> None:
    assert (await gateway.http.get(path)).status_code == 404


async def test_a_page_knows_whether_its_certificates_are_for_development(gateway: Gateway) -> None:
    assert 'data-development="true"' in (await gateway.http.get("/verify")).text
