from __future__ import annotations

from pathlib import Path

import pytest

from handler.models import Model
from handler.renderer import DiffusersRenderer
from tests.worker import tiny


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A diffusers folder with random weights."""
    return tiny.build(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny_renderer(tiny_folder: Path) -> DiffusersRenderer:
    return DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
