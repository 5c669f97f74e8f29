"""Fixtures of the endpoint's tests."""

from contextlib import AsyncExitStack

import httpx
import pytest

from handler.endpoint.app import LocalEndpoint
from handler.endpoint.settings import Settings
from tests.endpoint.rig import CLIENT_KEY, WORKER_KEY, EndpointProcess, Receiver, SdkWorker


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Clock:
    """A clock that the test moves."""

    def __init__(self):
        self.time = 1_800_000_000.0

    def __call__(self):
        return self.time

    def advance(self, seconds):
        self.time += seconds


class InProcess:
    """The endpoint in this process, with a clock that stands still and sweeps only when the test says so."""

    def __init__(self, folder, transport=None, clock=None, **settings):
        self.clock = clock or Clock()
        fast = {"hold_s": 0.05, "sweep_s": 3600.0, "webhook_retry_s": 10.0, **settings}
        self.settings = Settings(client_key=CLIENT_KEY, worker_key=WORKER_KEY, data=folder, **fast)
        numbers = iter(range(1, 100_000))
        self.endpoint = LocalEndpoint(
            self.settings, now=self.clock, new_id=lambda: f"job-{next(numbers)}-e1", transport=transport
        )
        asgi = httpx.ASGITransport(self.endpoint.app, raise_app_exceptions=False)
        headers = {"Authorization": f"Bearer {CLIENT_KEY}"}
        self.client = httpx.AsyncClient(transport=asgi, base_url="http://desk/v2/local", headers=headers)
        headers = {"Authorization": WORKER_KEY}
        self.worker = httpx.AsyncClient(transport=asgi, base_url="http://desk/v2/local", headers=headers)

    async def run(self, given=None, **more):
        answer = await self.client.post("/run", json={"input": given or {}, **more})
        assert answer.status_code == 200, answer.text
        return answer.json()["id"]

    async def status(self, job):
        answer = await self.client.get(f"/status/{job}")
        return answer.json() if answer.status_code == 200 else answer.status_code

    async def take(self, worker="w1", busy=0):
        answer = await self.worker.get(f"/job-take/{worker}?gpu=local&job_in_progress={busy}")
        return answer.json()["id"] if answer.status_code == 200 else answer.status_code

    async def done(self, worker, job, **body):
        answer = await self.worker.post(f"/job-done/{worker}/{job}?gpu=local&isStream=false", json=body)
        assert answer.status_code == 200, answer.text

    async def progress(self, worker, job, output):
        await self.done(worker, job, status="IN_PROGRESS", output=output)

    async def ping(self, worker, *jobs):
        params = {"job_id": ",".join(jobs)} if jobs else {}
        assert (await self.worker.get(f"/ping/{worker}", params=params)).status_code == 200

    async def stops(self, worker="w1"):
        answer = await self.worker.get(f"/job-stop/{worker}?gpu=local")
        return answer.json()["jobsToStop"] if answer.status_code == 200 else []

    async def desk(self, path, method="POST"):
        answer = await self.worker.request(method, f"http://desk/desk/workers{path}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def want(self, worker="w1"):
        return {each["id"]: each["want"] for each in await self.desk("", "GET")}.get(worker)

    async def later(self, seconds):
        """Let time pass and have the endpoint look at it."""
        self.clock.advance(seconds)
        await self.endpoint.leases.sweep()


@pytest.fixture
async def start(anyio_backend, tmp_path):
    """Starts endpoints in this process, one after the other or with other settings, on the same data folder."""
    async with AsyncExitStack() as stack:

        async def open_one(transport=None, clock=None, **settings):
            one = InProcess(tmp_path / "data", transport, clock, **settings)
            one.stack = await stack.enter_async_context(AsyncExitStack())
            await one.stack.enter_async_context(one.client)
            await one.stack.enter_async_context(one.worker)
            await one.stack.enter_async_context(one.endpoint.running())
            return one

        yield open_one


@pytest.fixture
async def desk(start):
    return await start()


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """An endpoint process and one SDK worker, for the tests that break neither."""
    folder = tmp_path_factory.mktemp("shared")
    endpoint = EndpointProcess(folder / "data").start()
    worker = SdkWorker(endpoint, "shared-1", "async", folder)
    try:
        worker.ready(endpoint)
        yield endpoint
    finally:
        worker.kill_group()
        endpoint.close()


@pytest.fixture
def process(tmp_path):
    """An endpoint process that the test may kill."""
    endpoint = EndpointProcess(tmp_path / "data").start()
    yield endpoint
    endpoint.close()


@pytest.fixture
def hire(tmp_path):
    """Starts SDK workers of a kind, and ends them and their ping processes after the test."""
    hired = []

    def start(endpoint, worker_id, kind="async"):
        hired.append(SdkWorker(endpoint, worker_id, kind, tmp_path))
        return hired[-1]

    yield start
    for worker in hired:
        worker.kill_group()


@pytest.fixture
def receive():
    """Starts webhook receivers."""
    receivers = []

    def start(*statuses):
        receivers.append(Receiver(*statuses))
        return receivers[-1]

    yield start
    for receiver in receivers:
        receiver.close()
