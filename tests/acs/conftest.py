from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import httpx
import pytest

from compliance.panel import Panel
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.service import create_app
from gateway.acs.local import LocalCompliance
from gateway.acs.remote import RemoteCompliance
from gateway.core.ports import Compliance
from tests.acs.rig import KEY, AcsProcess, make_panel


@pytest.fixture(scope="module")
def panel(tmp_path_factory: pytest.TempPathFactory) -> Panel:
    return make_panel(tmp_path_factory.mktemp("panel"))


@pytest.fixture(scope="module")
def acs_process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AcsProcess]:
    process = AcsProcess(tmp_path_factory.mktemp("acs"))
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture
def own_process(tmp_path: Path) -> Iterator[AcsProcess]:
    """One that the test may kill."""
    process = AcsProcess(tmp_path)
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(scope="session")
def minors() -> Words:
    return Words(PromptGate.built_in())


@pytest.fixture(params=["local", "in-process", "second-process"])
async def compliance(
    request: pytest.FixtureRequest, panel: Panel, minors: Words, anyio_backend: str
) -> AsyncIterator[Compliance]:
    """The port over each way to the same reviewers."""
    async with AsyncExitStack() as stack:
        if request.param == "local":
            local = LocalCompliance(panel, threads=2)
            await stack.enter_async_context(local.open())
            yield local
            return
        if request.param == "in-process":
            app = create_app(panel, key=KEY, threads=2)
            # A fault that nobody foresaw is answered first and raised then, which a server only logs.
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            remote = RemoteCompliance("http://acs.test", KEY, minors=minors, timeout=30, transport=transport)
        else:
            url = request.getfixturevalue("acs_process").url
            remote = RemoteCompliance(url, KEY, minors=minors, timeout=30)
        await stack.enter_async_context(remote.open())
        yield remote
