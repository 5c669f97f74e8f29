"""``imgen audit`` and ``imgen appeals`` as an operator meets them."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from gateway.cli import app
from gateway.core.appeals import Appeals
from gateway.core.audit import Audit
from gateway.core.images import Appeal, Caller, Job, State
from gateway.desk.store import open_database
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.store import SqlJobs
from gateway.settings import Settings
from tests.core.desk import BLOCKED, MINORS, SAFE, reviewed

OWNER = Caller(key_id="key_1", tenant="default")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("IMGEN_")]:
        monkeypatch.delenv(name)


def imgen(*arguments: object, **environ: str) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env=environ)


def record(data: Path, *moments: float) -> None:
    """An entry at each moment."""

    async def run() -> None:
        async with open_database(Settings(data=data)) as database:
            log = SqlAudit(database)
            for at in moments:
                await log.append("verdict", at, "g1", {"gen_id": "g1", "safe": True})

    asyncio.run(run())


def file_appeal(data: Path, new: Job) -> Appeal:
    async def run() -> Appeal:
        async with open_database(Settings(data=data)) as database:
            jobs = SqlJobs(database)
            await jobs.add(new, lease="first", until=0.0)
            audit = Audit(SqlAudit(database), now=lambda: 3000.0)
            appeals = Appeals(store=SqlAppeals(database), jobs=jobs, audit=audit, now=lambda: 3000.0)
            return await appeals.file(OWNER, new.surface, new.public_id, "it is a\x1b[31m kidney")

    return asyncio.run(run())


def stored(data: Path, gen_id: str) -> Job | None:
    async def run() -> Job | None:
        async with open_database(Settings(data=data)) as database:
            return await SqlJobs(database).get(gen_id)

    return asyncio.run(run())


def facts(output: str) -> dict[str, str]:
    return {line[:10].strip(): line[11:] for line in output.splitlines() if line[:10].strip()}


# imgen audit


def test_an_export_is_sealed_and_holds(data: Path, tmp_path: Path) -> None:
    record(data, 1.0, 2.0, 3.0)
    file = tmp_path / "new" / "audit.jsonl"
    done = imgen("audit", "export", "-o", file, "--data", data)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[-1] == str(file)
    assert len(file.read_text().splitlines()) == 5
    assert [path.name for path in file.parent.iterdir()] == ["audit.jsonl"]
    checked = imgen("audit", "verify", file, "--data", data)
    assert checked.exit_code == 0
    said = facts(checked.stdout)
    assert (said["state"], said["entries"]) == ("intact", "3, 1 to 3")
    assert said["begins"] == "with the first entry of all"
    assert said["signer"] == "imgen development signer"


def test_an_export_without_entries_is_one_too(data: Path, tmp_path: Path) -> None:
    done = imgen("audit", "export", "-o", tmp_path / "audit.jsonl", "--data", data)
    assert done.exit_code == 0
    assert facts(done.stdout)["entries"] == "0"


def test_an_export_can_begin_later_and_says_what_it_follows(data: Path, tmp_path: Path) -> None:
    record(data, 1.0, 90_000.0, 100_000.0)
    imgen("audit", "export", "-o", tmp_path / "all.jsonl", "--data", data)
    done = imgen("audit", "export", "-o", tmp_path / "late.jsonl", "--since", "1970-01-02", "--data", data)
    assert done.exit_code == 0, done.output
    first = json.loads((tmp_path / "all.jsonl").read_text().splitlines()[1])
    said = facts(done.stdout)
    assert (said["entries"], said["begins"]) == ("2, 2 to 3", f"after {first['hash']}")
    nothing = imgen("audit", "export", "-o", tmp_path / "none.jsonl", "--since", "2026-01-01T10:00:00", "--data", data)
    assert (nothing.exit_code, facts(nothing.stdout)["entries"]) == (0, "0")


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(lambda lines: [*lines[:2], *lines[3:]], "missing", id="removed"),
        pytest.param(lambda lines: lines[:-1], "there is no seal", id="cut-off"),
        pytest.param(lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "moved", id="moved"),
        pytest.param(
            lambda lines: [*lines[:2], lines[2].replace(b"true", b"false"), *lines[3:]], "changed", id="changed"
        ),
        pytest.param(lambda lines: [*lines[:2], b"\xff\xfe\n", *lines[3:]], "changed", id="no-text"),
        pytest.param(lambda lines: [line.replace(b"\n", b"\r\n") for line in lines], "changed", id="other-ends"),
    ],
)
def test_what_was_done_to_an_export_is_said(data: Path, tmp_path: Path, change, problem) -> None:
    record(data, 1.0, 2.0, 3.0)
    file = tmp_path / "audit.jsonl"
    imgen("audit", "export", "-o", file, "--data", data)
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    done = imgen("audit", "verify", file, "--data", data)
    assert done.exit_code == 1
    assert "state      broken" in done.stdout
    assert problem in done.stdout


def test_an_export_of_another_desk_is_not_vouched_for(data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    record(other, 1.0)
    file = tmp_path / "audit.jsonl"
    imgen("audit", "export", "-o", file, "--data", other)
    done = imgen("audit", "verify", file, "--data", data)
    assert done.exit_code == 1
    assert "no signer whom these anchors vouch for" in done.stdout
    trusted = imgen("audit", "verify", file, "--anchors", other / "signing" / "anchors.pem", "--data", data)
    assert trusted.exit_code == 0


def test_entries_that_were_forgotten_since_an_earlier_export_are_found(data: Path, tmp_path: Path) -> None:
    record(data, 1.0, 2.0, 3.0)
    imgen("audit", "export", "-o", tmp_path / "before.jsonl", "--data", data)
    record(data, 4.0)
    imgen("audit", "export", "-o", tmp_path / "after.jsonl", "--data", data)
    options = ["--after", tmp_path / "before.jsonl", "--data", data]
    assert imgen("audit", "verify", tmp_path / "after.jsonl", *options).exit_code == 0
    with closing(sqlite3.connect(data / "imgen.db")) as connection:
        connection.execute("DROP TRIGGER audit_no_delete")
        connection.execute("DELETE FROM audit WHERE seq >= 3")
        connection.commit()
    assert imgen("audit", "export", "-o", tmp_path / "cut.jsonl", "--data", data).exit_code == 0
    done = imgen("audit", "verify", tmp_path / "cut.jsonl", *options)
    assert done.exit_code == 1
    assert "The earlier export ends with entry 3; this one does not go on from there." in done.stdout


def test_a_broken_earlier_export_proves_nothing(data: Path, tmp_path: Path) -> None:
    record(data, 1.0)
    file = tmp_path / "audit.jsonl"
    imgen("audit", "export", "-o", file, "--data", data)
    (tmp_path / "bad.jsonl").write_text("nothing\n")
    done = imgen("audit", "verify", file, "--after", tmp_path / "bad.jsonl", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"imgen: {tmp_path / 'bad.jsonl'} is broken: Line 1 is not the beginning")


def test_anchors_that_are_not_there_are_one_line(data: Path, tmp_path: Path) -> None:
    record(data, 1.0)
    imgen("audit", "export", "-o", tmp_path / "audit.jsonl", "--data", data)
    done = imgen("audit", "verify", tmp_path / "audit.jsonl", "--anchors", tmp_path / "none.pem", "--data", data)
    assert done.exit_code == 1
    assert done.stderr == f"imgen: {tmp_path / 'none.pem'}: No such file or directory\n"


def test_an_audit_that_was_changed_in_the_database_is_exported_and_said_to_be_broken(
    data: Path, tmp_path: Path
) -> None:
    record(data, 1.0, 2.0, 3.0)
    with closing(sqlite3.connect(data / "imgen.db")) as connection:
        connection.execute("DROP TRIGGER audit_no_update")
        connection.execute('UPDATE audit SET body = \'{"gen_id":"g1","safe":false}\' WHERE seq = 2')
        connection.commit()
    file = tmp_path / "audit.jsonl"
    done = imgen("audit", "export", "-o", file, "--data", data)
    assert done.exit_code == 1
    assert "Line 3 has entry 2, which was changed" in done.stdout
    assert file.exists(), "it is evidence"


# imgen appeals


def test_an_appeal_is_listed_and_shown_with_rules_and_place(data: Path) -> None:
    new = reviewed(SAFE, BLOCKED)
    appeal = file_appeal(data, new)
    listed = imgen("appeals", "list", "--data", data)
    assert listed.exit_code == 0
    row = listed.stdout.splitlines()[1]
    assert [word in row for word in (appeal.id, new.public_id, "default", "1970-01-01 00:50:00", "open")] == [True] * 5
    assert "\x1b" not in row, "a stranger's words do not paint the terminal"
    shown = imgen("appeals", "show", appeal.id, "--data", data)
    assert shown.exit_code == 0
    said = facts(shown.stdout)
    assert said["picture"] == "1: adult.nudity"
    assert said["lies at"] == f"quarantine/{new.gen_id}/1.png"
    assert said["rule"] == "adult.nudity (block): builtin says 'nudity' of the picture, 0.93 where 0.50 counts"
    assert (said["ruleset"], said["version"]) == ("default", "abc")
    assert "kidney" in said["reason"] and "\x1b" not in shown.stdout
    assert "http" not in shown.stdout


def test_a_released_appeal_sends_its_job_back_to_be_finished(data: Path) -> None:
    new = reviewed(BLOCKED)
    appeal = file_appeal(data, new)
    done = imgen("appeals", "release", appeal.id, "--by", "Ada", "--note", "a kidney", "--data", data)
    assert (done.exit_code, done.stderr) == (0, f"{appeal.id} is released, decided by Ada\n")
    reopened = stored(data, new.gen_id)
    assert reopened is not None and reopened.release is not None
    assert (reopened.state, reopened.release.indexes) == (State.FINISHING, (0,))
    assert len(imgen("appeals", "list", "--data", data).stdout.splitlines()) == 1
    decided = imgen("appeals", "list", "--all", "--data", data).stdout.splitlines()
    assert len(decided) == 2 and "released" in decided[1]
    assert "by Ada" in facts(imgen("appeals", "show", appeal.id, "--data", data).stdout)["decided"]


def test_an_upheld_appeal_leaves_its_job_blocked(data: Path) -> None:
    new = reviewed(BLOCKED)
    appeal = file_appeal(data, new)
    done = imgen("appeals", "uphold", appeal.id, "--by", "Ada", "--note", "it is none", "--data", data)
    assert done.exit_code == 0
    assert stored(data, new.gen_id) == new
    late = imgen("appeals", "release", appeal.id, "--by", "Bob", "--note", "it is", "--data", data)
    assert late.exit_code == 1
    assert late.stderr.startswith("imgen: The appeal has been upheld\n")


def test_a_picture_that_nobody_may_release_is_said_to_be_one(data: Path) -> None:
    new = reviewed(MINORS)
    appeal = file_appeal(data, new)
    assert "nobody may release it" in imgen("appeals", "show", appeal.id, "--data", data).stdout
    done = imgen("appeals", "release", appeal.id, "--by", "Ada", "--note", "fine", "--data", data)
    assert done.exit_code == 1
    assert done.stderr.startswith("imgen: Nobody may release this picture\n")
    assert stored(data, new.gen_id) == replace(new, release=None)


@pytest.mark.parametrize("command", ["show", "uphold", "release"])
def test_an_unknown_appeal_is_one_line_and_its_fix(data: Path, command: str) -> None:
    decision = [] if command == "show" else ["--by", "Ada", "--note", "fine"]
    done = imgen("appeals", command, "app_none", *decision, "--data", data)
    assert done.exit_code == 1
    assert done.stderr.splitlines() == ["imgen: Appeal not found", "       See: imgen appeals list --all"]
