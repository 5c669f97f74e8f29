"""The audit: one unbroken chain that nobody can change, whoever writes and however many do."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import create_engine, exc, pool, text

from compliance.ledger import GENESIS, Entry, Link, link
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database, parse_url

pytestmark = pytest.mark.anyio

per_example = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def assert_unbroken(links: list[Link], count: int) -> None:
    previous = GENESIS
    assert [each.entry.seq for each in links] == list(range(1, count + 1))
    for each in links:
        assert each == link(each.entry, previous)
        previous = each.hash


async def test_entries_follow_each_other(audit: SqlAudit) -> None:
    assert await audit.head() is None
    for number in range(1, 4):
        assert await audit.append("verdict", 1000.5 + number, "g1", {"n": number}) == number
    links = await audit.after(0, 9)
    assert_unbroken(links, 3)
    assert links[0].entry == Entry(seq=1, at="1970-01-01T00:16:41.500+00:00", kind="verdict", body={"n": 1})
    assert await audit.head() == links[-1]
    assert await audit.after(1, 1) == [links[1]]
    assert await audit.after(3, 9) == []


async def test_the_entries_about_a_job_are_found(audit: SqlAudit) -> None:
    for gen_id in ("g1", "g2", None, "g1"):
        await audit.append("verdict", 1.0, gen_id, {"gen_id": gen_id})
    assert [each.entry.seq for each in await audit.of("g1")] == [1, 4]
    assert await audit.of("nowhere") == []


async def test_what_an_export_since_a_time_begins_after(audit: SqlAudit) -> None:
    assert await audit.since(0.0) == 0
    for at in (10.0, 20.0, 19.0, 30.0):
        await audit.append("verdict", at, None, {})
    assert [await audit.since(at) for at in (0.0, 15.0, 20.0, 25.0, 31.0)] == [0, 1, 1, 3, 4]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3),
    max_leaves=6,
)


@per_example
@given(body=st.dictionaries(st.text(), _JSON, max_size=4))
async def test_any_body_comes_back_as_it_was_and_still_fits_its_hash(audit: SqlAudit, body: dict[str, Any]) -> None:
    seq = await audit.append("test", 1.0, None, body)
    (stored,) = await audit.after(seq - 1, 1)
    assert stored.entry.body == body
    assert stored == link(stored.entry, stored.previous)


@pytest.mark.parametrize("body", [{"score": float("nan")}, {"data": b"\xff"}], ids=["nan", "bytes"])
async def test_what_json_can_not_hold_is_not_recorded(audit: SqlAudit, body: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        await audit.append("test", 1.0, None, body)
    assert await audit.head() is None


async def test_two_replicas_that_write_at_once_make_one_chain(url: str, audit: SqlAudit) -> None:
    async with Database(url).open() as other:
        logs = [audit, SqlAudit(other)]
        numbers = await asyncio.gather(*(logs[n % 2].append("test", 1.0, None, {"n": n}) for n in range(80)))
    assert sorted(numbers) == list(range(1, 81))
    links = await audit.after(0, 100)
    assert_unbroken(links, 80)
    assert {each.entry.body["n"] for each in links} == set(range(80))


@pytest.mark.parametrize(
    ("only", "statement"),
    [
        pytest.param("", "UPDATE audit SET body = '{}'", id="update-all"),
        pytest.param("", "UPDATE audit SET hash = 'x' WHERE seq = 2", id="update-one"),
        pytest.param("", "DELETE FROM audit", id="delete-all"),
        pytest.param("", "DELETE FROM audit WHERE seq = 3", id="delete-the-last"),
        pytest.param("sqlite", "INSERT OR REPLACE INTO audit VALUES (2, 1.0, 'k', NULL, '{}', '', '')", id="replace"),
        pytest.param("sqlite", "INSERT INTO audit VALUES (9, 1.0, 'k', NULL, '{}', '', '')", id="gap"),
        pytest.param("postgresql", "TRUNCATE audit", id="truncate"),
    ],
)
async def test_the_database_itself_refuses_to_change_the_audit(
    url: str, audit: SqlAudit, only: str, statement: str
) -> None:
    if not url.startswith(only):
        pytest.skip(f"only {only} has such a statement")
    for number in range(3):
        await audit.append("verdict", 1.0, "g1", {"n": number})
    before = await audit.after(0, 9)
    engine = create_engine(parse_url(url), poolclass=pool.NullPool)
    with pytest.raises(exc.IntegrityError), engine.begin() as connection:
        connection.execute(text(statement))
    assert await audit.after(0, 9) == before
