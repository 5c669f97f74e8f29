"""The tests run on SQLite, and on PostgreSQL where IMGEN_TEST_POSTGRES is the URL of a server to make databases on."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg import sql

from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database
from gateway.jobs.events import SqlEvents
from gateway.jobs.keys import SqlKeys
from gateway.jobs.migrations import migrate
from gateway.jobs.store import SqlJobs

POSTGRES = os.environ.get("IMGEN_TEST_POSTGRES", "")

needs_postgres = pytest.mark.skipif(not POSTGRES, reason="IMGEN_TEST_POSTGRES names no PostgreSQL server")


class Postgres:
    """A server on which tests make databases and drop them."""

    def url(self, name: str) -> str:
        server, _, query = POSTGRES.partition("?")
        return f"{server.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")

    def create(self, template: str | None = None) -> str:
        name = f"imgen_test_{secrets.token_hex(6)}"
        create = sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name))
        if template is not None:
            create += sql.SQL(" TEMPLATE {}").format(sql.Identifier(template))
        self._execute(create)
        return name

    def drop(self, name: str) -> None:
        self._execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def _execute(self, statement: sql.Composed) -> None:
        with psycopg.connect(POSTGRES, autocommit=True) as connection:
            connection.execute(statement)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "jobs.db"
    asyncio.run(migrate(f"sqlite:///{path}"))
    return path


@pytest.fixture(scope="session")
def postgres_template() -> Iterator[str]:
    server = Postgres()
    name = server.create()
    try:
        asyncio.run(migrate(server.url(name)))
        yield name
    finally:
        server.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database without tables."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'jobs.db'}"
        return
    server = Postgres()
    name = server.create()
    yield server.url(name)
    server.drop(name)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A database with our tables, and nothing in them."""
    if request.param == "sqlite":
        path = tmp_path / "jobs.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    server = Postgres()
    name = server.create(template=request.getfixturevalue("postgres_template"))
    yield server.url(name)
    server.drop(name)


@pytest.fixture
async def database(url: str, anyio_backend: str) -> AsyncIterator[Database]:
    async with Database(url).open() as opened:
        yield opened


@pytest.fixture
def jobs(database: Database) -> SqlJobs:
    return SqlJobs(database)


@pytest.fixture
def keys(database: Database) -> SqlKeys:
    return SqlKeys(database)


@pytest.fixture
def audit(database: Database) -> SqlAudit:
    return SqlAudit(database)


@pytest.fixture
def appeals(database: Database) -> SqlAppeals:
    return SqlAppeals(database)


@pytest.fixture
def events(database: Database) -> SqlEvents:
    return SqlEvents(database)
