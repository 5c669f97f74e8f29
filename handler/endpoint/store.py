"""The job table on disk: SQLite in WAL mode, one connection in one thread, each change synced before it returns."""

from __future__ import annotations

import asyncio
import fcntl
import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

# The big columns come last, so that SQLite need not walk over them to read the small ones.
SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    sync INTEGER NOT NULL,
    status TEXT NOT NULL,
    queued_at REAL NOT NULL,
    started_at REAL,
    finished_at REAL,
    expires_at REAL NOT NULL,
    execution_timeout REAL NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    requeues INTEGER NOT NULL DEFAULT 0,
    worker TEXT,
    webhook TEXT,
    request_id TEXT,
    s3_config TEXT,
    error TEXT,
    output TEXT,
    input TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, queued_at);
CREATE INDEX IF NOT EXISTS jobs_by_end ON jobs (sync, finished_at);
CREATE INDEX IF NOT EXISTS jobs_by_expiry ON jobs (expires_at);
CREATE TABLE IF NOT EXISTS chunks (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    job TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    output TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS chunks_by_job ON chunks (job);
CREATE TABLE IF NOT EXISTS webhooks (
    job TEXT PRIMARY KEY REFERENCES jobs (id) ON DELETE CASCADE,
    attempts INTEGER NOT NULL DEFAULT 0,
    due_at REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS stops (
    worker TEXT NOT NULL,
    job TEXT NOT NULL,
    asked_at REAL NOT NULL,
    due_at REAL NOT NULL,
    delivered INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (worker, job)
);
CREATE TABLE IF NOT EXISTS retired (
    worker TEXT PRIMARY KEY,
    gone INTEGER NOT NULL,
    at REAL NOT NULL
);
PRAGMA user_version = 1;
"""


class StoreInUse(RuntimeError):
    """Another endpoint process already uses this data folder."""


class Store:
    """Runs functions that take the connection, one at a time, each as one transaction."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="store")
        self._db: sqlite3.Connection | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Hold the data folder for this process alone and open the database."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as exc:
                raise StoreInUse(f"{self._folder}: {StoreInUse.__doc__}") from exc
            loop = asyncio.get_running_loop()
            self._db = await loop.run_in_executor(self._thread, self._connect)
            try:
                yield
            finally:
                await loop.run_in_executor(self._thread, self._db.close)
                self._db = None
        finally:
            os.close(lock)
            self._thread.shutdown(wait=False)

    async def transact(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Do the work in the store's thread; it is committed and synced when this returns, or undone when it raises."""

        def run() -> T:
            if self._db is None:
                raise RuntimeError("the store is not open")
            self._db.execute("BEGIN")
            try:
                result = work(self._db, *args, **kwargs)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            return result

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    def _connect(self) -> sqlite3.Connection:
        path = self._folder / "jobs.sqlite3"
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(path, isolation_level=None)
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA foreign_keys = ON")
        db.executescript(f"BEGIN; {SCHEMA} COMMIT;")
        return db
