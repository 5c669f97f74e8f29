"""The whole embedded stack as a user starts it: `imgen up`, three real processes, the built-in model."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil

KEY = "imgen_test_key_of_the_whole_stack"


class Stack:
    """A running `imgen up` and what a caller, or a killer, wants of it."""

    def __init__(self, process: subprocess.Popen[bytes], data: Path, url: str) -> None:
        self.process = process
        self.data = data
        self.url = url
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {KEY}"}, timeout=30, trust_env=False)

    def call(self, action: str, **fields: Any) -> dict[str, Any]:
        answer = self.http.post("/api/v2", json={"action": action, **fields})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def ended(self, job: str, *, seconds: float = 120) -> dict[str, Any]:
        def status() -> dict[str, Any] | None:
            seen = self.call("status", id=job)
            return None if seen["status"] in {"IN_QUEUE", "IN_PROGRESS"} else seen

        return wait_for(status, seconds=seconds)

    def child(self, name: str) -> psutil.Process:
        """The main process of one of the three, by the note that the supervisor keeps."""
        note = json.loads((self.data / "up.json").read_text(encoding="utf-8"))
        return psutil.Process(next(group["pid"] for group in note["groups"] if group["name"] == name))

    def wait_ready(self, *, seconds: float = 120) -> None:
        def ready() -> bool:
            try:
                return self.http.get("/readyz").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(ready, seconds=seconds)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=60)


def wait_for(condition: Callable[[], Any], *, seconds: float) -> Any:
    """The first true value of a condition; fails after a bounded wait."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if value := condition():
            return value
        time.sleep(0.1)
    raise AssertionError(f"not within {seconds} s: {condition}")


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def running(data: Path, port: int = 0, **environ: str) -> Iterator[Stack]:
    port = port or free_port()
    command = [sys.executable, "-m", "gateway", "up", "--data", str(data), "--port", str(port)]
    log = (data.parent / f"{data.name}.log").open("ab")
    process = subprocess.Popen(
        command, env={**os.environ, "IMGEN_API_KEY": KEY, **environ}, stdout=log, stderr=log, start_new_session=True
    )
    stack = Stack(process, data, f"http://127.0.0.1:{port}")
    try:
        stack.wait_ready()
        yield stack
    finally:
        stack.http.close()
        if process.poll() is None:
            process.kill()
            process.wait()
        log.close()
