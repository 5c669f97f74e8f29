"""Replicas as real processes: racing for jobs, and killed in the middle of their work."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from compliance.ledger import GENESIS, link
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database
from gateway.jobs.store import SqlJobs
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]


@contextmanager
def replica(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.jobs.replica", *arguments]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


async def test_of_two_processes_that_want_a_job_one_gets_it(url: str) -> None:
    new = [job() for _ in range(30)]
    ids = [one.gen_id for one in new]
    async with Database(url).open() as opened:
        for one in new:
            await SqlJobs(opened).add(one, lease="first", until=0.0)
    with ExitStack() as stack:
        racers = [stack.enter_context(replica("claim", url, lease, *ids)) for lease in ("a", "b")]
        for racer in racers:
            assert racer.stdout is not None and racer.stdout.readline() == "ready\n"
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")
            racer.stdin.flush()
        won = [racer.stdout.readline().split() for racer in racers if racer.stdout is not None]
    assert sorted(won[0] + won[1]) == sorted(ids)


async def test_a_job_that_was_added_survives_kill_9(url: str) -> None:
    with replica("add", url) as process:
        assert process.stdout is not None
        said = [process.stdout.readline().strip() for _ in range(50)]
        process.kill()
        said += [line.strip() for line in process.stdout if line.endswith("\n")]
    async with Database(url).open() as opened:
        jobs = SqlJobs(opened)
        lost = [gen_id for gen_id in said if await jobs.get(gen_id) is None]
        assert lost == []
        # Whoever comes next goes on with what the dead one held.
        assert await jobs.claim(said[0], lease="next", now=1.0, until=2.0) is not None


async def test_processes_that_write_the_audit_at_once_make_one_chain(url: str) -> None:
    with ExitStack() as stack:
        writers = [stack.enter_context(replica("record", url, name, "40")) for name in ("a", "b", "c")]
        for writer in writers:
            assert writer.stdout is not None and writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        said = [writer.stdout.readline().split() for writer in writers if writer.stdout is not None]
    assert sorted(int(number) for numbers in said for number in numbers) == list(range(1, 121))
    async with Database(url).open() as opened:
        links = await SqlAudit(opened).after(0, 1000)
    previous = GENESIS
    for number, each in enumerate(links, 1):
        assert each.entry.seq == number
        assert each == link(each.entry, previous)
        previous = each.hash
    assert len(links) == 120
