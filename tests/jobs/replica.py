"""A replica in a process of its own: ``python -m tests.jobs.replica add|claim|record URL …``."""

from __future__ import annotations

import asyncio
import sys

from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import job


async def add(url: str) -> None:
    """Add jobs until somebody kills us; say each id as soon as it is stored."""
    async with Database(url).open() as opened:
        jobs = SqlJobs(opened)
        while True:
            new = job()
            await jobs.add(new, lease="mine", until=0.0)
            print(new.gen_id, flush=True)


async def claim(url: str, lease: str, *ids: str) -> None:
    """Wait for a line, then claim all that we can get and say what we got."""
    async with Database(url).open() as opened:
        jobs = SqlJobs(opened)
        print("ready", flush=True)
        sys.stdin.readline()
        claims = (jobs.claim(gen_id, lease=lease, now=10.0, until=20.0) for gen_id in ids)
        won = await asyncio.gather(*claims)
        print(" ".join(one.gen_id for one in won if one is not None), flush=True)


async def record(url: str, name: str, number: str) -> None:
    """Wait for a line, then write so many entries into the audit, several at once, and say their numbers."""
    async with Database(url).open() as opened:
        audit = SqlAudit(opened)
        print("ready", flush=True)
        sys.stdin.readline()
        wanted = (audit.append("test", 1.5, None, {"by": name, "n": n}) for n in range(int(number)))
        print(" ".join(map(str, await asyncio.gather(*wanted))), flush=True)


if __name__ == "__main__":
    asyncio.run({"add": add, "claim": claim, "record": record}[sys.argv[1]](*sys.argv[2:]))
