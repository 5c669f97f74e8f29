"""The operator is told over real HTTP: signed, again after a failure, and after a restart."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from structlog.testing import capture_logs

from gateway.core.images import Event
from gateway.core.operator import BACK_OFF, OperatorEvents
from gateway.errors import NotifierUnavailable, SettingsError
from gateway.webhooks import Webhook, signature, webhook_key
from tests.core.desk import Desk, Killed, open_desk

pytestmark = pytest.mark.anyio

KEY = bytes(range(32))
SECRET = "whsec_" + base64.b64encode(KEY).decode()
EVENT = Event(id="minors-g1-0", at=5000.5, kind="minors", body={"gen_id": "g1", "rules": ["minors.picture"]})


class Operator:
    """A web server that answers with the given statuses, then with 204."""

    def __init__(self) -> None:
        self.answers: list[int] = []
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.elsewhere = 0
        self.news = asyncio.Event()
        self.url = ""
        self.app = Starlette(
            routes=[
                Route("/hook", self._hook, methods=["POST"]),
                Route("/elsewhere", self._elsewhere, methods=["GET", "POST"]),
            ]
        )

    async def _hook(self, request: Request) -> Response:
        self.got.append((dict(request.headers), await request.body()))
        self.news.set()
        status = self.answers.pop(0) if self.answers else 204
        return Response(status_code=status, headers={"Location": "/elsewhere"})

    async def _elsewhere(self, request: Request) -> Response:
        self.elsewhere += 1
        return Response(status_code=204)

    async def heard(self, count: int) -> None:
        async with asyncio.timeout(20):
            while len(self.got) < count:
                self.news.clear()
                await self.news.wait()


@pytest.fixture
async def operator() -> AsyncIterator[Operator]:
    stand_in = Operator()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stand_in.url = f"http://127.0.0.1:{listener.getsockname()[1]}/hook"
        config = uvicorn.Config(stand_in.app, log_level="critical", lifespan="off", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            yield stand_in
        finally:
            server.should_exit = True
            await serving


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        yield opened


@asynccontextmanager
async def telling(desk: Desk, url: str) -> AsyncIterator[OperatorEvents]:
    webhook = Webhook(url, SECRET, now=desk.clock)
    async with webhook.open():
        yield OperatorEvents(desk.events, webhook, now=desk.clock, look_every=0.01)


async def test_an_event_arrives_signed(desk: Desk, operator: Operator) -> None:
    await desk.events.add(EVENT)
    async with telling(desk, operator.url) as events, events.running():
        await operator.heard(1)
    ((headers, body),) = operator.got
    assert json.loads(body) == {
        "type": "minors",
        "timestamp": "1970-01-01T01:23:20.500+00:00",
        "data": {"gen_id": "g1", "rules": ["minors.picture"]},
    }
    assert headers["content-type"] == "application/json"
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("minors-g1-0", "5000")
    said = b"minors-g1-0.5000." + body
    expected = base64.b64encode(hmac.new(KEY, said, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


def test_the_signature_is_that_of_the_standard() -> None:
    """The example of the specification's own libraries."""
    key = webhook_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    signed = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_a_delivered_event_is_told_once(desk: Desk, operator: Operator) -> None:
    await desk.events.add(EVENT)
    async with telling(desk, operator.url) as events:
        await events.deliver_due()
        desk.now += 10 * max(BACK_OFF)
        await events.deliver_due()
    assert len(operator.got) == 1


@pytest.mark.parametrize("failure", [500, 503, 404, 410, 302, 307])
async def test_what_is_no_success_is_tried_again_later_under_the_same_id(
    desk: Desk, operator: Operator, failure: int
) -> None:
    operator.answers = [failure]
    await desk.events.add(EVENT)
    async with telling(desk, operator.url) as events:
        with capture_logs() as logs:
            await events.deliver_due()
            await events.deliver_due()
        assert len(operator.got) == 1, "not at once"
        assert [line["error"] for line in logs] == [f"The operator's webhook answered {failure}"]
        desk.now += 10
        await events.deliver_due()
        desk.now += 10 * max(BACK_OFF)
        await events.deliver_due()
    assert [headers["webhook-id"] for headers, _ in operator.got] == [EVENT.id] * 2
    assert operator.elsewhere == 0, "no redirect is followed"


async def test_the_pauses_grow_to_hours_and_an_event_is_never_given_up(desk: Desk, operator: Operator) -> None:
    operator.answers = [500] * 12
    await desk.events.add(EVENT)
    pauses: list[float] = []
    async with telling(desk, operator.url) as events:
        for tries in range(12):
            await events.deliver_due()
            assert len(operator.got) == tries + 1
            began = desk.now
            while not await desk.events.due(now=desk.now, limit=1):
                desk.now += 1 + (desk.now - began) / 100
            pauses.append(desk.now - began)
        await events.deliver_due()
    assert len(operator.got) == 13
    for pause, expected in zip(pauses, [*BACK_OFF, *[BACK_OFF[-1]] * 5], strict=True):
        assert 0.7 * expected <= pause <= 1.4 * expected + 2


async def test_an_event_that_a_killed_process_wrote_is_delivered_by_the_next_one(
    tmp_path: Path, operator: Operator
) -> None:
    async with open_desk(tmp_path) as before:
        await before.events.add(EVENT)
    async with open_desk(tmp_path) as after, telling(after, operator.url) as events, events.running():
        await operator.heard(1)
    assert [headers["webhook-id"] for headers, _ in operator.got] == [EVENT.id]


async def test_a_process_that_dies_before_it_notes_the_delivery_delivers_again(desk: Desk, operator: Operator) -> None:
    await desk.events.add(EVENT)
    async with telling(desk, operator.url) as events:
        desk.database.left = 1
        with pytest.raises(Killed):
            await events.deliver_due()
        desk.database.left = None
        await events.deliver_due()
        assert len(operator.got) == 1
        desk.now += 10
        await events.deliver_due()
    assert [headers["webhook-id"] for headers, _ in operator.got] == [EVENT.id] * 2


async def test_replicas_share_the_work(desk: Desk, operator: Operator) -> None:
    for number in range(6):
        await desk.events.add(Event(id=f"e{number}", at=5000.0, kind="minors", body={}))
    async with telling(desk, operator.url) as one, telling(desk, operator.url) as other:
        await asyncio.gather(one.deliver_due(), other.deliver_due(), one.deliver_due())
    assert sorted(headers["webhook-id"] for headers, _ in operator.got) == [f"e{number}" for number in range(6)]


async def test_an_operator_who_is_away_does_not_stop_the_deliveries(desk: Desk, operator: Operator) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        closed = f"http://127.0.0.1:{nobody.getsockname()[1]}/hook"
    await desk.events.add(EVENT)
    async with telling(desk, closed) as events:
        with capture_logs() as logs:
            await events.deliver_due()
    assert [line["error"] for line in logs] == ["The operator's webhook does not answer: ConnectError"]
    desk.now += 10
    async with telling(desk, operator.url) as events:
        await events.deliver_due()
    assert len(operator.got) == 1


async def test_a_store_that_is_away_for_a_while_does_not_end_the_deliveries(tmp_path: Path, operator: Operator) -> None:
    async with open_desk(tmp_path) as desk:
        await desk.events.add(EVENT)
    # Closed: every look at it fails.
    with capture_logs() as logs:
        async with telling(desk, operator.url) as events, events.running(), asyncio.timeout(20):
            while "events wait" not in [line["event"] for line in logs]:
                await asyncio.sleep(0.005)
            async with desk.database.open():
                await operator.heard(1)
    assert len(operator.got) == 1


async def test_a_webhook_that_is_not_open_says_so() -> None:
    with pytest.raises(NotifierUnavailable):
        await Webhook("http://127.0.0.1:1/", SECRET, now=lambda: 1.0).send(EVENT)


@pytest.mark.parametrize(
    "secret",
    ["", "whsec_", "whsec_short", "whsec_" + "é" * 40, base64.b64encode(KEY).decode(), "whsec_" + "A" * 200],
    ids=["none", "empty", "short", "no-base64", "no-prefix", "long"],
)
def test_a_secret_that_is_none_is_refused_with_the_fix(secret: str) -> None:
    with pytest.raises(SettingsError) as caught:
        Webhook("http://127.0.0.1:1/", secret, now=lambda: 1.0)
    assert "openssl" in (caught.value.fix or "")


@pytest.mark.parametrize("fault", [httpx.ReadTimeout, httpx.ConnectTimeout, httpx.RemoteProtocolError])
async def test_an_operator_who_is_too_slow_or_talks_nonsense_was_not_told(fault: type[httpx.TransportError]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise fault("no")

    webhook = Webhook("http://operator/", SECRET, now=lambda: 1.0, transport=httpx.MockTransport(answer))
    async with webhook.open():
        with pytest.raises(NotifierUnavailable, match=fault.__name__):
            await webhook.send(EVENT)
