"""The worker protocol: who holds a job, whose word counts, and what happens when a worker is lost."""

import asyncio
import json
import socket

import pytest

from handler.endpoint.store import StoreInUse
from tests.endpoint.rig import PATIENCE, WORKER_KEY, until

pytestmark = pytest.mark.anyio


async def leased(desk, worker="w1", **more):
    job = await desk.run(**more)
    assert await desk.take(worker) == job
    return job


# -- whose word counts ------------------------------------------------------------------------------------------------


async def test_a_second_result_changes_nothing(desk):
    job = await leased(desk)
    await desk.done("w1", job, output=1)
    await desk.done("w1", job, output=2)
    await desk.done("w1", job, error="late")
    assert (await desk.status(job))["output"] == 1


async def test_a_result_from_a_worker_without_the_lease_is_ignored(desk):
    job = await leased(desk)
    await desk.done("w2", job, output="from a stranger")
    assert (await desk.status(job))["status"] == "IN_PROGRESS"
    await desk.desk("/w1/gone")
    await desk.done("w1", job, output="from the dead")
    assert (await desk.status(job))["status"] == "IN_QUEUE"
    assert await desk.take("w2") == job
    await desk.done("w1", job, output="from the dead")
    await desk.progress("w1", job, {"step": 9})
    assert "output" not in await desk.status(job)
    await desk.done("w2", job, output="right")
    assert (await desk.status(job))["output"] == "right"


async def test_posts_about_unknown_jobs_are_answered_with_200(desk):
    await desk.done("w1", "no-such-job", output=1)
    await desk.progress("w1", "no-such-job", 1)
    answer = await desk.worker.post("/job-stream/w1/no-such-job?isStream=false", json={"output": 1})
    assert answer.status_code == 200


async def test_progress_after_the_result_is_ignored(desk):
    job = await leased(desk)
    await desk.progress("w1", job, {"sequence": 1})
    await desk.done("w1", job, output="result")
    await desk.progress("w1", job, {"sequence": 2})
    now = await desk.status(job)
    assert (now["status"], now["output"]) == ("COMPLETED", "result")


async def test_progress_never_goes_backwards_within_an_attempt(desk):
    job = await leased(desk)
    shown = []
    for output in [{"sequence": 1}, {"sequence": 3}, {"sequence": 2}, {"sequence": 3, "again": 1}, "no number"]:
        await desk.progress("w1", job, output)
        shown.append((await desk.status(job))["output"])
    assert shown == [{"sequence": 1}] + [{"sequence": 3}] * 4
    await desk.desk("/w1/gone")
    assert await desk.take("w2") == job
    assert "output" not in await desk.status(job)
    await desk.progress("w2", job, {"sequence": 1, "fresh": True})
    assert (await desk.status(job))["output"] == {"sequence": 1, "fresh": True}


async def test_a_result_is_read_raw_whatever_its_content_type_says(desk):
    job = await leased(desk)
    headers = {"Content-Type": "application/x-www-form-urlencoded", "charset": "utf-8", "X-Request-ID": "another"}
    body = json.dumps({"output": "a=b&c=ü"}, ensure_ascii=False).encode()
    await desk.worker.post(f"/job-done/w1/{job}?gpu=local&isStream=false", content=body, headers=headers)
    assert (await desk.status(job))["output"] == "a=b&c=ü"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        pytest.param(b"output=1", "not JSON", id="form"),
        pytest.param(b"[1]", "not JSON", id="list"),
        pytest.param(b'{"output": NaN}', "not JSON", id="nan"),
        pytest.param(b'{"output": "' + b"x" * 1000 + b'"}', "the limit is 1000", id="over-the-cap"),
        pytest.param(b'{"output": "' + b"x" * 300_000 + b'"}', "the limit is 1000", id="far-over-the-cap"),
    ],
)
async def test_a_result_that_can_not_be_kept_fails_the_job_with_the_reason(start, body, reason):
    desk = await start(run_bytes=1000, runsync_bytes=2000)
    job = await leased(desk)
    answer = await desk.worker.post(f"/job-done/w1/{job}?isStream=false", content=body)
    assert answer.status_code == 200
    failed = await desk.status(job)
    assert failed["status"] == "FAILED"
    assert reason in failed["error"]
    assert "output" not in failed


async def test_a_result_of_runsync_may_be_larger(start):
    desk = await start(run_bytes=1000, runsync_bytes=2000)
    waiting = asyncio.create_task(desk.client.post("/runsync", json={"input": {}}))
    while (job := await desk.take()) == 204:
        pass
    await desk.done("w1", job, output="x" * 1500)
    assert (await waiting).json()["status"] == "COMPLETED"


async def test_an_error_of_any_kind_fails_the_job_and_keeps_its_output(desk):
    job = await leased(desk)
    await desk.done("w1", job, error={"code": 7}, output={"partial": 1})
    failed = await desk.status(job)
    assert (failed["status"], failed["error"], failed["output"]) == ("FAILED", {"code": 7}, {"partial": 1})


async def test_streamed_parts_are_handed_out_once_and_only_for_the_lease(desk):
    job = await leased(desk)
    for worker, part in [("w1", 1), ("w2", 2), ("w1", 3)]:
        await desk.worker.post(f"/job-stream/{worker}/{job}?isStream=false", json={"output": part})
    await desk.worker.post(f"/job-stream/w1/{job}?isStream=false", json={"output": "x" * 1_000_001})
    first, second = [(await desk.client.get(f"/stream/{job}")).json() for _ in range(2)]
    assert first == {"status": "IN_PROGRESS", "stream": [{"output": 1}, {"output": 3}]}
    assert second["stream"] == []


# -- workers that are lost --------------------------------------------------------------------------------------------


async def test_two_pings_without_the_job_after_its_grace_lose_the_lease(desk):
    job = await leased(desk)
    await desk.ping("w1")
    await desk.ping("w1")
    desk.clock.advance(6)
    await desk.ping("w1")
    await desk.ping("w1", job, "another")
    await desk.ping("w1")
    assert (await desk.status(job))["status"] == "IN_PROGRESS"
    await desk.ping("w1")
    assert (await desk.status(job))["status"] == "IN_QUEUE"


async def test_silence_loses_the_lease_and_pings_keep_it(desk):
    job = await leased(desk)
    for _ in range(4):
        await desk.later(15)
        await desk.ping("w1", job)
    await desk.later(19)
    assert (await desk.status(job))["status"] == "IN_PROGRESS"
    await desk.later(2)
    assert (await desk.status(job))["status"] == "IN_QUEUE"
    assert await desk.want("w1") == "kill"


async def test_a_worker_that_was_silent_may_come_back(desk):
    await leased(desk)
    await desk.later(21)
    assert await desk.want("w1") == "kill"
    assert await desk.take("w1") != 204
    assert await desk.want("w1") == "run"


async def test_a_worker_that_comes_back_to_a_lost_job_is_told_to_stop_it(desk):
    job = await leased(desk)
    await desk.later(21)
    assert await desk.take("w1", busy=1) == 204
    assert await desk.stops("w1") == [job]
    assert await desk.take("w2") == job


async def test_an_endpoint_that_slept_blames_nobody(start):
    desk = await start(sweep_s=0.5)
    await desk.later(0)
    job = await leased(desk, policy={"executionTimeout": 604_800_000})
    await desk.later(3 * 3600)
    assert (await desk.status(job))["status"] == "IN_PROGRESS"
    assert await desk.want("w1") == "run"


async def test_a_job_that_loses_its_worker_too_often_fails_with_the_reason(desk):
    job = await desk.run()
    for worker in ("w1", "w2"):
        assert await desk.take(worker) == job
        assert (await desk.desk(f"/{worker}/gone"))["requeued"] == [job]
        assert (await desk.status(job))["status"] == "IN_QUEUE"
    assert (await desk.client.get("/health")).json()["jobs"]["retried"] == 1
    assert await desk.take("w3") == job
    await desk.desk("/w3/gone")
    failed = await desk.status(job)
    assert failed["status"] == "FAILED"
    assert "worker was lost" in failed["error"]


async def test_pings_of_a_worker_that_is_gone_bring_nothing_back(desk):
    job = await leased(desk)
    await desk.desk("/w1/gone")
    await desk.ping("w1", job)
    assert await desk.want("w1") is None
    assert (await desk.status(job))["status"] == "IN_QUEUE"
    assert await desk.take("w1") == 204
    assert (await desk.desk("/w1/gone"))["requeued"] == []


async def test_a_job_that_was_lost_keeps_its_place_in_the_queue(desk):
    job = await leased(desk)
    await desk.run()
    await desk.desk("/w1/gone")
    assert await desk.take("w2") == job


# -- drain, stop, kill ------------------------------------------------------------------------------------------------


async def test_a_draining_worker_gets_nothing_and_may_finish_what_it_has(desk):
    job = await leased(desk)
    await desk.run()
    await desk.desk("/w1/drain")
    assert await desk.want("w1") == "drain"
    assert await desk.take("w1") == 204
    await desk.done("w1", job, output=1)
    assert (await desk.status(job))["status"] == "COMPLETED"


async def test_drain_sends_a_parked_poll_home(start):
    desk = await start(hold_s=60.0)
    polls = [asyncio.create_task(desk.take("w1")), asyncio.create_task(desk.stops("w1"))]
    while await desk.want("w1") is None:
        await asyncio.sleep(0)
    await desk.desk("/w1/drain")
    async with asyncio.timeout(20):
        assert await asyncio.gather(*polls) == [204, []]


async def test_a_parked_poll_is_woken_by_a_job_and_by_a_stop(start):
    desk = await start(hold_s=60.0)
    take = asyncio.create_task(desk.take("w1"))
    while await desk.want("w1") is None:
        await asyncio.sleep(0)
    job = await desk.run()
    async with asyncio.timeout(20):
        assert await take == job
        desk.clock.advance(5)
        stop = asyncio.create_task(desk.stops("w1"))
        await desk.client.post(f"/cancel/{job}")
        assert await stop == [job]


async def test_a_young_job_is_stopped_only_after_it_had_time_to_start(desk):
    job = await leased(desk)
    await desk.client.post(f"/cancel/{job}")
    assert await desk.stops() == []
    desk.clock.advance(1)
    assert await desk.stops() == [job]
    assert await desk.stops() == []


async def test_stop_pod_drains_the_worker(desk):
    job = await leased(desk)
    await desk.done("w1", job, output=1, stopPod=True)
    await desk.run()
    assert await desk.want("w1") == "drain"
    assert await desk.take("w1") == 204


@pytest.mark.parametrize("how", ["ping", "poll", "result", "gone"])
async def test_a_worker_that_does_not_let_go_is_to_be_killed_until_it_does(desk, how):
    job = await leased(desk)
    await desk.client.post(f"/cancel/{job}")
    for _ in range(6):
        await desk.later(2)
        await desk.ping("w1", job)
    await desk.later(0)
    assert await desk.want("w1") == "kill"
    if how == "ping":
        await desk.ping("w1")
    elif how == "poll":
        await desk.take("w1", busy=0)
    elif how == "result":
        await desk.done("w1", job, output=1)
    else:
        await desk.desk("/w1/gone")
    await desk.later(0)
    assert await desk.want("w1") == (None if how == "gone" else "run")
    assert (await desk.status(job))["status"] == "CANCELLED"


async def test_too_many_parked_polls_of_one_worker_are_throttled(start):
    desk = await start(hold_s=60.0)
    polls = [asyncio.create_task(desk.take("w1")) for _ in range(5)]
    async with asyncio.timeout(20):
        done, parked = await asyncio.wait(polls, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result() for each in done] == [429]
        desk.endpoint.broker.close()
        assert await asyncio.gather(*parked) == [429] * 4


async def test_the_fleet_says_what_each_worker_does(desk):
    job = await leased(desk, "w1")
    await desk.take("w2")
    await desk.desk("/w3/drain")
    fleet = {each.pop("id"): each for each in await desk.desk("", "GET")}
    seen = desk.clock.time
    assert fleet == {
        "w1": {"state": "running", "job": job, "jobs": [job], "last_seen": seen, "want": "run"},
        "w2": {"state": "idle", "job": None, "jobs": [], "last_seen": seen, "want": "run"},
        "w3": {"state": "draining", "job": None, "jobs": [], "last_seen": seen, "want": "drain"},
    }
    await desk.done("w1", job, output=1)
    await desk.later(21)
    await desk.later(61)
    assert await desk.desk("", "GET") == []


# -- connections that are cut -----------------------------------------------------------------------------------------


def poll(endpoint, worker):
    """A parked take poll on a connection that the test can cut."""
    connection = socket.create_connection(("127.0.0.1", endpoint.port), timeout=PATIENCE)
    headers = f"Host: x\r\nConnection: close\r\nAuthorization: {WORKER_KEY}\r\n"
    connection.sendall(f"GET /v2/local/job-take/{worker}?gpu=local HTTP/1.1\r\n{headers}\r\n".encode())
    until(lambda: endpoint.worker(worker), f"{worker} polls")
    return connection


def test_a_poll_that_was_cut_gets_no_job(process):
    with poll(process, "w1"):
        pass
    job = process.run({})
    # The cut worker is found out by its cut connection, not by an assignment that it never received.
    process.wants("w1", "kill")
    assert process.status(job)["status"] == "IN_QUEUE"
    with poll(process, "w2") as connection, connection.makefile("rb") as answer:
        assert job.encode() in answer.read()


# -- after a restart --------------------------------------------------------------------------------------------------


async def test_jobs_leases_stops_and_drains_survive_a_restart(start):
    before = await start()
    running, cancelled = await leased(before, "w1"), await leased(before, "w2")
    queued = await before.run()
    await before.client.post(f"/cancel/{cancelled}")
    await before.desk("/w3/drain")
    await before.desk("/w4/gone")
    await before.stack.aclose()

    after = await start(clock=before.clock)
    after.clock.advance(120)
    await after.stack.aclose()
    after = await start(clock=before.clock)
    await after.endpoint.leases.sweep()
    assert (await after.status(running))["status"] == "IN_PROGRESS"
    assert await after.want("w3") == "drain"
    assert await after.take("w3") == 204
    assert await after.take("w4") == 204
    assert await after.stops("w2") == [cancelled]
    await after.done("w2", running, output="from a stranger")
    await after.done("w1", running, output="right")
    assert (await after.status(running))["output"] == "right"
    assert await after.take("w1") == queued


async def test_two_endpoints_can_not_share_a_data_folder(start):
    await start()
    with pytest.raises(StoreInUse):
        await start()
