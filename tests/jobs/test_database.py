"""Where the database is reached, and how it says that it is not there."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import Select
from sqlalchemy.dialects.sqlite import dialect

from gateway.errors import SettingsError, StoreUnavailable
from gateway.jobs import appeals, audit, events, store
from gateway.jobs import database as module
from gateway.jobs.database import Database, parse_url
from gateway.jobs.migrations import migrate
from gateway.jobs.store import SqlJobs
from tests.jobs.conftest import POSTGRES, needs_postgres
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "url", ["sqlite:///a.db", "sqlite+aiosqlite:///a.db", "postgresql://h/n", "postgresql+psycopg://h/n"]
)
def test_the_driver_is_ours_to_choose(url: str) -> None:
    assert parse_url(url).drivername in ("sqlite", "postgresql+psycopg")


@pytest.mark.parametrize("url", ["", "nonsense", "sqlite://", "sqlite:///:memory:", "mysql://host/name"])
def test_a_url_that_can_not_work_says_what_would(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Database(url)
    assert "postgresql://" in (caught.value.fix or "")


def test_building_a_store_touches_nothing(tmp_path: Path) -> None:
    SqlJobs(Database(f"sqlite:///{tmp_path / 'folder' / 'jobs.db'}"))
    assert list(tmp_path.iterdir()) == []


async def test_a_store_that_is_not_open_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        await SqlJobs(Database("sqlite:///jobs.db")).get("one")


async def test_a_database_that_is_not_there_is_not_made_on_the_way(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        async with Database(f"sqlite:///{tmp_path / 'jobs.db'}").open():
            pass
    assert list(tmp_path.iterdir()) == []


async def test_a_damaged_database_is_unavailable(tmp_path: Path) -> None:
    path = tmp_path / "jobs.db"
    path.write_bytes(b"no database" * 1000)
    with pytest.raises(StoreUnavailable):
        await migrate(f"sqlite:///{path}")
    with pytest.raises(StoreUnavailable):
        async with Database(f"sqlite:///{path}").open() as opened:
            await SqlJobs(opened).get("one")


async def test_a_writer_waits_for_another_one_only_so_long(sqlite_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    async with Database(sqlite_url).open() as opened:
        jobs = SqlJobs(opened)
        with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(StoreUnavailable):
                await jobs.add(job(), lease="mine", until=0.0)
            assert await jobs.page("default", limit=1, before=None) == []  # a reader does not wait
            other.execute("COMMIT")
        await jobs.add(job(), lease="mine", until=0.0)


async def test_a_server_that_does_not_answer_is_unavailable() -> None:
    async with Database("postgresql://nobody@127.0.0.1:1/none").open() as opened:
        with pytest.raises(StoreUnavailable):
            await SqlJobs(opened).get("one")
    with pytest.raises(StoreUnavailable):
        await migrate("postgresql://nobody@127.0.0.1:1/none")


async def test_the_file_is_readable_by_its_owner_alone_and_safe_at_a_power_cut(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "jobs.db"
    await migrate(f"sqlite:///{path}")
    async with Database(f"sqlite:///{path}").open() as opened:
        await SqlJobs(opened).add(job(), lease="mine", until=0.0)
        assert {file.name: oct(file.stat().st_mode & 0o777) for file in path.parent.iterdir()} == {
            "jobs.db": "0o600",
            "jobs.db-shm": "0o600",
            "jobs.db-wal": "0o600",
        }
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert "PRAGMA synchronous = FULL" in module.SQLITE_PRAGMAS


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> Iterator[str]:
    path = tmp_path / "jobs.db"
    path.write_bytes(sqlite_template.read_bytes())
    yield f"sqlite:///{path}"


@pytest.mark.parametrize(
    "name",
    [
        "_GET",
        "_FIND",
        "_NEWEST",
        "_OLDER",
        "_DUE",
        "_COUNTS",
        "_CLAIM",
        "_SAVE",
        "_CANCEL",
        "_CANCEL_OF_KEY",
        "_REOPEN",
    ],
)
def test_no_statement_walks_through_the_whole_table(sqlite_template: Path, name: str) -> None:
    compiled = getattr(store, name).compile(dialect=dialect(paramstyle="qmark"))
    with closing(sqlite3.connect(sqlite_template)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {compiled}", [None] * len(compiled.positiontup)).fetchall()
    steps = [row[3] for row in plan]
    assert any(step.startswith("SEARCH jobs USING") for step in steps), steps
    assert not any(step.startswith("SCAN") for step in steps), steps


@pytest.mark.parametrize(
    ("table", "statement"),
    [
        pytest.param("audit", audit._AFTER, id="audit-after"),
        pytest.param("audit", audit._OF, id="audit-of"),
        pytest.param("appeals", appeals._LATEST, id="appeals-latest"),
        pytest.param("appeals", appeals._IN, id="appeals-in"),
        pytest.param("events", events._DUE, id="events-due"),
    ],
)
def test_no_look_up_grows_with_what_is_on_record(sqlite_template: Path, table: str, statement: Select[Any]) -> None:
    compiled = statement.compile(dialect=dialect(paramstyle="qmark"))
    with closing(sqlite3.connect(sqlite_template)) as connection:
        plan = connection.execute(f"EXPLAIN QUERY PLAN {compiled}", [None] * len(compiled.positiontup)).fetchall()
    assert plan[0][3].startswith(f"SEARCH {table} USING"), plan


async def test_a_task_that_is_cancelled_in_mid_statement_leaves_the_store_usable(jobs: SqlJobs) -> None:
    new = job()
    await jobs.add(new, lease="mine", until=0.0)
    for pause in range(8):
        tasks: list[asyncio.Task[object]] = [
            asyncio.create_task(jobs.renew(new.gen_id, lease="mine", until=float(n))) for n in range(4)
        ]
        tasks += [asyncio.create_task(jobs.page("default", limit=9, before=None)) for _ in range(4)]
        await asyncio.sleep(pause / 5000)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert await jobs.get(new.gen_id) == new
    assert await jobs.save(new, lease="mine", release=True)


@needs_postgres
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
async def test_a_connection_that_died_in_the_pool_is_replaced(url: str, jobs: SqlJobs) -> None:
    new = job()
    await jobs.add(new, lease="mine", until=0.0)
    with psycopg.connect(POSTGRES, autocommit=True) as server:
        killed = server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = %s", [url.rpartition("/")[2]]
        )
        assert killed.rowcount >= 1
    assert await jobs.get(new.gen_id) == new
