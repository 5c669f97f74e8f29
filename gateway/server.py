"""Runs one gateway until it is asked to stop."""

from __future__ import annotations

import gc
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import typer
from starlette.applications import Starlette

from gateway import log, serving
from gateway.app import create_app
from gateway.errors import GatewayError
from gateway.listener import listen
from gateway.settings import Settings


def serve(settings: Settings, fd: int | None = None) -> None:
    """Serves until SIGTERM or Ctrl-C; on a socket that listens already when ``fd`` is given."""
    log.configure(settings.log_level, settings.log_format)
    app = create_app(settings)
    listener = listen(settings.host, settings.port) if fd is None else socket.socket(fileno=fd)
    problems = _kept(app)
    try:
        serving.run(app, listener)
    except SystemExit:
        # uvicorn's way to say that the start failed.
        if problems:
            raise problems[0] from None
        raise typer.Exit(1) from None


def _kept(app: Starlette) -> list[GatewayError]:
    """Where an error that stops the start is kept: uvicorn only logs it, the command line tells it in a sentence."""
    problems: list[GatewayError] = []
    opening: Any = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        try:
            async with opening(app):
                # What is loaded by now stays for good: the collector need not walk through it during requests.
                gc.collect()
                gc.freeze()
                yield
        except GatewayError as exc:
            problems.append(exc)
            raise

    app.router.lifespan_context = lifespan
    return problems
