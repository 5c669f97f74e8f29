"""The endpoint against the real, unmodified SDK worker, both in processes of their own."""

import os
import signal
import threading
import time

from tests.endpoint.rig import PATIENCE, EndpointProcess, alive, until


def notes(path):
    return path.read_text(encoding="utf-8").split() if path.exists() else []


# -- an endpoint and a worker that both stay up -----------------------------------------------------------------------


def test_a_job_goes_from_queue_to_result_and_shows_its_progress(shared):
    job = shared.run({"steps": 3, "pause": 0.4, "text": "é\u2028"})
    seen = until(lambda: (now := shared.status(job)).get("output", {}).get("step") and now, "progress is shown")
    assert seen["status"] == "IN_PROGRESS"
    assert seen["workerId"] == "shared-1"
    done = shared.reaches(job, "COMPLETED")
    assert done["output"]["echo"]["text"] == "é\u2028"
    assert done["executionTime"] >= 1200
    assert done["delayTime"] >= 0


def test_runsync_answers_with_the_result(shared):
    answer = shared.client.post("/runsync", json={"input": {"a": 1}}).json()
    assert answer["status"] == "COMPLETED"
    assert answer["output"]["echo"] == {"a": 1}


def test_runsync_that_is_not_done_in_time_answers_with_the_state(shared):
    answer = shared.client.post("/runsync?wait=1000", json={"input": {"sleep": 1.8}}).json()
    assert answer["status"] in {"IN_QUEUE", "IN_PROGRESS"}
    shared.reaches(answer["id"], "COMPLETED")


def test_an_exception_and_an_error_of_the_handler_fail_the_job(shared, receive):
    receiver = receive()
    raised, refused = shared.run({"raise": True}, webhook=receiver.url), shared.run({"error": True})
    failed = shared.reaches(raised, "FAILED")
    assert "as asked" in failed["error"]
    failed_too = shared.reaches(refused, "FAILED")
    assert failed_too["error"] == "no such model"
    assert failed_too["output"] == {"seen": True}
    until(lambda: receiver.bodies, "the webhook of a failed job")
    assert receiver.bodies[0] == failed


def test_progress_that_overtakes_nothing_never_reopens_a_result(shared):
    job = shared.run({"burst": 12})
    done = shared.reaches(job, "COMPLETED")
    # The burst is posted by threads of the worker that run on after the result; the next job outlasts them.
    shared.reaches(shared.run({"sleep": 0.5}), "COMPLETED")
    assert shared.status(job) == done


def test_a_result_that_is_too_large_or_not_json_fails_with_the_reason(shared):
    large, strange = shared.run({"fill": 1_000_001}), shared.run({"nan": True})
    assert "the limit is 1000000" in shared.reaches(large, "FAILED")["error"]
    assert "not JSON" in shared.reaches(strange, "FAILED")["error"]


def test_a_running_job_is_cancelled_at_once_and_the_worker_lets_go(shared, tmp_path):
    job = shared.run({"sleep": 60, "note": str(tmp_path / "note")})
    until(lambda: notes(tmp_path / "note") == ["started"], "the job runs")
    assert shared.client.post(f"/cancel/{job}").json()["status"] == "CANCELLED"
    until(lambda: notes(tmp_path / "note") == ["started", "cancelled"], "the handler hears of it")
    shared.reaches(shared.run({}), "COMPLETED")
    assert shared.status(job)["status"] == "CANCELLED"
    assert shared.worker("shared-1")["want"] == "run"


def test_a_job_that_runs_too_long_times_out_and_is_stopped(shared, tmp_path, receive):
    receiver = receive(500, 302)
    given = {"sleep": 60, "note": str(tmp_path / "note")}
    job = shared.run(given, policy={"executionTimeout": 5000}, webhook=receiver.url)
    timed_out = shared.reaches(job, "TIMED_OUT")
    assert "5000 ms" in timed_out["error"]
    until(lambda: notes(tmp_path / "note") == ["started", "cancelled"], "the handler hears of it")
    until(lambda: len(receiver.bodies) == 3, "two more tries of the webhook")
    assert receiver.bodies == [timed_out] * 3


# -- workers that die -------------------------------------------------------------------------------------------------


def test_a_job_whose_worker_was_killed_completes_on_another(process, hire, tmp_path, receive):
    receiver, note = receive(), tmp_path / "note"
    first = hire(process, "first").ready(process)
    job = process.run({"sleep": 1.5, "note": str(note)}, webhook=receiver.url)
    until(lambda: notes(note) == ["started"], "the job runs")
    second = hire(process, "second")
    first.kill_group()
    assert process.desk.post("/workers/first/gone").json()["requeued"] == [job]
    assert process.reaches(job, "COMPLETED")["workerId"] == second.id
    assert notes(note) == ["started", "started"]
    until(lambda: receiver.bodies, "the webhook")
    assert [body["status"] for body in receiver.bodies] == ["COMPLETED"]


def test_a_killed_worker_whose_ping_process_lives_on_is_found_out(process, hire, tmp_path):
    note = tmp_path / "note"
    first = hire(process, "first").ready(process)
    job = process.run({"sleep": 2, "note": str(note)})
    until(lambda: notes(note) == ["started"], "the job runs")
    hire(process, "second").ready(process)
    first.kill_main()
    assert any(alive(pid) for pid in group_of(first.group))
    assert process.wants("first", "kill")["state"] == "running" or process.worker("first")["job"] is None
    assert process.reaches(job, "COMPLETED")["workerId"] == "second"


def group_of(group):
    members = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                if os.getpgid(int(entry)) == group:
                    members.append(int(entry))
            except ProcessLookupError:
                pass
    return members


def test_a_drained_worker_ends_soon_after_sigterm_and_takes_no_job_with_it(process, hire):
    first = hire(process, "first").ready(process)
    assert process.desk.post("/workers/first/drain").json()["state"] == "draining"
    job = process.run({"a": 1})
    first.process.send_signal(signal.SIGTERM)
    first.process.wait(PATIENCE)
    assert process.status(job)["status"] == "IN_QUEUE"
    assert process.desk.post("/workers/first/gone").json()["requeued"] == []
    hire(process, "second")
    assert process.reaches(job, "COMPLETED")["workerId"] == "second"


def test_a_worker_that_asked_to_be_refreshed_gets_no_further_job(process, hire):
    hire(process, "first").ready(process)
    process.reaches(process.run({"refresh": True}), "COMPLETED")
    assert process.wants("first", "drain")["state"] == "draining"
    job = process.run({})
    hire(process, "second")
    assert process.reaches(job, "COMPLETED")["workerId"] == "second"


def test_a_blocking_handler_that_does_not_let_go_is_to_be_killed(process, hire):
    hire(process, "first", "sync").ready(process)
    job = process.run({"block": 5})
    process.reaches(job, "IN_PROGRESS")
    assert process.client.post(f"/cancel/{job}").json()["status"] == "CANCELLED"
    process.wants("first", "kill")
    # Nobody killed it: once it has let go by itself it may work again, and what it posted has changed nothing.
    process.wants("first", "run")
    assert process.status(job)["status"] == "CANCELLED"


def test_a_worker_of_two_slots_takes_a_list_and_a_generator_is_streamed(process, hire):
    hire(process, "pair", "pair").ready(process)
    jobs = [process.run({"sleep": 2}) for _ in range(2)]
    until(lambda: [process.status(job)["status"] for job in jobs] == ["IN_PROGRESS"] * 2, "both run at once")
    for job in jobs:
        process.reaches(job, "COMPLETED")
    process.desk.post("/workers/pair/drain")
    job = process.run({"parts": 3})
    hire(process, "stream", "stream")
    assert process.reaches(job, "COMPLETED")["output"] == [{"part": n} for n in range(3)]
    streamed = process.client.get(f"/stream/{job}").json()
    assert streamed == {"status": "COMPLETED", "stream": [{"output": {"part": n}} for n in range(3)]}


# -- an endpoint that dies --------------------------------------------------------------------------------------------


def test_a_killed_endpoint_loses_no_job(process, hire, tmp_path):
    note = tmp_path / "note"
    hire(process, "first").ready(process)
    running = process.run({"sleep": 2.5, "note": str(note)})
    until(lambda: notes(note) == ["started"], "the job runs")
    queued = [process.run({"number": number}) for number in range(2)]
    process.kill()
    process.start()
    assert process.status(running)["status"] == "IN_PROGRESS"
    assert process.reaches(running, "COMPLETED")["workerId"] == "first"
    for number, job in enumerate(queued):
        assert process.reaches(job, "COMPLETED")["output"]["echo"] == {"number": number}
    assert notes(note) == ["started"]


def test_a_result_that_fell_into_a_gap_is_made_again(process, hire, tmp_path):
    note = tmp_path / "note"
    worker = hire(process, "first").ready(process)
    job = process.run({"sleep": 1, "note": str(note)})
    until(lambda: notes(note) == ["started"], "the job runs")
    process.kill()
    log = tmp_path / "first.log"
    until(lambda: "Failed to return job results" in log.read_text(encoding="utf-8"), "the worker gives up the result")
    process.start()
    assert process.reaches(job, "COMPLETED")["workerId"] == worker.id
    assert notes(note) == ["started", "started"]


def test_a_polite_end_lets_parked_polls_go(process):
    answers = []
    caller = threading.Thread(target=lambda: answers.append(process.client.post("/runsync", json={"input": {}})))
    caller.start()
    until(lambda: process.client.get("/health").json()["jobs"]["inQueue"] == 1, "the call waits")
    process.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert process.process.wait(PATIENCE) in {0, -signal.SIGTERM}
    caller.join(PATIENCE)
    assert answers[0].json()["status"] == "IN_QUEUE"
    # A parked call may wait for 90 seconds; this one was sent home.
    assert time.monotonic() - started < PATIENCE


def test_an_endpoint_ends_with_its_parent(tmp_path):
    read, write = os.pipe()
    endpoint = EndpointProcess(tmp_path / "data")
    try:
        endpoint.start("--parent-fd", str(read), pass_fds=(read,))
        os.close(write)
        assert endpoint.process.wait(PATIENCE) == -signal.SIGKILL
    finally:
        os.close(read)
        endpoint.close()
