"""The desk with a folder of pictures and a backend, where a replica can be killed before any step of a deletion."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import text

from gateway.core.advance import Policy
from gateway.core.appeals import Appeals
from gateway.core.deletion import FOLDERS, Deletion
from gateway.core.images import Job, Record
from gateway.core.originals import Originals
from gateway.errors import StorageUnavailable
from gateway.jobs.cache import SqlEntries
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.originals import SqlOriginals
from gateway.storage.disk import DiskStorage
from tests.core.desk import Desk, Killed, Mortal, open_desk

HOUR = 3600.0


class MortalDisk(DiskStorage):
    """Pictures in a folder; the process can be killed before each purge, as before each write of the database."""

    database: Mortal
    down = False

    async def purge(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> None:
        step(self.database)
        if self.down:
            raise StorageUnavailable
        await super().purge(prefix, keep=keep)


def step(database: Mortal) -> None:
    if database.left is not None:
        if database.left == 0:
            raise Killed
        database.left -= 1


@dataclass
class Records:
    """Manifests in memory."""

    database: Mortal
    kept: set[str] = field(default_factory=set)

    async def purge(self, gen_id: str, *, keep: frozenset[str] = frozenset()) -> None:
        step(self.database)
        self.kept.discard(gen_id)

    async def add(self, record: Record) -> None:
        raise NotImplementedError

    async def get(self, label: str) -> Record | None:
        raise NotImplementedError

    async def of_mark(self, mark: int) -> Sequence[Record]:
        raise NotImplementedError

    async def of_picture(self, sha256: str) -> Sequence[Record]:
        raise NotImplementedError

    async def codes(self, *, after: int, limit: int) -> Sequence[tuple[int, str, int]]:
        raise NotImplementedError


@dataclass
class World:
    """The desk, a folder of pictures, and a backend that remembers what it was told to stop."""

    desk: Desk
    storage: MortalDisk
    records: Records
    root: Path
    withdrawn: list[str] = field(default_factory=list)

    def replica(self, **policy: Any) -> Deletion:
        return Deletion(
            store=SqlDeletions(self.desk.database),
            storage=self.storage,
            records=self.records,
            appeals=self.desk.appeals,
            audit=self.desk.audit,
            forget=SqlEntries(self.desk.database).remove,
            withdraw=self._withdraw,
            policy=Policy(**{"lease": 15, "upload_ttl": HOUR, **policy}),
            now=self.desk.clock,
        )

    def originals(self, **policy: Any) -> Originals:
        return Originals(
            store=SqlOriginals(self.desk.database),
            storage=self.storage,
            appeals=self.desk.appeals,
            audit=self.desk.audit,
            policy=Policy(**{"lease": 15, **policy}),
            now=self.desk.clock,
        )

    def appeals(self) -> Appeals:
        desk = self.desk
        return Appeals(
            store=desk.appeals, jobs=desk.jobs, audit=desk.audit, now=desk.clock, new_id=lambda: next(desk.ids)
        )

    async def _withdraw(self, job: Job) -> None:
        step(self.desk.database)
        self.withdrawn.append(job.gen_id)

    async def add(self, new: Job) -> Job:
        """Stored, with files in all folders."""
        await self.desk.add(new)
        for folder in FOLDERS:
            for name in ("0.png", "1/1.png"):
                path = self.root / folder / new.gen_id / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(b"picture")
        self.records.kept.add(new.gen_id)
        return new

    def files(self, new: Job) -> set[str]:
        """The folders that still have something of a job."""
        return {path.relative_to(self.root).parts[0] for path in self.root.glob(f"*/{new.gen_id}/**/*")}

    async def purged_at(self, new: Job) -> float | None:
        rows = await self.desk.database.read(text(f"SELECT purged_at FROM jobs WHERE gen_id = '{new.gen_id}'"))
        at: float | None = rows[0][0]
        return at

    async def stored(self, new: Job) -> Job:
        found = await self.desk.jobs.get(new.gen_id)
        assert found is not None
        return found

    async def judge(self, new: Job) -> None:
        """Write what the finisher writes into the audit."""
        assert new.outcome is not None
        for review in new.outcome.reviews:
            await self.desk.audit.verdict(new, review.index, review.verdict, "ab")

    async def history(self, new: Job) -> list[str]:
        return [link.entry.kind for link in await self.desk.log.of(new.gen_id)]


@asynccontextmanager
async def open_world(folder: Path) -> AsyncIterator[World]:
    async with open_desk(folder) as desk:
        root = folder / "pictures"
        storage = MortalDisk(root, secret=b"s" * 32, public_url="http://x", internal_url="http://x", now=desk.clock)
        storage.database = desk.database
        async with storage.open():
            yield World(desk, storage, Records(desk.database), root)
