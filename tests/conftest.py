import gc
import os
from collections.abc import Iterator

import pytest

# Torch's OpenMP threads spin; one is faster where cores are few, and steadier everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """All of torch and of the tests are imported now and stay: nobody need look for garbage among them, ever."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()
