from __future__ import annotations

from pathlib import Path

import pytest

from handler import __main__ as program
from handler import settings as module
from handler.settings import SHIPPED_MODELS, Settings, SettingsError


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings.models == SHIPPED_MODELS
    assert (settings.threads, settings.parent_fd, settings.log_level) == (1, None, "INFO")
    assert not settings.reports_progress
    assert settings.libraries["OMP_NUM_THREADS"] == "1"
    assert settings.libraries["RUNPOD_LOG_LEVEL"] == "INFO"


def test_the_environment_is_heeded() -> None:
    settings = Settings.from_environ(
        {
            "IMGEN_MODELS": "/etc/imgen/models.toml",
            "IMGEN_WORKER_THREADS": "4",
            "IMGEN_PARENT_FD": "7",
            "IMGEN_LOG_LEVEL": "warning",
            "RUNPOD_WEBHOOK_GET_JOB": "http://127.0.0.1/job-take/$ID?x=1",
            "HF_HUB_DISABLE_TELEMETRY": "0",
        }
    )
    assert settings.models == Path("/etc/imgen/models.toml")
    assert (settings.threads, settings.parent_fd, settings.log_level) == (4, 7, "WARNING")
    assert settings.reports_progress
    assert settings.libraries["OMP_NUM_THREADS"] == "4"
    assert settings.libraries["RUNPOD_LOG_LEVEL"] == "WARN"
    assert settings.libraries["HF_HUB_DISABLE_TELEMETRY"] == "0"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("IMGEN_WORKER_THREADS", "0"),
        ("IMGEN_WORKER_THREADS", "two"),
        ("IMGEN_WORKER_THREADS", "-1"),
        ("IMGEN_PARENT_FD", "stdin"),
        ("IMGEN_LOG_LEVEL", "loud"),
    ],
)
def test_a_bad_value_names_its_variable(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=key):
        Settings.from_environ({key: value})


def test_every_variable_that_is_read_is_explained() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    read = {word for word in source.replace('"', " ").split() if word.startswith("IMGEN_")}
    assert read
    assert not {name for name in read if name not in (program.__doc__ or "")}
