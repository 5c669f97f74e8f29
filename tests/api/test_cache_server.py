"""The cache on a Qdrant server that replicas share: found by all, and never in the way when it is away."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest

from gateway.core import cache_feed, caching
from tests.api.conftest import Gateway, opened, settings
from tests.api.fake_runpod import FakeRunPod
from tests.api.test_cache import PROMPT, REWORDED, hit, missed, semantic
from tests.cache.fake_qdrant import FakeQdrant
from tests.desk.test_cache_command import command

pytestmark = pytest.mark.anyio

KEY = "qdrant-key"


@pytest.fixture
def server() -> Iterator[FakeQdrant]:
    with FakeQdrant(api_key=KEY) as server:
        yield server


@pytest.fixture
async def replica(tmp_path: Any, server: FakeQdrant, monkeypatch: pytest.MonkeyPatch) -> Any:
    # So long nobody asks a server that was away, for what is new and for a caller.
    monkeypatch.setattr(cache_feed, "PAUSE", 0.5)
    monkeypatch.setattr(caching, "REST", 1.0)
    runpod = FakeRunPod(key="rp-key")
    async with AsyncExitStack() as stack:

        async def open_one(**changed: str) -> Gateway:
            configured = settings(tmp_path, IMGEN_CACHE_URL=server.url, IMGEN_CACHE_KEY=KEY, **changed)
            return await stack.enter_async_context(opened(configured, runpod))

        yield open_one


def points(server: FakeQdrant) -> int:
    return sum(server.local.count(each.name).count for each in server.local.get_collections().collections)


async def test_what_one_replica_drew_another_finds(replica: Any, server: FakeQdrant) -> None:
    one, other = await replica(), await replica()
    first = await one.picture(PROMPT)
    assert (await hit(other))["gen_id"] == first["gen_id"]
    assert (await semantic(other, REWORDED))["gen_id"] == first["gen_id"]
    assert points(server) == 1
    await missed(other, "a blue house on a hill, soft light, -fog")


@pytest.mark.parametrize("how", ["stopped", "broken", "stuck"])
async def test_a_server_that_is_away_is_a_miss_with_a_warning_and_equal_requests_are_still_found(
    replica: Any, server: FakeQdrant, how: str
) -> None:
    gateway = await replica(IMGEN_CACHE_TIMEOUT="1")
    first = await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    match how:
        case "stopped":
            server.stop()
        case "broken":
            server.broken = (500, "internal error with secrets")
        case _:
            server.stuck = True
    with anyio.fail_after(20):
        job = await gateway.call("generate", prompt=REWORDED, use_cache=True)
        assert job["id"].startswith("run_") and job["warnings"][0]["code"] == "cache_unavailable"
        assert "secret" not in str(job)
        await missed(gateway, REWORDED)
        assert (await hit(gateway))["gen_id"] == first["gen_id"]
        # What is drawn meanwhile is not lost to the cache.
        later = await gateway.picture("a green boat by the sea, soft light")
    text = (await gateway.http.get("/metrics")).text
    assert "imgen_cache_failures_total{" in text
    server.stuck, server.broken = False, None
    if how == "stopped":
        server.start()
    found = await semantic(gateway, "soft light, a green boat by the sea")
    assert found["gen_id"] == later["gen_id"]


async def test_a_gateway_starts_and_works_while_the_server_is_down(replica: Any, server: FakeQdrant) -> None:
    server.stop()
    gateway = await replica()
    first = await gateway.picture(PROMPT)
    assert (await hit(gateway))["gen_id"] == first["gen_id"]
    server.start()
    assert (await semantic(gateway, REWORDED))["gen_id"] == first["gen_id"]


async def test_a_wrong_key_is_a_miss_with_a_warning(tmp_path: Any, server: FakeQdrant) -> None:
    configured = settings(tmp_path, IMGEN_CACHE_URL=server.url, IMGEN_CACHE_KEY="wrong")
    async with opened(configured, FakeRunPod(key="rp-key")) as gateway:
        await gateway.picture(PROMPT)
        with anyio.fail_after(30):
            while True:
                job = await gateway.call("generate", prompt=REWORDED, use_cache=True)
                assert job["id"].startswith("run_") and job["warnings"][0]["code"] == "cache_unavailable"
                if "error" in (await gateway.http.get("/metrics")).text:
                    break
                await anyio.sleep(0.1)


async def test_deleting_a_job_takes_its_point_from_the_server_even_if_that_was_away(
    replica: Any, server: FakeQdrant
) -> None:
    gateway = await replica()
    job = await gateway.call("generate", prompt=PROMPT)
    await gateway.ended(job["id"])
    await semantic(gateway, REWORDED)
    assert points(server) == 1
    server.broken = (503, "away")
    await gateway.call("delete", id=job["id"])
    await missed(gateway, PROMPT)
    await anyio.sleep(0.2)
    server.broken = None
    with anyio.fail_after(60):
        while points(server):
            await anyio.sleep(0.1)


async def test_a_collection_that_was_dropped_is_made_again_from_the_job_store(
    replica: Any, server: FakeQdrant, tmp_path: Any
) -> None:
    gateway = await replica()
    first = await gateway.picture(PROMPT)
    await semantic(gateway, REWORDED)
    for each in server.local.get_collections().collections:
        server.drop(each.name)
    await missed(gateway, REWORDED)
    told = await command("rebuild", data=tmp_path, IMGEN_CACHE_URL=server.url, IMGEN_CACHE_KEY=KEY)
    assert "1 entries are written down, 1 of them" in told and points(server) == 1
    assert (await semantic(gateway, REWORDED))["gen_id"] == first["gen_id"]
    told = await command("stats", data=tmp_path, IMGEN_CACHE_URL=server.url, IMGEN_CACHE_KEY=KEY)
    assert "The Qdrant server has 1 points." in told
    await command("purge", data=tmp_path, IMGEN_CACHE_URL=server.url, IMGEN_CACHE_KEY=KEY)
    assert points(server) == 0
