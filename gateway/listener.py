"""The socket that a gateway listens on, and plain words when it cannot be had."""

from __future__ import annotations

import errno
import socket

from gateway.errors import GatewayError


class CannotListen(GatewayError):
    """The port cannot be listened on"""

    code = "cannot_listen"


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes a free one. Raises `CannotListen` with the fix."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as exc:
        raise CannotListen(f"{host} is not an address of this machine.", fix="Use --host 127.0.0.1.") from exc
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(address)
        listener.listen(1024)
    except OSError as exc:
        listener.close()
        raise _translated(exc, host, port) from exc
    return listener


def _translated(exc: OSError, host: str, port: int) -> CannotListen:
    if exc.errno == errno.EADDRINUSE:
        other = port + 1 if port < 65535 else port - 1
        return CannotListen(
            f"Port {port} on {host} is taken by another program.",
            fix=f"Stop that program, or choose another port: --port {other}",
        )
    if exc.errno == errno.EACCES:
        return CannotListen(f"This user may not listen on port {port}.", fix="Choose one from 1024 on: --port 8080")
    if exc.errno == errno.EADDRNOTAVAIL:
        return CannotListen(f"{host} is not an address of this machine.", fix="Use --host 127.0.0.1.")
    return CannotListen(f"Cannot listen on {host} port {port}: {exc.strerror}.", fix="Use other --host and --port.")
