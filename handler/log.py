"""The worker's log: one JSON line per event on standard output, where the SDK's own lines go.

``requestId`` is RunPod's name for the job's id there; its console groups lines by it. Prompts are logged at DEBUG
alone.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

log = logging.getLogger("imgen.worker")


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def fields(**values: Any) -> dict[str, Any]:
    """For ``extra=``: the keys of one event, such as ``log.info("job finished", extra=fields(job=job.id))``."""
    return {"fields": values}


def start_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(_JsonLines())
    log.handlers[:] = [handler]
    log.setLevel(level)
    # Importing the SDK gives the root logger a handler of its own, which would say everything twice.
    log.propagate = False
