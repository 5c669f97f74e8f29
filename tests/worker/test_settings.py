from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from handler import __main__ as program
from handler import settings as module
from handler.settings import SHIPPED_MODELS, Settings, SettingsError


def test_an_empty_environment_gives_the_defaults() -> None:
    settings = Settings.from_environ({})
    assert settings.models == SHIPPED_MODELS
    assert (settings.threads, settings.parent_fd, settings.log_level) == (1, None, "INFO")
    assert not settings.serves
    assert (settings.require_gpu, settings.min_gpu_memory, settings.min_disk) == (False, 0, 0)
    assert (settings.warm_picture, settings.gateway_url, settings.offline) == (None, "", False)
    assert settings.hub_cache == Path.home() / ".cache/huggingface/hub"
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
            "HF_HUB_OFFLINE": "1",
            "HF_HOME": "/runpod-volume/huggingface-cache",
            "IMGEN_WARM_PICTURE": "1344x768",
            "IMGEN_REQUIRE_GPU": "true",
            "IMGEN_MIN_GPU_MEMORY_GB": "21.5",
            "IMGEN_MIN_DISK_GB": "2",
            "IMGEN_GATEWAY_URL": "https://pictures.example/",
        }
    )
    assert settings.models == Path("/etc/imgen/models.toml")
    assert (settings.threads, settings.parent_fd, settings.log_level) == (4, 7, "WARNING")
    assert settings.serves and settings.require_gpu and settings.offline
    assert (settings.warm_picture, settings.gateway_url) == ((1344, 768), "https://pictures.example")
    assert (settings.min_gpu_memory, settings.min_disk) == (21.5 * 2**30, 2 * 2**30)
    assert settings.hub_cache == Path("/runpod-volume/huggingface-cache/hub")
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
        ("IMGEN_WARM_PICTURE", "true"),
        ("IMGEN_WARM_PICTURE", "1024"),
        ("IMGEN_REQUIRE_GPU", "H100"),
        ("IMGEN_MIN_GPU_MEMORY_GB", "24GB"),
        ("IMGEN_MIN_DISK_GB", "-1"),
        ("IMGEN_GATEWAY_URL", "pictures.example"),
        ("IMGEN_GATEWAY_URL", "file:///etc/passwd"),
    ],
)
def test_a_bad_value_names_its_variable(key: str, value: str) -> None:
    with pytest.raises(SettingsError, match=key):
        Settings.from_environ({key: value})


def test_empty_means_the_default_as_a_web_form_sends_it() -> None:
    names = [name for name in (program.__doc__ or "").split() if name.startswith("IMGEN_")]
    assert Settings.from_environ(dict.fromkeys(names, "")) == Settings.from_environ({})


@pytest.mark.parametrize(
    ("environ", "cache"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HF_HOME": "/b", "XDG_CACHE_HOME": "/c"}, "/b/hub"),
        ({"XDG_CACHE_HOME": "/c", "HOME": "/d"}, "/c/huggingface/hub"),
        ({"HOME": "/d"}, "/d/.cache/huggingface/hub"),
    ],
)
def test_the_hub_s_cache_is_found_as_the_hub_s_library_finds_it(environ: dict[str, str], cache: str) -> None:
    assert Settings.from_environ(environ).hub_cache == Path(cache)
    ask = "from huggingface_hub.constants import HF_HUB_CACHE; print(HF_HUB_CACHE)"
    said = subprocess.run([sys.executable, "-c", ask], env=environ, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == cache


def test_what_is_compiled_is_kept_on_the_volume_where_there_is_one(tmp_path: Path) -> None:
    def caches(environ: dict[str, str], volume: Path) -> dict[str, str]:
        libraries = Settings.from_environ(environ, volume=volume).libraries
        return {name: path for name, path in libraries.items() if "CACHE_DIR" in name}

    assert caches({}, tmp_path / "none") == {}
    own = {"TRITON_CACHE_DIR": "/elsewhere"}
    assert caches(own, tmp_path) == {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "torchinductor")} | own


def test_every_variable_that_is_read_is_explained() -> None:
    source = Path(module.__file__).read_text(encoding="utf-8")
    read = {word for word in source.replace('"', " ").split() if word.startswith("IMGEN_")}
    assert read
    assert not {name for name in read if name not in (program.__doc__ or "")}
