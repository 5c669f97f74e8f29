import os

import pytest

# Torch's OpenMP threads spin; one is faster where cores are few, and steadier everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"
