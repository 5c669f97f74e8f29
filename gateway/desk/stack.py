"""The embedded stack: local endpoint, gateway and worker, how each is started and when the whole is ready."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from secrets import token_urlsafe

import httpx

from gateway.core import catalog
from gateway.desk.broker import Broker
from gateway.desk.claim import Claim
from gateway.desk.keys import desk_key, first_key
from gateway.desk.logs import ChildLog
from gateway.desk.supervisor import Child, Desk, Start, adopt_grandchildren, stop_on_signals
from gateway.listener import listen
from gateway.settings import PREFIX, Settings

Say = Callable[[str], None]
_ENDPOINT_ID = "local"
_LOOPBACK = "127.0.0.1"
_PING_MS = 2000
_READY_EVERY = 0.25


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A running desk. ``new_key`` is the secret of the first start, empty later."""

    desk: Desk
    url: str
    new_key: str
    finished: asyncio.Task[int]

    async def ready(self, say: Say) -> bool:
        """Waits until a picture can really be made and says what it is waiting for; False when the desk stops first."""
        said = ""
        async with httpx.AsyncClient(base_url=self.url, timeout=5, trust_env=False) as http:
            while not (self.desk.stopping or self.finished.done()):
                missing = await _missing(http)
                if missing == "":
                    return True
                if missing != said and missing is not None:
                    say(f"waiting: {missing}")
                    said = missing
                await asyncio.sleep(_READY_EVERY)
        return False


@contextlib.asynccontextmanager
async def open_stack(
    settings: Settings, environ: Mapping[str, str], *, say: Say, verbose: bool = False, own_key: bool = False
) -> AsyncIterator[Stack]:
    """Starts the stack and ends it in order. Port 0 takes a free one. Raises `GatewayError` when it cannot start.

    ``own_key`` makes sure that ``<data>/api-key`` holds a key that works, at every start.
    """
    settings = settings.model_copy(update={"data": settings.data.absolute()})
    catalog.load(settings.catalog)
    with Claim(settings.data) as claim:
        if orphans := claim.clear_orphans():
            say(f"cleared {orphans} processes that a former run left behind")
        with listen(settings.host, settings.port) as listener:
            settings = settings.model_copy(update={"port": listener.getsockname()[1]})
            new_key = ""
            if own_key:
                await desk_key(settings)
            elif not settings.api_key:
                new_key = await first_key(settings)
            endpoint = Endpoint(port=free_port(), client_key=token_urlsafe(32), worker_key=token_urlsafe(32))
            claim.announce(settings.base_url(), {"url": endpoint.base, "key": endpoint.client_key})
            desk = Desk(
                children(settings, environ, endpoint, listener.fileno()),
                claim=claim,
                log=lambda name: ChildLog(name, settings.data / "log", say, verbose=verbose),
                say=say,
                broker=Broker(endpoint.url, endpoint.worker_key),
            )
            stop_on_signals(desk)
            adopt_grandchildren()
            finished = asyncio.create_task(desk.run())
            try:
                yield Stack(desk=desk, url=settings.base_url(), new_key=new_key, finished=finished)
            finally:
                if not desk.stopping:
                    desk.stop()
                await finished


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """Where the local endpoint listens, and its keys: new for each desk, the same when one child starts again."""

    port: int
    client_key: str
    worker_key: str

    @property
    def url(self) -> str:
        return f"http://{_LOOPBACK}:{self.port}"

    @property
    def base(self) -> str:
        return f"{self.url}/v2/{_ENDPOINT_ID}"


def children(settings: Settings, environ: Mapping[str, str], endpoint: Endpoint, listener: int) -> list[Child]:
    """The three programs in the order of their start. The desk holds the gateway's listening socket: while the gateway
    is started again, callers wait in its queue and are not refused, and nobody else can take the port."""
    common = _common(environ)
    outside = without_settings(common)

    def run_endpoint(start: Start) -> tuple[list[str], dict[str, str]]:
        argv = _python("handler.endpoint", "--host", _LOOPBACK, "--port", str(endpoint.port))
        argv += ["--data", str(settings.data / "endpoint"), "--parent-fd", str(start.parent_fd)]
        return argv, {
            "IMGEN_ENDPOINT_LOG_LEVEL": settings.log_level.upper(),
            **outside,
            "IMGEN_ENDPOINT_ID": _ENDPOINT_ID,
            "IMGEN_ENDPOINT_KEY": endpoint.client_key,
            "IMGEN_ENDPOINT_WORKER_KEY": endpoint.worker_key,
        }

    def run_gateway(start: Start) -> tuple[list[str], dict[str, str]]:
        argv = _python("gateway", "serve", "--fd", str(listener), "--parent-fd", str(start.parent_fd))
        return argv, common | {
            "IMGEN_DATA": str(settings.data),
            "IMGEN_HOST": settings.host,
            "IMGEN_PORT": str(settings.port),
            "IMGEN_INTERNAL_URL": settings.internal_url or _loopback_url(settings),
            "IMGEN_BACKEND_URL": endpoint.base,
            "IMGEN_BACKEND_KEY": endpoint.client_key,
            "IMGEN_BACKEND_MIN_WORKERS": "1",
        }

    def run_worker(start: Start) -> tuple[list[str], dict[str, str]]:
        # The SDK would take its key from a ~/.runpod/config.toml; what was downloaded before stays where it is.
        home = settings.data / "worker-home"
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        cache = environ.get("XDG_CACHE_HOME") or str(Path(environ.get("HOME") or home) / ".cache")
        return _python("handler"), {
            **outside,
            "HOME": str(home),
            "XDG_CACHE_HOME": cache,
            "IMGEN_LOG_LEVEL": settings.log_level,
            "IMGEN_PARENT_FD": str(start.parent_fd),
            "RUNPOD_WEBHOOK_GET_JOB": f"{endpoint.base}/job-take/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{endpoint.base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{endpoint.base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_PING": f"{endpoint.base}/ping/$RUNPOD_POD_ID?gpu=local",
            "RUNPOD_PING_INTERVAL": str(_PING_MS),
            "RUNPOD_POD_ID": start.id,
            "RUNPOD_AI_API_KEY": endpoint.worker_key,
            "RUNPOD_ENDPOINT_ID": _ENDPOINT_ID,
            # These checks would connect to 8.8.8.8, and a laptop passes or fails them for no reason of ours.
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    return [
        Child(name="endpoint", command=run_endpoint, grace=5),
        Child(name="gateway", command=run_gateway, fds=(listener,)),
        Child(name="worker", command=run_worker, needs=f"{endpoint.url}/healthz", takes_jobs=True),
    ]


def without_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what only a gateway reads, its secrets above all."""
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    return {name: value for name, value in environ.items() if name not in known}


def free_port() -> int:
    """A loopback port on which nobody listens now."""
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _python(module: str, *arguments: str) -> list[str]:
    # -P: a folder named handler or gateway where the command happens to be typed must not be taken for ours.
    return [sys.executable, "-P", "-m", module, *arguments]


def _common(environ: Mapping[str, str]) -> dict[str, str]:
    """What every child may see. The desk speaks for RUNPOD_*; a stray one could turn the worker into something else."""
    ours = str(Path(__file__).parents[2])
    path = environ.get("PYTHONPATH")
    kept = {name: value for name, value in environ.items() if not name.startswith("RUNPOD_")}
    return kept | {"PYTHONPATH": f"{ours}{os.pathsep}{path}" if path else ours, "PYTHONUNBUFFERED": "1"}


def _loopback_url(settings: Settings) -> str:
    return settings.model_copy(update={"public_url": ""}).base_url()


async def _missing(http: httpx.AsyncClient) -> str | None:
    """What the gateway says is missing: nothing when it is ready, None when it does not answer yet."""
    try:
        answer = await http.get("/readyz")
        body = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    if answer.is_success:
        return ""
    return "; ".join(body.get("missing", ())) or "not ready"
