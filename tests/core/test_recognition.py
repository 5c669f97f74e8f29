"""The index of image codes follows its table, whatever the order in which rows become visible."""

from __future__ import annotations

import pytest

from gateway.core.recognition import CodeIndex

pytestmark = pytest.mark.anyio


class Table:
    """The port `Records`, as far as the index reads it."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, str, int]] = []
        self.reads = 0

    async def codes(self, *, after: int, limit: int):
        self.reads += 1
        return [row for row in sorted(self.rows) if row[0] > after][:limit]


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def table() -> Table:
    return Table()


@pytest.fixture
def index(table: Table, clock: list[float]) -> CodeIndex:
    return CodeIndex(table, now=lambda: clock[0])


async def labels(index: CodeIndex, code: int, distance: int = 2) -> list[tuple[int, str]]:
    return [(bits, label) for bits, _, label in await index.near(code, distance)]


async def test_the_nearest_come_first_and_the_far_not_at_all(table, index):
    table.rows = [(1, "a", 0b111), (2, "b", 0b1), (3, "c", 2**64 - 1), (4, "d", 0)]
    assert await labels(index, 0) == [(0, "d"), (1, "b")]
    assert await labels(index, 2**64 - 2) == [(1, "c")]


async def test_a_row_that_is_committed_after_a_later_one_is_found_too(table, index, clock):
    table.rows = [(2, "later", 1)]
    assert await labels(index, 1) == [(0, "later")]
    table.rows.append((1, "earlier", 1))
    assert await labels(index, 1) == [(0, "later")], "not within a second"
    clock[0] = 2.0
    assert await labels(index, 1) == [(0, "later"), (0, "earlier")]
    clock[0] = 4.0
    assert len(await labels(index, 1)) == 2, "and each once"


async def test_what_is_gone_is_not_offered_again(table, index):
    table.rows = [(number, str(number), 0) for number in range(1, 60)]
    for _, place, label in await index.near(0, 0):
        if label != "59":
            index.drop(place)
    assert await labels(index, 0) == [(0, "59")]


async def test_many_rows_are_read_page_by_page_and_few_looks_are_taken(table, index, clock):
    table.rows = [(number, str(number), number) for number in range(1, 45_001)]
    assert await labels(index, 44_999, 0) == [(0, "44999")]
    reads = table.reads
    assert await labels(index, 3, 0) == [(0, "3")] and table.reads == reads
    clock[0] = 2.0
    table.rows.append((45_001, "new", 2**63))
    assert await labels(index, 2**63, 0) == [(0, "new")] and table.reads == reads + 2
