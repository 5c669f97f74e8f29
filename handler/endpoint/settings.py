"""The settings of the local endpoint, and the one place where it reads the environment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any


class BadSettings(ValueError):
    """A setting of the local endpoint is missing or wrong."""


def _env(name: str, default: Any, meaning: str) -> Any:
    return field(default=default, metadata={"env": name, "meaning": meaning})


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """Fields with an `env` name in their metadata come from the environment, the rest from flags."""

    host: str = "127.0.0.1"
    port: int = 8200
    data: Path = Path("var/endpoint")
    parent_fd: int | None = None

    client_key: str = _env("IMGEN_ENDPOINT_KEY", "", "key of the clients (the gateway); required")
    worker_key: str = _env(
        "IMGEN_ENDPOINT_WORKER_KEY", "", "key of the workers and the supervisor; required, another one"
    )
    endpoint_id: str = _env("IMGEN_ENDPOINT_ID", "local", "the id in /v2/{id}/…")
    hold_s: float = _env("IMGEN_ENDPOINT_HOLD_S", 20.0, "how long a worker's poll is held; the SDK gives up at 90")
    lease_s: float = _env("IMGEN_ENDPOINT_LEASE_S", 20.0, "a worker that was silent so long has lost its jobs")
    grace_s: float = _env(
        "IMGEN_ENDPOINT_GRACE_S", 5.0, "time a worker has to name a new job in its pings, or to reconnect"
    )
    kill_grace_s: float = _env(
        "IMGEN_ENDPOINT_KILL_GRACE_S", 10.0, "time to let go of a stopped job before `want` is kill"
    )
    sweep_s: float = _env("IMGEN_ENDPOINT_SWEEP_S", 0.5, "how often timeouts, leases and retention are looked at")
    requeues: int = _env("IMGEN_ENDPOINT_REQUEUES", 2, "how often a job that lost its worker is queued again")
    run_bytes: int = _env("IMGEN_ENDPOINT_RUN_BYTES", 10_000_000, "largest body and largest result of /run")
    runsync_bytes: int = _env("IMGEN_ENDPOINT_RUNSYNC_BYTES", 20_000_000, "largest body and largest result of /runsync")
    keep_run_s: float = _env("IMGEN_ENDPOINT_KEEP_RUN_S", 1800.0, "a result of /run is forgotten so long after its end")
    keep_runsync_s: float = _env("IMGEN_ENDPOINT_KEEP_RUNSYNC_S", 60.0, "the same for /runsync")
    webhook_retry_s: float = _env("IMGEN_ENDPOINT_WEBHOOK_RETRY_S", 10.0, "pause before each of the two further tries")
    webhook_timeout_s: float = _env("IMGEN_ENDPOINT_WEBHOOK_TIMEOUT_S", 10.0, "time that a webhook has to answer")
    rate_limits: bool = _env("IMGEN_ENDPOINT_RATE_LIMITS", True, "RunPod's documented limits per 10 s; off to measure")
    log_level: str = _env("IMGEN_ENDPOINT_LOG_LEVEL", "INFO", "DEBUG, INFO, WARNING or ERROR")

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Read the settings; whatever is wrong names its variable."""
        given: dict[str, Any] = {}
        for each in fields(cls):
            name = each.metadata.get("env")
            if name and environ.get(name, "").strip():
                given[each.name] = _convert(name, environ[name].strip(), type(each.default))
        settings = cls(**given)
        settings.check()
        return settings

    def check(self) -> None:
        """Refuse what could not work."""
        for name, key in (("IMGEN_ENDPOINT_KEY", self.client_key), ("IMGEN_ENDPOINT_WORKER_KEY", self.worker_key)):
            if not key:
                raise BadSettings(f"{name} is not set; give it a long random value")
        if self.client_key == self.worker_key:
            raise BadSettings("IMGEN_ENDPOINT_WORKER_KEY must differ from IMGEN_ENDPOINT_KEY")
        if self.hold_s > 80:
            raise BadSettings("IMGEN_ENDPOINT_HOLD_S must be at most 80; the SDK gives up a poll at 90 seconds")
        if self.log_level not in {"DEBUG", "INFO", "WARNING", "ERROR"}:
            raise BadSettings("IMGEN_ENDPOINT_LOG_LEVEL must be DEBUG, INFO, WARNING or ERROR")


def _convert(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() in {"on", "true", "1", "yes"}:
            return True
        if text.lower() in {"off", "false", "0", "no"}:
            return False
        raise BadSettings(f"{name} must be on or off, not {text!r}")
    if kind in {int, float}:
        try:
            number = kind(text)
        except ValueError:
            raise BadSettings(f"{name} must be a number, not {text!r}") from None
        # The comparison is also false for "nan".
        if not 0 <= number < 1e12:
            raise BadSettings(f"{name} must not be negative, got {text!r}")
        return number
    return text
