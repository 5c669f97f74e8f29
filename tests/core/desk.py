"""A job store in a file, what is kept in it, and a replica that can be killed between any two writes."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Executable

from compliance.verdict import Asked, Reason, Verdict
from gateway.core.audit import Audit
from gateway.core.images import Job, Outcome, PictureReview, State
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database, Values
from gateway.jobs.events import SqlEvents
from gateway.jobs.keys import SqlKeys
from gateway.jobs.migrations import migrate
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import job

NUDITY = Reason(
    rule="adult.nudity",
    category="ADULT",
    name="Nudity",
    action="block",
    seen_in="picture",
    reviewer="builtin",
    label="nudity",
    score=0.93,
    threshold=0.5,
)
SAFE = Verdict(safe=True, ruleset="default", ruleset_version="abc", asked=(Asked(name="builtin", version="3"),))
BLOCKED = Verdict(
    safe=False,
    ruleset="default",
    ruleset_version="abc",
    codes=("adult.nudity",),
    categories=("Nudity",),
    reasons=(NUDITY,),
    reviewer="builtin",
    reviewer_version="3",
    asked=(Asked(name="builtin", version="3", latency_ms=2.5),),
)
MINORS = Verdict(
    safe=False,
    ruleset="default",
    ruleset_version="abc",
    codes=("minors.picture",),
    categories=("Sexual content involving minors",),
    releasable=False,
    minors=True,
)
UNRELEASABLE = Verdict(safe=False, ruleset="default", ruleset_version="abc", codes=("gore",), releasable=False)


class Killed(BaseException):
    """The process is gone."""


class Mortal(Database):
    """A database whose process is killed before the write of a number, counted from the moment that this is set."""

    left: int | None = None

    async def write(self, statement: Executable, values: Values) -> Any:
        if self.left is not None:
            if self.left == 0:
                raise Killed
            self.left -= 1
        rows: Any = await super().write(statement, values)
        return rows


class Desk:
    """The stores on one database, a clock that stands still, and the audit."""

    def __init__(self, database: Mortal, *, keep_prompts: bool = False) -> None:
        self.database = database
        self.now = 5000.5
        self.jobs = SqlJobs(database)
        self.keys = SqlKeys(database)
        self.appeals = SqlAppeals(database)
        self.events = SqlEvents(database)
        self.log = SqlAudit(database)
        self.audit = Audit(self.log, now=self.clock, keep_prompts=keep_prompts)
        self.ids = (f"app_{number:024x}" for number in itertools.count(1))

    def clock(self) -> float:
        return self.now

    async def add(self, *jobs: Job) -> None:
        for each in jobs:
            await self.jobs.add(each, lease="first", until=0.0)

    async def recorded(self, *kinds: str) -> list[dict[str, Any]]:
        """The bodies of the audit's entries of some kinds."""
        return [dict(link.entry.body) for link in await self.log.after(0, 1000) if link.entry.kind in kinds]


@asynccontextmanager
async def open_desk(folder: Path, *, keep_prompts: bool = False) -> AsyncIterator[Desk]:
    url = f"sqlite:///{folder / 'jobs.db'}"
    await migrate(url)
    async with Mortal(url).open() as database:
        assert isinstance(database, Mortal)
        yield Desk(database, keep_prompts=keep_prompts)


def reviewed(*verdicts: Verdict, **changes: Any) -> Job:
    """An ended job with a verdict for each of its pictures."""
    new = job()
    reviews = tuple(
        PictureReview(
            index=index,
            verdict=verdict,
            key=f"{'master' if verdict.safe else 'quarantine'}/{new.gen_id}/{index}.png",
        )
        for index, verdict in enumerate(verdicts)
    )
    state = State.COMPLETED if any(verdict.safe for verdict in verdicts) else State.BLOCKED
    outcome = Outcome(verdict=verdicts[0], masters=tuple(review.key for review in reviews), reviews=reviews)
    values: dict[str, Any] = {"state": state, "outcome": outcome, "finished_at": 2000.0}
    return job(**{"gen_id": new.gen_id, **values, **changes})
