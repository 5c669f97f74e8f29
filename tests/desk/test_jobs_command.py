"""``imgen jobs`` as an operator meets it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.core.images import Job, State
from gateway.desk.store import open_database
from gateway.jobs.audit import SqlAudit
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.store import SqlJobs
from gateway.settings import Settings
from tests.core.desk import MINORS, reviewed
from tests.jobs.samples import job


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("IMGEN_")]:
        monkeypatch.delenv(name)


def purge(data: Path, job_id: str, by: str = "Ada", note: str = "handed over") -> Result:
    return CliRunner().invoke(app, ["jobs", "purge", job_id, "--by", by, "--note", note, "--data", str(data)])


def store(data: Path, new: Job, *, deleted: bool = False) -> None:
    async def run() -> None:
        async with open_database(Settings(data=data)) as database:
            await SqlJobs(database).add(new, lease="first", until=0.0)
            if deleted:
                await SqlDeletions(database).mark(new.gen_id, now=50.0)

    asyncio.run(run())


def stands(data: Path, new: Job) -> tuple[Job | None, list[str], list[str]]:
    """The row, what is due to be purged, and the audit."""

    async def run() -> tuple[Job | None, list[str], list[str]]:
        async with open_database(Settings(data=data)) as database:
            kinds = [link.entry.kind for link in await SqlAudit(database).of(new.gen_id)]
            return await SqlJobs(database).get(new.gen_id), await SqlDeletions(database).due(now=9e9, limit=9), kinds

    return asyncio.run(run())


@pytest.mark.parametrize("deleted", [False, True])
def test_a_job_is_purged_by_its_gen_id_deleted_or_not(data: Path, deleted: bool) -> None:
    new = reviewed(MINORS)
    store(data, new, deleted=deleted)
    done = purge(data, new.gen_id)
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr.startswith(f"{new.gen_id} is deleted")
    row, due, kinds = stands(data, new)
    assert row is not None and row.deleted_at is not None
    assert (due, kinds) == ([new.gen_id], ["purge_ordered"])


def test_a_job_is_purged_by_the_id_that_its_caller_knows(data: Path) -> None:
    new = job(state=State.COMPLETED)
    store(data, new)
    assert purge(data, new.public_id).exit_code == 0
    assert stands(data, new)[1] == [new.gen_id]


def test_an_unknown_job_is_one_sentence_and_its_fix(data: Path) -> None:
    store(data, job())
    done = purge(data, "run_unknown")
    assert done.exit_code == 1
    assert done.stderr.splitlines()[0] == "imgen: There is no job run_unknown."


def test_without_a_reason_nothing_is_purged(data: Path) -> None:
    new = reviewed(MINORS)
    store(data, new)
    done = purge(data, new.gen_id, note=" ")
    assert done.exit_code == 1 and "Invalid note" in done.stderr
    assert stands(data, new)[0] == new
