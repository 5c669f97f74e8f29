"""python -m handler.endpoint: the local serverless endpoint as a process."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import uvicorn

from handler.endpoint.app import LocalEndpoint
from handler.endpoint.broker import Broker
from handler.endpoint.log import configure
from handler.endpoint.settings import BadSettings, Settings
from handler.parent import watch


class Server(uvicorn.Server):
    """Sends parked polls home before it waits for open connections to end."""

    def __init__(self, config: uvicorn.Config, broker: Broker) -> None:
        super().__init__(config)
        self._broker = broker

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._broker.close()
        await super().shutdown(sockets)


def read_settings(arguments: list[str]) -> Settings:
    defaults = Settings()
    parser = argparse.ArgumentParser(prog="python -m handler.endpoint", description=__doc__)
    parser.add_argument("--host", default=defaults.host)
    parser.add_argument("--port", type=int, default=defaults.port)
    parser.add_argument("--data", type=Path, default=defaults.data, help="folder of the job table")
    parser.add_argument("--parent-fd", type=int, help="pipe whose end of file means that the supervisor is gone")
    given = parser.parse_args(arguments)
    try:
        settings = Settings.from_environ(os.environ)
    except BadSettings as exc:
        parser.exit(2, f"{exc}\n")
    return replace(settings, host=given.host, port=given.port, data=given.data, parent_fd=given.parent_fd)


def main() -> None:
    settings = read_settings(sys.argv[1:])
    if settings.parent_fd is not None:
        watch(settings.parent_fd)
    configure(settings.log_level)
    endpoint = LocalEndpoint(settings)
    config = uvicorn.Config(
        endpoint.app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        lifespan="on",
        # Longer than any client keeps an idle connection, so that no request meets a connection that just closes.
        timeout_keep_alive=75,
        timeout_graceful_shutdown=3,
        server_header=False,
    )
    Server(config, endpoint.broker).run()


if __name__ == "__main__":
    main()
