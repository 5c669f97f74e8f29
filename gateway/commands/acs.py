"""`imgen acs`: the reviewers of this machine served alone, for gateways that name it in IMGEN_ACS_URL."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from compliance.panel import Panel

_KEY_LENGTH = 16
#: Seconds for each thread that still runs when the service has stopped.
_PATIENCE = 0.5


def acs(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8090,
) -> None:
    """Run the compliance service alone; gateways use it by IMGEN_ACS_URL and IMGEN_ACS_KEY."""
    from compliance.errors import ComplianceError
    from gateway import log
    from gateway.acs.build import panel_of
    from gateway.errors import SettingsError
    from gateway.settings import Settings

    settings = Settings.from_environ(os.environ)
    key = settings.acs_key
    if len(key) < _KEY_LENGTH or not key.isascii():
        raise SettingsError(
            f"IMGEN_ACS_KEY: must have {_KEY_LENGTH} plain characters at least",
            fix="Make one, such as with: openssl rand -hex 24; gateways that use this service get the same.",
        )
    log.configure(settings.log_level, settings.log_format)
    try:
        panel = panel_of(settings)
    except ComplianceError as exc:
        raise SettingsError(exc.message, fix=exc.fix) from exc
    serve(panel, key=key, threads=settings.acs_threads, host=host, port=port)


def serve(panel: Panel, *, key: str, threads: int, host: str, port: int) -> None:
    """Serves the panel until SIGTERM or Ctrl-C. Raises `CannotListen`."""
    import structlog

    from compliance.service import create_app
    from gateway import serving
    from gateway.listener import listen

    with listen(host, port) as listener:
        address, taken = listener.getsockname()[:2]
        structlog.get_logger(__name__).info(
            "compliance service open", address=address, port=taken, rulesets=list(panel.rulesets)
        )
        serving.run(create_app(panel, key=key, threads=threads), listener)
    _leave()


def _leave() -> None:
    """End now. A reviewer that hangs holds its thread, and that the process: its time to answer is over."""
    import logging
    import threading

    threads = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in threads:
        thread.join(_PATIENCE)
    if any(thread.is_alive() and not thread.daemon for thread in threads):
        logging.shutdown()
        os._exit(0)
