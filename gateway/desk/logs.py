"""What the children say: all of it into files of a bounded size, and only what a person should see on the console."""

from __future__ import annotations

import json
import re
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

CAP = 10 * 1024 * 1024
_REPEAT = 30.0
_LINE = 64 * 1024
_WIDE = 400
_ABOUT = ("reason", "error", "code", "gen_id", "job", "requestId")
_WORTH_SEEING = {"warning", "warn", "error", "critical", "fatal"}
_SDK_LINE = re.compile(r"^(WARN|ERROR)\s*\|\s*(?:\S+\s*\|\s*)?(.*)")


class ChildLog:
    """One child's output. The file is ``<folder>/<name>.log``; the one before it ``<name>.log.1``."""

    def __init__(self, name: str, folder: Path, show: Callable[[str], None], *, verbose: bool, cap: int = CAP) -> None:
        self.name = name
        self._last: deque[str] = deque(maxlen=6)
        self.quiet = False
        self._path = folder / f"{name}.log"
        self._show = show
        self._verbose = verbose
        self._cap = cap
        self._rest = b""
        self._shown: dict[str, float] = {}
        self._said_before: list[str] = []

    def feed(self, data: bytes) -> None:
        """Take a piece of output as it came from the pipe."""
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _LINE:
            lines.append(self._rest)
            self._rest = b""
        if lines:
            self._keep(b"\n".join(lines) + b"\n")
            for line in lines:
                self._look(line.decode(errors="replace").rstrip())

    def end(self) -> None:
        """The child is gone: its last words may lack a line end."""
        if self._rest:
            self.feed(b"\n")

    def last_words(self) -> list[str]:
        """What it said last before it ended; nothing when it is the same as the time before."""
        words, self._last = list(self._last), deque(maxlen=6)
        if words == self._said_before:
            return []
        self._said_before = words
        return words

    def _keep(self, data: bytes) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if self._path.exists() and self._path.stat().st_size + len(data) > self._cap:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
            with self._path.open("ab") as out:
                out.write(data)
        except OSError as exc:
            # A full disk must not end the supervisor: it would take the children with it.
            self._once(f"{self.name}: the log {self._path} cannot be written: {exc.strerror}")

    def _look(self, line: str) -> None:
        if not line:
            return
        self._last.append(readable(line))
        text = line if self._verbose else notable(line)
        if text and not self.quiet:
            self._once(f"{self.name:<8} {text}")

    def _once(self, text: str) -> None:
        """Show it unless the same was shown a moment ago: a poll that fails says so hundreds of times a second."""
        now = time.monotonic()
        if self._verbose or now - self._shown.get(text, -_REPEAT) >= _REPEAT:
            self._shown = {old: at for old, at in self._shown.items() if now - at < _REPEAT} | {text: now}
            self._show(text)


def notable(line: str) -> str:
    """A warning or error of any of our children as a person reads it; empty for everything else."""
    level, text = _read(line)
    return f"{level}: {text}" if level in _WORTH_SEEING else ""


def readable(line: str) -> str:
    """Any line, for a person."""
    return _read(line)[1]


def _read(line: str) -> tuple[str, str]:
    """Level and text. Our children write JSON, the SDK's first lines and a crashing interpreter do not."""
    if line.startswith("{"):
        try:
            event = json.loads(line)
        except ValueError:
            return "", line[:_WIDE]
        text = str(event.get("event") or event.get("message") or "").strip()
        about = "".join(f" {name}={event[name]}" for name in _ABOUT if event.get(name))
        return str(event.get("level", "")).lower(), (text + about)[:_WIDE]
    found = _SDK_LINE.match(line)
    return (found[1].lower(), found[2][:_WIDE]) if found else ("", line[:_WIDE])
