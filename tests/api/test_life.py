"""The life of a job beyond the good case: nothing lost, nothing twice, nothing unreviewed."""

import logging

import anyio
import pytest
import structlog.testing

from gateway.storage.disk import DiskStorage
from handler import contract

pytestmark = pytest.mark.anyio


async def test_models_lists_the_catalogue(gateway):
    answer = await gateway.call("models")
    assert answer["characters"][:2] == ["aya", "bella"]
    eros = answer["models"]["eros"]
    assert (eros["label"], eros["default_style"]) == ("Eros", "professional")
    assert eros["styles"]["professional"] == {"label": "Professional"}
    assert answer["default_model"] == "eros"


async def test_the_policy_and_the_webhook_travel_with_the_job(gateway):
    await gateway.picture()
    sent = gateway.runpod.submitted[-1]
    assert sent["policy"]["executionTimeout"] == 300_000 and 300_000 <= sent["policy"]["ttl"] <= 330_000
    assert sent["webhook"].startswith("http://gateway.test/hooks/runpod/")
    assert sent["input"]["request_id"].startswith("req_")


async def test_an_unreachable_backend_is_502_and_ends_the_job(gateway):
    gateway.runpod.down = True
    answer = await gateway.post({"action": "generate", "prompt": "a red house"})
    assert (answer.status_code, answer.json()["error"], answer.json()["retryable"]) == (502, "Generation failed", True)
    gateway.runpod.down = False
    (job,) = (await gateway.call("jobs"))["jobs"]
    assert job["status"] == "FAILED"
    await anyio.sleep(0.2)
    assert gateway.runpod.submitted == []


async def test_a_refusing_backend_is_502(gateway):
    gateway.runpod.refuse = 400
    answer = await gateway.post({"action": "generate", "prompt": "a red house"})
    assert (answer.status_code, answer.json()["error"], answer.json()["retryable"]) == (502, "Generation failed", False)


async def test_a_backend_that_is_away_for_a_moment_loses_nothing(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    gateway.runpod.down = True
    await anyio.sleep(0.3)
    assert (await gateway.call("status", id=job["id"]))["status"] in {"IN_QUEUE", "IN_PROGRESS"}
    gateway.runpod.down = gateway.runpod.hold = False
    assert (await gateway.ended(job["id"]))["status"] == "COMPLETED"


@pytest.mark.parametrize("state", ["TIMED_OUT", "CANCELLED", "FAILED"])
async def test_a_terminal_failure_is_answered_as_printed(gateway, state):
    gateway.runpod.terminal = state
    job = await gateway.call("generate", prompt="a red house")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["error"]) == (state, "Generation failed")


async def test_a_final_failure_of_the_worker_is_not_tried_again(gateway):
    gateway.runpod.failure = {"version": "1.0", "code": "unknown_model", "message": "no such model", "retryable": False}
    job = await gateway.call("generate", prompt="a red house")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["code"]) == ("FAILED", "unknown_model")
    assert len(gateway.runpod.submitted) == 1


async def test_a_passing_failure_of_the_worker_is_tried_once_more(gateway):
    failure = {"version": "1.0", "code": "out_of_memory", "message": "no room", "retryable": True, "once": True}
    gateway.runpod.failure = failure
    assert (await gateway.picture())["compliance"] == "safe"
    assert len(gateway.runpod.submitted) == 2


async def test_a_failure_that_does_not_pass_ends_the_job(gateway):
    gateway.runpod.failure = {"version": "1.0", "code": "out_of_memory", "message": "no room", "retryable": True}
    job = await gateway.call("generate", prompt="a red house")
    assert (await gateway.ended(job["id"]))["code"] == "out_of_memory"
    assert len(gateway.runpod.submitted) == 2


async def test_a_job_that_the_endpoint_forgot_is_drawn_again(gateway):
    gateway.runpod.forget = 1
    assert (await gateway.picture())["compliance"] == "safe"
    assert len(gateway.runpod.submitted) == 2


async def test_a_picture_with_other_bytes_than_reported_is_drawn_again(gateway):
    gateway.runpod.corrupt = 1
    assert (await gateway.picture())["compliance"] == "safe"
    assert len(gateway.runpod.submitted) == 2


async def test_pixels_that_never_match_are_never_delivered(gateway):
    gateway.runpod.corrupt = 100
    job = await gateway.call("generate", prompt="a red house")
    assert (await gateway.ended(job["id"]))["code"] == "raw_picture_lost"


async def test_cancel_stops_the_backend_and_is_idempotent(gateway):
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    assert await gateway.call("cancel", id=job["id"]) == {"id": job["id"], "status": "CANCELLED"}
    assert await gateway.call("cancel", id=job["id"]) == {"id": job["id"], "status": "CANCELLED"}
    assert (await gateway.call("status", id=job["id"]))["status"] == "CANCELLED"
    with anyio.fail_after(10):
        while not gateway.runpod.cancelled:
            await anyio.sleep(0.02)


async def test_a_finished_job_cannot_be_cancelled(gateway):
    meta = await gateway.picture()
    answer = await gateway.post({"action": "cancel", "id": meta["id"]})
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_open")
    assert (await gateway.call("status", id=meta["id"]))["status"] == "COMPLETED"


async def test_jobs_are_listed_newest_first_page_by_page(gateway):
    ids = [(await gateway.call("generate", prompt=f"house {number}"))["id"] for number in range(5)]
    seen, cursor = [], None
    while True:
        page = await gateway.call("jobs", limit=2, cursor=cursor)
        assert len(page["jobs"]) <= 2
        assert all(job.keys() == {"id", "gen_id", "status", "prompt", "model", "created_at"} for job in page["jobs"])
        seen += [job["id"] for job in page["jobs"]]
        if (cursor := page["next"]) is None:
            break
    assert seen == ids[::-1]
    assert (await gateway.post({"action": "jobs", "cursor": "bogus"})).status_code == 400


async def test_a_webhook_needs_its_token_and_speeds_the_job(open_gateway):
    gateway = await open_gateway(IMGEN_POLL_INTERVAL="30")
    job = await gateway.call("generate", prompt="a red house")
    hook = gateway.runpod.submitted[-1]["webhook"]
    forged = hook[:-1] + ("1" if hook.endswith("0") else "0")
    assert (await gateway.http.post(forged, json={"id": "x"})).status_code == 404
    assert (await gateway.http.post(hook, content=b"nonsense")).status_code == 400
    backend_id = next(iter(gateway.runpod.jobs))
    assert (await gateway.http.post(hook, json={"id": backend_id, "status": "COMPLETED"})).status_code == 200
    assert (await gateway.ended(job["id"]))["status"] == "COMPLETED"
    assert (await gateway.http.post(hook, json={"id": backend_id})).status_code == 200  # late and harmless


async def test_replicas_share_the_work_and_finish_each_job_once(open_gateway):
    first, second = await open_gateway(), await open_gateway()
    second.runpod.jobs = first.runpod.jobs
    jobs = [(await first.call("generate", prompt=f"house {number}"))["id"] for number in range(6)]
    fingerprints = [(await second.ended(job))["meta"]["fingerprint"] for job in jobs]
    assert fingerprints == [(await first.ended(job))["meta"]["fingerprint"] for job in jobs]
    assert len(first.runpod.submitted) == 6
    published = list((first.settings.data / "pictures" / "out").rglob("*.jpg"))
    assert len(published) == 12  # a picture and a thumbnail each, and nothing left over


async def test_a_job_whose_replica_died_is_taken_over(open_gateway):
    """The row is there, the lease runs out, and no backend ever heard of it."""
    from dataclasses import replace

    from gateway.jobs.database import Database
    from gateway.jobs.store import SqlJobs

    gateway = await open_gateway()
    gateway.runpod.hold = True
    job = await gateway.call("generate", prompt="a red house")
    database = Database(gateway.settings.database())
    async with database.open():
        jobs = SqlJobs(database)
        orphan = replace(
            (await jobs.find("imgen", job["id"])), gen_id="a" * 20, public_id="run_orphan", backend_id=None, next_at=0.0
        )
        await jobs.add(orphan, lease="dead", until=orphan.created_at + 1)
    gateway.runpod.hold = False
    assert (await gateway.ended("run_orphan"))["status"] == "COMPLETED"


async def test_words_about_minors_are_refused_at_the_door(gateway):
    answer = await gateway.post({"action": "generate", "prompt": "nude child"})
    body = answer.json()
    assert (answer.status_code, body["error"], body["code"]) == (400, "Prompt blocked", "safety_violation")
    assert body["filter_categories"] and gateway.runpod.submitted == []
    hidden = await gateway.post(
        {"action": "generate", "prompt": "a beach", "negative": "clothes, adult", "precompliance": "ok"}
    )
    assert hidden.status_code in {200, 400}


async def test_ready_says_what_is_missing(gateway):
    assert (await gateway.http.get("/healthz")).json()["status"] == "ok"
    assert (await gateway.http.get("/readyz")).status_code == 200
    gateway.runpod.down = True
    answer = await gateway.http.get("/readyz")
    assert answer.status_code == 503 and answer.json()["missing"]


async def test_a_blocked_picture_is_answered_as_printed_and_never_handed_out(gateway):
    job = await gateway.call("generate", prompt="two nude people having sex", compliance_ruleset="strict")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["compliance"]) == ("COMPLETED", "unsafe")
    assert ended["error"].startswith("Content blocked — flagged for: ")
    assert ended["filter_categories"] and "meta" not in ended and "unsafe_url" not in ended
    pictures = gateway.settings.data / "pictures"
    assert list((pictures / "quarantine").rglob("*.png"))
    assert not list((pictures / "out").rglob("*.*")) and not list((pictures / "raw").rglob("*.png"))


async def test_the_review_reads_a_negative_that_nothing_pushes_away_from(gateway):
    """At guidance 1 and below a negative is no promise to leave something out."""
    words = "two nude people having sex"
    ended = {}
    for guidance in (4, 0.5):
        job = await gateway.call(
            "generate", prompt="a beach", negative=words, guidance=guidance, compliance_ruleset="strict"
        )
        ended[guidance] = (await gateway.ended(job["id"]))["compliance"]
    assert ended == {4: "safe", 0.5: "unsafe"}


async def test_raw_uploads_go_once_the_picture_is_out_and_the_master_stays(gateway):
    await gateway.picture()
    pictures = gateway.settings.data / "pictures"
    with anyio.fail_after(5):
        while list((pictures / "raw").rglob("*.png")):
            await anyio.sleep(0.02)
    assert len(list((pictures / "master").rglob("*.png"))) == 1


async def test_a_storage_that_removes_slowly_still_removes_all(open_gateway, monkeypatch):
    """The lease of an ended job is over, and its renewal fails: that must not break off the tidying."""
    purge = DiskStorage.purge

    async def slowly(self, prefix, **more):
        await anyio.sleep(0.2)
        await purge(self, prefix, **more)

    monkeypatch.setattr(DiskStorage, "purge", slowly)
    gateway = await open_gateway(IMGEN_LEASE="0.3")
    job = await gateway.call("generate", prompt="a red house")
    gateway.runpod.corrupt = 2
    lost = await gateway.call("generate", prompt="a red house")
    assert (await gateway.ended(job["id"]))["status"] in {"COMPLETED", "FAILED"}
    await gateway.ended(lost["id"])
    pictures = gateway.settings.data / "pictures"
    with anyio.fail_after(20):
        while list((pictures / "raw").rglob("*.png")):
            await anyio.sleep(0.05)


async def test_of_several_pictures_none_leaves_when_one_is_blocked(gateway):
    job = await gateway.call("generate", prompt="two nude people having sex", compliance_ruleset="strict", n=3)
    ended = await gateway.ended(job["id"])
    assert ended["compliance"] == "unsafe" and "meta" not in ended
    pictures = gateway.settings.data / "pictures"
    with anyio.fail_after(5):
        while list((pictures / "raw").rglob("*.png")):
            await anyio.sleep(0.02)
    assert not [path for folder in ("out", "master") for path in (pictures / folder).rglob("*.*")]


async def test_a_lost_device_costs_one_more_attempt_and_nothing_twice(gateway):
    failure = {"version": "1.1", "code": "device_lost", "message": "the GPU failed", "retryable": True, "once": True}
    gateway.runpod.failure = failure
    meta = await gateway.picture(n=2)
    assert len(gateway.runpod.submitted) == 2
    first, second = (sent["webhook"] for sent in gateway.runpod.submitted)
    assert first != second
    # The lost worker's last word comes late, and changes nothing.
    assert (await gateway.http.post(first, json={"id": "00000001-fake-e1"})).status_code == 200
    again = await gateway.ended(meta["id"])
    assert again["meta"]["fingerprint"] == meta["fingerprint"]
    assert len(gateway.runpod.submitted) == 2
    published = {path.name for path in (gateway.settings.data / "pictures" / "out").rglob("*.jpg")}
    assert published == {f"{image['sha256']}.jpg" for image in meta["images"]} and len(published) == 4


async def test_a_device_that_is_lost_twice_ends_the_job(gateway):
    gateway.runpod.failure = {"version": "1.1", "code": "device_lost", "message": "no", "retryable": True}
    job = await gateway.call("generate", prompt="a red house")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["code"], len(gateway.runpod.submitted)) == ("FAILED", "device_lost", 2)


async def test_a_job_whose_worker_vanished_is_drawn_by_another(gateway):
    gateway.runpod.vanish = 1
    assert (await gateway.picture())["compliance"] == "safe"
    assert len(gateway.runpod.submitted) == 2


def at(step, total_steps, **more):
    return contract.Progress(sequence=1, phase="drawing", step=step, total_steps=total_steps, **more)


async def progress_is(gateway, job, wanted):
    with anyio.fail_after(10):
        while (await gateway.call("status", id=job["id"])).get("progress") != wanted:
            await anyio.sleep(0.05)


async def polled(gateway, times):
    """The gateway has read the progress so often."""
    before = gateway.runpod.polls
    with anyio.fail_after(10):
        while gateway.runpod.polls < before + times:
            await anyio.sleep(0.02)
    await anyio.sleep(0.3)  # as long as the service remembers an open job


async def test_progress_counts_all_pictures_and_never_falls(gateway):
    gateway.runpod.hold, gateway.runpod.progress = True, at(20, 42, picture=1, pictures=3)
    job = await gateway.call("generate", prompt="a red house", n=3)
    await progress_is(gateway, job, {"step": 20, "total_steps": 42})
    gateway.runpod.progress = at(6, 28)  # overtaken on its way
    await polled(gateway, 3)
    assert (await gateway.call("status", id=job["id"]))["progress"] == {"step": 20, "total_steps": 42}
    gateway.runpod.progress = at(42, 42)
    await progress_is(gateway, job, {"step": 42, "total_steps": 42})


async def test_progress_begins_anew_with_the_second_attempt(gateway):
    failure = {"version": "1.1", "code": "device_lost", "message": "the GPU failed", "retryable": True, "once": True}
    runpod = gateway.runpod
    runpod.hold, runpod.progress = True, at(20, 28)
    job = await gateway.call("generate", prompt="a red house", n=2)
    await progress_is(gateway, job, {"step": 20, "total_steps": 28})
    runpod.failure, runpod.held, runpod.progress, runpod.hold = failure, frozenset({2}), at(2, 28), False
    await progress_is(gateway, job, {"step": 2, "total_steps": 28})
    assert len(runpod.submitted) == 2
    runpod.held = frozenset()
    assert (await gateway.ended(job["id"]))["status"] == "COMPLETED"


async def test_a_preview_that_nobody_reviewed_goes_nowhere(gateway, caplog, capfd):
    """The gateway asks for none; one that comes all the same is in no answer, no log and no file."""
    caplog.set_level(logging.DEBUG)
    secret = "UklGRunreviewedpixels"
    with structlog.testing.capture_logs() as logs:
        gateway.runpod.hold, gateway.runpod.progress = True, at(7, 14, preview=secret)
        job = await gateway.call("generate", prompt="a red house")
        await progress_is(gateway, job, {"step": 7, "total_steps": 14})
        hook = gateway.runpod.submitted[-1]["webhook"]
        output = contract.progress_to_wire(gateway.runpod.progress)
        await gateway.http.post(hook, json={"id": "00000001-fake-e1", "status": "IN_PROGRESS", "output": output})
        answers = [await gateway.call("status", id=job["id"]), await gateway.call("jobs")]
        gateway.runpod.hold = False
        answers.append(await gateway.ended(job["id"]))
    assert gateway.runpod.submitted[-1]["input"]["preview_every"] == 0
    shown = capfd.readouterr()
    for text in (str(answers), str(logs), caplog.text, shown.out, shown.err):
        assert secret not in text and "preview" not in text
    files = [path for path in gateway.settings.data.rglob("*") if path.is_file()]
    assert files and not [path for path in files if secret.encode() in path.read_bytes()]
