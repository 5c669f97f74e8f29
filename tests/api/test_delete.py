"""`delete` over the front door: 404 at once and everywhere, files soon after, and what the audit says stays."""

from __future__ import annotations

import base64
import json
import time

import anyio
import pytest
from sqlalchemy import select, text
from typer.testing import CliRunner

from gateway.cli import app
from gateway.core import advance
from gateway.core.appeals import Appeals
from gateway.core.audit import Audit
from gateway.core.finishing import Finisher
from gateway.errors import FinishingFailed
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database
from gateway.jobs.deletions import SqlDeletions
from gateway.jobs.store import SqlJobs
from gateway.jobs.tables import records
from tests.api.fake_runpod import paint
from tests.api.test_compliance import RULES, key_with, local, painted
from tests.reviewers import SeesColours, Silent

pytestmark = pytest.mark.anyio

WORDS = "a red house of the caller"


def files_of(gateway, gen_id):
    """Everything of a job below the folder of pictures, by its place there."""
    pictures = gateway.settings.data / "pictures"
    return {path.relative_to(pictures).as_posix() for path in pictures.rglob("*") if gen_id in path.as_posix()}


async def purged(gateway, gen_id):
    with anyio.fail_after(20):
        while files_of(gateway, gen_id):
            await anyio.sleep(0.02)


async def open_database(gateway):
    return Database(gateway.settings.database()).open()


async def history(gateway, gen_id):
    async with await open_database(gateway) as database:
        return [(link.entry.kind, dict(link.entry.body)) for link in await SqlAudit(database).of(gen_id)]


async def row_of(gateway, gen_id):
    async with await open_database(gateway) as database:
        (row,) = await database.read(text(f"SELECT * FROM jobs WHERE gen_id = '{gen_id}'"))
        return str(tuple(row))


async def refused(gateway, body, **more):
    """Status and body of an answer without what differs between any two requests."""
    answer = await gateway.post(body, **more)
    return answer.status_code, {name: value for name, value in answer.json().items() if name != "request_id"}


async def not_there(gateway, job_id, **more):
    """The job answers everything as one that never was."""
    for body in (
        {"action": "status"},
        {"action": "cancel"},
        {"action": "appeal", "reason": "why?"},
        {"action": "delete"},
    ):
        unknown = await refused(gateway, {**body, "id": "run_nobodys"}, **more)
        assert unknown[0] == 404
        assert await refused(gateway, {**body, "id": job_id}, **more) == unknown, body
    assert job_id not in str(await gateway.call("jobs", limit=100))


@pytest.mark.parametrize("n", [1, 3])
async def test_a_deleted_job_is_gone_and_so_are_its_pictures(gateway, n):
    meta, other = await gateway.picture(WORDS, n=n), await gateway.picture("a boat")
    urls = [local(image["url"]) for image in meta["images"]]
    assert [(await gateway.http.get(url)).status_code for url in urls] == [200] * 2 * n
    answer = await gateway.post({"action": "delete", "id": meta["id"]})
    told = answer.json()
    assert answer.status_code == 200
    assert told == {
        "id": meta["id"],
        "deleted": True,
        "status": "COMPLETED",
        "time": told["time"],
        "request_id": answer.headers["x-request-id"],
    }
    assert abs(time.time() - time.mktime(time.strptime(told["time"], "%Y-%m-%dT%H:%M:%SZ")) + time.timezone) < 60
    await not_there(gateway, meta["id"])
    await purged(gateway, meta["gen_id"])
    assert [(await gateway.http.get(url)).status_code for url in urls] == [404] * 2 * n
    await not_there(gateway, meta["id"])
    kinds = [kind for kind, _ in await history(gateway, meta["gen_id"])]
    assert kinds[: n + 1] == ["verdict"] * n + ["deleted"]
    with anyio.fail_after(20):
        while WORDS in await row_of(gateway, meta["gen_id"]):
            await anyio.sleep(0.02)
    assert [job["id"] for job in (await gateway.call("jobs"))["jobs"]] == [other["id"]]
    assert (await gateway.http.get(local(other["images"][0]["url"]))).status_code == 200


async def test_the_records_by_which_its_pictures_are_found_go_with_a_job(gateway):
    meta, other = await gateway.picture(WORDS), await gateway.picture("a boat")
    async with await open_database(gateway) as database:

        async def on_record() -> set[str]:
            return {row[0] for row in await database.read(select(records.c.gen_id).distinct())}

        assert await on_record() == {meta["gen_id"], other["gen_id"]}
        await gateway.call("delete", id=meta["id"])
        with anyio.fail_after(20):
            while meta["gen_id"] in await on_record():
                await anyio.sleep(0.02)
        assert await on_record() == {other["gen_id"]}


async def test_who_deleted_what_is_on_record_in_one_intact_chain(gateway, tmp_path):
    meta = await gateway.picture(WORDS)
    await gateway.call("delete", id=meta["id"])
    await purged(gateway, meta["gen_id"])
    with anyio.fail_after(20):
        while "purged" not in [kind for kind, _ in await history(gateway, meta["gen_id"])]:
            await anyio.sleep(0.02)
    told = dict(await history(gateway, meta["gen_id"]))
    assert list(told) == ["verdict", "deleted", "purged"]
    assert told["deleted"]["cause"] == "caller" and told["deleted"]["by"] == told["deleted"]["key_id"]
    assert told["purged"]["kept"] == [] and WORDS not in str(told)
    export, data = tmp_path / "audit.jsonl", ["--data", str(gateway.settings.data)]
    for command in (["export", "-o", str(export)], ["verify", str(export)]):
        done = await anyio.to_thread.run_sync(CliRunner().invoke, app, ["audit", *command, *data])
        assert done.exit_code == 0 and "intact" in done.output, done.output
    entries = [json.loads(line) for line in export.read_text(encoding="utf-8").splitlines()]
    assert [entry["kind"] for entry in entries if "kind" in entry] == [*told]


async def test_another_tenants_job_is_not_there_to_be_deleted(gateway):
    meta, foreign = await gateway.picture(), await key_with(gateway, tenant="other")
    unknown = await refused(gateway, {"action": "delete", "id": "run_nobodys"}, key=foreign)
    assert unknown[0] == 404
    assert await refused(gateway, {"action": "delete", "id": meta["id"]}, key=foreign) == unknown
    assert (await gateway.call("status", id=meta["id"]))["status"] == "COMPLETED"
    assert "deleted" not in dict(await history(gateway, meta["gen_id"]))
    sibling = await key_with(gateway)
    assert (await gateway.post({"action": "delete", "id": meta["id"]}, key=sibling)).status_code == 200


@pytest.mark.parametrize("bad", ["", "nonsense", 7, None, "../x", ["run_a"], "run_" + "x" * 300])
async def test_what_is_no_id_is_a_bad_id(gateway, bad):
    answer = await gateway.post({"action": "delete", "id": bad})
    assert (answer.status_code, answer.json()["error"], answer.json()["code"]) == (400, "Bad ID", "bad_id")


async def test_a_job_that_is_drawn_is_cancelled(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt=WORDS)
    with anyio.fail_after(10):
        while (await gateway.call("status", id=job["id"]))["status"] != "IN_PROGRESS":
            await anyio.sleep(0.02)
    assert (await gateway.call("delete", id=job["id"]))["status"] == "CANCELLED"
    await not_there(gateway, job["id"])
    with anyio.fail_after(10):
        while not gateway.runpod.cancelled:
            await anyio.sleep(0.02)
    hook = gateway.runpod.submitted[-1]["webhook"]
    late = await gateway.http.post(hook, json={"id": gateway.runpod.cancelled[0], "status": "COMPLETED"})
    assert late.status_code == 200
    await not_there(gateway, job["id"])
    await purged(gateway, job["gen_id"])


async def finishing(open_gateway, *reviewers, brush=paint, **fields):
    """A gateway with a job whose picture is drawn, and a reviewer that is silent until the flag falls."""
    waits = {"silent": True}
    gateway = await open_gateway(Silent(lambda: waits["silent"]), *reviewers)
    gateway.runpod.brush = brush
    job = await gateway.call("generate", prompt=WORDS, **fields)
    with anyio.fail_after(20):
        async with await open_database(gateway) as database:
            while (await SqlJobs(database).get(job["gen_id"])).state != "finishing":
                await anyio.sleep(0.02)
    return gateway, job, waits


async def test_a_job_that_is_being_finished_is_reviewed_handed_to_nobody_and_purged(open_gateway):
    gateway, job, waits = await finishing(open_gateway, n=2)
    assert (await gateway.call("delete", id=job["id"]))["status"] == "IN_PROGRESS"
    await not_there(gateway, job["id"])
    assert files_of(gateway, job["gen_id"])
    waits["silent"] = False
    await purged(gateway, job["gen_id"])
    await not_there(gateway, job["id"])
    with anyio.fail_after(20):
        while len(told := await history(gateway, job["gen_id"])) < 4:
            await anyio.sleep(0.02)
    assert [kind for kind, _ in told] == ["deleted", "verdict", "verdict", "purged"]
    assert "completed" in await row_of(gateway, job["gen_id"])


async def test_nobody_escapes_the_review_by_deleting_before_it(open_gateway):
    gateway, job, waits = await finishing(open_gateway, SeesColours(), brush=painted("magenta"))
    await gateway.call("delete", id=job["id"])
    waits["silent"] = False
    with anyio.fail_after(20):
        while (refused := await gateway.post({"action": "models"})).status_code == 200:
            await anyio.sleep(0.05)
        assert refused.json()["code"] == "api_key_held"
        while "purged" not in dict(told := await history(gateway, job["gen_id"])):
            await anyio.sleep(0.02)
    assert dict(told)["verdict"]["minors"] and dict(told)["purged"]["kept"] == ["quarantine"]
    left = {name for name in files_of(gateway, job["gen_id"]) if name.endswith(".png")}
    assert left == {f"quarantine/{job['gen_id']}/0.png"}


async def test_evidence_of_a_job_that_failed_stays_when_it_is_deleted(open_gateway):
    """One picture is judged and the next one never is: the job fails, and its raw pictures go."""
    answers = iter((False, True))
    gateway = await open_gateway(
        SeesColours(), Silent(lambda: next(answers, True)), IMGEN_FINISH_DEADLINE="0.3", IMGEN_MINORS_HOLD="off"
    )
    gateway.runpod.brush = painted("magenta", "red")
    job = await gateway.call("generate", prompt=WORDS, n=2)
    assert (await gateway.ended(job["id"]))["status"] == "FAILED"
    assert (await gateway.call("delete", id=job["id"]))["status"] == "FAILED"
    with anyio.fail_after(20):
        while "purged" not in dict(told := await history(gateway, job["gen_id"])):
            await anyio.sleep(0.02)
    assert dict(told)["purged"]["kept"] == ["quarantine"]
    left = {name for name in files_of(gateway, job["gen_id"]) if name.endswith(".png")}
    assert left == {f"quarantine/{job['gen_id']}/0.png"}
    assert WORDS in await row_of(gateway, job["gen_id"])


async def test_a_deleted_job_is_not_drawn_a_second_time(open_gateway):
    gateway, job, waits = await finishing(open_gateway)
    await gateway.call("delete", id=job["id"])
    for raw in (gateway.settings.data / "pictures" / "raw" / job["gen_id"]).rglob("*.png"):
        raw.unlink()
    waits["silent"] = False
    with anyio.fail_after(20):
        while "failed" not in await row_of(gateway, job["gen_id"]):
            await anyio.sleep(0.02)
    assert len(gateway.runpod.submitted) == 1
    await not_there(gateway, job["id"])


async def blocked(open_gateway, tmp_path, *colours, **changed):
    folder = tmp_path / "rulesets"
    folder.mkdir()
    (folder / "colours.toml").write_text(RULES, encoding="utf-8")
    gateway = await open_gateway(SeesColours(), IMGEN_RULESETS=str(folder), **changed)
    gateway.runpod.brush = painted(*colours)
    job = await gateway.call("generate", prompt=WORDS, n=len(colours), compliance_ruleset="colours")
    return gateway, job


async def test_an_appeal_dies_with_its_job_and_so_does_the_address_of_what_was_blocked(open_gateway, tmp_path):
    gateway, job = await blocked(open_gateway, tmp_path, "blue")
    await gateway.ended(job["id"])
    seeing = await key_with(gateway, "unsafe_url")
    told = (await gateway.post({"action": "status", "id": job["id"]}, key=seeing)).json()
    url = local(base64.b64decode(told["unsafe_url"]).decode())
    assert (await gateway.http.get(url)).status_code == 200
    appeal = (await gateway.call("appeal", id=job["id"], reason=WORDS))["appeal"]
    assert (await gateway.call("delete", id=job["id"]))["status"] == "COMPLETED"
    await not_there(gateway, job["id"])
    await purged(gateway, job["gen_id"])
    assert (await gateway.http.get(url)).status_code == 404
    async with await open_database(gateway) as database:
        with anyio.fail_after(20):
            while (now := await SqlAppeals(database).get(appeal["id"])).state == "open":
                await anyio.sleep(0.02)
    assert (now.state, now.reason) == ("closed", "")


async def test_what_a_person_released_can_be_deleted_like_any_other(open_gateway, tmp_path):
    gateway, job = await blocked(open_gateway, tmp_path, "red", "blue")
    await gateway.ended(job["id"])
    appeal = (await gateway.call("appeal", id=job["id"], reason=WORDS))["appeal"]
    async with await open_database(gateway) as database:
        audit = Audit(SqlAudit(database), now=time.time)
        appeals = Appeals(store=SqlAppeals(database), jobs=SqlJobs(database), audit=audit, now=time.time)
        await appeals.release(appeal["id"], "kim", "It is the sea.")
    with anyio.fail_after(60):
        while "blocked" in (after := await gateway.call("status", id=job["id"])) or "meta" not in after:
            await anyio.sleep(0.05)
    urls = [local(image["url"]) for image in after["meta"]["images"]]
    await gateway.call("delete", id=job["id"])
    await purged(gateway, job["gen_id"])
    assert {(await gateway.http.get(url)).status_code for url in urls} == {404}
    await not_there(gateway, job["id"])


@pytest.mark.parametrize("fault", ["unforeseen", "foreseen"])
async def test_what_a_person_released_and_can_not_be_finished_is_given_up_once_it_is_deleted(
    open_gateway, tmp_path, monkeypatch, fault
):
    """Kept up for ever otherwise: what was let go must not be lost."""
    gateway, job = await blocked(open_gateway, tmp_path, "blue", IMGEN_FINISH_DEADLINE="2")
    await gateway.ended(job["id"])
    appeal = (await gateway.call("appeal", id=job["id"], reason="why?"))["appeal"]
    tries = []

    async def failing(self, job, record):
        tries.append(job.deleted_at)
        if fault == "unforeseen":
            raise RuntimeError("nobody foresaw this")
        raise FinishingFailed("signing_unavailable", "no signer", retryable=True)

    monkeypatch.setattr(advance, "MAX_STUMBLES", 1)
    monkeypatch.setattr(Finisher, "release", failing)
    async with await open_database(gateway) as database:
        audit = Audit(SqlAudit(database), now=time.time)
        appeals = Appeals(store=SqlAppeals(database), jobs=SqlJobs(database), audit=audit, now=time.time)
        await appeals.release(appeal["id"], "kim", "It is the sea.")
    with anyio.fail_after(20):
        while len(tries) < 4:
            await anyio.sleep(0.02)
    assert (await gateway.call("delete", id=job["id"]))["status"] == "IN_PROGRESS"
    await purged(gateway, job["gen_id"])
    assert tries[0] is None


async def test_a_picture_about_minors_stays_as_evidence_and_a_held_key_deletes_nothing(open_gateway, tmp_path):
    gateway, job = await blocked(open_gateway, tmp_path, "magenta", "red")
    with anyio.fail_after(20):
        while (await gateway.post({"action": "models"})).status_code == 200:
            await anyio.sleep(0.05)
    held = await gateway.post({"action": "delete", "id": job["id"]})
    assert (held.status_code, held.json()["code"]) == (401, "api_key_held")
    sibling = await key_with(gateway)
    async with await open_database(gateway) as database:
        with anyio.fail_after(20):
            while (await SqlJobs(database).get(job["gen_id"])).state != "blocked":
                await anyio.sleep(0.02)
    assert (await gateway.post({"action": "delete", "id": job["id"]}, key=sibling)).status_code == 200
    assert (await gateway.post({"action": "status", "id": job["id"]}, key=sibling)).status_code == 404
    with anyio.fail_after(20):
        while "purged" not in dict(told := await history(gateway, job["gen_id"])):
            await anyio.sleep(0.02)
    assert dict(told)["purged"]["kept"] == ["quarantine"]
    left = {name for name in files_of(gateway, job["gen_id"]) if name.endswith(".png")}
    assert left == {f"quarantine/{job['gen_id']}/{index}.png" for index in range(2)}
    assert WORDS in await row_of(gateway, job["gen_id"])


async def test_what_one_replica_deleted_is_soon_gone_on_every_other(open_gateway):
    first, second = await open_gateway(), await open_gateway()
    second.runpod.jobs = first.runpod.jobs
    meta = await first.picture()
    assert (await second.call("status", id=meta["id"]))["status"] == "COMPLETED", "and now it is remembered there"
    await first.call("delete", id=meta["id"])
    await not_there(first, meta["id"])
    # Whatever a replica does itself looks into the store.
    for action in ("cancel", "delete", "appeal"):
        answer = await second.post({"action": action, "id": meta["id"], "reason": "why?"})
        assert answer.status_code == 404, action
    assert meta["id"] not in str(await second.call("jobs"))
    with anyio.fail_after(20):
        while (await second.post({"action": "status", "id": meta["id"]})).status_code == 200:
            await anyio.sleep(0.05)
    await not_there(second, meta["id"])
    await purged(first, meta["gen_id"])
    kinds = [kind for kind, _ in await history(first, meta["gen_id"])]
    assert kinds.count("deleted") == 1


async def test_of_many_who_delete_at_once_one_did_it(open_gateway):
    first, second = await open_gateway(), await open_gateway()
    second.runpod.jobs = first.runpod.jobs
    meta = await first.picture()
    answers: list[int] = []

    async def delete(gateway):
        answers.append((await gateway.post({"action": "delete", "id": meta["id"]})).status_code)

    async with anyio.create_task_group() as tasks:
        for gateway in (first, second) * 4:
            tasks.start_soon(delete, gateway)
    assert sorted(answers) == [200] + [404] * 7
    await purged(first, meta["gen_id"])


async def test_a_deletion_that_nobody_purged_is_taken_up_at_the_start(open_gateway):
    first = await open_gateway()
    meta = await first.picture()
    async with await open_database(first) as database:
        assert await SqlDeletions(database).mark(meta["gen_id"], now=time.time() - 60)
    await open_gateway()
    await purged(first, meta["gen_id"])


async def test_retention_deletes_what_is_too_old(open_gateway):
    gateway = await open_gateway(IMGEN_RETENTION_DAYS="0.00001")
    meta = await gateway.picture()
    with anyio.fail_after(30):
        while (await gateway.post({"action": "status", "id": meta["id"]})).status_code == 200:
            await anyio.sleep(0.05)
    await purged(gateway, meta["gen_id"])
    assert (await gateway.call("jobs"))["jobs"] == []
    told = dict(await history(gateway, meta["gen_id"]))
    assert (told["deleted"]["cause"], told["deleted"]["by"]) == ("retention", "")
