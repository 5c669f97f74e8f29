import gc
import os
from collections.abc import Iterator

import pytest

# Torch's OpenMP threads spin; one is faster where cores are few, and steadier everywhere.
os.environ.setdefault("OMP_NUM_THREADS", "1")


#: What takes longest begins first, so that one of two processes does not wait for the other at the end: whole files are
#: handed out in this order.
LONG = (
    "tests/e2e/test_kill.py",
    "tests/builtin/test_builtin_model.py",
    "tests/worker/test_families.py",
    "tests/e2e/test_stack.py",
    "tests/test_packaging.py",
    "tests/worker/test_process.py",
    "tests/builtin/test_train.py",
    "tests/worker/test_soak.py",
    "tests/api/",
    "tests/worker/",
    "tests/builtin/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        return next((turn for turn, name in enumerate(LONG) if item.nodeid.startswith(name)), len(LONG))

    items.sort(key=turn)


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
