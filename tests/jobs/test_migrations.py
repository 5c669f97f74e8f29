"""The way to the newest tables."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, create_engine, inspect, pool, text

from gateway.core.images import Job
from gateway.jobs.database import Database, create_sqlite_file, parse_url, sqlite_path
from gateway.jobs.keys import SqlKeys
from gateway.jobs.migrations import config, migrate
from gateway.jobs.rows import FIELDS, encode
from gateway.jobs.store import SqlJobs
from gateway.jobs.tables import metadata
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio


def on(url: str, look: Callable[[Connection], Any]) -> Any:
    engine = create_engine(parse_url(url), poolclass=pool.NullPool)
    with engine.begin() as connection:
        return look(connection)


def revisions(connection: Connection) -> list[str]:
    return [row[0] for row in connection.execute(text("SELECT version_num FROM alembic_version"))]


async def test_an_empty_database_gets_the_tables_that_the_code_expects(empty_url: str) -> None:
    await migrate(empty_url)
    differences = on(
        empty_url,
        lambda connection: compare_metadata(
            MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True}),
            metadata,
        ),
    )
    assert differences == []
    assert on(empty_url, lambda c: sorted(i["name"] for i in inspect(c).get_indexes("jobs"))) == sorted(
        str(index.name) for index in metadata.tables["jobs"].indexes
    )


async def test_migrating_again_changes_nothing(empty_url: str) -> None:
    await migrate(empty_url)
    kept = job()
    async with Database(empty_url).open() as opened:
        await SqlJobs(opened).add(kept, lease="mine", until=0.0)
    await migrate(empty_url)
    async with Database(empty_url).open() as opened:
        assert await SqlJobs(opened).get(kept.gen_id) == kept


async def test_replicas_that_start_together_migrate_once(empty_url: str) -> None:
    await asyncio.gather(*(migrate(empty_url) for _ in range(6)))
    assert len(on(empty_url, revisions)) == 1


async def test_a_replica_can_start_while_another_one_works(url: str) -> None:
    async with Database(url).open() as opened:
        jobs = SqlJobs(opened)
        await asyncio.gather(migrate(url), *(jobs.add(job(), lease="mine", until=0.0) for _ in range(20)))
        assert (await jobs.counts())["queued"] == 20


async def test_the_release_before_starts_on_the_database_of_a_later_one(url: str) -> None:
    on(url, lambda connection: connection.execute(text("UPDATE alembic_version SET version_num = 'later'")))
    await migrate(url)
    assert on(url, revisions) == ["later"]


def test_the_history_is_one_line() -> None:
    assert len(ScriptDirectory.from_config(config()).get_heads()) == 1


async def test_what_the_release_before_wrote_is_read_and_it_can_go_on_writing(empty_url: str) -> None:
    """Replicas are replaced one by one: for a while old and new ones work on the new shape."""
    old = set(metadata.tables["jobs"].columns.keys()) - {"release", "deleted_at", "source", "hit"}
    before, meanwhile = job(), job()

    def insert_as_before(connection: Connection, one: Job) -> None:
        values = {name: value for name, value in encode(one, FIELDS).items() if name in old}
        names = ", ".join(values)
        connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({', '.join(f':{n}' for n in values)})"), values)
        connection.execute(
            text(
                "INSERT INTO api_keys (id, digest, prefix, name, tenant, tier, scopes, created_at)"
                " VALUES (:id, :id, 'imgen_', '', 'default', 'standard', '', 1.0)"
            ),
            {"id": f"key_{one.public_id}"},
        )

    if empty_url.startswith("sqlite"):
        create_sqlite_file(sqlite_path(parse_url(empty_url)))
    on(empty_url, lambda connection: command.upgrade(config(connection), "0001"))
    on(empty_url, lambda connection: insert_as_before(connection, before))
    await migrate(empty_url)
    on(empty_url, lambda connection: insert_as_before(connection, meanwhile))
    async with Database(empty_url).open() as opened:
        jobs = SqlJobs(opened)
        assert [await jobs.get(one.gen_id) for one in (before, meanwhile)] == [before, meanwhile]
        assert [key.held_at for key in await SqlKeys(opened).list()] == [None, None]
