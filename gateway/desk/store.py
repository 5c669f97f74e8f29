"""The job store from the operator's side, with no gateway running."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from gateway.jobs.database import Database
from gateway.jobs.migrations import migrate
from gateway.settings import Settings


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """The job store that the settings name; its tables are made when there are none."""
    url = settings.database()
    await migrate(url)
    async with Database(url).open() as database:
        yield database
