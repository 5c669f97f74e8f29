"""The supervisor over real processes, in the test's own event loop."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from gateway.desk import Backoff, Child
from gateway.desk.stack import free_port
from tests.desk.stage import PARENT, SLEEPER, Stage, lives, pids, program, until

pytestmark = pytest.mark.anyio

#: Notes the stop signal with its name, and ends.
POLITE = """
import signal, sys, time
def end(*_):
    with open(sys.argv[1], "a") as out: out.write(sys.argv[2] + "\\n")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
with open(sys.argv[1] + "." + sys.argv[2], "w"): pass
time.sleep(600)
"""
#: Does not care about the stop signal.
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open(sys.argv[1], "a") as out: out.write(f"{os.getpid()}\\n")
time.sleep(600)
"""


async def test_a_dead_child_is_started_again(stage: Stage, tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    async with stage.running(Child(name="worker", command=program(SLEEPER, seen))):
        await until(lambda: len(pids(seen)) == 1)
        os.kill(pids(seen)[0], signal.SIGKILL)
        await until(lambda: len(pids(seen)) == 2)
        assert lives(pids(seen)[1])
    assert not lives(pids(seen)[1])
    assert stage.said[0].startswith("worker ended (killed by SIGKILL); starting it again in 0.05 s")


async def test_every_start_has_an_id_of_its_own(stage: Stage, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    text = 'import sys\nwith open(sys.argv[1], "a") as out: out.write(sys.argv[-2] + "\\n")'
    async with stage.running(Child(name="worker", command=program(text, ids))):
        await until(lambda: ids.exists() and len(ids.read_text().split()) >= 3)
    seen = ids.read_text().split()
    assert len(set(seen)) == len(seen)
    assert all(name.startswith("worker-") for name in seen)


async def test_a_child_that_dies_at_once_is_started_less_and_less_often(stage: Stage) -> None:
    async with stage.running(Child(name="gateway", command=program("raise SystemExit('no catalogue')"))):
        await until(lambda: len(stage.said) >= 4)
    why = "\n         | no catalogue"
    assert stage.said[:4] == [
        f"gateway ended (exit code 1); starting it again in 0.05 s{why}",
        "gateway ended (exit code 1); starting it again in 0.1 s",
        "gateway ended (exit code 1); starting it again in 0.2 s",
        "gateway ended (exit code 1); starting it again in 0.2 s",
    ]


def test_a_good_life_ends_the_back_off() -> None:
    backoff = Backoff(first=0.2, most=10, good_life=30)
    assert backoff.after(None, 0.1) == 0.2
    assert backoff.after(6.4, 29.9) == 10
    assert backoff.after(10, 30) == 0.2


async def test_what_a_dead_child_had_started_ends_with_it(stage: Stage, tmp_path: Path) -> None:
    mains, grandchildren = tmp_path / "mains", tmp_path / "grandchildren"
    async with stage.running(Child(name="worker", command=program(PARENT, mains, grandchildren))):
        await until(lambda: pids(mains) and pids(grandchildren))
        os.kill(pids(mains)[0], signal.SIGKILL)
        await until(lambda: len(pids(mains)) == 2)
        assert not lives(pids(grandchildren)[0]), "before the next start"
    assert not any(map(lives, pids(mains) + pids(grandchildren)))


async def test_a_program_that_is_not_there_does_not_end_the_desk(stage: Stage, tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    absent = Child(name="gateway", command=lambda start: ([str(tmp_path / "absent")], {}))
    async with stage.running(absent, Child(name="worker", command=program(SLEEPER, seen))):
        await until(lambda: pids(seen) and len(stage.said) >= 2)
        assert lives(pids(seen)[0])
    assert "gateway cannot be started: No such file or directory" in stage.said[0]


async def test_the_children_end_in_the_reverse_order(stage: Stage, tmp_path: Path) -> None:
    ended = tmp_path / "ended"
    names = ["endpoint", "gateway", "worker"]
    async with stage.running(*(Child(name=name, command=program(POLITE, ended, name)) for name in names)) as (
        desk,
        task,
    ):
        await until(lambda: all((tmp_path / f"ended.{name}").exists() for name in names))
        desk.stop()
        assert await task == 0
    assert ended.read_text().split() == ["worker", "gateway", "endpoint"]
    assert not stage.said, "an end that was asked for is no news"


async def test_a_child_that_does_not_end_is_killed_after_its_grace(stage: Stage, tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    async with stage.running(Child(name="worker", command=program(STUBBORN, seen), grace=0.3)) as (desk, task):
        await until(lambda: pids(seen))
        desk.stop()
        assert await task == 0
    assert not lives(pids(seen)[0])


async def test_a_second_stop_does_not_wait(stage: Stage, tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    async with stage.running(Child(name="worker", command=program(STUBBORN, seen), grace=600)) as (desk, task):
        await until(lambda: pids(seen))
        began = time.monotonic()
        desk.stop()
        desk.stop()
        assert await task == 1
        assert time.monotonic() - began < 10
    assert not lives(pids(seen)[0])


async def test_a_stop_does_not_wait_for_the_back_off(stage: Stage) -> None:
    slow = Backoff(first=600, most=600)
    async with stage.running(Child(name="worker", command=program("pass")), backoff=slow) as (desk, task):
        await until(lambda: stage.said)
        began = time.monotonic()
        desk.stop()
        assert await task == 0
        assert time.monotonic() - began < 10


async def test_a_child_waits_for_what_it_needs(stage: Stage, tmp_path: Path) -> None:
    seen, port = tmp_path / "pids", tmp_path / "port"
    server = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
httpd = http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
with open(sys.argv[2], "w") as out: out.write("up")
httpd.serve_forever()
"""
    number = free_port()
    endpoint = Child(name="endpoint", command=program(server, number, port))
    worker = Child(name="worker", command=program(SLEEPER, seen), needs=f"http://127.0.0.1:{number}/healthz")
    async with stage.running(endpoint, worker):
        await until(lambda: pids(seen))
        assert port.exists(), "the endpoint was up before the worker started"
