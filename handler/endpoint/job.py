"""A job as the endpoint keeps it, and the JSON that a client sees of it."""

from __future__ import annotations

import json
from dataclasses import dataclass

IN_QUEUE = "IN_QUEUE"
IN_PROGRESS = "IN_PROGRESS"
COMPLETED = "COMPLETED"
FAILED = "FAILED"
CANCELLED = "CANCELLED"
TIMED_OUT = "TIMED_OUT"
TERMINAL = frozenset({COMPLETED, FAILED, CANCELLED, TIMED_OUT})


@dataclass(frozen=True, kw_only=True, slots=True)
class Submission:
    """What a client hands in, checked. `input` and `s3_config` are JSON texts, times are seconds."""

    input: str
    sync: bool
    webhook: str | None
    execution_timeout: float
    ttl: float
    s3_config: str | None
    request_id: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One row of the job table without the input. `output` and `error` are JSON texts."""

    id: str
    sync: bool
    status: str
    queued_at: float
    started_at: float | None
    finished_at: float | None
    expires_at: float
    execution_timeout: float
    attempt: int
    requeues: int
    worker: str | None
    webhook: str | None
    request_id: str | None
    error: str | None
    output: str | None

    @property
    def finished(self) -> bool:
        return self.status in TERMINAL

    def wire(self, now: float, progress: str | None = None) -> bytes:
        """The answer of /status, which is also what a webhook gets. Stored JSON is spliced in, not parsed again."""
        ended = self.finished_at or now
        parts = {
            "id": json.dumps(self.id),
            "status": json.dumps(self.status),
            "delayTime": _milliseconds((self.started_at or ended) - self.queued_at),
            "executionTime": _milliseconds(ended - self.started_at if self.started_at else 0.0),
        }
        output = progress if self.status == IN_PROGRESS else self.output
        if output is not None:
            parts["output"] = output
        if self.error is not None:
            parts["error"] = self.error
        if self.worker is not None:
            parts["workerId"] = json.dumps(self.worker)
        return splice(parts)

    def about(self) -> dict[str, object]:
        """The fields of a log line about this job."""
        return {
            "job": self.id,
            "status": self.status,
            "request_id": self.request_id,
            "worker": self.worker,
            "attempt": self.attempt,
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Assignment:
    """A job on its way to a worker, with what only the worker sees of it."""

    job: Job
    input: str
    s3_config: str | None

    def wire(self) -> bytes:
        parts = {"id": json.dumps(self.job.id), "input": self.input}
        if self.s3_config is not None:
            parts["s3Config"] = self.s3_config
        return splice(parts)


def splice(parts: dict[str, str]) -> bytes:
    """Make one JSON object of values that are JSON texts already."""
    return ("{" + ",".join(f"{json.dumps(key)}:{value}" for key, value in parts.items()) + "}").encode()


def _milliseconds(seconds: float) -> str:
    return str(max(0, round(seconds * 1000)))
