"""Seconds from POST to signed picture, by phase, on the whole embedded stack with the built-in model."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import httpx

from gateway.client import Client

KEY = "imgen_bench_key_0123456789"
PHASES = (
    ("queued", "waiting for a worker"),
    ("drawing", "drawing and upload, as the gateway saw it"),
    ("worker_draw", "  of it the model"),
    ("finishing", "review, encode, sign, store"),
    ("finish_decode", "  of it decode"),
    ("finish_review", "  of it review"),
    ("finish_encode", "  of it encode, with thumbnail"),
    ("finish_sign", "  of it sign, with thumbnail"),
    ("finish_store", "  of it store"),
    ("total", "POST to signed picture"),
)


def run(data: Path, *, pictures: int) -> None:
    """Draw one after the other and print the median of each phase."""
    began = time.perf_counter()
    with _stack(data) as url:
        print(f"\nready {time.perf_counter() - began:.1f} s after the start; {pictures} pictures of 1344x768, jpeg")
        timings = []
        with Client(url, KEY) as client:
            for seed in range(pictures):
                ticket = client.generate("@aya on a hill, -fog", seed=seed)
                timings.append(client.wait(ticket, every=0.1).meta["timings"])
        for name, text in PHASES:
            values = [timing[name] for timing in timings if name in timing]
            if values:
                print(f"{text:<44}{median(values):>8.3f} s  ({min(values):.3f}-{max(values):.3f})")


@contextlib.contextmanager
def _stack(data: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gateway", "up", "--data", str(data), "--port", str(port)]
    environ = {**os.environ, "IMGEN_API_KEY": KEY, "IMGEN_LOG_LEVEL": "warning"}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        until = time.monotonic() + 180
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/readyz", trust_env=False).status_code == 200:
                    break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError("the stack did not become ready")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(timeout=60)
