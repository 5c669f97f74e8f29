from collections.abc import Iterator

import pytest

from tests.e2e.stack import Stack, running


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running(tmp_path_factory.mktemp("stack") / "var") as up:
        yield up
        assert up.stop() == 0
