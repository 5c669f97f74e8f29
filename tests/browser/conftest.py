"""A real headless Chromium in front of a real gateway on a real port; only RunPod's cloud is a stand-in."""

from __future__ import annotations

import io
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from gateway.app import create_app
from gateway.listener import listen
from handler import contract
from tests.api.conftest import KEY, settings
from tests.api.fake_runpod import FakeRunPod

ROOT = Path(__file__).parents[2]
#: The smallest that there is comes first.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0


def scene(job: contract.Job, index: int) -> bytes:
    """A picture with something in it, as the built-in model draws: the marks in flat colours are no test."""
    with Image.open(ROOT / "docs/demo.jpg") as demo:
        out = io.BytesIO()
        demo.convert("RGB").resize((job.width, job.height), Image.Resampling.LANCZOS).save(out, "PNG")
    return out.getvalue()


class Gateway:
    """One running gateway, and a caller of it with a key."""

    def __init__(self, url: str, runpod: FakeRunPod) -> None:
        self.url = url
        self.runpod = runpod
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30)

    def call(self, action: str, **fields: object) -> dict:
        response = self.http.post("/api/v2", json={"action": action, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    def picture(self, **fields: object) -> tuple[dict, bytes]:
        """What `status` says of a fresh picture, and its signed file."""
        job, until = self.call("generate", prompt="a fox on a green hill", **fields), time.monotonic() + PATIENCE
        while (status := self.call("status", id=job["id"]))["status"] in {"IN_QUEUE", "IN_PROGRESS"}:
            assert time.monotonic() < until
            time.sleep(0.05)
        assert status["status"] == "COMPLETED", status
        return status["meta"], self.http.get(status["meta"]["images"][0]["url"]).content


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    listener = listen("127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # Its connections live in the loop of the server: none may be left when that ends.
    uploads = httpx.AsyncClient(base_url=url, limits=httpx.Limits(max_keepalive_connections=0))
    runpod = FakeRunPod(key="rp-key", brush=scene, uploads=uploads)
    changed = {"IMGEN_PUBLIC_URL": url, "IMGEN_PIXEL_MARK": "true", "IMGEN_VERIFY_RATE": "10000"}
    configured = settings(tmp_path_factory.mktemp("gateway"), **changed)
    app = create_app(configured, backend_transport=runpod)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, ws="none", timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    until = time.monotonic() + PATIENCE
    while not server.started:
        assert thread.is_alive() and time.monotonic() < until
        time.sleep(0.02)
    gateway = Gateway(url, runpod)
    yield gateway
    gateway.http.close()
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if found is None:
        pytest.skip("no Chromium here: apt-get install chromium-headless-shell")
    with sync_playwright() as playwright:
        # Without its sandbox, which root and many containers can't have: it opens nothing but our own pages.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


class Tab:
    """A page, and everything that it asked for and complained about."""

    def __init__(self, context: BrowserContext) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        context.on("request", lambda request: self.requests.append(request.url))
        context.on("console", self._hear)
        context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        context.set_default_timeout(15_000)
        self.page: Page = context.new_page()

    def _hear(self, message: ConsoleMessage) -> None:
        # That a request was refused is what some tests are about; the browser writes a line about each.
        if message.type in {"error", "warning"} and not message.text.startswith("Failed to load resource"):
            self.complaints.append(message.text)


@pytest.fixture
def context(browser: Browser, gateway: Gateway) -> Iterator[BrowserContext]:
    context = browser.new_context(base_url=gateway.url, viewport={"width": 1200, "height": 900}, locale="en-GB")
    yield context
    context.close()


@pytest.fixture
def tab(context: BrowserContext, gateway: Gateway) -> Iterator[Tab]:
    """Whatever a test does: nothing is asked of another host, no policy is broken and no script fails."""
    tab = Tab(context)
    yield tab
    assert [url for url in tab.requests if not url.startswith((f"{gateway.url}/", f"blob:{gateway.url}/"))] == []
    assert tab.complaints == []


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it stands, by the rules of WCAG 2.2 AA and its best practices."""
    results = Axe().run(page).response["violations"]
    return [f"{one['id']}: {node['html']} {node['failureSummary']}" for one in results for node in one["nodes"]]
