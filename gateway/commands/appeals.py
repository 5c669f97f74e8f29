"""``imgen appeals``: what callers object to, for the person who decides."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

if TYPE_CHECKING:
    from gateway.core.appeals import Appeals
    from gateway.core.images import Appeal, Job, PictureReview

app = typer.Typer(help="What callers object to: look at it and decide.", no_args_is_help=True)

T = TypeVar("T")
Data = Annotated[Path | None, typer.Option(help="Data folder; IMGEN_DATA, or var.", show_default=False)]
Id = Annotated[str, typer.Argument(metavar="ID")]
By = Annotated[str, typer.Option(help="Who decides, for the audit.", show_default=False)]
Note = Annotated[str, typer.Option(help="Why, for the audit.", show_default=False)]


@app.command("list")
def list_appeals(
    all: Annotated[bool, typer.Option("--all", help="The decided ones, too.")] = False, data: Data = None
) -> None:
    """List the open appeals, oldest first."""
    from gateway.console import plain, table

    appeals = _run(data, lambda appeals: appeals.list(None if all else "open"))
    table(
        ("ID", "JOB", "TENANT", "FILED", "STATE", "REASON"),
        [
            (each.id, each.public_id, each.tenant, _when(each.created_at), each.state, plain(each.reason)[:60])
            for each in appeals
        ],
    )


@app.command("show")
def show(appeal_id: Id, data: Data = None) -> None:
    """Show an appeal: which rules blocked what, why, and where the pictures lie in the storage."""
    from gateway.console import facts
    from gateway.core.appeals import blocked_pictures

    appeal, job = _run(data, lambda appeals: appeals.get(appeal_id))
    facts(
        [
            ("appeal", appeal.id),
            ("state", appeal.state),
            ("filed", _when(appeal.created_at)),
            ("reason", appeal.reason),
            ("decided", f"{_when(appeal.decided_at)} by {appeal.decided_by}" if appeal.decided_at else ""),
            ("note", appeal.note or ""),
            *_job_facts(job),
            *(fact for review in blocked_pictures(job) for fact in _picture_facts(review)),
        ]
    )


@app.command("uphold")
def uphold(appeal_id: Id, by: By, note: Note, data: Data = None) -> None:
    """Leave blocked what is blocked."""
    _say_decided(_run(data, lambda appeals: appeals.uphold(appeal_id, by, note)))


@app.command("release")
def release(appeal_id: Id, by: By, note: Note, data: Data = None) -> None:
    """Have the blocked pictures finished and handed out like any others; the running gateway does it."""
    _say_decided(_run(data, lambda appeals: appeals.release(appeal_id, by, note)))


def _say_decided(appeal: Appeal) -> None:
    from gateway.console import say

    say(f"{appeal.id} is {appeal.state}, decided by {appeal.decided_by}")


def _job_facts(job: Job) -> list[tuple[str, str]]:
    ended = f", ended {_when(job.finished_at)}" if job.finished_at else ""
    return [
        ("job", f"{job.gen_id} ({job.surface} {job.public_id}), {job.state}{ended}"),
        ("tenant", job.tenant),
        ("key", job.key_id),
        ("ruleset", job.outcome.verdict.ruleset if job.outcome else ""),
        ("version", job.outcome.verdict.ruleset_version if job.outcome else ""),
    ]


def _picture_facts(review: PictureReview) -> list[tuple[str, str]]:
    verdict = review.verdict
    allowed = "" if verdict.releasable and not verdict.minors else ", nobody may release it"
    return [
        ("picture", f"{review.index}: {', '.join(verdict.codes)}{allowed}"),
        ("lies at", review.key),
        *(
            (
                "rule",
                f"{reason.rule} ({reason.action}): {reason.reviewer} says {reason.label!r} of the {reason.seen_in}, "
                f"{reason.score:.2f} where {reason.threshold:.2f} counts",
            )
            for reason in verdict.reasons
        ),
    ]


def _when(at: float | None) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at or 0, UTC).isoformat(sep=" ", timespec="seconds")


def _run(data: Path | None, what: Callable[[Appeals], Awaitable[T]]) -> T:
    """Straight on the job store: a running gateway sees it at its next look."""
    import asyncio
    import time

    from gateway.core.appeals import Appeals
    from gateway.core.audit import Audit
    from gateway.desk.store import open_database
    from gateway.jobs.appeals import SqlAppeals
    from gateway.jobs.audit import SqlAudit
    from gateway.jobs.store import SqlJobs
    from gateway.settings import Settings

    settings = Settings.from_environ({**os.environ, **({"IMGEN_DATA": str(data)} if data else {})})

    async def run() -> T:
        async with open_database(settings) as database:
            audit = Audit(SqlAudit(database), now=time.time)
            return await what(Appeals(store=SqlAppeals(database), jobs=SqlJobs(database), audit=audit, now=time.time))

    return asyncio.run(run())
