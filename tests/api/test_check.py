"""`imgen check --worker`: the catalogue beside what a worker says it has, over a real socket where it matters."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from typer.testing import CliRunner, Result

from gateway.check import compared
from gateway.cli import app
from gateway.desk import Claim
from handler import contract
from tests.api.conftest import settings
from tests.api.fake_runpod import FakeRunPod

pytestmark = pytest.mark.anyio


@pytest.fixture
def runpod() -> FakeRunPod:
    return FakeRunPod(key="rp-key")


async def seen(data: Path, runpod: FakeRunPod, *, patience: float = 5, **changed: str) -> list[tuple[str, str, str]]:
    return await compared(settings(data, **changed), patience=patience, transport=runpod)


async def test_a_worker_that_has_everything_is_fine(tmp_path, runpod):
    assert await seen(tmp_path, runpod) == [
        ("ok", "worker", f"answers with contract {contract.VERSION}"),
        ("ok", "model eros", "builtin, sd15"),
        ("ok", "lora aya", "aya, sd15"),
        ("ok", "lora bella", "bella, sd15"),
    ]
    (asked,) = runpod.submitted
    assert asked["input"] == contract.ask_inventory() and "webhook" not in asked


async def test_what_the_worker_lacks_is_named_with_its_fix(tmp_path, runpod):
    runpod.inventory = contract.Inventory(models={"sdxl": "sdxl"}, loras={"bella": "sd15"})
    failed = {part: remark for state, part, remark in await seen(tmp_path, runpod) if state == "failed"}
    assert failed == {
        "model eros": "the worker lacks it; add [models.builtin] to the worker's models.toml, or name one that it has:"
        " sdxl.",
        "lora aya": "the worker lacks it; add [loras.aya] to the worker's models.toml, or name one that it has: bella.",
    }


CATALOG = """
version = 1

[characters.aya]
label = "Aya"
lora = "aya"

[models.small]
label = "Small"
worker = "builtin"

[models.big]
label = "Big"
worker = "sdxl"
default_style = "plain"

[models.big.styles.plain]
label = "Plain"
lora = "ink"

[models.other]
label = "Other"
worker = "sdxl"
characters = []
"""


async def test_a_lora_of_another_family_than_its_model_is_named(tmp_path, runpod):
    path = tmp_path / "catalog.toml"
    path.write_text(CATALOG, encoding="utf-8")
    runpod.inventory = contract.Inventory(
        models={"builtin": "sd15", "sdxl": "sdxl"}, loras={"aya": "sd15", "ink": "sd15"}
    )
    failed = [row[1:] for row in await seen(tmp_path, runpod, IMGEN_CATALOG=str(path)) if row[0] == "failed"]
    assert failed == [
        (
            "model big",
            "is of the family sdxl, and the LoRA 'aya' of characters.aya of sd15;"
            " leave 'aya' out of models.big.characters.",
        ),
        (
            "model big",
            "is of the family sdxl, and the LoRA 'ink' of models.big.styles.plain of sd15;"
            " take it out of models.big.styles.plain.",
        ),
    ]


async def test_of_an_older_worker_nothing_can_be_told(tmp_path, runpod):
    runpod.inventory = None
    ((state, part, remark),) = await seen(tmp_path, runpod)
    assert (state, part) == ("unknown", "worker") and remark.startswith("can't tell: ")


async def test_a_worker_that_does_not_answer_in_time_is_not_waited_for(tmp_path, runpod):
    runpod.hold = True
    ((state, _, remark),) = await seen(tmp_path, runpod, patience=0.1)
    assert state == "failed" and remark.startswith("no worker answered within 0.1 seconds.")
    assert runpod.cancelled == ["00000001-fake-e1"]


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"down": True}, id="away"),
        pytest.param({"refuse": 400}, id="refuses"),
        pytest.param({"key": "another"}, id="wrong-key"),
        pytest.param({"vanish": 1}, id="worker-gone"),
        pytest.param({"forget": 1}, id="forgotten"),
        pytest.param({"terminal": "TIMED_OUT"}, id="timed-out"),
    ],
)
async def test_an_endpoint_that_does_not_do_it_is_one_failed_row(tmp_path, runpod, fault):
    for name, value in fault.items():
        setattr(runpod, name, value)
    ((state, part, remark),) = await seen(tmp_path, runpod)
    assert (state, part) == ("failed", "worker") and remark


async def test_without_an_endpoint_nobody_is_asked(tmp_path, runpod):
    ((state, part, remark),) = await seen(tmp_path, runpod, IMGEN_BACKEND_URL="")
    assert (state, part) == ("failed", "worker") and "IMGEN_BACKEND_URL" in remark


# The command


@contextmanager
def served(runpod: FakeRunPod) -> Iterator[str]:
    """The stand-in behind a socket; its address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            key = {"authorization": self.headers["authorization"]}
            request = httpx.Request(self.command, f"http://x{self.path}", headers=key, content=body)
            answer = anyio.run(runpod.handle_async_request, request)
            self.send_response(answer.status_code)
            self.send_header("Content-Length", str(len(answer.content)))
            self.end_headers()
            self.wfile.write(answer.content)

        do_POST = do_GET

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v2/fake"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def check(data: Path, *options: str, **environ: str) -> Result:
    return CliRunner().invoke(app, ["check", "--data", str(data), *options], env=environ)


def test_the_command_asks_a_worker_only_when_told_to(tmp_path, runpod):
    with served(runpod) as url:
        environ = {"IMGEN_BACKEND_URL": url, "IMGEN_BACKEND_KEY": "rp-key"}
        assert check(tmp_path, **environ).exit_code == 0 and runpod.submitted == []
        done = check(tmp_path, "--worker", **environ)
        assert done.exit_code == 0, done.output
        assert "ok     lora aya" in done.stdout and len(runpod.submitted) == 1
        runpod.inventory = contract.Inventory(models={"builtin": "sd15"})
        done = check(tmp_path, "--worker", **environ)
        assert done.exit_code == 1 and "add [loras.aya] to the worker's models.toml" in done.stdout
        runpod.inventory = None
        assert check(tmp_path, "--worker", **environ).exit_code == 1


def test_the_command_finds_the_endpoint_of_a_running_desk(tmp_path, runpod):
    with served(runpod) as url, Claim(tmp_path) as claim:
        claim.announce("http://127.0.0.1:8080", {"url": url, "key": "rp-key"})
        done = check(tmp_path, "--worker")
        assert done.exit_code == 0, done.output
        assert (tmp_path / "up.json").stat().st_mode & 0o077 == 0
    assert len(runpod.submitted) == 1
