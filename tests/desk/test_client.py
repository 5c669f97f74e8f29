"""The client against a gateway that is a plain function."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from gateway.client import Client, ClientError, GatewayBusy, PictureBlocked, Progress, Ticket

TICKET = Ticket(id="run_1", prompt="@aya", model="eros")
IMAGES = [
    {"type": "thumbnail", "url": "http://files.test/t.jpg?sig=1", "filename": "t.jpg"},
    {"type": "signed", "url": "http://files.test/s.jpg?sig=1", "filename": "../../s.jpg"},
]
DONE = {"status": "COMPLETED", "compliance": "safe", "meta": {"images": IMAGES}}


def client(*answers: dict[str, Any] | httpx.Response | Exception) -> tuple[Client, list[httpx.Request]]:
    """A client whose gateway gives these answers, one by one."""
    left, seen = list(answers), list[httpx.Request]()

    def gateway(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer if isinstance(answer, httpx.Response) else httpx.Response(200, json=answer)

    return Client("http://gateway.test/", "the-key", transport=httpx.MockTransport(gateway)), seen


def test_only_fields_that_were_given_are_sent() -> None:
    api, seen = client({"id": "run_1", "prompt": "p", "model": "eros", "warnings": [{"code": "fallback"}]})
    ticket = api.generate("p", model=None, seed=7)
    assert ticket == Ticket(id="run_1", prompt="p", model="eros", warnings=({"code": "fallback"},))
    assert str(seen[0].url) == "http://gateway.test/api/v2"
    assert seen[0].headers["authorization"] == "Bearer the-key"
    assert json.loads(seen[0].content) == {"action": "generate", "prompt": "p", "seed": 7}


def test_a_job_is_deleted_by_its_id() -> None:
    gone = {"id": "run_1", "deleted": True, "status": "COMPLETED"}
    api, seen = client(gone, httpx.Response(404, json={"error": "Job not found", "retryable": False}))
    assert api.delete("run_1") == gone
    assert json.loads(seen[0].content) == {"action": "delete", "id": "run_1"}
    with pytest.raises(ClientError, match="Job not found"):
        api.delete("run_1")


def test_waiting_tells_every_step_and_ends_with_the_picture() -> None:
    api, seen = client(
        {"status": "IN_QUEUE"}, {"status": "IN_PROGRESS", "progress": {"step": 3, "total_steps": 14}}, DONE
    )
    steps: list[Progress] = []
    picture = api.wait(TICKET, steps.append, every=0)
    assert steps == [Progress(status="IN_QUEUE"), Progress(status="IN_PROGRESS", step=3, total_steps=14)]
    assert picture.files[0].url == "http://files.test/s.jpg?sig=1"
    assert picture.files[0].filename == "s.jpg", "a file name never leaves the folder"
    assert json.loads(seen[0].content) == {"action": "status", "id": "run_1", "prompt": "@aya", "model": "eros"}


def test_the_key_is_not_sent_to_where_the_picture_lies() -> None:
    api, seen = client(DONE, httpx.Response(200, content=b"picture"))
    assert api.download(api.wait(TICKET).files[0]) == b"picture"
    assert "authorization" not in seen[1].headers


def test_a_blocked_picture_says_why() -> None:
    api, _ = client(
        {
            "status": "COMPLETED",
            "compliance": "unsafe",
            "error": "Content blocked — flagged for: Weapons",
            "filter_categories": ["weapons-1"],
        }
    )
    with pytest.raises(PictureBlocked, match="flagged for: Weapons") as blocked:
        api.wait(TICKET)
    assert blocked.value.categories == ("weapons-1",)


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "CANCELLED"])
def test_an_end_without_a_picture_is_an_error(status: str) -> None:
    api, _ = client({"status": status, "error": "Generation failed"})
    with pytest.raises(ClientError, match=rf"Generation failed \({status}\)"):
        api.wait(TICKET)


@pytest.mark.parametrize(
    "hiccup",
    [
        pytest.param(lambda: httpx.ConnectError("refused"), id="no-connection"),
        pytest.param(lambda: httpx.Response(503, json={"error": "Temporarily unavailable"}), id="503"),
        pytest.param(lambda: httpx.Response(429, json={"error": "slow down", "retryable": True}), id="retryable"),
    ],
)
def test_a_gateway_that_is_away_for_a_moment_is_asked_again(hiccup: Callable[[], Any]) -> None:
    api, seen = client(hiccup(), hiccup(), DONE)
    assert api.wait(TICKET, every=0).meta["images"]
    assert len(seen) == 3


def test_a_gateway_that_stays_away_is_given_up() -> None:
    api, seen = client(*[httpx.ConnectError("refused")] * 9)
    with pytest.raises(GatewayBusy, match=r"Nobody answers at http://gateway\.test"):
        api.wait(TICKET, every=0)
    assert len(seen) == 6


def test_a_refusal_is_not_repeated() -> None:
    refusal = {"error": "Invalid API key", "fix": "Check the key.", "retryable": False}
    api, seen = client(httpx.Response(401, json=refusal))
    with pytest.raises(ClientError, match="Invalid API key") as refused:
        api.wait(TICKET)
    assert refused.value.fix == "Check the key."
    assert len(seen) == 1


def test_something_that_is_no_gateway_is_named() -> None:
    api, _ = client(httpx.Response(200, text="<html>"))
    with pytest.raises(ClientError, match="does not speak the Imgen API"):
        api.models()


def test_an_address_that_has_expired_is_an_error_without_the_address() -> None:
    api, _ = client(DONE, httpx.Response(403, json={"error": "expired"}))
    with pytest.raises(ClientError, match="HTTP 403") as failed:
        api.download(api.wait(TICKET).files[0])
    assert "sig=" not in failed.value.message


def test_waiting_has_an_end() -> None:
    api, _ = client(*[{"status": "IN_QUEUE"}] * 1000)
    with pytest.raises(ClientError, match=r"did not end within 0\.05 seconds"):
        api.wait(TICKET, every=0.01, timeout=0.05)
