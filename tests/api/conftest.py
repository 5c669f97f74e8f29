"""A whole gateway over its front door, with a stand-in for RunPod's cloud behind it."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
from starlette.applications import Starlette

from cache.encoder import Encoder
from cache.minilm import MiniLM
from compliance.review import Reviewer
from gateway.app import create_app
from gateway.settings import Settings
from tests.api.fake_runpod import FakeRunPod

KEY = "imgen_test_key_for_the_default_tenant"
BASE = "http://gateway.test"


class Gateway:
    """One running gateway and how a caller reaches it."""

    def __init__(self, app: Starlette, runpod: FakeRunPod, settings: Settings) -> None:
        self.app = app
        self.runpod = runpod
        self.settings = settings
        self.http = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False), base_url=BASE, timeout=30
        )
        runpod.uploads = self.http

    async def post(self, body: Any, *, key: str | None = KEY, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return await self.http.post("/api/v2", json=body, headers=headers, **more)

    async def call(self, action: str, **fields: Any) -> dict[str, Any]:
        response = await self.post({"action": action, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    async def ended(self, job_id: str, *, seconds: float = 30) -> dict[str, Any]:
        """The status of a job once it is terminal; fails after a bounded wait."""
        with anyio.fail_after(seconds):
            while True:
                status = await self.call("status", id=job_id)
                if status["status"] not in {"IN_QUEUE", "IN_PROGRESS"}:
                    return status
                await anyio.sleep(0.05)

    async def picture(self, prompt: str = "a red house", **fields: Any) -> dict[str, Any]:
        """Generate, wait, and answer the meta of the completed job."""
        job = await self.call("generate", prompt=prompt, **fields)
        status = await self.ended(job["id"])
        assert status["status"] == "COMPLETED", status
        return status["meta"]


def settings(data: Path, **changed: str) -> Settings:
    """Settings of a gateway that looks at its jobs often, so that no test has to wait."""
    environ = {
        "IMGEN_DATA": str(data),
        "IMGEN_PUBLIC_URL": BASE,
        "IMGEN_API_KEY": KEY,
        "IMGEN_BACKEND_URL": "http://runpod.test/v2/fake",
        "IMGEN_BACKEND_KEY": "rp-key",
        "IMGEN_SWEEP_INTERVAL": "0.02",
        "IMGEN_POLL_INTERVAL": "0.02",
        "IMGEN_LEASE": "2",
        "IMGEN_LOG_LEVEL": "error",
        # Most tests compare pixels; those about the id in them switch it on.
        "IMGEN_PIXEL_MARK": "false",
    }
    return Settings.from_environ({**environ, **changed})


@functools.cache
def encoder_folder() -> Path:
    """The cache's encoder, made once for all tests of a machine: seconds of work that none of them is about."""
    folder = Path(tempfile.gettempdir()) / f"imgen-test-encoder-{os.getuid()}"
    MiniLM.open(folder)
    return folder


@functools.cache
def encoder() -> Encoder:
    """The same, loaded: once in a process and not once for each gateway."""
    return MiniLM.open(encoder_folder())


@asynccontextmanager
async def opened(configured: Settings, runpod: FakeRunPod, *reviewers: Reviewer) -> AsyncIterator[Gateway]:
    configured.data.mkdir(parents=True, exist_ok=True)
    at_hand = encoder() if (configured.cache, configured.cache_encoder) == ("on", "minilm") else None
    app = create_app(configured, backend_transport=runpod, reviewers=reviewers, encoder=at_hand)
    async with app.router.lifespan_context(app):
        gateway = Gateway(app, runpod, configured)
        async with gateway.http:
            yield gateway


@pytest.fixture
async def open_gateway(tmp_path: Path, anyio_backend: str) -> AsyncIterator[Callable[..., Any]]:
    """Opens further gateways on the same data: replicas, or one after a restart."""
    async with AsyncExitStack() as stack:

        async def open_one(*reviewers: Reviewer, **changed: str) -> Gateway:
            configured = settings(tmp_path, **changed)
            return await stack.enter_async_context(opened(configured, FakeRunPod(key="rp-key"), *reviewers))

        yield open_one


@pytest.fixture
async def gateway(open_gateway: Callable[..., Any]) -> Gateway:
    return await open_gateway()
