"""kill -9 at random moments: every accepted job ends COMPLETED exactly once, and nobody is left behind."""

import random
import signal
import threading
import time

import httpx
import psutil
import pytest

from tests.e2e.stack import KEY, free_port, running, wait_for

JOBS = 20
KILLS = (("worker",), ("gateway",), ("worker", "gateway"), ("endpoint",), ("gateway",), ("worker",))


@pytest.mark.timeout(600)
def test_every_accepted_job_completes_exactly_once_whoever_is_killed(tmp_path):
    chance = random.Random(20)
    # Time limits are out of the way: what is tested is that nothing is lost, not how long a busy machine takes.
    slow = {"IMGEN_JOB_TTL": "3600", "IMGEN_LEASE": "3"}
    with running(tmp_path / "var", **slow) as stack:
        first_seen: dict[str, str] = {}
        accepted: list[str] = []

        def submit():
            for number in range(JOBS):
                body = {"action": "generate", "prompt": f"a red house on a hill, seed {number}", "seed": number}
                while True:
                    try:
                        answer = httpx.post(
                            f"{stack.url}/api/v2",
                            json=body,
                            headers={"Authorization": f"Bearer {KEY}"},
                            timeout=20,
                            trust_env=False,
                        )
                    except httpx.TransportError:
                        time.sleep(0.2)  # killed under our hands; it may have been accepted, and then `jobs` has it
                        continue
                    if answer.status_code == 200:
                        accepted.append(answer.json()["id"])
                        break
                    assert answer.status_code in {502, 503}, answer.text
                    time.sleep(0.5)
                time.sleep(chance.uniform(0, 0.5))  # the queue stays filled while we kill

        submitting = threading.Thread(target=submit)
        submitting.start()
        for victims in KILLS:
            time.sleep(chance.uniform(2, 7))
            for name in victims:
                stack.child(name).send_signal(signal.SIGKILL)
            watch(stack, list(accepted), first_seen)
            stack.wait_ready(seconds=120)
        submitting.join(timeout=240)
        assert len(accepted) == JOBS

        def all_ended():
            watch(stack, accepted, first_seen)
            return first_seen.keys() >= set(accepted)

        wait_for(all_ended, seconds=240)
        listed = stack.call("jobs", limit=100)["jobs"]
        assert set(accepted) <= {job["id"] for job in listed}
        # A POST that was cut off counts too when its row was written. A 502 has told its caller that it failed.
        for job in listed:
            status = stack.ended(job["id"])["status"]
            assert status == "COMPLETED" or (job["id"] not in accepted and status == "FAILED"), (job, status)
        metas = [stack.call("status", id=job["id"]) for job in listed]
        done = {meta["meta"]["gen_id"]: meta["meta"] for meta in metas if meta["status"] == "COMPLETED"}
        pictures = stack.data / "pictures" / "out"
        for gen_id, meta in done.items():
            files = {path.name for path in (pictures / gen_id).iterdir()}
            assert files == {f"{image['sha256']}.jpg" for image in meta["images"]}
        watch(stack, accepted, first_seen)

        family = [
            stack.process.pid,
            *(child.pid for child in psutil.Process(stack.process.pid).children(recursive=True)),
        ]
        assert stack.stop() == 0
    assert not [pid for pid in family if psutil.pid_exists(pid)]


def watch(stack, jobs, first_seen):
    """A job that was COMPLETED once stays so, with the very same picture."""
    for job in jobs:
        try:
            status = stack.call("status", id=job)
        except httpx.TransportError:
            return
        if status["status"] == "COMPLETED":
            fingerprint = status["meta"]["fingerprint"]
            assert first_seen.setdefault(job, fingerprint) == fingerprint
        else:
            assert job not in first_seen
            assert status["status"] in {"IN_QUEUE", "IN_PROGRESS"}, status


def test_a_deletion_that_was_answered_holds_whenever_the_gateway_is_killed(tmp_path):
    """No file of the job is left and nobody finds it, whether it was done, drawn or finished when it was deleted."""
    chance = random.Random(6)
    pictures = tmp_path / "var" / "pictures"
    with running(tmp_path / "var", IMGEN_LEASE="2", IMGEN_JOB_TTL="3600") as stack:
        for number in range(4):
            job = stack.call("generate", prompt="a red house on a hill", seed=number)
            if number % 2:
                assert stack.ended(job["id"])["status"] == "COMPLETED"
            else:
                time.sleep(chance.uniform(0, 1.5))
            told = stack.call("delete", id=job["id"])
            time.sleep(chance.uniform(0, 0.03))
            stack.child("gateway").send_signal(signal.SIGKILL)
            assert told["deleted"] and (told["status"] == "COMPLETED" or not number % 2)
            stack.wait_ready(seconds=120)
            answer = stack.http.post("/api/v2", json={"action": "status", "id": job["id"]})
            assert (answer.status_code, answer.json()["error"]) == (404, "Job not found")
            # A worker that heard too late of it uploads once more, and that is found by a further look.
            wait_for(lambda: not list(pictures.glob(f"*/{job['gen_id']}")), seconds=150)  # noqa: B023
        assert stack.call("jobs")["jobs"] == []
        assert stack.stop() == 0


def test_kill_of_the_supervisor_leaves_nobody(tmp_path):
    port = free_port()
    with running(tmp_path / "var", port) as stack:
        family = psutil.Process(stack.process.pid).children(recursive=True)
        assert len(family) >= 3
        job = stack.call("generate", prompt="a tree", seed=1)["id"]
        stack.process.kill()
        stack.process.wait()
        wait_for(
            lambda: not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in family),
            seconds=20,
        )
    with running(tmp_path / "var", port) as again:
        assert again.ended(job)["status"] == "COMPLETED"
        assert again.stop() == 0
