"""One door to the database: it runs SQLAlchemy Core statements and turns driver errors into `StoreUnavailable`.

Every statement of the store is one transaction of its own, so both engines run in autocommit: no BEGIN, no COMMIT, no
state that a cancelled task could leave behind on a connection. A statement that must report what it did says so with
RETURNING.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import aiosqlite
from sqlalchemy import Executable, exc, make_url
from sqlalchemy.dialects.sqlite import dialect as sqlite_dialect
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.sql import ClauseElement

from gateway.errors import SettingsError, StoreUnavailable

Row = Sequence[Any]
Values = Mapping[str, Any]

#: How long a SQLite writer waits for another process's write before it gives up.
BUSY_SECONDS = 10.0
#: The longest that one PostgreSQL statement may take, connecting included.
ANSWER_SECONDS = 15.0


class Duplicate(Exception):
    """A row with this id is already there."""


class Database:
    """A database by its URL: ``sqlite:///folder/file.db`` or ``postgresql://user@host/name``. Open it before use."""

    def __init__(self, url: str) -> None:
        self.url = parse_url(url)
        self._driver: _Driver | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Database]:
        driver: _Driver = _Sqlite(self.url) if self.url.get_backend_name() == "sqlite" else _Postgres(self.url)
        with _translated():
            await driver.open()
        self._driver = driver
        try:
            yield self
        finally:
            self._driver = None
            await driver.close()

    async def read(self, statement: Executable, values: Values | None = None) -> Sequence[Row]:
        with _translated():
            return await self._opened().read(statement, values or {})

    async def write(self, statement: Executable, values: Values) -> Sequence[Row]:
        """Durable when it returns. Raises `Duplicate` when a unique index objects."""
        with _translated():
            return await self._opened().write(statement, values)

    def _opened(self) -> _Driver:
        if self._driver is None:
            raise StoreUnavailable("The job store is not open")
        return self._driver


class _Driver(Protocol):
    async def open(self) -> None: ...

    async def close(self) -> None: ...

    async def read(self, statement: Executable, values: Values) -> Sequence[Row]: ...

    async def write(self, statement: Executable, values: Values) -> Sequence[Row]: ...


class _Postgres:
    def __init__(self, url: URL) -> None:
        self._engine: AsyncEngine = create_async_engine(
            url,
            isolation_level="AUTOCOMMIT",
            skip_autocommit_rollback=True,
            pool_size=10,
            max_overflow=10,
            pool_timeout=ANSWER_SECONDS,
            # A connection that died in the pool is replaced before it can fail a request.
            pool_pre_ping=True,
            connect_args={"connect_timeout": 5},
        )

    async def open(self) -> None:
        """Connections are made when they are needed: a gateway starts, and says so, while its database is away."""

    async def close(self) -> None:
        await self._engine.dispose()

    async def read(self, statement: Executable, values: Values) -> Sequence[Row]:
        async with asyncio.timeout(ANSWER_SECONDS), self._engine.connect() as connection:
            result = await connection.execute(statement, dict(values))
            return result.all() if result.returns_rows else ()

    write = read


class _Sqlite:
    """One connection that writes and one that reads: SQLite has one writer anyway, and with WAL no reader waits for it.

    Statements are compiled once by SQLAlchemy and then cross to the connection's thread in a single hop. Through
    SQLAlchemy's own connection the same look-up takes five hops and eight times the CPU, which `status` would pay at
    every poll.
    """

    def __init__(self, url: URL) -> None:
        self._path = sqlite_path(url)
        self._compiled: dict[Executable, tuple[str, tuple[str, ...], dict[str, Any]]] = {}

    async def open(self) -> None:
        if not self._path.exists():
            raise StoreUnavailable(f"There is no database at {self._path}")
        self._writer = await self._connect()
        try:
            self._reader = await self._connect("PRAGMA query_only = ON")
        except BaseException:
            await self._writer.close()
            raise

    async def close(self) -> None:
        await self._reader.close()
        await self._writer.close()

    async def read(self, statement: Executable, values: Values) -> Sequence[Row]:
        return await self._run(self._reader, statement, values)

    async def write(self, statement: Executable, values: Values) -> Sequence[Row]:
        return await self._run(self._writer, statement, values)

    async def _connect(self, *more: str) -> aiosqlite.Connection:
        connection = await aiosqlite.connect(self._path, isolation_level=None, timeout=BUSY_SECONDS)
        try:
            for pragma in (*SQLITE_PRAGMAS, *more):
                await connection.execute_fetchall(pragma)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _run(self, connection: aiosqlite.Connection, statement: Executable, values: Values) -> Sequence[Row]:
        sql, names, constants = self._compiled.get(statement) or self._compile(statement)
        return list(await connection.execute_fetchall(sql, [values[n] if n in values else constants[n] for n in names]))

    def _compile(self, statement: Executable) -> tuple[str, tuple[str, ...], dict[str, Any]]:
        assert isinstance(statement, ClauseElement)
        compiled = statement.compile(dialect=_SQLITE)
        entry = (str(compiled), tuple(compiled.positiontup or ()), dict(compiled.params))  # type: ignore[attr-defined]
        self._compiled[statement] = entry
        return entry


_SQLITE = sqlite_dialect(paramstyle="qmark")
#: FULL: a committed row survives a power cut, which `Jobs.add` promises.
SQLITE_PRAGMAS = ("PRAGMA synchronous = FULL", "PRAGMA foreign_keys = ON")


def parse_url(url: str) -> URL:
    """The URL with the driver that we use, whatever driver it names."""
    try:
        parsed = make_url(url)
    except exc.ArgumentError as error:
        raise SettingsError("The database URL can't be read", fix=_URL_FIX) from error
    backend = parsed.get_backend_name()
    if backend == "sqlite" and parsed.database not in (None, "", ":memory:"):
        return parsed.set(drivername="sqlite")
    if backend == "postgresql":
        return parsed.set(drivername="postgresql+psycopg")
    raise SettingsError(f"There is no job store for {backend!r} databases of this kind", fix=_URL_FIX)


_URL_FIX = "Use sqlite:///folder/file.db or postgresql://user:password@host/name."


def sqlite_path(url: URL) -> Path:
    assert url.database is not None
    return Path(url.database)


def create_sqlite_file(path: Path) -> None:
    """Make an empty database that its owner alone can read; SQLite gives its side files the same mode."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (exc.IntegrityError, sqlite3.IntegrityError) as error:
        raise Duplicate(str(error)) from error
    except (exc.ProgrammingError, exc.DataError, sqlite3.ProgrammingError, sqlite3.DataError):
        raise  # ours, not the database's
    except (exc.DBAPIError, exc.TimeoutError, sqlite3.Error, TimeoutError, OSError) as error:
        raise StoreUnavailable from error
