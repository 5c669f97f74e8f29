"""The worker's settings, read once from the environment.

``RUNPOD_*`` variables belong to the SDK and are listed in `handler.__main__`; of them only the presence of
``RUNPOD_WEBHOOK_GET_JOB`` matters here, because without it the SDK runs one local test job and has nobody to report to.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

#: Where RunPod mounts a network volume.
VOLUME = Path("/runpod-volume")
SHIPPED_MODELS = Path(__file__).with_name("models.toml")

_SDK_LEVELS = {"DEBUG": "DEBUG", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR"}
_YES, _NO = {"1", "true", "yes", "on"}, {"", "0", "false", "no", "off"}
_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")


class SettingsError(ValueError):
    """A variable of the environment has a value that the worker can't use."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Settings:
    """What the operator may choose. ``libraries`` are variables that must be set before torch or runpod is imported.

    ``serves`` is False when the SDK is to run one local test job. ``warm_picture`` is a width and a height in pixels.
    ``hub_cache`` and ``offline`` are what the Hugging Face libraries make of their own variables.
    """

    models: Path = SHIPPED_MODELS
    threads: int = 1
    parent_fd: int | None = None
    log_level: str = "INFO"
    serves: bool = False
    warm_picture: tuple[int, int] | None = None
    require_gpu: bool = False
    min_gpu_memory: int = 0
    """Bytes."""
    min_disk: int = 0
    """Bytes."""
    gateway_url: str = ""
    hub_cache: Path
    offline: bool = False
    libraries: Mapping[str, str]

    @classmethod
    def from_environ(cls, environ: Mapping[str, str], *, volume: Path = VOLUME) -> Settings:
        """Raises `SettingsError` naming the variable and what it may be. ``volume`` is what all workers share."""
        level = environ.get("IMGEN_LOG_LEVEL", "").strip().upper() or "INFO"
        if level not in _SDK_LEVELS:
            raise SettingsError(f"IMGEN_LOG_LEVEL must be one of {', '.join(_SDK_LEVELS)}, not {level!r}")
        # One thread is the measured best for the built-in model: two were slower, and many times slower when
        # OpenMP's spinning threads met other work on the same cores.
        threads = _integer(environ, "IMGEN_WORKER_THREADS", at_least=1, default=None) or 1
        return cls(
            models=Path(environ.get("IMGEN_MODELS") or SHIPPED_MODELS).absolute(),
            threads=threads,
            parent_fd=_integer(environ, "IMGEN_PARENT_FD", at_least=0, default=None),
            log_level=level,
            serves="RUNPOD_WEBHOOK_GET_JOB" in environ,
            warm_picture=_size(environ, "IMGEN_WARM_PICTURE"),
            require_gpu=_flag(environ, "IMGEN_REQUIRE_GPU"),
            min_gpu_memory=_gigabytes(environ, "IMGEN_MIN_GPU_MEMORY_GB"),
            min_disk=_gigabytes(environ, "IMGEN_MIN_DISK_GB"),
            gateway_url=_url(environ, "IMGEN_GATEWAY_URL"),
            hub_cache=_hub_cache(environ),
            offline=any(_is_on(environ.get(name, "")) for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")),
            libraries={
                "OMP_NUM_THREADS": str(threads),
                "MKL_NUM_THREADS": str(threads),
                # At its own default, DEBUG, the SDK prints whole jobs, and so people's prompts.
                "RUNPOD_LOG_LEVEL": environ.get("RUNPOD_LOG_LEVEL", _SDK_LEVELS[level]),
                "DIFFUSERS_VERBOSITY": environ.get("DIFFUSERS_VERBOSITY", "error"),
                "TRANSFORMERS_VERBOSITY": environ.get("TRANSFORMERS_VERBOSITY", "error"),
                "HF_HUB_DISABLE_TELEMETRY": environ.get("HF_HUB_DISABLE_TELEMETRY", "1"),
                "TOKENIZERS_PARALLELISM": environ.get("TOKENIZERS_PARALLELISM", "false"),
                **_compile_caches(environ, volume),
            },
        )


def _integer(environ: Mapping[str, str], key: str, *, at_least: int, default: int | None) -> int | None:
    text = environ.get(key, "").strip()
    if not text:
        return default
    if not text.isdecimal() or int(text) < at_least:
        raise SettingsError(f"{key} must be a whole number of at least {at_least}, not {text!r}")
    return int(text)


def _gigabytes(environ: Mapping[str, str], key: str) -> int:
    """In bytes."""
    text = environ.get(key, "").strip() or "0"
    if not re.fullmatch(r"\d{1,6}(\.\d+)?", text):
        raise SettingsError(f"{key} must be a number of gigabytes such as 22 or 0.5, not {text!r}")
    return int(float(text) * 2**30)


def _flag(environ: Mapping[str, str], key: str) -> bool:
    text = environ.get(key, "").strip().lower()
    if text not in _YES | _NO:
        raise SettingsError(f"{key} must be true or false, not {text!r}")
    return text in _YES


def _size(environ: Mapping[str, str], key: str) -> tuple[int, int] | None:
    text = environ.get(key, "").strip().lower()
    if text in _NO:
        return None
    if not (found := _SIZE.fullmatch(text)):
        raise SettingsError(f"{key} must be a size such as 1024x1024, or empty, not {text!r}")
    return int(found[1]), int(found[2])


def _url(environ: Mapping[str, str], key: str) -> str:
    text = environ.get(key, "").strip().rstrip("/")
    parts = urlsplit(text)
    if text and not (parts.scheme in {"http", "https"} and parts.hostname):
        raise SettingsError(f"{key} must be an address that begins with https:// or http://, not {text!r}")
    return text


def _hub_cache(environ: Mapping[str, str]) -> Path:
    """Where huggingface_hub looks, by its own rules."""
    if cache := environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    caches = environ.get("XDG_CACHE_HOME") or Path(environ.get("HOME") or Path.home()) / ".cache"
    return Path(environ.get("HF_HOME") or Path(caches) / "huggingface").expanduser() / "hub"


def _compile_caches(environ: Mapping[str, str], volume: Path) -> dict[str, str]:
    """What one worker has compiled spares the next one minutes, if there is a place that outlives it. The model cache
    can be mounted at the same path, but nobody may write there."""
    if not os.access(volume, os.W_OK):
        return {}
    caches = {"TORCHINDUCTOR_CACHE_DIR": "torchinductor", "TRITON_CACHE_DIR": "triton"}
    return {name: environ.get(name) or str(volume / folder) for name, folder in caches.items()}


def _is_on(text: str) -> bool:
    """As huggingface_hub reads a switch."""
    return text.upper() in {"1", "ON", "YES", "TRUE"}
