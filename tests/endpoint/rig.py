"""What the endpoint's tests are built of: the endpoint as a process, SDK workers as processes, a webhook receiver."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx

CLIENT_KEY, WORKER_KEY = "client-key", "worker-key"
ROOT = Path(__file__).parents[2]
PATIENCE = 40.0


def until(look, what, seconds=PATIENCE):
    """Wait until `look` returns something true and return it; fail when it never does."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds} s in vain: {what}"
        time.sleep(0.05)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def alive(pid):
    """Whether a process runs; one that has ended but was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


FAST = {
    "IMGEN_ENDPOINT_HOLD_S": "4",
    "IMGEN_ENDPOINT_LEASE_S": "8",
    "IMGEN_ENDPOINT_GRACE_S": "1",
    "IMGEN_ENDPOINT_KILL_GRACE_S": "1",
    "IMGEN_ENDPOINT_SWEEP_S": "0.1",
    "IMGEN_ENDPOINT_WEBHOOK_RETRY_S": "0.2",
    "IMGEN_ENDPOINT_RUN_BYTES": "1000000",
}


class EndpointProcess:
    """The real endpoint in a process of its own, with short intervals. It may be killed and started again."""

    def __init__(self, folder, **settings):
        self.folder = folder
        self.port = free_port()
        self.settings = {**FAST, **settings}
        self.process = None
        url = f"http://127.0.0.1:{self.port}"
        self.client = httpx.Client(base_url=f"{url}/v2/local", headers={"Authorization": CLIENT_KEY}, timeout=PATIENCE)
        self.desk = httpx.Client(base_url=f"{url}/desk", headers={"Authorization": WORKER_KEY}, timeout=PATIENCE)
        self.url = url

    def start(self, *flags, pass_fds=()):
        keys = {"IMGEN_ENDPOINT_KEY": CLIENT_KEY, "IMGEN_ENDPOINT_WORKER_KEY": WORKER_KEY}
        command = [sys.executable, "-m", "handler.endpoint", "--port", str(self.port), "--data", str(self.folder)]
        with (self.folder.parent / "endpoint.log").open("a", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [*command, *flags],
                cwd=ROOT,
                env={**os.environ, **self.settings, **keys},
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        until(self._up, "the endpoint answers")
        return self

    def _up(self):
        assert self.process.poll() is None, (self.folder.parent / "endpoint.log").read_text(encoding="utf-8")
        try:
            return httpx.get(f"{self.url}/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait(PATIENCE)

    def close(self):
        if self.process is not None:
            self.kill()
        self.client.close()
        self.desk.close()

    def run(self, given, **more):
        answer = self.client.post("/run", json={"input": given, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    def status(self, job):
        answer = self.client.get(f"/status/{job}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    def reaches(self, job, status):
        return until(lambda: (now := self.status(job))["status"] == status and now, f"{job} is {status}")

    def worker(self, worker_id):
        return {each["id"]: each for each in self.desk.get("/workers").json()}.get(worker_id)

    def wants(self, worker_id, want):
        return until(lambda: (w := self.worker(worker_id)) and w["want"] == want and w, f"{worker_id} is to {want}")


class SdkWorker:
    """The unmodified SDK worker in a process group of its own."""

    def __init__(self, endpoint, worker_id, kind, folder):
        self.id = worker_id
        base = f"{endpoint.url}/v2/local"
        home = folder / f"home-{worker_id}"
        home.mkdir()
        env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "IMGEN_"))}
        env |= {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?gpu=local",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?gpu=local",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_AI_API_KEY": WORKER_KEY,
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
            "HOME": str(home),
            "PYTHONWARNINGS": "ignore",
        }
        with (folder / f"{worker_id}.log").open("w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("workers.py")), kind],
                cwd=home,
                env=env,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.group = self.process.pid

    def ready(self, endpoint):
        """Wait until the worker polls, so that a test starts with its job and not with an import."""
        until(lambda: endpoint.worker(self.id), f"{self.id} polls")
        return self

    def kill_main(self):
        """kill -9 of the main process alone; its ping process lives on."""
        self.process.kill()
        self.process.wait(PATIENCE)

    def kill_group(self):
        try:
            os.killpg(self.group, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(PATIENCE)


class Receiver:
    """Takes webhooks and answers with the given statuses, then with 200."""

    def __init__(self, *statuses):
        self.statuses = list(statuses)
        self.bodies = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            # Headers and body are sent apart: otherwise each answer waits 40 ms for the client's acknowledgement.
            disable_nagle_algorithm = True

            def do_POST(self):
                receiver.bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                status = receiver.statuses.pop(0) if receiver.statuses else 200
                self.send_response(status)
                if status in {301, 302, 307, 308}:
                    self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook?token=t"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05})
        self.thread.start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()
