"""The worker's settings, read once from the environment.

``RUNPOD_*`` variables belong to the SDK and are listed in `handler.__main__`; of them only the presence of
``RUNPOD_WEBHOOK_GET_JOB`` matters here, because without it the SDK runs one local test job and has nobody to report to.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SHIPPED_MODELS = Path(__file__).with_name("models.toml")

_SDK_LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR"}


class SettingsError(ValueError):
    """A variable of the environment has a value that the worker can't use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the operator may choose. ``libraries`` are variables that must be set before torch or runpod is imported."""

    models: Path = SHIPPED_MODELS
    threads: int = 1
    parent_fd: int | None = None
    log_level: str = "INFO"
    reports_progress: bool = False
    libraries: Mapping[str, str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Raises `SettingsError` naming the variable and what it may be."""
        level = environ.get("IMGEN_LOG_LEVEL", "INFO").upper()
        if level not in _SDK_LEVELS:
            raise SettingsError(f"IMGEN_LOG_LEVEL must be one of {', '.join(_SDK_LEVELS)}, not {level!r}")
        threads = _integer(environ, "IMGEN_WORKER_THREADS", at_least=1, default=1)
        parent_fd = _integer(environ, "IMGEN_PARENT_FD", at_least=0, default=None)
        return cls(
            models=Path(environ.get("IMGEN_MODELS") or SHIPPED_MODELS).absolute(),
            # One thread is the measured best for the built-in model: two were slower, and many times slower when
            # OpenMP's spinning threads met other work on the same cores.
            threads=threads or 1,
            parent_fd=parent_fd,
            log_level=level,
            reports_progress="RUNPOD_WEBHOOK_GET_JOB" in environ,
            libraries={
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                # At its own default, DEBUG, the SDK prints whole jobs, and so people's prompts.
                "RUNPOD_LOG_LEVEL": environ.get("RUNPOD_LOG_LEVEL", _SDK_LEVELS[level]),
                "DIFFUSERS_VERBOSITY": environ.get("DIFFUSERS_VERBOSITY", "error"),
                "TRANSFORMERS_VERBOSITY": environ.get("TRANSFORMERS_VERBOSITY", "error"),
                "HF_HUB_DISABLE_TELEMETRY": environ.get("HF_HUB_DISABLE_TELEMETRY", "1"),
                "TOKENIZERS_PARALLELISM": environ.get("TOKENIZERS_PARALLELISM", "false"),
            },
        )


def _integer(environ: Mapping[str, str], key: str, *, at_least: int, default: int | None) -> int | None:
    text = environ.get(key, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < at_least:
        raise SettingsError(f"{key} must be a whole number of at least {at_least}, not {text!r}")
    return int(text)
