"""``imgen jobs``: the operator's way to take a job away with all that is evidence."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gateway.core.images import Job
    from gateway.settings import Settings

app = typer.Typer(help="Jobs, from the operator's side.", no_args_is_help=True)

Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]


@app.callback()
def _jobs() -> None:
    """One command, and room for more."""


@app.command("purge")
def purge(
    job_id: Annotated[str, typer.Argument(metavar="ID", help="The gen_id, or the id of a job that is not deleted.")],
    by: Annotated[str, typer.Option(help="Who decides, for the audit.", show_default=False)],
    note: Annotated[str, typer.Option(help="Why, for the audit.", show_default=False)],
    data: Data = None,
) -> None:
    """Delete a job with all that a rule about minors keeps as evidence; the running gateway does it."""
    import asyncio

    from gateway.console import fail, say
    from gateway.settings import Settings

    settings = Settings.from_environ({**os.environ, **({"IMGEN_DATA": str(data)} if data else {})})
    job = asyncio.run(_order(settings, job_id, by, note))
    if job is None:
        raise fail(f"There is no job {job_id}.", "Send its gen_id: imgen audit export has those of deleted jobs.")
    say(f"{job.gen_id} is deleted, and purged whole within seconds where a gateway runs")


async def _order(settings: Settings, job_id: str, by: str, note: str) -> Job | None:
    """Straight on the job store: a running gateway sees it at its next look."""
    import time

    from gateway.core.audit import Audit
    from gateway.core.deletion import order_purge
    from gateway.desk.store import open_database
    from gateway.jobs.audit import SqlAudit
    from gateway.jobs.deletions import SqlDeletions
    from gateway.jobs.store import SqlJobs

    async with open_database(settings) as database:
        jobs = SqlJobs(database)
        job = await jobs.get(job_id) or await jobs.find("imgen", job_id)
        if job is not None:
            audit = Audit(SqlAudit(database), now=time.time)
            await order_purge(SqlDeletions(database), audit, job, by=by, note=note, now=time.time())
        return job
