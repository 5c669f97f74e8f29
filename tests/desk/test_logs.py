"""Everything into a bounded file, little onto the console."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.desk.logs import ChildLog, notable


def make(folder: Path, shown: list[str], *, verbose: bool = False, cap: int = 10_000) -> ChildLog:
    return ChildLog("gateway", folder, shown.append, verbose=verbose, cap=cap)


def test_the_file_gets_everything_and_the_console_only_trouble(tmp_path: Path) -> None:
    shown: list[str] = []
    log = make(tmp_path, shown)
    fine, bad = (
        json.dumps({"event": "job finished", "level": "info"}),
        json.dumps({"event": "no luck", "level": "error"}),
    )
    log.feed(f"{fine}\n{bad}\nplain\n".encode())
    assert (tmp_path / "gateway.log").read_text() == f"{fine}\n{bad}\nplain\n"
    assert shown == ["gateway  error: no luck"]


def test_verbose_shows_every_line(tmp_path: Path) -> None:
    shown: list[str] = []
    make(tmp_path, shown, verbose=True).feed(b"one\ntwo\n")
    assert shown == ["gateway  one", "gateway  two"]


def test_lines_that_arrive_in_pieces_are_put_together(tmp_path: Path) -> None:
    shown: list[str] = []
    log = make(tmp_path, shown)
    for piece in (b"ERROR  | job-1 | Fail", b"ed to return", b" job results", b"\nINFO   | x"):
        log.feed(piece)
    log.end()
    assert shown == ["gateway  error: Failed to return job results"]
    assert (tmp_path / "gateway.log").read_text().endswith("INFO   | x\n")


def test_the_same_trouble_is_shown_once(tmp_path: Path) -> None:
    """The SDK complains hundreds of times a second while its endpoint starts again."""
    shown: list[str] = []
    log = make(tmp_path, shown)
    log.feed(b"ERROR  | Failed to get job.\n" * 1000)
    assert len(shown) == 1


def test_the_files_stay_small(tmp_path: Path) -> None:
    log = make(tmp_path, [], cap=1000)
    for _ in range(100):
        log.feed(b"x" * 99 + b"\n")
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["gateway.log", "gateway.log.1"]
    assert all((tmp_path / name).stat().st_size <= 1000 for name in files)


def test_a_line_without_end_does_not_fill_the_memory(tmp_path: Path) -> None:
    log = make(tmp_path, [], cap=10**7)
    for _ in range(40):
        log.feed(b"x" * 10_000)
    assert (tmp_path / "gateway.log").stat().st_size > 300_000


def test_a_log_that_cannot_be_written_does_not_end_the_desk(tmp_path: Path) -> None:
    shown: list[str] = []
    (tmp_path / "file").write_text("")
    make(tmp_path / "file", shown).feed(b"hello\n")
    assert "cannot be written" in shown[0]


def test_the_last_words_are_not_repeated(tmp_path: Path) -> None:
    log = make(tmp_path, [])
    words = []
    for moment in ("12:00", "12:01"):
        log.feed(
            json.dumps({"time": moment, "level": "ERROR", "message": "no model", "reason": "gone"}).encode() + b"\n"
        )
        words.append(log.last_words())
    assert words == [["no model reason=gone"], []]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        pytest.param('{"message": "x", "level": "WARNING", "reason": "y"}', "warning: x reason=y", id="worker"),
        pytest.param('{"event": "x", "level": "error", "gen_id": "g"}', "error: x gen_id=g", id="gateway"),
        pytest.param('{"requestId": "j", "message": "x", "level": "ERROR"}', "error: x requestId=j", id="sdk-json"),
        pytest.param("WARN   | x", "warn: x", id="sdk-plain"),
        pytest.param("INFO   | x", "", id="sdk-info"),
        pytest.param('{"event": "x", "level": "info"}', "", id="info"),
        pytest.param("{not json", "", id="broken"),
        pytest.param("Traceback (most recent call last):", "", id="traceback"),
    ],
)
def test_what_a_person_should_see(line: str, seen: str) -> None:
    assert notable(line) == seen
