"""Desks over stand-in programs: tiny, quick to start, and as badly behaved as a test needs them."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil

from gateway.desk import Backoff, Child, Claim, Desk, Start
from gateway.desk.broker import Broker
from gateway.desk.logs import ChildLog

ROOT = Path(__file__).parents[2]
QUICK = Backoff(first=0.05, most=0.2)

#: Writes its pid into a file, and waits.
SLEEPER = """
import os, sys, time
with open(sys.argv[1], "a") as out: out.write(f"{os.getpid()}\\n")
time.sleep(600)
"""
#: The same, with a child of its own that writes its pid into a second file.
PARENT = """
import os, sys, time
if os.fork():
    path = sys.argv[1]
else:
    path = sys.argv[2]
with open(path, "a") as out: out.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


def program(text: str, *arguments: object) -> Callable[[Start], tuple[list[str], dict[str, str]]]:
    """The command of a stand-in; its arguments end with the start's id and the supervisor's pipe."""
    return lambda start: (
        [sys.executable, "-S", "-c", text, *map(str, arguments), start.id, str(start.parent_fd)],
        {"PYTHONPATH": str(ROOT)},
    )


class Stage:
    """Runs desks on one data folder and keeps what they said."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.said: list[str] = []

    @contextlib.asynccontextmanager
    async def running(
        self, *children: Child, backoff: Backoff = QUICK, broker: Broker | None = None
    ) -> AsyncIterator[tuple[Desk, asyncio.Task[int]]]:
        with Claim(self.data) as claim:
            claim.clear_orphans()
            desk = Desk(
                children,
                claim=claim,
                log=lambda name: ChildLog(name, self.data / "log", self.said.append, verbose=False),
                say=self.said.append,
                broker=broker,
                backoff=backoff,
            )
            task = asyncio.create_task(desk.run())
            try:
                yield desk, task
            finally:
                if not desk.stopping:
                    desk.stop()
                await asyncio.wait_for(task, 30)


async def until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Waits for something to become true, not for ever."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.02)


def wait_until(condition: Callable[[], object], seconds: float = 30.0) -> None:
    asyncio.run(until(condition, seconds))


def pids(file: Path) -> list[int]:
    """The whole lines that programs have written so far."""
    return [int(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
