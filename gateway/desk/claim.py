"""One supervisor per data folder, and a note of whom it started, so that the next one can clear what it left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import psutil

from gateway.errors import GatewayError

#: Every process under a desk carries its run's name in this variable, grandchildren too.
MARK = "IMGEN_DESK_RUN"
_CLEARING = 5.0


class DeskError(GatewayError):
    """The desk cannot start"""

    code = "desk_error"


class Claim:
    """Holds ``<data>/up.lock`` and keeps ``<data>/up.json`` while a desk runs on the folder."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.run = uuid4().hex
        self.url = ""
        self.endpoint: dict[str, str] = {}
        self.former: dict[str, str] = {}
        self._lock: int | None = None
        self._groups: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Self:
        """Raises `DeskError` when another desk lives here. Ends the processes that a former one left."""
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(self.data / "up.lock", os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as exc:
            raise DeskError(
                f"The data folder {self.data} cannot be used: {exc.strerror}.", fix="Choose another with --data."
            ) from exc
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            os.close(self._lock)
            self._lock = None
            running = read_note(self.data)
            where = f" at {running['url']}" if running.get("url") else ""
            raise DeskError(
                f"imgen up already runs on the data folder {self.data}{where}.",
                fix="Use that one, stop it first, or choose another folder with --data.",
            ) from exc
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        if self._lock is not None:
            (self.data / "up.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def clear_orphans(self) -> int:
        """Kill what is left of the run that is noted in ``up.json``; how many processes that were.

        Afterwards `former` has the id of each child of that run, none of which lives.
        """
        note = read_note(self.data)
        groups = note.get("groups", [])
        orphans = [process for group in groups for process in _members(group, note.get("run"))]
        for process in orphans:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        psutil.wait_procs(orphans, timeout=_CLEARING)
        self.former = {group["name"]: group["start"] for group in groups if "start" in group}
        return len(orphans)

    def note(self, name: str, start: str, pid: int) -> None:
        """Write down who leads the process group of a child now."""
        self._groups[name] = {"name": name, "start": start, "pid": pid, "created": _created(pid)}
        self._write()

    def forget(self, name: str) -> None:
        """The group of that child is empty."""
        self._groups.pop(name, None)
        self._write()

    def announce(self, url: str, endpoint: dict[str, str] | None = None) -> None:
        """Write down where the gateway listens, and ``url`` and ``key`` of the endpoint, for other commands here."""
        self.url = url
        self.endpoint = endpoint or {}
        self._write()

    def _write(self) -> None:
        note = {
            "run": self.run,
            "pid": os.getpid(),
            "url": self.url,
            "endpoint": self.endpoint,
            "groups": list(self._groups.values()),
        }
        replace_file(self.data / "up.json", json.dumps(note, indent=1) + "\n")


def read_note(data: Path) -> dict[str, Any]:
    """What ``up.json`` says; empty when there is none that reads."""
    try:
        note = json.loads((data / "up.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def replace_file(path: Path, text: str) -> None:
    """Write a file that only its owner may read, all of it or nothing."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as out:
        out.write(text)
    fresh.replace(path)


def _members(group: dict[str, Any], run: str | None) -> Iterator[psutil.Process]:
    """The processes of a noted group that surely are of that run: pids come round again, so a number proves nothing."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if os.getpgid(process.pid) != group["pid"]:
                continue
            leader = process.pid == group["pid"] and abs(process.create_time() - group["created"]) < 1
            if leader or (run and process.environ().get(MARK) == run):
                yield process


def _created(pid: int) -> float:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return time.time()
