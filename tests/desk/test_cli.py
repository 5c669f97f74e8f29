"""The command line as a user meets it: what it prints, where, and with which exit code."""

from __future__ import annotations

import asyncio
import base64
import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from compliance.authority import load_or_create
from gateway.cli import app
from gateway.desk import Claim
from gateway.desk.keys import open_keys
from gateway.desk.stack import free_port
from gateway.settings import Settings
from tests.compliance.samples import new_signer, signed
from tests.desk.stage import ROOT, wait_until


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("IMGEN_")]:
        monkeypatch.delenv(name)


def imgen(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ)


def process(*arguments: object, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gateway", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        **more,
    )


def picture(data: Path) -> bytes:
    """Signed by the data folder's own authority."""
    return signed(new_signer(load_or_create(data / "signing"))).data


class StandInGateway:
    """Answers each action with what a test wants, the last answer again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Any]] = {}
        self.asked: list[dict[str, Any]] = []
        self.file = b""
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                self._answer(200, outer.file)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append(asked | {"key": self.headers.get("Authorization")})
                answers = outer.answers[asked["action"]]
                status, body = answers.pop(0) if len(answers) > 1 else answers[0]
                self._answer(status, json.dumps(body).encode())

            def _answer(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def finishes_with(self, file: bytes) -> None:
        self.file = file
        images = [{"type": "signed", "url": f"{self.url}/p.jpg", "filename": "p.jpg", "index": 0, "seed": 1}]
        meta = {"width": 1344, "height": 768, "format": "jpeg", "seed": 1, "images": images}
        ticket = {"id": "run_1", "prompt": "@aya", "model": "eros"}
        self.answers["generate"] = [(200, ticket)]
        self.answers["status"] = [
            (200, {"status": "IN_QUEUE"}),
            (200, {"status": "IN_PROGRESS", "progress": {"step": 14, "total_steps": 14}}),
            (200, {"status": "COMPLETED", "compliance": "safe", "meta": meta}),
        ]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def gateway() -> Iterator[StandInGateway]:
    stand_in = StandInGateway()
    yield stand_in
    stand_in.close()


# The command line itself


def test_help_is_there_at_once() -> None:
    """It imports nothing that a single command needs."""
    heavy = ["pydantic", "httpx", "uvicorn", "sqlalchemy", "c2pa", "PIL", "rich.progress"]
    text = f"import sys, gateway.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version() -> None:
    assert imgen("--version").output == "imgen 0.1.0\n"


@pytest.mark.parametrize(
    "command",
    ["up", "serve", "generate", "verify", "models", "check", "demo", "keys", "audit", "appeals", "jobs", "delete"],
)
def test_every_command_explains_itself(command: str) -> None:
    assert imgen(command, "--help").exit_code == 0


def test_a_wrong_setting_is_one_sentence() -> None:
    done = imgen("check", IMGEN_PORT="http")
    assert done.exit_code == 1
    assert done.stderr.startswith("imgen: IMGEN_PORT: ")
    assert "Traceback" not in done.output


# imgen up


def test_a_port_that_is_taken_is_one_sentence_and_its_fix(data: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = process("up", "--port", port, "--data", data)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"imgen: Port {port} on 127.0.0.1 is taken by another program.",
        f"       Stop that program, or choose another port: --port {port + 1}",
    ]
    assert not (data / "up.json").exists()


def test_a_second_up_on_the_same_folder_is_one_sentence_and_its_fix(data: Path) -> None:
    with Claim(data) as claim:
        claim.announce("http://127.0.0.1:8080")
        done = process("up", "--data", data)
    assert done.returncode == 1
    assert done.stderr.startswith("imgen: imgen up already runs on the data folder")
    assert "http://127.0.0.1:8080" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_broken_catalogue_stops_up_before_anything_starts(data: Path, tmp_path: Path) -> None:
    (tmp_path / "catalog.toml").write_text("version = [")
    done = process("up", "--data", data, env={**os.environ, "IMGEN_CATALOG": str(tmp_path / "catalog.toml")})
    assert done.returncode == 1
    assert "catalog.toml" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (data / "log").exists()


# imgen serve


def test_the_gateway_alone_serves_and_ends_with_0(data: Path) -> None:
    port = free_port()
    environ = {**os.environ, "IMGEN_BACKEND_URL": "http://127.0.0.1:1/v2/none", "IMGEN_BACKEND_KEY": "none"}
    command = [sys.executable, "-m", "gateway", "serve", "--port", str(port), "--data", str(data)]
    gateway = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _answers(f"http://127.0.0.1:{port}/healthz"))
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(30) == 0
    finally:
        gateway.kill()
        gateway.wait()


def test_a_start_that_fails_ends_in_one_sentence(data: Path) -> None:
    environ = {
        **os.environ,
        "IMGEN_BACKEND_URL": "http://127.0.0.1:1/v2/none",
        "IMGEN_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none",
        "IMGEN_LOG_LEVEL": "error",
    }
    done = process("serve", "--port", free_port(), "--data", data, env=environ)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("imgen: The job store")


def test_the_gateway_alone_needs_an_endpoint(data: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "IMGEN_BACKEND_URL"}
    done = process("serve", "--port", free_port(), "--data", data, env=environ)
    assert done.returncode == 1
    assert done.stderr.startswith("imgen: IMGEN_BACKEND_URL: name the GPU endpoint")


def test_the_gateway_ends_with_its_supervisor(data: Path) -> None:
    ours, theirs = os.pipe()
    command = [sys.executable, "-m", "gateway", "serve", "--port", "1", "--data", str(data), "--parent-fd", str(ours)]
    with socket.create_server(("127.0.0.1", 0)) as listener:
        gateway = subprocess.Popen(
            [*command, "--fd", str(listener.fileno())],
            cwd=ROOT,
            env={**os.environ, "IMGEN_BACKEND_URL": "http://127.0.0.1:1/v2/none"},
            pass_fds=(ours, listener.fileno()),
            start_new_session=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            port = listener.getsockname()[1]
            wait_until(lambda: _answers(f"http://127.0.0.1:{port}/healthz"))
            os.close(theirs)
            assert gateway.wait(30) == -signal.SIGKILL
        finally:
            gateway.kill()
            gateway.wait()
            os.close(ours)


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=1, trust_env=False).is_success
    except httpx.TransportError:
        return False


# imgen generate, models


def test_a_picture_is_drawn_saved_and_verified(gateway: StandInGateway, data: Path, tmp_path: Path) -> None:
    gateway.finishes_with(picture(data))
    file = tmp_path / "new" / "x.jpg"
    options = [
        "--url",
        gateway.url,
        "--key",
        "k",
        "--data",
        data,
        "--size",
        "1024x1024",
        "--seed",
        7,
        "--negative",
        "fog",
    ]
    done = imgen("generate", "@aya on a hill", "-o", file, *options)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [str(file)], "the path is the result; the rest is for people"
    assert "trusted: signed by imgen development signer" in done.stderr
    assert file.read_bytes() == gateway.file
    assert gateway.asked[0] == {
        "action": "generate",
        "prompt": "@aya on a hill",
        "width": 1024,
        "height": 1024,
        "format": "jpeg",
        "seed": 7,
        "negative": "fog",
        "key": "Bearer k",
    }


def test_several_pictures_get_numbers_and_a_reference_is_sent_along(
    gateway: StandInGateway, data: Path, tmp_path: Path
) -> None:
    gateway.finishes_with(b"not a picture")
    images = gateway.answers["status"][-1][1]["meta"]["images"]
    images += [
        {"type": "thumbnail", "url": "x", "filename": "x"},
        {**images[0], "filename": "q.jpg", "index": 2, "seed": 3},
    ]
    refusal = {"error": "Content blocked — flagged for: Blue", "filter_categories": ["blue"]}
    gateway.answers["status"][-1][1]["blocked"] = [{"index": 1, "seed": 2, **refusal}]
    hill = tmp_path / "hill.png"
    hill.write_bytes(b"\x89PNG\r\n\x1a\n hill")
    options = ["--url", gateway.url, "--key", "k", "--data", data, "-n", 3, "--reference", hill, "--strength", 0.5]
    done = imgen("generate", "@aya", "-o", tmp_path / "x.jpg", *options)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == [str(tmp_path / "x_1.jpg"), str(tmp_path / "x_3.jpg")]
    assert "picture 2: Content blocked — flagged for: Blue (blue)" in done.stderr and "seed 3" in done.stderr
    assert gateway.asked[0]["n"] == 3
    uri = "data:image/png;base64," + base64.b64encode(hill.read_bytes()).decode()
    assert gateway.asked[0]["references"] == [{"image": uri, "strength": 0.5}]


def test_a_reference_that_is_no_picture_is_not_sent(gateway: StandInGateway, data: Path, tmp_path: Path) -> None:
    (tmp_path / "hill.txt").write_text("a hill")
    options = ["--url", gateway.url, "--key", "k", "--data", data, "--reference", tmp_path / "hill.txt"]
    done = imgen("generate", "@aya", *options)
    assert done.exit_code == 1
    assert "Send a PNG, JPEG or WebP file." in done.stderr
    assert gateway.asked == []


@pytest.mark.parametrize(
    ("name", "format"),
    [("x.png", "png"), ("x.JPG", "jpeg"), ("x.webp", "webp"), ("x.avif", "avif"), ("x", None)],
)
def test_the_file_name_says_the_format(
    gateway: StandInGateway, data: Path, tmp_path: Path, name: str, format: str | None
) -> None:
    gateway.finishes_with(b"not a picture")
    done = imgen("generate", "@aya", "-o", tmp_path / name, "--url", gateway.url, "--key", "k", "--data", data)
    assert done.exit_code == 0
    assert gateway.asked[0].get("format") == format


def test_warnings_are_shown(gateway: StandInGateway, data: Path, tmp_path: Path) -> None:
    gateway.finishes_with(b"")
    warning = {"code": "fallback", "field": "style", "given": "wild", "used": "professional"}
    gateway.answers["generate"][0][1]["warnings"] = [warning]
    done = imgen("generate", "@aya", "-o", tmp_path / "x", "--url", gateway.url, "--key", "k", "--data", data)
    assert "warning: style: 'wild', used 'professional' (fallback)" in done.stderr


def test_blocked_content_says_what_for(gateway: StandInGateway, data: Path, tmp_path: Path) -> None:
    gateway.finishes_with(b"")
    error = "Content blocked — flagged for: Weapons"
    blocked = {"status": "COMPLETED", "compliance": "unsafe", "error": error, "filter_categories": ["weapons-1"]}
    gateway.answers["status"] = [(200, blocked)]
    done = imgen("generate", "@aya", "-o", tmp_path / "x.jpg", "--url", gateway.url, "--key", "k", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[-2:] == [f"imgen: {error}.", "       Rules: weapons-1"]
    assert not (tmp_path / "x.jpg").exists()


def test_a_job_is_deleted_and_what_it_was_is_said(gateway: StandInGateway, data: Path) -> None:
    gateway.answers["delete"] = [
        (200, {"id": "run_1", "deleted": True, "status": "IN_PROGRESS"}),
        (404, {"error": "Job not found", "fix": "Send an id that generate returned to this API key."}),
    ]
    done = imgen("delete", "run_1", "--url", gateway.url, "--key", "k", "--data", data)
    assert (done.exit_code, done.stderr) == (0, "run_1 is deleted; it was IN_PROGRESS\n")
    again = imgen("delete", "run_1", "--url", gateway.url, "--key", "k", "--data", data)
    assert again.exit_code == 1 and again.stderr.startswith("imgen: Job not found\n")
    assert gateway.asked[0] == {"action": "delete", "id": "run_1", "key": "Bearer k"}


def test_a_refused_key_is_one_sentence_and_its_fix(gateway: StandInGateway, data: Path) -> None:
    gateway.answers["generate"] = [(401, {"error": "Invalid API key", "fix": "Check the key."})]
    done = imgen("generate", "@aya", "--url", gateway.url, "--key", "k", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.splitlines() == ["imgen: Invalid API key", "       Check the key."]


def test_no_gateway_is_one_sentence_and_its_fix(data: Path) -> None:
    done = imgen("generate", "@aya", "--url", "http://127.0.0.1:1", "--key", "k", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "imgen: Nobody answers at http://127.0.0.1:1 (ConnectError)."
    assert "imgen up" in done.stderr.splitlines()[1]


def test_a_size_that_is_none_is_refused_before_anything_is_sent(gateway: StandInGateway, data: Path) -> None:
    done = imgen("generate", "@aya", "--size", "huge", "--url", gateway.url, "--key", "k", "--data", data)
    assert done.exit_code == 2
    assert not gateway.asked


def test_the_desk_on_the_data_folder_is_found_with_its_key(gateway: StandInGateway, data: Path) -> None:
    gateway.answers["models"] = [
        (
            200,
            {
                "characters": ["aya"],
                "models": {
                    "eros": {"label": "Eros", "default_style": "a", "styles": {"a": {}, "b": {}}, "characters": ["aya"]}
                },
            },
        )
    ]
    with Claim(data) as claim:
        claim.announce(gateway.url)
        (data / "api-key").write_text("desk-key\n")
        done = imgen("models", "--data", data)
    assert done.exit_code == 0
    assert gateway.asked == [{"action": "models", "key": "Bearer desk-key"}]
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["MODEL", "LABEL", "STYLES", "CHARACTERS"],
        ["eros", "Eros", "a*", "b", "@aya"],
    ]


# imgen verify


def test_a_picture_of_this_desk_is_trusted(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture(data))
    done = imgen("verify", tmp_path / "x.jpg", "--data", data)
    assert done.exit_code == 0
    rows = dict(line.split(maxsplit=1) for line in done.stdout.splitlines())
    assert rows["state"] == "trusted"
    assert rows["model"] == "eros"
    assert {"signer", "issuer", "when", "generator", "actions"} <= rows.keys()


def test_a_picture_of_another_desk_is_valid_and_no_more(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture(data))
    done = imgen("verify", tmp_path / "x.jpg", "--data", tmp_path / "another")
    assert done.exit_code == 0
    assert "state      valid" in done.stdout
    anchors = data / "signing" / "anchors.pem"
    named = imgen("verify", tmp_path / "x.jpg", "--data", tmp_path / "another", "--anchors", anchors)
    assert "state      trusted" in named.stdout


@pytest.mark.parametrize("damage", ["pixels", "unsigned", "text"])
def test_a_picture_that_does_not_hold_is_exit_code_1(data: Path, tmp_path: Path, damage: str) -> None:
    content = bytearray(picture(data))
    if damage == "pixels":
        content[-100] ^= 1
    (tmp_path / "x.jpg").write_bytes(b"hello" if damage == "text" else bytes(content))
    if damage == "unsigned":
        from PIL import Image

        Image.new("RGB", (32, 32)).save(tmp_path / "x.jpg")
    done = imgen("verify", tmp_path / "x.jpg", "--data", data)
    assert done.exit_code == 1
    assert "problem    " in done.stdout


def test_looking_at_a_picture_makes_nothing(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture(data))
    done = imgen("verify", tmp_path / "x.jpg", "--data", tmp_path / "nothing", "--json")
    assert json.loads(done.stdout)["state"] == "valid" and json.loads(done.stdout)["found"] == []
    assert not (tmp_path / "nothing").exists()


def test_anchors_that_are_not_there_are_one_sentence(data: Path, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(picture(data))
    done = imgen("verify", tmp_path / "x.jpg", "--anchors", tmp_path / "none.pem", "--data", data)
    assert done.exit_code == 1
    assert done.stderr == f"imgen: {tmp_path / 'none.pem'}: No such file or directory\n"


# imgen keys, imgen check


def test_keys_are_made_listed_and_ended(data: Path) -> None:
    made = imgen("keys", "create", "--name", "web", "--tenant", "shop", "--scope", "unsafe", "--data", data)
    assert made.exit_code == 0
    secret, key_id = made.stdout.strip(), made.stderr.split(";")[0]
    assert len(secret) >= 32
    listed = imgen("keys", "list", "--data", data).stdout
    assert secret not in listed
    assert [word in listed.splitlines()[1] for word in (key_id, "web", "shop", "unsafe", "active")] == [True] * 5
    ended = imgen("keys", "disable", key_id, "--data", data)
    assert ended.exit_code == 0
    assert "disabled" in imgen("keys", "list", "--data", data).stdout
    again = imgen("keys", "disable", key_id, "--data", data)
    assert again.exit_code == 1
    assert again.stderr.startswith(f"imgen: There is no active key {key_id}.")


def test_a_held_key_is_released_and_that_is_on_record(data: Path) -> None:
    key_id = imgen("keys", "create", "--data", data).stderr.split(";")[0]
    nothing = imgen("keys", "release", key_id, "--by", "Ada", "--data", data)
    assert nothing.exit_code == 1
    assert nothing.stderr.startswith(f"imgen: There is no held key {key_id}.")
    asyncio.run(_hold(data, key_id))
    assert imgen("keys", "list", "--data", data).stdout.splitlines()[1].endswith("held")
    done = imgen("keys", "release", key_id, "--by", "Ada", "--data", data)
    assert (done.exit_code, done.stderr) == (0, f"{key_id} is accepted again\n")
    assert imgen("keys", "list", "--data", data).stdout.splitlines()[1].endswith("active")
    imgen("audit", "export", "-o", data / "audit.jsonl", "--data", data)
    entries = [json.loads(line) for line in (data / "audit.jsonl").read_text().splitlines()[1:-1]]
    assert [(each["kind"], each["body"]) for each in entries] == [("key_released", {"key_id": key_id, "by": "Ada"})]


async def _hold(data: Path, key_id: str) -> None:
    async with open_keys(Settings(data=data)) as keys:
        assert await keys.hold(key_id, "a review", now=1.0)


def test_check_says_that_all_is_well(data: Path) -> None:
    done = imgen("check", "--data", data)
    assert done.exit_code == 0, done.output
    states = [line.split()[:2] for line in done.stdout.splitlines()[1:]]
    assert {state for state, _ in states} == {"ok"}
    assert {"settings", "catalogue", "signing", "storage", "endpoint"} <= {part for _, part in states}


def test_check_names_everything_that_is_wrong(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.pem").write_text("nothing")
    bad = str(tmp_path / "bad.pem")
    done = imgen(
        "check",
        "--data",
        data,
        IMGEN_SIGNING_CHAIN=bad,
        IMGEN_SIGNING_KEY=bad,
        IMGEN_SIGNING_ANCHORS=bad,
        IMGEN_CATALOG=str(tmp_path / "none.toml"),
        IMGEN_BACKEND_URL="http://127.0.0.1:1/v2/none",
    )
    assert done.exit_code == 1
    failed = {line.split()[1] for line in done.stdout.splitlines() if line.startswith("failed")}
    assert failed == {"catalogue", "signing", "endpoint"}
    assert "Traceback" not in done.output


# make


@pytest.mark.parametrize("target", ["install", "demo", "test", "check", "bench", "serve", "train"])
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
