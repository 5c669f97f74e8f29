"""``imgen demo``: the whole road once, on a desk of its own, and what each part of it took."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from compliance.verify import Report, verify
from gateway import console
from gateway.client import Client, Picture
from gateway.desk.keys import read_key
from gateway.desk.stack import Stack, open_stack, without_settings
from gateway.errors import GatewayError
from gateway.settings import Settings
from gateway.signing import authority_folder

_T = TypeVar("_T")
_PHASES = {"queued": "queued", "drawing": "drawn", "finishing": "reviewed and signed", "total": "from POST to picture"}


class DemoFailed(GatewayError):
    """The demo did not end with a trusted picture"""

    code = "demo_failed"


async def show(data: Path, environ: Mapping[str, str], prompt: str, output: Path, *, verbose: bool) -> None:
    """Start, draw, save, verify, stop. Raises `GatewayError` when it ends without a trusted picture.

    The settings of the environment do not count: a demo must not write into somebody's real job store.
    """
    settings = Settings.from_environ({"IMGEN_DATA": str(data)}).model_copy(update={"port": 0})
    environ = without_settings(environ)
    began = time.monotonic()
    console.say("starting gateway, endpoint and worker")
    async with open_stack(settings, environ, say=console.say, verbose=verbose, own_key=True) as stack:
        if not await stack.ready(console.say):
            raise DemoFailed("The demo was stopped before everything was ready.")
        console.say(_row(time.monotonic() - began, "until ready"))
        picture, report = await _unless_stopped(stack, lambda: _draw(stack.url, settings, prompt, output))
        _tell(picture, report)
        stopping = time.monotonic()
    console.say(_row(time.monotonic() - stopping, "to stop everything"))
    if report.state != "trusted":
        raise DemoFailed(f"The picture {output} is {report.state}. {' '.join(report.failures)}")


def _draw(url: str, settings: Settings, prompt: str, output: Path) -> tuple[Picture, Report]:
    with Client(url, read_key(settings.data)) as client:
        console.say(f'POST {url}/api/v2 {{"action": "generate", "prompt": "{prompt}"}}')
        ticket = client.generate(prompt)
        console.warn(ticket)
        picture = console.wait(client, ticket)
        content = client.download(picture.files[0])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_bytes(content)
    return picture, verify(content, (authority_folder(settings) / "anchors.pem").read_bytes())


async def _unless_stopped(stack: Stack, work: Callable[[], _T]) -> _T:
    """The work's result, or `DemoFailed` once the desk stops: nobody answers the work then, and it would wait long."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[_T] = loop.create_future()

    def run() -> None:
        try:
            done = work()
        except Exception as exc:  # noqa: BLE001 - it is raised again where it is awaited
            loop.call_soon_threadsafe(_set, result, None, exc)
        else:
            loop.call_soon_threadsafe(_set, result, done, None)

    # A daemon, so that one which still waits for an answer does not keep this process.
    threading.Thread(target=run, name="demo", daemon=True).start()
    stopped = asyncio.create_task(stack.desk.stop_wanted())
    either: set[asyncio.Future[Any]] = {result, stopped}
    await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
    if not result.done():
        raise DemoFailed("The demo was stopped before the picture was there.")
    stopped.cancel()
    return result.result()


def _set(result: asyncio.Future[_T], done: _T | None, exc: Exception | None) -> None:
    if result.cancelled():
        return
    if exc is not None:
        result.set_exception(exc)
    else:
        result.set_result(done)  # type: ignore[arg-type]


def _tell(picture: Picture, report: Report) -> None:
    meta = picture.meta
    console.say(f"            positive: {meta['positive']}")
    console.say(f"            negative: {meta['negative']}")
    for phase, name in _PHASES.items():
        if phase in meta.get("timings", {}):
            console.say(_row(meta["timings"][phase], name))
    console.say(f"            {report.state}: signed by {report.signer}, {report.when}, model {report.model}")


def _row(seconds: float, name: str) -> str:
    return f"{seconds:8.2f} s  {name}"
