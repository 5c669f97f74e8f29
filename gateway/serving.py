"""Serves one application with uvicorn: no access log, a bounded stop, and exit code 0 when it was asked to stop."""

from __future__ import annotations

import signal
import socket

import uvicorn
from starlette.applications import Starlette

#: Seconds that requests in hand may take once somebody asked to stop.
GRACE = 8


def run(app: Starlette, listener: socket.socket) -> None:
    """Until SIGTERM or Ctrl-C. Raises SystemExit when the lifespan could not be opened."""
    config = uvicorn.Config(
        app,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=GRACE,
    )
    # When uvicorn has stopped in order it raises the signal once more, which would look like an accident.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    uvicorn.Server(config).run(sockets=[listener])
