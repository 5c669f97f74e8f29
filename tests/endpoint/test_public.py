"""RunPod's public API, as a client sees it."""

import asyncio
import json
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.endpoint.rig import CLIENT_KEY, WORKER_KEY

pytestmark = pytest.mark.anyio


# -- who may come in --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", [CLIENT_KEY, f"Bearer {CLIENT_KEY}", f"bearer  {CLIENT_KEY}"])
async def test_the_key_is_accepted_raw_and_as_bearer(desk, header):
    assert (await desk.client.get("/health", headers={"Authorization": header})).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer nobody", WORKER_KEY, "Basic Zm9vOmJhcg==", "\u00fc".encode()])
async def test_any_other_key_is_refused(desk, header):
    answer = await desk.client.get("/health", headers={"Authorization": header})
    assert answer.status_code == 401
    assert answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/local/job-take/w1"),
        ("GET", "/v2/local/job-take-batch/w1"),
        ("GET", "/v2/local/job-stop/w1"),
        ("POST", "/v2/local/job-done/w1/j"),
        ("POST", "/v2/local/job-stream/w1/j"),
        ("GET", "/v2/local/ping/w1"),
        ("GET", "/desk/workers"),
        ("POST", "/desk/workers/w1/gone"),
        ("POST", "/desk/workers/w1/drain"),
    ],
)
async def test_a_client_key_opens_no_route_of_the_workers(desk, method, path):
    assert (await desk.client.request(method, f"http://desk{path}")).status_code == 401


async def test_health_of_the_process_needs_no_key(desk):
    assert (await desk.client.get("http://desk/healthz", headers={"Authorization": ""})).json() == {"status": "ok"}


async def test_another_endpoint_an_unknown_path_and_a_wrong_method_answer_in_json(desk):
    for method, url, status in [
        ("GET", "http://desk/v2/other/health", 404),
        ("GET", "http://desk/nothing", 404),
        ("GET", "http://desk/v2/local/run", 405),
    ]:
        answer = await desk.client.request(method, url)
        assert answer.status_code == status
        assert answer.json()["error"]
    # A HEAD would drain a stream, or take a job, and throw it away.
    assert (await desk.client.head("/stream/job")).status_code == 405


# -- what may be handed in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"{", id="cut"),
        pytest.param(b"[]", id="list"),
        pytest.param(b"{}", id="no-input"),
        pytest.param(b'{"input": null}', id="null-input"),
        pytest.param(b'{"input": "text"}', id="text-input"),
        pytest.param(b'{"input": {"a": NaN}}', id="nan"),
        pytest.param(b'{"input": {"a": 1e999}}', id="too-large-a-number"),
        pytest.param(b'{"input": {"a": ' + b"9" * 5000 + b"}}", id="too-many-digits"),
        pytest.param(b'{"input": ' + b'{"a":' * 100_000 + b"}" * 100_001, id="too-deep"),
        pytest.param(b'{"input": {"a": "\xff"}}', id="not-utf-8"),
        pytest.param(b'{"input": {}, "webhook": 7}', id="webhook-number"),
        pytest.param(b'{"input": {}, "webhook": "file:///etc/passwd"}', id="webhook-file"),
        pytest.param(b'{"input": {}, "webhook": "http://"}', id="webhook-no-host"),
        pytest.param(b'{"input": {}, "webhook": "http://[::1"}', id="webhook-half-address"),
        pytest.param(b'{"input": {}, "webhook": "http://a:99999/"}', id="webhook-port"),
        pytest.param(b'{"input": {}, "policy": []}', id="policy-list"),
        pytest.param(b'{"input": {}, "policy": {"executionTimeout": 4999}}', id="timeout-low"),
        pytest.param(b'{"input": {}, "policy": {"executionTimeout": 604800001}}', id="timeout-high"),
        pytest.param(b'{"input": {}, "policy": {"executionTimeout": true}}', id="timeout-bool"),
        pytest.param(b'{"input": {}, "policy": {"executionTimeout": "5000"}}', id="timeout-text"),
        pytest.param(b'{"input": {}, "policy": {"ttl": 9999}}', id="ttl-low"),
        pytest.param(b'{"input": {}, "policy": {"lowPriority": 1}}', id="priority-number"),
        pytest.param(b'{"input": {}, "s3Config": "bucket"}', id="s3-text"),
    ],
)
async def test_a_body_that_can_not_be_queued_is_refused_with_the_reason(desk, body):
    for path in ("/run", "/runsync?wait=1000"):
        answer = await desk.client.post(path, content=body)
        assert answer.status_code == 400
        assert answer.json()["error"]
    assert (await desk.client.get("/health")).json()["jobs"]["inQueue"] == 0


async def test_policy_bounds_are_inclusive_and_extra_fields_do_no_harm(desk):
    policy = {"executionTimeout": 5000, "ttl": 604_800_000, "lowPriority": True, "else": 1}
    body = {"input": {"odd": "\ud800"}, "policy": policy, "s3Config": {"bucketName": "b"}, "webhook": None, "more": [1]}
    assert (await desk.client.post("/run", content=json.dumps(body))).status_code == 200
    answer = await desk.worker.get("/job-take/w1?gpu=local&job_in_progress=0")
    assert answer.json()["s3Config"] == {"bucketName": "b"}
    assert answer.content.count(b"\\ud800") == 1


@pytest.mark.parametrize("wait", ["", "abc", "999", "300001", "-1000", "1e4", "\u0661" * 4, "9" * 30])
async def test_a_bad_wait_is_refused(desk, wait):
    answer = await desk.client.post("/runsync", params={"wait": wait}, json={"input": {}})
    assert answer.status_code == 400


async def test_the_documented_caps_hold_for_bodies(start):
    desk = await start(run_bytes=1000, runsync_bytes=2000)
    body = {"input": {"fill": "x" * 1500}}
    answer = await desk.client.post("/run", json=body)
    assert answer.status_code == 400
    assert "the limit is 1000" in answer.json()["error"]
    waiting = asyncio.create_task(desk.client.post("/runsync", json=body))
    job = await patient(lambda: desk.take())
    await desk.done("w1", job, output=1)
    assert (await waiting).json()["status"] == "COMPLETED"
    body["input"]["fill"] *= 2
    assert (await desk.client.post("/runsync", json=body)).status_code == 400
    assert (await desk.client.post("/run", content=iter_bytes(50_000))).status_code == 400


async def iter_bytes(count):
    for _ in range(count // 1000):
        yield b"x" * 1000


async def patient(look):
    """Ask until the answer is not 204."""
    async with asyncio.timeout(20):
        while (found := await look()) == 204:
            pass
    return found


async def test_the_documented_rates_hold(desk):
    codes = [(await desk.client.post("/cancel/none")).status_code for _ in range(101)]
    assert codes == [404] * 100 + [429]
    answer = await desk.client.post("/cancel/none")
    assert 1 <= int(answer.headers["retry-after"]) <= 10
    assert (await desk.client.get("/status/none")).status_code == 404


async def test_rate_limits_can_be_switched_off(start):
    desk = await start(rate_limits=False)
    assert {(await desk.client.post("/cancel/none")).status_code for _ in range(120)} == {404}


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
BODIES = st.one_of(
    st.binary(max_size=60),
    JSON.map(json.dumps).map(str.encode),
    st.fixed_dictionaries(
        {"input": JSON}, optional={"webhook": JSON, "policy": JSON, "s3Config": JSON, "output": JSON, "error": JSON}
    )
    .map(json.dumps)
    .map(str.encode),
)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(body=BODIES, part=st.text(min_size=1, max_size=20))
def test_nothing_that_is_sent_makes_the_endpoint_fail(hostile, body, part):
    name = f"/{quote(part, safe='')}"
    codes = hostile(
        [
            ("client", "POST", "/run", body),
            ("client", "GET", f"/status{name}", b""),
            ("client", "POST", f"/cancel{name}", body),
            ("client", "POST", f"/retry{name}", body),
            ("client", "GET", f"/stream{name}", b""),
            ("worker", "GET", "/job-take-batch/w1?batch_size=x", b""),
            ("worker", "POST", "/job-done/w1/TAKEN", body),
            ("worker", "POST", "/job-stream/w1/TAKEN", body),
            ("worker", "POST", f"/job-done/w1{name}", body),
            ("worker", "GET", f"/ping{name}", b""),
            ("worker", "POST", "/ping/w1", body),
        ]
    )
    assert all(code < 500 for code in codes), codes


@pytest.fixture
def hostile(tmp_path):
    """Sends requests to an endpoint of its own and returns the status codes."""
    from tests.endpoint.conftest import InProcess

    runner = asyncio.Runner()
    desk = InProcess(tmp_path / "data", rate_limits=False, hold_s=0.0)
    running = desk.endpoint.running()
    runner.run(running.__aenter__())

    async def send(requests):
        taken = await desk.run({})
        await desk.take()
        codes = []
        for who, method, path, body in requests:
            client = desk.client if who == "client" else desk.worker
            answer = await client.request(method, path.replace("TAKEN", taken), content=body)
            if answer.status_code not in {204}:
                answer.json()
            codes.append(answer.status_code)
        return codes

    yield lambda requests: runner.run(send(requests))
    runner.run(running.__aexit__(None, None, None))
    runner.run(desk.client.aclose())
    runner.run(desk.worker.aclose())
    runner.close()


# -- what becomes of a job --------------------------------------------------------------------------------------------


async def test_a_status_has_runpods_shape_at_every_stage(desk):
    job = await desk.run({"a": 1})
    desk.clock.advance(2)
    assert await desk.status(job) == {"id": job, "status": "IN_QUEUE", "delayTime": 2000, "executionTime": 0}
    await desk.take()
    desk.clock.advance(3)
    running = {"id": job, "status": "IN_PROGRESS", "delayTime": 2000, "executionTime": 3000, "workerId": "w1"}
    assert await desk.status(job) == running
    await desk.progress("w1", job, {"step": 1})
    assert await desk.status(job) == {**running, "output": {"step": 1}}
    await desk.done("w1", job, output={"é": [1]})
    desk.clock.advance(9)
    assert await desk.status(job) == {**running, "status": "COMPLETED", "output": {"é": [1]}}


async def test_jobs_are_handed_out_in_the_order_they_came(desk):
    jobs = [await desk.run() for _ in range(4)]
    answer = await desk.worker.get("/job-take-batch/w1?gpu=local&batch_size=3&job_in_progress=0")
    assert [each["id"] for each in answer.json()] == jobs[:3]
    assert await desk.take("w2") == jobs[3]


async def test_a_queued_job_is_cancelled_and_never_handed_out(desk):
    job = await desk.run()
    assert (await desk.client.post(f"/cancel/{job}")).json()["status"] == "CANCELLED"
    assert await desk.take() == 204
    assert (await desk.status(job))["status"] == "CANCELLED"
    assert await desk.stops() == []


async def test_cancelling_what_has_ended_changes_nothing(desk):
    job = await desk.run()
    await desk.take()
    await desk.done("w1", job, output=1)
    assert (await desk.client.post(f"/cancel/{job}")).json()["status"] == "COMPLETED"
    assert (await desk.client.post("/cancel/none")).status_code == 404


async def test_only_failed_and_timed_out_jobs_can_be_retried(desk):
    completed, cancelled, failed, late = [await desk.run(policy={"executionTimeout": 5000}) for _ in range(4)]
    await desk.client.post(f"/cancel/{cancelled}")
    for _ in range(3):
        await desk.take()
    await desk.done("w1", completed, output=1)
    await desk.done("w1", failed, error="no", output={"x": 1})
    for job in (completed, cancelled, late):
        assert (await desk.client.post(f"/retry/{job}")).status_code == 400
    await desk.later(5)
    assert (await desk.status(late))["status"] == "TIMED_OUT"
    for job in (failed, late):
        assert (await desk.client.post(f"/retry/{job}")).json() == {"id": job, "status": "IN_QUEUE"}
        assert set(await desk.status(job)) == {"id", "status", "delayTime", "executionTime"}
    assert (await desk.client.post("/retry/none")).status_code == 404
    assert await desk.take("w2") == failed


async def test_a_retried_job_waits_for_the_worker_that_has_not_let_go_of_it(desk):
    job = await desk.run(policy={"executionTimeout": 5000})
    await desk.take("w1")
    await desk.later(6)
    await desk.client.post(f"/retry/{job}")
    assert await desk.take("w1", busy=1) == 204
    assert await desk.take("w1", busy=0) == job


async def test_ttl_deletes_a_job_even_while_it_runs(desk):
    queued, running = await desk.run(policy={"ttl": 20_000}), await desk.run(policy={"ttl": 10_000})
    await desk.take("w1")
    await desk.take("w2")
    await desk.desk("/w1/gone")
    await desk.later(9.9)
    assert (await desk.status(queued))["status"] == "IN_QUEUE"
    assert (await desk.status(running))["status"] == "IN_PROGRESS"
    await desk.later(0.2)
    assert await desk.status(running) == 404
    assert await desk.stops("w2") == [running]
    await desk.done("w2", running, output=1)
    assert await desk.status(running) == 404
    await desk.later(10)
    assert await desk.status(queued) == 404


async def test_a_job_past_its_ttl_is_not_handed_out_even_before_the_sweep(desk):
    await desk.run(policy={"ttl": 10_000})
    desk.clock.advance(11)
    assert await desk.take() == 204


async def test_results_are_forgotten_after_their_retention(desk):
    slow = await desk.run()
    waiting = asyncio.create_task(desk.client.post("/runsync", json={"input": {}}))
    first = await patient(lambda: desk.take())
    quick = await patient(lambda: desk.take())
    assert first == slow
    assert quick.startswith("sync-")
    for job in (slow, quick):
        await desk.done("w1", job, output=1)
    assert (await waiting).json()["id"] == quick
    await desk.later(59)
    assert (await desk.status(quick))["status"] == "COMPLETED"
    await desk.later(2)
    assert await desk.status(quick) == 404
    await desk.later(1800 - 61 - 1)
    assert (await desk.status(slow))["status"] == "COMPLETED"
    await desk.later(2)
    assert await desk.status(slow) == 404


async def test_purge_removes_queued_jobs_only(desk):
    running, queued = await desk.run(), await desk.run()
    await desk.take()
    assert (await desk.client.post("/purge-queue")).json() == {"removed": 1, "status": "completed"}
    assert await desk.status(queued) == 404
    assert (await desk.status(running))["status"] == "IN_PROGRESS"


async def test_health_counts_jobs_and_workers(desk):
    jobs = [await desk.run() for _ in range(4)]
    for worker in ("w1", "w2", "w3"):
        await desk.take(worker)
    await desk.done("w1", jobs[0], output=1)
    await desk.done("w2", jobs[1], error="no")
    health = (await desk.client.get("/health")).json()
    assert health["jobs"] == {"completed": 1, "failed": 1, "inProgress": 1, "inQueue": 1, "retried": 0}
    assert health["workers"]["idle"] == 2
    assert health["workers"]["running"] == 1
