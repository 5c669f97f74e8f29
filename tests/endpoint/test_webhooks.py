"""Webhooks: every end of a job is told, tried again when it fails, and told after a restart too."""

import asyncio

import httpx
import pytest

pytestmark = pytest.mark.anyio

URL = "http://gateway/hook?token=t"


class Gateway:
    """Receives webhooks and answers with the given statuses, then with 200."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []
        self.transport = httpx.MockTransport(self.receive)

    def receive(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, headers={"Location": "http://elsewhere/"})

    async def got(self, count):
        async with asyncio.timeout(20):
            while len(self.requests) < count:
                await asyncio.sleep(0.005)


async def settled(desk):
    """Wait until no webhook is due any more."""
    async with asyncio.timeout(20):
        while await desk.endpoint.store.transact(lambda db: db.execute("SELECT 1 FROM webhooks").fetchone()):
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("status", ["COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT", "cancelled in the queue"])
async def test_every_end_is_told_with_the_body_of_status(start, status):
    gateway = Gateway()
    desk = await start(gateway.transport)
    job = await desk.run(webhook=URL)
    if status != "cancelled in the queue":
        await desk.take()
    if status == "COMPLETED":
        await desk.done("w1", job, output={"a": 1})
    elif status == "FAILED":
        await desk.done("w1", job, error="no")
    elif status == "TIMED_OUT":
        await desk.later(601)
    else:
        await desk.client.post(f"/cancel/{job}")
    await gateway.got(1)
    request = gateway.requests[0]
    assert (request.method, str(request.url)) == ("POST", URL)
    assert request.headers["content-type"] == "application/json"
    assert httpx.Response(200, content=request.content).json() == await desk.status(job)
    await settled(desk)


@pytest.mark.parametrize(
    "failure", [500, 404, 201, 307, httpx.ConnectError("refused"), httpx.ReadTimeout("slow")], ids=str
)
async def test_what_is_not_a_200_is_tried_twice_more_and_then_left(start, failure):
    gateway = Gateway(*[failure] * 5)
    desk = await start(gateway.transport, webhook_retry_s=0.01)
    job = await desk.run(webhook=URL)
    ticking = asyncio.create_task(tick(desk.clock))
    await desk.client.post(f"/cancel/{job}")
    await gateway.got(3)
    await settled(desk)
    ticking.cancel()
    assert len(gateway.requests) == 3
    assert {str(request.url) for request in gateway.requests} == {URL}


async def tick(clock):
    while True:
        await asyncio.sleep(0.005)
        clock.advance(0.01)


async def test_a_webhook_that_is_due_is_sent_after_a_restart_and_the_job_is_kept_for_it(start):
    deaf, gateway = Gateway(httpx.ConnectError("refused")), Gateway()
    before = await start(deaf.transport)
    job = await before.run(webhook=URL)
    await before.client.post(f"/cancel/{job}")
    await deaf.got(1)
    await before.stack.aclose()
    before.clock.advance(4000)
    after = await start(gateway.transport, clock=before.clock)
    await gateway.got(1)
    await settled(after)
    await after.later(0)
    assert await after.status(job) == 404


async def test_a_retry_takes_back_the_webhook_of_the_failure(start):
    gateway = Gateway(500)
    desk = await start(gateway.transport)
    job = await desk.run(webhook=URL)
    await desk.take()
    await desk.done("w1", job, error="no")
    await gateway.got(1)
    await desk.client.post(f"/retry/{job}")
    await settled(desk)
    assert await desk.take("w1") == job
    await desk.done("w1", job, output=1)
    await gateway.got(2)
    assert b"COMPLETED" in gateway.requests[1].content
