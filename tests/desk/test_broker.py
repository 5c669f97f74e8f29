"""What the supervisor and the endpoint say to each other about a worker."""

from __future__ import annotations

import http.server
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.desk import Child
from gateway.desk.broker import Broker, EndpointSilent
from tests.desk.stage import SLEEPER, Stage, lives, pids, program, until

pytestmark = pytest.mark.anyio

#: Writes its id; notes the stop signal in the endpoint's own list of events, and does not end on it.
WORKER = """
import signal, sys, time, urllib.request
def note(*_): urllib.request.urlopen(urllib.request.Request(sys.argv[2] + "/sigterm", method="POST")).close()
signal.signal(signal.SIGTERM, note)
with open(sys.argv[1], "a") as out: out.write(sys.argv[-2] + "\\n")
while True: time.sleep(0.05)
"""


class StandInEndpoint:
    """Answers the supervisor and notes what it was told, in order."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.wants: dict[str, str] = {}
        self.busy: set[str] = set()
        self.deaf = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                listed = [
                    {"id": name, "state": "idle", "job": "job-1" if name in outer.busy else None, "want": want}
                    for name, want in outer.wants.items()
                ]
                self._answer(json.dumps(listed).encode())

            def do_POST(self) -> None:
                if outer.deaf and self.path.endswith("/gone"):
                    outer.deaf -= 1
                    self.send_error(503)
                    return
                outer.events.append(self.path.removeprefix("/desk/workers/"))
                self._answer(b"{}")

            def _answer(self, body: bytes) -> None:
                if self.path != "/sigterm" and self.headers["Authorization"] != "Bearer worker-key":
                    self.send_error(401)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[StandInEndpoint]:
    stand_in = StandInEndpoint()
    yield stand_in
    stand_in.close()


def worker(endpoint: StandInEndpoint, ids: Path, **more: float) -> Child:
    return Child(name="worker", command=program(WORKER, ids, endpoint.url), takes_jobs=True, **more)  # type: ignore[arg-type]


async def names(ids: Path, count: int) -> list[str]:
    await until(lambda: ids.exists() and len(ids.read_text().split()) >= count)
    return ids.read_text().split()


async def test_a_dead_worker_is_reported_gone(stage: Stage, endpoint: StandInEndpoint, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    async with stage.running(worker(endpoint, ids), broker=Broker(endpoint.url, "worker-key")) as (desk, _):
        first = (await names(ids, 1))[0]
        os.kill(desk.pids()["worker"], signal.SIGKILL)
        second = (await names(ids, 2))[1]
        assert endpoint.events[0] == f"{first}/gone", "before it was replaced"
    assert endpoint.events[-1] == f"{second}/gone"


async def test_a_report_that_was_not_heard_is_repeated(stage: Stage, endpoint: StandInEndpoint, tmp_path: Path) -> None:
    endpoint.deaf = 1
    ids = tmp_path / "ids"
    async with stage.running(worker(endpoint, ids), broker=Broker(endpoint.url, "worker-key")) as (desk, _):
        first = (await names(ids, 1))[0]
        os.kill(desk.pids()["worker"], signal.SIGKILL)
        await until(lambda: f"{first}/gone" in endpoint.events)


async def test_the_worker_of_a_run_that_was_killed_is_reported_by_the_next(
    stage: Stage, endpoint: StandInEndpoint, tmp_path: Path
) -> None:
    """Its job is drawn again at once, and not when its lease has run out."""
    note = {"run": "old", "groups": [{"name": "worker", "start": "worker-old", "pid": 4_000_000, "created": 1.0}]}
    stage.data.mkdir()
    (stage.data / "up.json").write_text(json.dumps(note))
    async with stage.running(worker(endpoint, tmp_path / "ids"), broker=Broker(endpoint.url, "worker-key")):
        await until(lambda: "worker-old/gone" in endpoint.events)


async def test_a_worker_is_drained_before_it_hears_of_the_stop(
    stage: Stage, endpoint: StandInEndpoint, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"
    broker = Broker(endpoint.url, "worker-key")
    async with stage.running(worker(endpoint, ids, grace=0.5), broker=broker) as (desk, task):
        name = (await names(ids, 1))[0]
        endpoint.wants[name] = "run"
        endpoint.busy.add(name)
        desk.stop()
        assert await task == 0
    assert endpoint.events == [f"{name}/drain", "/sigterm", f"{name}/gone"]


async def test_an_idle_worker_is_not_waited_for(stage: Stage, endpoint: StandInEndpoint, tmp_path: Path) -> None:
    ids = tmp_path / "ids"
    broker = Broker(endpoint.url, "worker-key")
    async with stage.running(worker(endpoint, ids, grace=600), broker=broker) as (desk, task):
        endpoint.wants[(await names(ids, 1))[0]] = "run"
        began = time.monotonic()
        desk.stop()
        assert await task == 0
        assert time.monotonic() - began < 20


@pytest.mark.parametrize("want", ["drain", "kill"])
async def test_a_worker_that_should_go_is_replaced(
    stage: Stage, endpoint: StandInEndpoint, tmp_path: Path, want: str
) -> None:
    ids = tmp_path / "ids"
    broker = Broker(endpoint.url, "worker-key")
    async with stage.running(worker(endpoint, ids), broker=broker) as (desk, _):
        first = (await names(ids, 1))[0]
        pid = desk.pids()["worker"]
        endpoint.wants[first] = want
        second = (await names(ids, 2))[1]
        assert second != first
        assert not lives(pid)
        assert f"{first}/gone" in endpoint.events
        assert ("/sigterm" in endpoint.events) == (want == "drain")
    assert stage.said == ["worker is replaced"]


async def test_an_endpoint_that_is_down_keeps_nobody_from_running(stage: Stage, tmp_path: Path) -> None:
    seen = tmp_path / "pids"
    child = Child(name="worker", command=program(SLEEPER, seen), takes_jobs=True)
    async with stage.running(child, broker=Broker("http://127.0.0.1:1", "worker-key")) as (desk, task):
        await until(lambda: pids(seen))
        os.kill(pids(seen)[0], signal.SIGKILL)
        await until(lambda: len(pids(seen)) == 2)
        desk.stop()
        assert await task == 0


async def test_a_wrong_key_counts_as_silence(endpoint: StandInEndpoint) -> None:
    async with Broker(endpoint.url, "another") as broker:
        with pytest.raises(EndpointSilent):
            await broker.workers()
