"""Records: what is added is found by each of its traces, and forgotten when its job goes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gateway.core.images import Record
from gateway.jobs.database import Database
from gateway.jobs.records import SqlRecords

pytestmark = pytest.mark.anyio

RECORD = Record(
    label="urn:c2pa:1",
    gen_id="a" * 20,
    index=0,
    type="signed",
    tenant="default",
    key="out/a/1.jpg",
    sha256="ab" * 32,
    mime="image/jpeg",
    width=1344,
    height=768,
    created_at=1000.5,
    manifest=b"\0jumb",
    mark=2**48 - 1,
    code=2**64 - 2,
)


@pytest.fixture
def records(database: Database) -> SqlRecords:
    return SqlRecords(database)


async def test_a_record_is_found_by_its_label_its_mark_and_its_bytes(records: SqlRecords) -> None:
    thumb = replace(RECORD, label="urn:c2pa:2", type="thumbnail", sha256="cd" * 32, mark=None, code=0)
    for record in (RECORD, thumb):
        await records.add(record)
    assert [await records.get(record.label) for record in (RECORD, thumb)] == [RECORD, thumb]
    assert await records.get("urn:c2pa:3") is None
    assert await records.of_mark(2**48 - 1) == [RECORD] and await records.of_mark(1) == []
    assert await records.of_picture("cd" * 32) == [thumb]


async def test_a_record_that_is_there_stays_as_it_is(records: SqlRecords) -> None:
    await records.add(RECORD)
    await records.add(replace(RECORD, sha256="ef" * 32))
    assert await records.get(RECORD.label) == RECORD


async def test_codes_are_read_in_the_order_in_which_they_came(records: SqlRecords) -> None:
    for number, code in enumerate((2**64 - 1, 2**63, 0, None, 5)):
        await records.add(replace(RECORD, label=f"urn:c2pa:{number}", code=code))
    first = await records.codes(after=0, limit=2)
    rest = await records.codes(after=first[-1][0], limit=9)
    told = [(label, code) for _, label, code in (*first, *rest)]
    assert told == [("urn:c2pa:0", 2**64 - 1), ("urn:c2pa:1", 2**63), ("urn:c2pa:2", 0), ("urn:c2pa:4", 5)]
    await records.forget(["urn:c2pa:4"])
    await records.add(replace(RECORD, label="urn:c2pa:later"))
    assert [label for _, label, _ in await records.codes(after=rest[-1][0], limit=9)] == ["urn:c2pa:later"], (
        "a number is never given twice"
    )


async def test_the_records_of_a_job_are_forgotten_but_those_that_count(records: SqlRecords) -> None:
    other = replace(RECORD, label="urn:c2pa:other", gen_id="b" * 20)
    for record in (RECORD, replace(RECORD, label="urn:c2pa:2"), other):
        await records.add(record)
    await records.purge(RECORD.gen_id, keep=frozenset({RECORD.label}))
    assert [await records.get(label) for label in (RECORD.label, "urn:c2pa:2", other.label)] == [RECORD, None, other]
    await records.purge(RECORD.gen_id)
    assert await records.get(RECORD.label) is None and await records.get(other.label) == other
    await records.forget([other.label, "urn:c2pa:nobody"])
    assert await records.get(other.label) is None
