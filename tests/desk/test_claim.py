"""However a desk ends, nobody stays behind; and two never share a data folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from gateway.desk import Claim, DeskError
from gateway.desk.claim import MARK, read_note
from tests.desk.stage import ROOT, SLEEPER, lives, pids, wait_until

#: A desk as a process of its own. Its children hold the lifeline, or not: then they are orphans when it is killed.
DESK = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, sys.argv[4])
from gateway.desk import Child, Claim, Desk
from gateway.desk.logs import ChildLog
from gateway.desk.supervisor import adopt_grandchildren, stop_on_signals
from tests.desk.stage import PARENT, program

HOLD = "import sys; from gateway import lifeline; lifeline.hold(int(sys.argv[-1]))\\n" if sys.argv[3] == "held" else ""

async def main():
    with Claim(Path(sys.argv[1])) as claim:
        claim.clear_orphans()
        claim.announce("http://127.0.0.1:1")
        files = Path(sys.argv[2])
        child = Child(name="worker", command=program(HOLD + PARENT, files / "mains", files / "grandchildren"))
        desk = Desk([child], claim=claim, log=lambda name: ChildLog(name, files, print, verbose=True), say=print)
        stop_on_signals(desk)
        adopt_grandchildren()
        return await desk.run()

raise SystemExit(asyncio.run(main()))
"""


def start_desk(tmp_path: Path, strays: list[int], *, held: bool) -> tuple[subprocess.Popen[bytes], list[int]]:
    """A desk process and the pids of its child and grandchild."""
    mains, grandchildren = tmp_path / "mains", tmp_path / "grandchildren"
    before = len(pids(mains))
    argv = [str(tmp_path / "data"), str(tmp_path), "held" if held else "loose", str(ROOT)]
    desk = subprocess.Popen([sys.executable, "-c", DESK, *argv], stdout=subprocess.DEVNULL)
    strays.append(desk.pid)
    wait_until(lambda: len(pids(mains)) == len(pids(grandchildren)) == before + 1)
    family = [pids(mains)[-1], pids(grandchildren)[-1]]
    strays.extend(family)
    return desk, family


def test_nobody_outlives_a_killed_supervisor(tmp_path: Path, strays: list[int]) -> None:
    desk, family = start_desk(tmp_path, strays, held=True)
    desk.kill()
    desk.wait()
    wait_until(lambda: not any(map(lives, family)))


def test_orphans_of_a_former_run_are_cleared_at_the_next_start(tmp_path: Path, strays: list[int]) -> None:
    desk, family = start_desk(tmp_path, strays, held=False)
    desk.kill()
    desk.wait()
    assert all(map(lives, family)), "they do not hold the lifeline"
    os.kill(family[0], signal.SIGKILL)
    # The leader is gone, so only the mark in its environment tells whose the grandchild is.
    again, new_family = start_desk(tmp_path, strays, held=False)
    assert not any(map(lives, family))
    again.terminate()
    assert again.wait(30) == 0
    assert not any(map(lives, new_family))


def test_sigterm_ends_everybody_and_the_exit_code_is_0(tmp_path: Path, strays: list[int]) -> None:
    desk, family = start_desk(tmp_path, strays, held=True)
    desk.send_signal(signal.SIGTERM)
    assert desk.wait(30) == 0
    assert not any(map(psutil.pid_exists, family)), "not even as zombies"
    assert not (tmp_path / "data" / "up.json").exists()


def test_a_second_desk_on_the_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    with Claim(tmp_path) as claim:
        claim.announce("http://127.0.0.1:8080")
        with pytest.raises(
            DeskError, match=r"already runs on the data folder .* at http://127.0.0.1:8080\."
        ) as refusal:
            Claim(tmp_path).__enter__()
        assert refusal.value.fix
        assert read_note(tmp_path)["url"] == "http://127.0.0.1:8080", "the first one's note is untouched"
    with Claim(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeskError, match="cannot be used"):
        Claim(tmp_path / "file" / "data").__enter__()


def test_a_stranger_with_a_noted_pid_is_left_alone(tmp_path: Path, strays: list[int]) -> None:
    """Pids come round again: the number alone does not make a process ours."""
    stranger = subprocess.Popen([sys.executable, "-S", "-c", SLEEPER, str(tmp_path / "pids")], start_new_session=True)
    strays.append(stranger.pid)
    wait_until(lambda: pids(tmp_path / "pids"))
    created = psutil.Process(stranger.pid).create_time()
    group = {"name": "worker", "pid": stranger.pid, "created": created - 3600}
    (tmp_path / "up.json").write_text(json.dumps({"run": "old", "groups": [group]}))
    with Claim(tmp_path) as claim:
        assert claim.clear_orphans() == 0
        assert stranger.poll() is None
        (tmp_path / "up.json").write_text(json.dumps({"run": "old", "groups": [group | {"created": created}]}))
        assert claim.clear_orphans() == 1
    assert not lives(stranger.pid)
    stranger.wait(10)


@pytest.mark.parametrize("content", ["", "{", "[]", "null"])
def test_a_note_that_does_not_read_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "up.json").write_text(content)
    with Claim(tmp_path) as claim:
        assert claim.clear_orphans() == 0


def test_the_desk_keeps_its_files_to_itself(tmp_path: Path) -> None:
    with Claim(tmp_path / "data") as claim:
        claim.announce("http://127.0.0.1:8080")
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
        assert (tmp_path / "data" / "up.json").stat().st_mode & 0o777 == 0o600


def test_children_carry_the_mark_of_their_run(tmp_path: Path, strays: list[int]) -> None:
    desk, family = start_desk(tmp_path, strays, held=True)
    run = read_note(tmp_path / "data")["run"]
    assert all(psutil.Process(pid).environ()[MARK] == run for pid in family)
    desk.terminate()
    assert desk.wait(30) == 0
