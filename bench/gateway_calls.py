"""CPU microseconds per request of the gateway's calls against a bare Starlette route, alternated in one run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import median

import httpx
import orjson
import psutil

from bench.load import Sample, measure
from compliance.verdict import Verdict
from gateway.core.images import Drawn, Job, Outcome, RawPicture, State, StoredPicture
from gateway.jobs.database import Database
from gateway.jobs.store import SqlJobs

KEY = "imgen_bench_key_0123456789"
PROMPT = "@aya on a hill at noon, a red house on the left, -fog, -rain"


def run(data: Path, *, rounds: int, seconds: float, connections: tuple[int, ...]) -> None:
    """Print one row per call. Ratios are of the medians over the rounds."""
    with server("bench.servers:echo") as echo, server("bench.servers:endpoint") as endpoint:
        environ = {
            "IMGEN_DATA": str(data),
            "IMGEN_API_KEY": KEY,
            "IMGEN_BACKEND_URL": f"http://127.0.0.1:{endpoint[1]}/v2/bench",
            "IMGEN_BACKEND_KEY": "bench",
            "IMGEN_LOG_LEVEL": "warning",
            # The calls are measured, not the sweeper's questions about thousands of jobs that are never drawn.
            "IMGEN_POLL_INTERVAL": "600",
        }
        with gateway(environ) as serving:
            pending, done = asyncio.run(_jobs(serving[1], data))
            bodies = {
                "models": {"action": "models"},
                "status, pending": {"action": "status", "id": pending},
                "status, done": {"action": "status", "id": done},
                "generate": {"action": "generate", "prompt": PROMPT, "seed": 1},
            }
            for count in connections:
                print(f"\n{count} in flight, {rounds} rounds of {seconds:g} s each, alternating")
                print(f"{'call':<18}{'CPU us':>10}{'of the bare route':>20}{'p50 ms':>10}{'requests':>10}")
                taken: dict[str, list[Sample]] = {}
                for _ in range(rounds):
                    for name, body in {"bare route": bodies["generate"], **bodies}.items():
                        process, port = echo if name == "bare route" else serving
                        sample = measure(process, port, orjson.dumps(body), KEY, connections=count, seconds=seconds)
                        taken.setdefault(name, []).append(asyncio.run(sample))
                bare = median(sample.cpu_us for sample in taken["bare route"])
                for name, samples in taken.items():
                    cpu = median(sample.cpu_us for sample in samples)
                    p50 = min(sample.p50_ms for sample in samples)
                    print(
                        f"{name:<18}{cpu:>10.0f}{cpu / bare:>19.1f}x{p50:>10.2f}{sum(s.requests for s in samples):>10}"
                    )


async def _jobs(port: int, data: Path) -> tuple[str, str]:
    """A job that waits and one that has ended, as the gateway itself would have written them."""
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {KEY}"}
    ) as http:
        answer = await http.post("/api/v2", json={"action": "generate", "prompt": PROMPT})
        pending = answer.json()["id"]
    database = Database(f"sqlite+aiosqlite:///{data / 'imgen.db'}")
    async with database.open():
        jobs = SqlJobs(database)
        job = await jobs.find("imgen", pending)
        assert job is not None
        await jobs.add(_ended(job), lease="bench", until=0)
    return pending, "run_done"


def _ended(job: Job) -> Job:
    picture = StoredPicture(
        key=f"out/{'d' * 20}/{'0' * 64}.jpg", type="signed", index=0, filename="d.jpg", mime="image/jpeg", bytes=1,
        sha256="0" * 64, width=1344, height=768,
    )  # fmt: skip
    raw = RawPicture(index=0, seed=1, sha256="0" * 64, width=1344, height=768)
    return replace(
        job,
        gen_id="d" * 20,
        public_id="run_done",
        state=State.COMPLETED,
        started_at=job.created_at,
        drawn_at=job.created_at,
        finished_at=job.created_at,
        drawn=Drawn(pictures=(raw,), steps=14, guidance=4.0, sampler="s", family="f", revision="r"),
        outcome=Outcome(
            verdict=Verdict(safe=True, ruleset="default", ruleset_version="1"),
            pictures=(picture, replace(picture, type="thumbnail")),
            quality=95,
        ),
    )


@contextlib.contextmanager
def server(app: str) -> Iterator[tuple[psutil.Process, int]]:
    port = _free_port()
    command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--log-level", "warning"]
    with _process(command, dict(os.environ), port) as process:
        yield process, port


@contextlib.contextmanager
def gateway(environ: dict[str, str]) -> Iterator[tuple[psutil.Process, int]]:
    port = _free_port()
    command = [sys.executable, "-m", "gateway", "serve"]
    with _process(command, {**os.environ, **environ, "IMGEN_PORT": str(port)}, port) as process:
        yield process, port


@contextlib.contextmanager
def _process(command: list[str], environ: dict[str, str], port: int) -> Iterator[psutil.Process]:
    process = subprocess.Popen(command, env=environ)
    try:
        until = time.monotonic() + 60
        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command} did not start")
            time.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
