"""``python -m handler``: the real SDK worker, a real pipeline, the real local endpoint and a real upload."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from PIL import Image

from handler.contract import Upload, failure_from_wire, job_to_wire, progress_from_wire, result_from_wire
from tests.endpoint.rig import WORKER_KEY, EndpointProcess
from tests.worker.fakes import job

ROOT = Path(__file__).parents[2]
PATIENCE = 120.0
#: Of a start, each with its seconds.
PHASES = {"import_sdk", "checks", "gateway", "import_torch", "gpu", "load", "total"}


def until(look: Callable[[], Any], what: str) -> Any:
    """Wait until `look` returns something true."""
    end = time.monotonic() + PATIENCE
    while not (found := look()):
        assert time.monotonic() < end, f"waited in vain: {what}"
        time.sleep(0.02)
    return found


class Gateway:
    """Takes the uploads."""

    def __init__(self) -> None:
        self.held: dict[str, bytes] = {}
        held = self.held

        class Handler(BaseHTTPRequestHandler):
            # Headers and body are sent apart: otherwise each answer waits 40 ms for the client's acknowledgement.
            disable_nagle_algorithm = True

            def do_PUT(self) -> None:
                held[self.path] = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


class Worker:
    """`python -m handler` in a process group of its own, with a pipe that tells it that we live."""

    def __init__(
        self,
        folder: Path,
        endpoint: EndpointProcess | None,
        name: str,
        *arguments: str,
        program: tuple[str, ...] = ("-m", "handler"),
        **variables: str,
    ) -> None:
        self.id = name
        self.log = folder / f"{name}.log"
        env = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD_", "IMGEN_"))}
        env |= {"IMGEN_MODELS": str(folder / "models.toml"), "HOME": str(folder), "PYTHONPATH": str(ROOT)}
        if endpoint is not None:
            base = f"{endpoint.url}/v2/local"
            env |= {
                "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=local",
                "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
                "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
                "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=local",
                "RUNPOD_PING_INTERVAL": "1000",
                "RUNPOD_POD_ID": name,
                "RUNPOD_AI_API_KEY": WORKER_KEY,
                "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
                "RUNPOD_SKIP_GPU_CHECK": "true",
            }
        watched, self._alive = os.pipe()
        with self.log.open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, *arguments],
                cwd=folder,
                env=env | variables | {"IMGEN_PARENT_FD": str(watched)},
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[watched],
            )
        os.close(watched)

    def events(self) -> list[dict[str, Any]]:
        lines = self.log.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines if line.startswith("{")]

    def group(self) -> list[int]:
        """The processes of the worker's group that live: the worker, and the SDK's process that pings."""
        alive = []
        for each in psutil.process_iter():
            try:
                if os.getpgid(each.pid) == self.process.pid and each.status() != psutil.STATUS_ZOMBIE:
                    alive.append(each.pid)
            except (ProcessLookupError, psutil.NoSuchProcess):
                continue
        return alive

    def parent_dies(self) -> None:
        os.close(self._alive)
        self._alive = -1

    def close(self) -> None:
        if self._alive >= 0:
            self.parent_dies()
        self.process.wait(PATIENCE)


@pytest.fixture(scope="module")
def folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worker")
    (folder / "models.toml").write_text(
        f"[models.flat]\nsource = '{tiny_folder}'\nsteps = 4\nmax_steps = 900\n", encoding="utf-8"
    )
    return folder


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    gateway = Gateway()
    yield gateway
    gateway.close()


@pytest.fixture(scope="module")
def endpoint(folder: Path) -> Iterator[EndpointProcess]:
    (folder / "endpoint").mkdir()
    endpoint = EndpointProcess(folder / "endpoint" / "jobs", IMGEN_ENDPOINT_RATE_LIMITS="off")
    endpoint.start()
    yield endpoint
    endpoint.close()


@pytest.fixture
def quiet_endpoint(tmp_path: Path) -> Iterator[EndpointProcess]:
    """One that no other worker polls."""
    endpoint = EndpointProcess(tmp_path / "jobs", IMGEN_ENDPOINT_RATE_LIMITS="off")
    endpoint.start()
    yield endpoint
    endpoint.close()


@pytest.fixture(scope="module")
def worker(folder: Path, endpoint: EndpointProcess) -> Iterator[Worker]:
    worker = Worker(folder, endpoint, "w-1")
    try:
        until(lambda: endpoint.worker("w-1") or worker.process.poll() is not None, "the worker polls")
        assert worker.process.poll() is None, worker.log.read_text(encoding="utf-8")
        yield worker
        # A worker that was drained and told to end does so with success, and its pings end too.
        assert endpoint.desk.post("/workers/w-1/drain").is_success
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(PATIENCE) == 0, worker.log.read_text(encoding="utf-8")
        until(lambda: not worker.group(), "the pings end")
    finally:
        worker.close()


def run(endpoint: EndpointProcess, **changes: Any) -> str:
    job_id: str = endpoint.run(job_to_wire(job(**changes)))
    return job_id


def ended(endpoint: EndpointProcess, job_id: str) -> dict[str, Any]:
    final = {"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"}
    return until(lambda: (now := endpoint.status(job_id))["status"] in final and now, "the job ends")


def drawing(endpoint: EndpointProcess, job_id: str) -> dict[str, Any]:
    """Wait until the job's progress is seen by a client."""
    status: dict[str, Any] = until(
        lambda: (now := endpoint.status(job_id))["status"] == "IN_PROGRESS" and now.get("output") and now, "progress"
    )
    return status


def test_a_job_is_drawn_reported_uploaded_and_completed(
    endpoint: EndpointProcess, worker: Worker, gateway: Gateway
) -> None:
    uploads = (Upload(url=f"{gateway.url}/raw/0?sig=1"), Upload(url=f"{gateway.url}/raw/1?sig=2"))
    job_id = run(endpoint, n=2, steps=100, uploads=uploads)
    progress = progress_from_wire(drawing(endpoint, job_id)["output"])
    assert (progress.phase, progress.pictures, progress.total_steps) == ("drawing", 2, 200)
    status = ended(endpoint, job_id)
    assert status["status"] == "COMPLETED", status
    read = result_from_wire(status["output"])
    for index, picture in enumerate(read.pictures):
        png = gateway.held[f"/raw/{index}?sig={index + 1}"]
        assert hashlib.sha256(png).hexdigest() == picture.sha256
        assert Image.open(io.BytesIO(png)).size == (64, 64)
    assert read.sampler == "DPMSolverMultistepScheduler"
    (ready,) = [event for event in worker.events() if event["message"] == "worker ready"]
    assert set(ready["seconds"]) == PHASES


def test_a_job_cancelled_while_it_is_drawn_stops_and_the_next_one_is_drawn(
    endpoint: EndpointProcess, worker: Worker
) -> None:
    cancelled = run(endpoint, id="run_cancelled", n=8, steps=900)
    drawing(endpoint, cancelled)
    assert endpoint.client.post(f"/cancel/{cancelled}").status_code == 200
    following = run(endpoint, id="run_following")
    assert ended(endpoint, following)["status"] == "COMPLETED"
    assert endpoint.status(cancelled)["status"] == "CANCELLED"
    told = [(e["job"], e["message"]) for e in worker.events() if e.get("job") in {"run_cancelled", "run_following"}]
    assert told == [
        ("run_cancelled", "job started"),
        ("run_cancelled", "job cancelled"),
        ("run_following", "job started"),
        ("run_following", "job finished"),
    ]


def test_a_job_that_cannot_be_drawn_fails_with_a_code(endpoint: EndpointProcess, worker: Worker) -> None:
    status = ended(endpoint, run(endpoint, model="xl"))
    assert status["status"] == "FAILED"
    assert status["error"] == "no model named 'xl' on this worker; it has: flat"
    assert failure_from_wire(status["output"]["failure"]).code == "unknown_model"


def test_an_endpoint_that_is_away_is_waited_for_in_peace(endpoint: EndpointProcess, worker: Worker) -> None:
    def complaints() -> int:
        return worker.log.read_text(encoding="utf-8").count("Failed to get job")

    endpoint.kill()
    begun = time.monotonic()
    before = complaints()
    until(lambda: complaints() > before + 6, "the worker misses its endpoint")
    # Left to itself the SDK complains thousands of times a second.
    assert time.monotonic() - begun > 0.3
    endpoint.start()
    status = ended(endpoint, run(endpoint))
    assert status["status"] == "COMPLETED", status


def test_when_the_parent_is_gone_nothing_of_the_worker_is_left(folder: Path, endpoint: EndpointProcess) -> None:
    orphan = Worker(folder, endpoint, "w-orphan", program=fake("flat"))
    try:
        until(lambda: endpoint.worker("w-orphan"), "the worker polls")
        until(lambda: len(orphan.group()) == 2, "the worker and the SDK's pings run")
        orphan.parent_dies()
        until(lambda: not orphan.group(), "the whole group is gone")
    finally:
        orphan.close()


def test_the_sdk_s_local_mode_runs_one_job_after_a_warm_picture_with_a_model_of_the_hub_s_cache(
    folder: Path, tiny_folder: Path
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = folder / "hub" / "models--someone--tiny"
    shutil.copytree(tiny_folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit, encoding="utf-8")
    (folder / "hub.toml").write_text('[models.flat]\nsource = "hub:someone/tiny"\nfamily = "sd15"\n', encoding="utf-8")
    local = Worker(
        folder,
        None,
        "local",
        "--test_input",
        json.dumps({"input": job_to_wire(job())}),
        IMGEN_MODELS=str(folder / "hub.toml"),
        IMGEN_WARM_PICTURE="100x70",
        HF_HUB_CACHE=str(folder / "hub"),
        HF_HUB_OFFLINE="1",
    )
    try:
        assert local.process.wait(PATIENCE) == 0, local.log.read_text(encoding="utf-8")
        told = {event["message"]: event for event in local.events()}
        loaded, ready, finished = told["model loaded"], told["worker ready"], told["job finished"]
        assert loaded["revision"] == commit[:12]
        assert set(ready["seconds"]) == PHASES | {"first_picture"}
        assert ready["seconds"]["first_picture"] > 0
        assert [e["job"] for e in local.events() if "job" in e] == ["run_1", "run_1"]
        assert (finished["job"], finished["request_id"]) == ("run_1", "req_1")
        assert "JOB_DONE_URL" not in local.log.read_text(encoding="utf-8"), "there is nobody to report to"
        assert "secret hill" not in "".join(map(json.dumps, local.events()))
    finally:
        local.close()


def fake(kind: str) -> tuple[str, ...]:
    return (str(Path(__file__).with_name("fake_engine.py")), kind)


def test_a_worker_that_lost_its_gpu_posts_its_answer_and_ends_before_it_takes_another_job(
    folder: Path, quiet_endpoint: EndpointProcess
) -> None:
    endpoint = quiet_endpoint
    lost = Worker(folder, endpoint, "w-lost", program=fake("lost"))
    try:
        until(lambda: endpoint.worker("w-lost"), "the worker polls")
        assert ended(endpoint, run(endpoint, id="run_before"))["status"] == "COMPLETED"
        broken = run(endpoint, id="run_broken")
        waiting = run(endpoint, id="run_waiting")
        status = ended(endpoint, broken)
        assert (status["status"], status["error"]) == (
            "FAILED",
            "the worker's GPU failed; another worker can draw this",
        )
        failure = failure_from_wire(status["output"]["failure"])
        assert (failure.code, failure.retryable) == ("device_lost", True)
        # Nobody told it to: it ends by itself, with a code of its own, and takes the SDK's pings along.
        assert lost.process.wait(PATIENCE) == 3, lost.log.read_text(encoding="utf-8")
        until(lambda: not lost.group(), "the pings end")
        assert [e["reason"] for e in lost.events() if e["message"] == "the worker ends"]
        assert [e["job"] for e in lost.events() if e["message"] == "job started"] == ["run_before", "run_broken"]
        assert endpoint.status(waiting)["status"] == "IN_QUEUE"
        # What was answered is not drawn again, and the next worker takes what waits.
        following = Worker(folder, endpoint, "w-following", program=fake("flat"))
        try:
            assert ended(endpoint, waiting)["status"] == "COMPLETED"
            assert [e["job"] for e in following.events() if e["message"] == "job started"] == ["run_waiting"]
            assert endpoint.status(broken)["status"] == "FAILED"
        finally:
            following.close()
    finally:
        lost.close()


def test_a_worker_that_is_asked_to_end_while_it_starts_does_so_at_once(folder: Path, endpoint: EndpointProcess) -> None:
    # A gateway that is away is waited for, so the start takes long enough.
    worker = Worker(folder, endpoint, "w-early", program=fake("flat"), IMGEN_GATEWAY_URL="http://127.0.0.1:9")
    try:
        until(lambda: "fitness check" in worker.log.read_text(encoding="utf-8"), "the checks run")
        begun = time.monotonic()
        worker.process.send_signal(signal.SIGTERM)
        assert worker.process.wait(PATIENCE) == 0
        assert time.monotonic() - begun < 10
    finally:
        worker.close()


def test_a_worker_that_is_not_fit_ends_before_the_slow_part_and_tells_the_endpoint_why(
    folder: Path, endpoint: EndpointProcess
) -> None:
    unfit = Worker(folder, endpoint, "w-unfit", IMGEN_MIN_DISK_GB="999999")
    try:
        assert unfit.process.wait(PATIENCE) == 1, unfit.log.read_text(encoding="utf-8")
        assert "disk_space" in unfit.log.read_text(encoding="utf-8")
        assert not unfit.events(), "no model was loaded"
        told = (folder / "endpoint" / "endpoint.log").read_text(encoding="utf-8")
        reasons = [json.loads(line) for line in told.splitlines() if "worker unhealthy" in line]
        assert [(r["worker"], r["check"]) for r in reasons] == [("w-unfit", "disk_space")]
        assert "IMGEN_MIN_DISK_GB asks for 999999.0" in reasons[0]["reason"]
    finally:
        unfit.close()


def test_a_worker_that_must_have_a_gpu_does_not_draw_without_one(folder: Path) -> None:
    worker = Worker(folder, None, "cpu", IMGEN_REQUIRE_GPU="true", CUDA_VISIBLE_DEVICES="")
    try:
        assert worker.process.wait(PATIENCE) == 2
        (event,) = worker.events()
        assert "torch sees no GPU" in event["reason"]
    finally:
        worker.close()


def test_a_worker_without_its_model_says_what_to_do(folder: Path) -> None:
    (folder / "none").mkdir()
    (folder / "none" / "models.toml").write_text('[models.a]\nsource = "nowhere"\n', encoding="utf-8")
    worker = Worker(folder / "none", None, "none")
    try:
        assert worker.process.wait(PATIENCE) == 2
        (event,) = worker.events()
        assert "models.a.source" in event["reason"]
        assert "Traceback" not in worker.log.read_text(encoding="utf-8")
    finally:
        worker.close()
