"""Runs one gateway with uvicorn: no access log, a bounded stop, and exit code 0 when it was asked to stop."""

from __future__ import annotations

import signal
import socket

import typer
import uvicorn

from gateway import log
from gateway.app import create_app
from gateway.listener import listen
from gateway.settings import Settings

_GRACE = 8


def serve(settings: Settings, fd: int | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C; on a socket that listens already when ``fd`` is given."""
    log.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=_GRACE,
    )
    # When uvicorn has stopped in order it raises the signal once more, which would look like an accident.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server = uvicorn.Server(config)
    server.run(sockets=[listener])
    if not server.started:
        raise typer.Exit(1)
