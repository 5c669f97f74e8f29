"""The history of the tables, and `migrate`, which walks it to the end.

A new revision: change `tables`, add ``versions/rNNNN_what.py`` after the last one. Replicas are replaced one by one and
a release may be rolled back, so the release before must be able to work on the new shape: add first, remove later.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, exc, pool, text
from sqlalchemy.engine import URL

from gateway.errors import StoreUnavailable
from gateway.jobs.database import create_sqlite_file, parse_url, sqlite_path

if TYPE_CHECKING:
    from alembic.config import Config

log = structlog.get_logger(__name__)

#: How long a replica waits for another one that is migrating.
LOCK_SECONDS = 60.0
_ADVISORY_LOCK = 7_263_514_091


async def migrate(url: str) -> None:
    """Bring the database to the newest shape; a missing SQLite file is made. Several processes may call at once."""
    await asyncio.to_thread(_migrate, parse_url(url))


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file."""
    from alembic.config import Config  # slow to import, and only a start needs it

    settings = Config()
    settings.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    settings.set_main_option("path_separator", "os")
    settings.attributes["connection"] = connection
    return settings


def _migrate(url: URL) -> None:
    from alembic import command

    try:
        engine = _sqlite(url) if url.get_backend_name() == "sqlite" else _postgres(url)
        try:
            with engine.begin() as connection:
                if connection.dialect.name == "postgresql":
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
                if not _is_newer(connection):
                    command.upgrade(config(connection), "head")
        finally:
            engine.dispose()
    except (exc.DBAPIError, sqlite3.Error, OSError) as error:
        raise StoreUnavailable("The job store can't be migrated") from error


def _is_newer(connection: Connection) -> bool:
    """Whether a later release has been here: after a roll-back the older one works on what the later one added to."""
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    known = {script.revision for script in ScriptDirectory.from_config(config()).walk_revisions()}
    strange = set(MigrationContext.configure(connection).get_current_heads()) - known
    if strange:
        log.warning("the database is of a newer release", revision=sorted(strange))
    return bool(strange)


def _postgres(url: URL) -> Engine:
    options = {"connect_timeout": 5, "options": f"-c lock_timeout={int(LOCK_SECONDS * 1000)}"}
    return create_engine(url, poolclass=pool.NullPool, connect_args=options)


def _sqlite(url: URL) -> Engine:
    path = sqlite_path(url)
    create_sqlite_file(path)
    _use_wal(path)
    engine = create_engine(
        url, poolclass=pool.NullPool, connect_args={"timeout": LOCK_SECONDS, "isolation_level": None}
    )
    # With our own BEGIN the whole migration is one transaction and holds one lock; the driver would begin late.
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql("BEGIN IMMEDIATE"))
    return engine


def _use_wal(path: Path) -> None:
    """The mode is kept in the file. The switch does not wait for other processes by itself."""
    give_up = time.monotonic() + LOCK_SECONDS
    with closing(sqlite3.connect(path, timeout=LOCK_SECONDS, isolation_level=None)) as connection:
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").fetchone()
                return
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.02)
