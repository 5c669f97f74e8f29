"""Every change of a job's state, as functions of a connection. Each is one step of a transaction that the caller runs.

The state machine lives in the WHERE clauses: a step that comes too late or from the wrong worker changes no row.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from handler.endpoint.job import (
    CANCELLED,
    FAILED,
    IN_PROGRESS,
    IN_QUEUE,
    TIMED_OUT,
    Assignment,
    Job,
    Submission,
)

_COLUMNS = ", ".join(Job.__dataclass_fields__)


def _job(row: sqlite3.Row) -> Job:
    return Job(**{**dict(row), "sync": bool(row["sync"])})


def insert(db: sqlite3.Connection, job_id: str, given: Submission, now: float) -> None:
    db.execute(
        "INSERT INTO jobs (id, sync, status, queued_at, expires_at, execution_timeout, webhook, request_id, s3_config,"
        " input) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            job_id,
            given.sync,
            IN_QUEUE,
            now,
            now + given.ttl,
            given.execution_timeout,
            given.webhook,
            given.request_id,
            given.s3_config,
            given.input,
        ),
    )


def get(db: sqlite3.Connection, job_id: str) -> Job | None:
    row = db.execute(f"SELECT {_COLUMNS} FROM jobs WHERE id = ?", (job_id,)).fetchone()
    return None if row is None else _job(row)


def held(db: sqlite3.Connection, worker: str | None = None) -> list[Job]:
    """The jobs in progress, of one worker or of all."""
    sql = f"SELECT {_COLUMNS} FROM jobs WHERE status = ?" + (" AND worker = ?" if worker is not None else "")
    return [_job(row) for row in db.execute(sql, (IN_PROGRESS,) if worker is None else (IN_PROGRESS, worker))]


def assign(db: sqlite3.Connection, worker: str, count: int, now: float) -> list[Assignment]:
    """Lease the oldest queued jobs to the worker. A job that it was told to stop is not given to it again."""
    numbers = db.execute(
        "SELECT number FROM jobs WHERE status = ? AND expires_at > ?"
        " AND NOT EXISTS (SELECT 1 FROM stops WHERE stops.job = jobs.id AND stops.worker = ?)"
        " ORDER BY queued_at, number LIMIT ?",
        (IN_QUEUE, now, worker, count),
    ).fetchall()
    assigned = []
    for (number,) in numbers:
        row = db.execute(
            "UPDATE jobs SET status = ?, worker = ?, started_at = ?, attempt = attempt + 1 WHERE number = ?"
            f" RETURNING {_COLUMNS}, input, s3_config",
            (IN_PROGRESS, worker, now, number),
        ).fetchone()
        fields = dict(row)
        text, s3_config = fields.pop("input"), fields.pop("s3_config")
        assigned.append(Assignment(job=Job(**{**fields, "sync": bool(row["sync"])}), input=text, s3_config=s3_config))
    return assigned


def release(db: sqlite3.Connection, jobs: Sequence[Job]) -> None:
    """Take back jobs that never reached their worker, as if they had not been assigned."""
    for job in jobs:
        db.execute(
            "UPDATE jobs SET status = ?, worker = NULL, started_at = NULL, attempt = attempt - 1"
            " WHERE id = ? AND status = ? AND worker = ? AND attempt = ?",
            (IN_QUEUE, job.id, IN_PROGRESS, job.worker, job.attempt),
        )


def requeue(db: sqlite3.Connection, job: Job, now: float, limit: int, error: str, *, stop: bool) -> Job | None:
    """Queue a job again that lost its worker, or fail it when that happened too often. None when it is not running.

    `stop` is for a worker that may still be at it: should it come back, it is told to stop.
    """
    current = get(db, job.id)
    if current is None or current.status != IN_PROGRESS or current.attempt != job.attempt:
        return None
    if stop:
        ask_to_stop(db, current, now)
    db.execute("DELETE FROM chunks WHERE job = ?", (job.id,))
    if current.requeues >= limit:
        finish(db, current, FAILED, now, error=error)
    else:
        db.execute(
            "UPDATE jobs SET status = ?, worker = NULL, started_at = NULL, requeues = requeues + 1 WHERE id = ?",
            (IN_QUEUE, job.id),
        )
    return get(db, job.id)


def finish(
    db: sqlite3.Connection, job: Job, status: str, now: float, *, output: str | None = None, error: str | None = None
) -> None:
    """End a job. Its webhook is written in the same transaction, so that it is sent even if the process dies now."""
    db.execute(
        "UPDATE jobs SET status = ?, finished_at = ?, output = ?, error = ? WHERE id = ?",
        (status, now, output, error, job.id),
    )
    if job.webhook is not None:
        db.execute("INSERT OR REPLACE INTO webhooks (job, due_at) VALUES (?, ?)", (job.id, now))
    if job.status == IN_PROGRESS and status in {CANCELLED, TIMED_OUT}:
        ask_to_stop(db, job, now)


def retry(db: sqlite3.Connection, job: Job, now: float) -> None:
    """Queue a failed job again under the same id, with a fresh lifetime."""
    db.execute("DELETE FROM webhooks WHERE job = ?", (job.id,))
    db.execute("DELETE FROM chunks WHERE job = ?", (job.id,))
    db.execute(
        "UPDATE jobs SET status = ?, queued_at = ?, expires_at = ? + (expires_at - queued_at), started_at = NULL,"
        " finished_at = NULL, worker = NULL, requeues = 0, output = NULL, error = NULL WHERE id = ?",
        (IN_QUEUE, now, now, job.id),
    )


def purge(db: sqlite3.Connection) -> list[str]:
    return [row["id"] for row in db.execute("DELETE FROM jobs WHERE status = ? RETURNING id", (IN_QUEUE,))]


def expired(db: sqlite3.Connection, now: float) -> list[Job]:
    """Delete what is past its time to live; a worker that still runs it is told to stop."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM jobs WHERE expires_at <= ? AND id NOT IN (SELECT job FROM webhooks)", (now,)
    )
    gone = [_job(row) for row in rows.fetchall()]
    for job in gone:
        if job.status == IN_PROGRESS:
            ask_to_stop(db, job, now)
        db.execute("DELETE FROM jobs WHERE id = ?", (job.id,))
    return gone


def forget(db: sqlite3.Connection, now: float, keep_run: float, keep_sync: float) -> int:
    """Delete the results that are past their retention and whose webhook is settled."""
    sql = "DELETE FROM jobs WHERE sync = ? AND finished_at <= ? AND id NOT IN (SELECT job FROM webhooks)"
    return sum(db.execute(sql, (sync, now - keep)).rowcount for sync, keep in ((0, keep_run), (1, keep_sync)))


def counts(db: sqlite3.Connection) -> dict[str, int]:
    found = {row[0]: row[1] for row in db.execute("SELECT status, count(*) FROM jobs GROUP BY status")}
    found["retried"] = db.execute("SELECT count(*) FROM jobs WHERE requeues > 0").fetchone()[0]
    return found


def add_chunk(db: sqlite3.Connection, job_id: str, worker: str, output: str) -> bool:
    job = get(db, job_id)
    if job is None or job.status != IN_PROGRESS or job.worker != worker:
        return False
    db.execute("INSERT INTO chunks (job, output) VALUES (?, ?)", (job_id, output))
    return True


def take_chunks(db: sqlite3.Connection, job_id: str) -> list[str]:
    """Hand out the streamed parts that were not handed out yet."""
    rows = db.execute("SELECT output FROM chunks WHERE job = ? ORDER BY number", (job_id,)).fetchall()
    db.execute("DELETE FROM chunks WHERE job = ?", (job_id,))
    return [row["output"] for row in rows]


# -- stops: jobs that a worker must let go of --------------------------------------------------------------------------

# The SDK drops a stop for a job that it has taken but not started, so a young job is stopped a little later.
START_S = 1.0


def ask_to_stop(db: sqlite3.Connection, job: Job, now: float) -> None:
    due_at = max(now, (job.started_at or now) + START_S)
    db.execute(
        "INSERT OR REPLACE INTO stops (worker, job, asked_at, due_at) VALUES (?, ?, ?, ?)",
        (job.worker, job.id, now, due_at),
    )


def deliver_stops(db: sqlite3.Connection, worker: str, now: float) -> list[str]:
    """The jobs to stop that the worker was not told of. Each is told once: a second cancel would cut its clean-up."""
    rows = db.execute(
        "UPDATE stops SET delivered = 1 WHERE worker = ? AND delivered = 0 AND due_at <= ? RETURNING job", (worker, now)
    )
    return [row["job"] for row in rows.fetchall()]


def undeliver_stops(db: sqlite3.Connection, worker: str, jobs: Sequence[str]) -> None:
    db.executemany("UPDATE stops SET delivered = 0 WHERE worker = ? AND job = ?", [(worker, job) for job in jobs])


def settle_stops(
    db: sqlite3.Connection, worker: str, *, still: Sequence[str] = (), due_before: float | None = None
) -> None:
    """The worker has let go of what it was told to stop, but for the jobs in `still`."""
    sql, args = "DELETE FROM stops WHERE worker = ?", list[object]([worker, *still])
    if still:
        sql += f" AND job NOT IN ({', '.join('?' * len(still))})"
    if due_before is not None:
        sql, args = sql + " AND due_at < ?", [*args, due_before]
    db.execute(sql, args)


def settle_stop(db: sqlite3.Connection, worker: str, job_id: str) -> None:
    db.execute("DELETE FROM stops WHERE worker = ? AND job = ?", (worker, job_id))


def open_stops(db: sqlite3.Connection) -> list[tuple[str, float]]:
    """Each worker that has not let go of something, and since when it should have."""
    return [(row[0], row[1]) for row in db.execute("SELECT worker, min(due_at) FROM stops GROUP BY worker")]


# -- workers that get no more jobs -------------------------------------------------------------------------------------


def retire(db: sqlite3.Connection, worker: str, gone: bool, now: float) -> None:
    db.execute(
        "INSERT INTO retired (worker, gone, at) VALUES (?, ?, ?)"
        " ON CONFLICT (worker) DO UPDATE SET gone = max(gone, excluded.gone), at = excluded.at",
        (worker, gone, now),
    )


def retired(db: sqlite3.Connection) -> list[tuple[str, bool]]:
    return [(row["worker"], bool(row["gone"])) for row in db.execute("SELECT worker, gone FROM retired")]


def forget_retired(db: sqlite3.Connection, before: float) -> None:
    db.execute("DELETE FROM retired WHERE at < ?", (before,))
    db.execute("DELETE FROM stops WHERE asked_at < ?", (before,))


# -- webhooks ----------------------------------------------------------------------------------------------------------


def webhooks(db: sqlite3.Connection) -> list[tuple[str, int, float]]:
    """Job, tries so far, and when the next is due."""
    return [
        (row[0], row[1], row[2]) for row in db.execute("SELECT job, attempts, due_at FROM webhooks ORDER BY due_at")
    ]


def webhook_tried(db: sqlite3.Connection, job_id: str, attempts: int, due_at: float | None) -> None:
    """Settle a try: due again, or done with when `due_at` is None."""
    if due_at is None:
        db.execute("DELETE FROM webhooks WHERE job = ?", (job_id,))
    else:
        db.execute("UPDATE webhooks SET attempts = ?, due_at = ? WHERE job = ?", (attempts, due_at, job_id))
