"""A worker whose GPU broke ends itself; the desk starts another one, which draws what waited."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from gateway.desk import stack
from gateway.desk.broker import Broker
from gateway.desk.supervisor import Start
from gateway.settings import Settings
from handler.contract import job_to_wire
from tests.desk.stage import Stage
from tests.worker.fakes import job

FAKE = Path(__file__).parents[1] / "worker/fake_engine.py"
ROOT = Path(__file__).parents[2]


@pytest.mark.anyio
async def test_a_worker_that_lost_its_gpu_is_replaced_and_the_next_job_is_drawn(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text(f'[models.flat]\nsource = "{ROOT / "handler/builtin/model"}"\nsteps = 2\n', encoding="utf-8")
    settings = Settings(data=tmp_path)
    endpoint = stack.Endpoint(port=stack.free_port(), client_key="c" * 20, worker_key="w" * 20)
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "IMGEN_MODELS": str(models), "PYTHONPATH": str(ROOT)}
    broker, _, worker = stack.children(settings, environ, endpoint, listener=0)
    starts: list[str] = []

    def breaking(start: Start) -> tuple[Sequence[str], Mapping[str, str]]:
        # The first one breaks its GPU at its second job; whoever comes after it does not.
        kind = "flat" if starts else "lost"
        starts.append(start.id)
        return [sys.executable, str(FAKE), kind], worker.command(start)[1]

    stage = Stage(tmp_path)
    children = (broker, replace(worker, command=breaking))
    async with stage.running(*children, broker=Broker(endpoint.url, endpoint.worker_key)), _client(endpoint) as http:
        statuses = [await _drawn(http, name) for name in ("run_a", "run_b", "run_c")]
    assert statuses == ["COMPLETED", "FAILED", "COMPLETED"], stage.said
    assert len(starts) == 2, stage.said


def _client(endpoint: stack.Endpoint) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=endpoint.base, headers={"Authorization": endpoint.client_key}, trust_env=False)


async def _drawn(http: httpx.AsyncClient, name: str) -> str:
    async with asyncio.timeout(120):
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await http.post("/run", json={"input": job_to_wire(job(id=name))})
                break
            await asyncio.sleep(0.2)
        while True:
            status = (await http.get(f"/status/{answer.json()['id']}")).json()["status"]
            if status not in {"IN_QUEUE", "IN_PROGRESS"}:
                return str(status)
            await asyncio.sleep(0.2)
