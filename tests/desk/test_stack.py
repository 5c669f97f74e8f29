"""What the three children are told, and the first key."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gateway.desk import Start
from gateway.desk.keys import create_key, desk_key, first_key, key_file, open_keys, read_key
from gateway.desk.stack import Endpoint, children
from gateway.settings import Settings

ENDPOINT = Endpoint(port=9, client_key="client-key", worker_key="worker-key")
START = Start(id="worker-1", parent_fd=7)


def commands(data: Path, **environ: str) -> dict[str, tuple[list[str], dict[str, str]]]:
    settings = Settings.from_environ({"IMGEN_DATA": str(data), **environ})
    found = {child.name: child.command(START) for child in children(settings, environ, ENDPOINT, 5)}
    return {name: (list(argv), dict(env)) for name, (argv, env) in found.items()}


def test_the_children_in_the_order_of_their_start(tmp_path: Path) -> None:
    told = commands(tmp_path)
    assert list(told) == ["endpoint", "gateway", "worker"]
    assert told["endpoint"][0][:4] == [sys.executable, "-P", "-m", "handler.endpoint"]
    assert told["endpoint"][0][-2:] == ["--parent-fd", "7"]
    assert told["gateway"][0][3:] == ["gateway", "serve", "--fd", "5", "--parent-fd", "7"]
    assert told["worker"][0][3:] == ["handler"]


def test_the_sdk_gets_the_addresses_with_its_own_placeholders(tmp_path: Path) -> None:
    env = commands(tmp_path)["worker"][1]
    assert env["RUNPOD_WEBHOOK_GET_JOB"] == "http://127.0.0.1:9/v2/local/job-take/$ID?gpu=local"
    assert env["RUNPOD_WEBHOOK_POST_OUTPUT"] == "http://127.0.0.1:9/v2/local/job-done/$RUNPOD_POD_ID/$ID?gpu=local"
    assert env["RUNPOD_POD_ID"] == "worker-1"
    assert env["RUNPOD_AI_API_KEY"] == "worker-key"
    assert env["IMGEN_PARENT_FD"] == "7"
    assert int(env["RUNPOD_PING_INTERVAL"]) >= 1000, "below a second the SDK pings without a pause"
    assert not list(Path(env["HOME"]).iterdir()), "no ~/.runpod"


def test_the_gateway_speaks_to_this_endpoint_whatever_the_environment_says(tmp_path: Path) -> None:
    env = commands(tmp_path, IMGEN_BACKEND_URL="https://api.runpod.ai/v2/x", IMGEN_BACKEND_KEY="paid")["gateway"][1]
    assert env["IMGEN_BACKEND_URL"] == "http://127.0.0.1:9/v2/local"
    assert env["IMGEN_BACKEND_KEY"] == "client-key"
    assert env["IMGEN_BACKEND_MIN_WORKERS"] == "1"


def test_the_worker_uploads_over_loopback_even_behind_a_public_address(tmp_path: Path) -> None:
    public = {"IMGEN_PUBLIC_URL": "https://pictures.example", "IMGEN_HOST": "0.0.0.0"}
    assert commands(tmp_path, **public)["gateway"][1]["IMGEN_INTERNAL_URL"] == "http://127.0.0.1:8080"


def test_the_gateways_secrets_stay_with_the_gateway(tmp_path: Path) -> None:
    secrets = {"IMGEN_SECRET": "s" * 32, "IMGEN_API_KEY": "k" * 16, "IMGEN_DATABASE_URL": "sqlite:///x.db"}
    told = commands(tmp_path, **secrets)
    assert secrets.items() <= told["gateway"][1].items()
    for name in ("endpoint", "worker"):
        assert not secrets.keys() & told[name][1].keys()
        assert "client-key" not in told["worker"][1].values()


def test_what_the_user_set_for_the_worker_and_the_endpoint_reaches_them(tmp_path: Path) -> None:
    told = commands(tmp_path, IMGEN_MODELS="mine.toml", IMGEN_ENDPOINT_HOLD_S="5", IMGEN_LOG_LEVEL="warning")
    assert told["worker"][1]["IMGEN_MODELS"] == "mine.toml"
    assert told["worker"][1]["IMGEN_LOG_LEVEL"] == "warning"
    assert told["endpoint"][1]["IMGEN_ENDPOINT_HOLD_S"] == "5"
    assert told["endpoint"][1]["IMGEN_ENDPOINT_LOG_LEVEL"] == "WARNING"


def test_a_stray_runpod_variable_does_not_reach_the_worker(tmp_path: Path) -> None:
    """RUNPOD_REALTIME_PORT would open a web server on every address."""
    told = commands(tmp_path, RUNPOD_REALTIME_PORT="8000", RUNPOD_API_KEY="paid")
    for _, env in told.values():
        assert not {"RUNPOD_REALTIME_PORT", "RUNPOD_API_KEY"} & env.keys()


def test_downloaded_models_stay_where_they_are(tmp_path: Path) -> None:
    assert commands(tmp_path, HOME="/home/ada")["worker"][1]["XDG_CACHE_HOME"] == "/home/ada/.cache"
    assert commands(tmp_path, HOME="/home/ada", XDG_CACHE_HOME="/c")["worker"][1]["XDG_CACHE_HOME"] == "/c"


@pytest.mark.anyio
async def test_the_first_start_makes_a_key_and_later_ones_do_not(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    secret = await first_key(settings)
    assert len(secret) >= 32
    assert read_key(tmp_path) == secret
    assert key_file(tmp_path).stat().st_mode & 0o777 == 0o600
    assert await first_key(settings) == ""
    async with open_keys(settings) as keys:
        (key,) = await keys.list()
    assert secret not in repr(key)


@pytest.mark.anyio
async def test_a_desk_key_is_made_again_when_it_does_not_work_any_more(tmp_path: Path) -> None:
    settings = Settings(data=tmp_path)
    first = await desk_key(settings)
    assert await desk_key(settings) == first
    async with open_keys(settings) as keys:
        await create_key(keys, name="another")
        await keys.disable((await keys.list())[0].id, now=1.0)
    second = await desk_key(settings)
    assert second != first
    key_file(tmp_path).unlink()
    assert await desk_key(settings) not in {first, second}
