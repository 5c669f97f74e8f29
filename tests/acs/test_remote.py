"""A compliance service that is away, broken, slow or lying: never a verdict that lets a picture through."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import orjson
import pytest
import stamina
import structlog
from hypothesis import given
from hypothesis import strategies as st

from compliance.errors import BrokenRender, ReviewUnavailable
from compliance.panel import Panel
from compliance.reviewers.words import Words
from compliance.service import create_app
from gateway.acs.answers import rulesets_in, verdict_in
from gateway.acs.remote import RemoteCompliance
from tests.acs.rig import BUG, KEY, KNOWN, PATIENCE, PLAIN, RED, SLOW, AcsProcess, picture, timeless, words

pytestmark = pytest.mark.anyio

RULESETS = {"rulesets": [{"name": name, "version": "v1"} for name in ("default", "colours")]}
MINORS = words("nude child")


@pytest.fixture(autouse=True)
def no_pause_between_attempts() -> Iterator[None]:
    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture
def reach(minors: Words) -> Callable[..., Any]:
    """Opens the adapter over a transport or an address."""

    @asynccontextmanager
    async def opened(
        to: httpx.AsyncBaseTransport | str, *, key: str = KEY, timeout: float = 20
    ) -> AsyncIterator[RemoteCompliance]:
        url, transport = (to, None) if isinstance(to, str) else ("http://acs.test", to)
        compliance = RemoteCompliance(url, key, minors=minors, timeout=timeout, transport=transport)
        async with compliance.open():
            yield compliance

    return opened


def service(answer: Callable[[dict[str, Any]], httpx.Response]) -> httpx.MockTransport:
    """A service that answers questions as the test says."""

    def handle(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/rulesets":
            return httpx.Response(200, json=RULESETS)
        return answer(orjson.loads(request.content))

    return httpx.MockTransport(handle)


def asking(compliance: RemoteCompliance) -> list[Callable[[], Any]]:
    """One question of each kind."""
    return [
        lambda: compliance.gate(words(), "default"),
        lambda: compliance.upload(PLAIN, "default"),
        lambda: compliance.review(PLAIN, words(), "default"),
    ]


async def refuses_to_answer(compliance: RemoteCompliance) -> list[ReviewUnavailable]:
    """Whatever is asked, there is no verdict; the errors."""
    errors = []
    for ask in asking(compliance):
        with pytest.raises(ReviewUnavailable) as caught:
            await ask()
        assert caught.value.message and caught.value.fix
        errors.append(caught.value)
    return errors


def true_answer(panel: Panel, question: dict[str, Any]) -> dict[str, Any]:
    """What an honest service says."""
    context = words()
    match question["stage"]:
        case "gate":
            verdict = panel.gate(context, "default")
        case "upload":
            verdict = panel.upload(PLAIN, "default")
        case _:
            verdict = panel.review(PLAIN, context, "default")
    return {"verdict": verdict.as_dict(), "sha256": question.get("sha256"), "request_id": "acs_1"}


REASON = {
    "rule": "gore",
    "category": "GORE",
    "name": "Gore",
    "action": "block",
    "seen_in": "picture",
    "reviewer": "judge",
    "label": "gore",
    "score": 0.9,
    "threshold": 0.5,
}
ABOUT_MINORS = {"safe": False, "codes": ["minors.prompt"], "minors": True, "releasable": False}


# Answers that are no verdict.


async def test_an_honest_answer_is_taken(reach: Any, panel: Panel) -> None:
    async with reach(service(lambda question: httpx.Response(200, json=true_answer(panel, question)))) as compliance:
        for ask in asking(compliance):
            assert (await ask()).safe


@pytest.mark.parametrize(
    "lie",
    [
        pytest.param({"ruleset": "colours"}, id="another-ruleset"),
        pytest.param({"ruleset_version": ""}, id="no-version"),
        pytest.param({"codes": ["gore"]}, id="safe-with-codes"),
        pytest.param({"safe": False}, id="blocked-without-codes"),
        pytest.param({"reasons": [REASON]}, id="safe-with-a-blocking-reason"),
        pytest.param({"minors": True, "releasable": False}, id="safe-about-minors"),
        pytest.param(ABOUT_MINORS | {"releasable": True}, id="releasable-about-minors"),
        pytest.param(ABOUT_MINORS | {"minors": False}, id="minors-unsaid"),
        pytest.param({"safe": False, "codes": ["gore"], "reasons": [REASON | {"rule": "red"}]}, id="reason-unlisted"),
        pytest.param({"safe": 1}, id="safe-is-a-number"),
        pytest.param({"safe": "true"}, id="safe-is-text"),
        pytest.param({"safe": None}, id="safe-is-null"),
        pytest.param({"codes": ""}, id="codes-are-text"),
        pytest.param({"codes": None}, id="codes-are-null"),
        pytest.param({"scores": {"a": 7}}, id="score-of-7"),
        pytest.param({"scores": {"a": None}}, id="score-is-null"),
        pytest.param({"reasons": [REASON | {"action": "flag", "score": "high"}]}, id="reason-with-a-word-for-a-score"),
        pytest.param({"reasons": [{}]}, id="empty-reason"),
    ],
)
async def test_a_verdict_that_contradicts_itself_is_none(reach: Any, panel: Panel, lie: dict[str, Any]) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        said = true_answer(panel, question)
        return httpx.Response(200, json={**said, "verdict": said["verdict"] | lie})

    async with reach(service(answer)) as compliance:
        await refuses_to_answer(compliance)


@pytest.mark.parametrize(
    "name", ["safe", "ruleset", "ruleset_version", "codes", "releasable", "minors", "reasons", "reviewer"]
)
async def test_a_verdict_that_leaves_something_out_is_none(reach: Any, panel: Panel, name: str) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        said = true_answer(panel, question)
        del said["verdict"][name]
        return httpx.Response(200, json=said)

    async with reach(service(answer)) as compliance:
        await refuses_to_answer(compliance)


async def test_a_verdict_of_nobody_is_none_but_for_an_upload(reach: Any, panel: Panel) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        said = true_answer(panel, question)
        return httpx.Response(200, json={**said, "verdict": said["verdict"] | {"asked": []}})

    async with reach(service(answer)) as compliance:
        gate, upload, review = asking(compliance)
        assert (await upload()).safe
        for ask in (gate, review):
            with pytest.raises(ReviewUnavailable):
                await ask()


@pytest.mark.parametrize("sha256", ["", "0" * 64, KNOWN.sha256, 7], ids=["empty", "zeros", "of-another", "number"])
async def test_a_verdict_about_another_picture_is_none(reach: Any, panel: Panel, sha256: Any) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        return httpx.Response(200, json=true_answer(panel, question) | {"sha256": sha256})

    async with reach(service(answer)) as compliance:
        await refuses_to_answer(compliance)


BODIES = {
    "empty": b"",
    "null": b"null",
    "list": b"[]",
    "no-verdict": b"{}",
    "null-verdict": b'{"verdict": null}',
    "list-verdict": b'{"verdict": [true]}',
    "truncated": b'{"verdict": {"safe": true, "ruleset": "default", "rules',
    "page": b"<html>It works!</html>",
    "binary": b"\x89PNG\r\n\x1a\n\xff\x00",
    "far-too-much": b" " * 5_000_000,
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
async def test_garbage_is_no_verdict(reach: Any, body: bytes) -> None:
    async with reach(service(lambda question: httpx.Response(200, content=body))) as compliance:
        await refuses_to_answer(compliance)


@pytest.mark.parametrize(
    "status", [201, 202, 204, 301, 302, 307, 308, 400, 401, 403, 404, 409, 413, 422, 429, 500, 502, 503, 504]
)
async def test_a_status_other_than_200_is_no_verdict_whatever_it_says(reach: Any, panel: Panel, status: int) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        # A redirect would lead to the honest answer; nobody may go there with our key and somebody's picture.
        headers = {"location": "http://elsewhere.test/v1/review"}
        return httpx.Response(status, json=true_answer(panel, question), headers=headers)

    asked: list[httpx.URL] = []

    class Seen(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.url)
            return await service(answer).handle_async_request(request)

    async with reach(Seen()) as compliance:
        await refuses_to_answer(compliance)
    assert {url.host for url in asked} == {"acs.test"}


@given(
    body=st.one_of(
        st.binary(max_size=200),
        st.recursive(
            st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=8),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(
                    st.sampled_from(["verdict", "rulesets", "safe", "codes", "name", "version", "ruleset"]), inner
                )
            ),
            max_leaves=12,
        ).map(orjson.dumps),
    )
)
def test_no_made_up_answer_reads_as_a_verdict_or_breaks_the_reader(body: bytes) -> None:
    for read in (lambda: verdict_in(body, "default"), lambda: rulesets_in(body)):
        try:
            found = read()
        except ValueError:
            continue
        # Only a list of rulesets is short enough to be hit by chance.
        assert isinstance(found, dict) and found


async def test_only_a_review_can_end_in_a_broken_render(reach: Any) -> None:
    said = {"error": "The picture shows a single colour.", "code": "broken_render"}
    async with reach(service(lambda question: httpx.Response(422, json=said))) as compliance:
        gate, upload, review = asking(compliance)
        with pytest.raises(BrokenRender, match="single colour"):
            await review()
        for ask in (gate, upload):
            with pytest.raises(ReviewUnavailable):
                await ask()


async def test_a_bug_in_a_reviewer_is_no_verdict(reach: Any, acs_process: AcsProcess) -> None:
    async with reach(acs_process.url) as compliance:
        with pytest.raises(ReviewUnavailable) as caught:
            await compliance.review(picture(corner=BUG), words(), "colours")
    assert "/srv" not in str(caught.value)


# The words about minors.


async def test_a_service_that_calls_minors_safe_is_overruled(reach: Any, panel: Panel) -> None:
    async with reach(service(lambda question: httpx.Response(200, json=true_answer(panel, question)))) as compliance:
        for verdict in (await compliance.gate(MINORS, "default"), await compliance.review(PLAIN, MINORS, "default")):
            assert (verdict.safe, verdict.minors, verdict.releasable) == (False, True, False)
            assert verdict.codes == ("minors.prompt",)
            assert [reason.rule for reason in verdict.reasons] == ["minors.prompt"]
            assert verdict.categories == ("Sexual content involving minors",)
            assert verdict.reviewer.endswith("+text")


async def test_what_the_service_found_stays_beside_what_is_found_here(reach: Any, panel: Panel) -> None:
    def answer(question: dict[str, Any]) -> httpx.Response:
        return httpx.Response(
            200,
            json={"verdict": panel.review(RED, words(), "colours").as_dict(), "sha256": question["sha256"]},
        )

    async with reach(service(answer)) as compliance:
        verdict = await compliance.review(RED, MINORS, "colours")
    assert verdict.codes == ("minors.prompt", "red")
    assert verdict.categories == ("Sexual content involving minors", "Too much red")
    assert verdict.minors and not verdict.releasable
    assert verdict.scores["builtin.picture.red"] > 0.6 and verdict.scores["text.prompt.MINORS"] == 1


async def test_minors_are_refused_while_the_service_is_away(reach: Any) -> None:
    async with reach(httpx.MockTransport(lambda request: httpx.Response(503))) as compliance:
        verdict = await compliance.gate(MINORS, "default")
        assert (verdict.safe, verdict.minors, verdict.codes) == (False, True, ("minors.prompt",))
        assert verdict.ruleset_version
        with pytest.raises(ReviewUnavailable):
            await compliance.review(PLAIN, MINORS, "default")


# Away, and there again.


async def test_a_service_that_is_away_at_the_start_is_found_later(reach: Any, panel: Panel) -> None:
    up = False

    def handle(request: httpx.Request) -> httpx.Response:
        if not up:
            raise httpx.ConnectError("refused", request=request)
        return service(lambda q: httpx.Response(200, json=true_answer(panel, q))).handler(request)

    async with reach(httpx.MockTransport(handle)) as compliance:
        assert compliance.rulesets == {}
        readiness = await compliance.readiness()
        assert not readiness.ready and "does not answer" in readiness.reason
        await refuses_to_answer(compliance)
        up = True
        # Nobody asks anything: it is looked for in the background.
        with anyio.fail_after(PATIENCE):
            while not compliance.rulesets:
                await anyio.sleep(0.05)
        assert compliance.rulesets == {"default": "v1", "colours": "v1"}
        assert (await compliance.readiness()).ready
        up = False
        assert not (await compliance.readiness()).ready
        assert compliance.rulesets == {"default": "v1", "colours": "v1"}


@pytest.mark.parametrize("told", [{}, {"rulesets": []}, {"rulesets": [{"name": "default"}]}, [1], {"rulesets": {}}])
async def test_rulesets_that_do_not_read_are_not_known(reach: Any, told: Any) -> None:
    async with reach(httpx.MockTransport(lambda request: httpx.Response(200, json=told))) as compliance:
        assert compliance.rulesets == {}
        assert not (await compliance.readiness()).ready


async def test_a_new_version_of_a_ruleset_is_known_from_its_first_verdict(reach: Any, panel: Panel) -> None:
    async with reach(service(lambda question: httpx.Response(200, json=true_answer(panel, question)))) as compliance:
        assert compliance.rulesets["default"] == "v1"
        await compliance.gate(words(), "default")
        assert compliance.rulesets == {"default": panel.rulesets["default"].version, "colours": "v1"}


async def test_a_wrong_key_says_how_to_mend_it(reach: Any, panel: Panel) -> None:
    app = create_app(panel, key=KEY, threads=1)
    async with reach(httpx.ASGITransport(app), key="another-key-altogether") as compliance:
        errors = await refuses_to_answer(compliance)
        assert all("IMGEN_ACS_KEY" in error.fix for error in errors)
        assert "key" in (await compliance.readiness()).reason
        assert compliance.rulesets == {}


async def test_the_request_id_goes_along(reach: Any, panel: Panel) -> None:
    seen = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("x-request-id"))
        return service(lambda q: httpx.Response(200, json=true_answer(panel, q))).handler(request)

    async with reach(httpx.MockTransport(handle)) as compliance:
        with structlog.contextvars.bound_contextvars(request_id="req_0123456789"):
            await compliance.gate(words(), "default")
    assert seen == [None, "req_0123456789"]


async def test_a_proxy_s_fault_is_tried_again_at_once_and_the_service_s_own_is_not(reach: Any, panel: Panel) -> None:
    asked = []

    def answer(question: dict[str, Any]) -> httpx.Response:
        asked.append(question["stage"])
        if question["stage"] == "gate" and len(asked) < 3:
            return httpx.Response(503, text="no healthy upstream")
        if question["stage"] == "gate":
            return httpx.Response(200, json=true_answer(panel, question))
        return httpx.Response(503, json={"error": "The review gave no verdict.", "code": "compliance_unavailable"})

    async with reach(service(answer)) as compliance:
        assert (await compliance.gate(words(), "default")).safe
        with pytest.raises(ReviewUnavailable, match="no verdict now"):
            await compliance.review(PLAIN, words(), "default")
    assert asked == ["gate", "gate", "gate", "review"]


# Real sockets.


@asynccontextmanager
async def speaking(answer: bytes | None) -> AsyncIterator[str]:
    """A server that says these bytes to everybody and hangs up, or says nothing at all."""

    async def handle(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive()
            if answer is None:
                await anyio.sleep_forever()
            await stream.send(answer)

    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, handle)
        yield f"http://127.0.0.1:{port}"
        tasks.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"", id="hangs-up"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n\r\n", id="another-protocol"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{", id="stops-in-the-middle"),
        pytest.param(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{", id="bad-chunks"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}", id="not-gzip"),
        pytest.param(b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", id="redirect"),
    ],
)
async def test_a_broken_connection_is_no_verdict(reach: Any, answer: bytes) -> None:
    async with speaking(answer) as url, reach(url, timeout=4) as compliance:
        await refuses_to_answer(compliance)


async def test_a_service_that_says_nothing_is_given_up(reach: Any) -> None:
    async with speaking(None) as url, reach(url, timeout=0.2) as compliance:
        await refuses_to_answer(compliance)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no.such.host.invalid", "http://[", "http://a b"])
async def test_an_address_where_nobody_is_is_no_verdict(reach: Any, url: str) -> None:
    async with reach(url, timeout=4) as compliance:
        assert not (await compliance.readiness()).ready
        await refuses_to_answer(compliance)


async def test_a_service_that_dies_in_the_middle_gives_no_verdict_and_the_next_one_does(
    reach: Any, panel: Panel, own_process: AcsProcess
) -> None:
    async with reach(own_process.url, timeout=PATIENCE) as compliance:
        ended: list[BaseException] = []

        async def review_that_ends_badly() -> None:
            with pytest.raises(ReviewUnavailable) as caught:
                await compliance.review(picture(corner=SLOW), words(), "colours")
            ended.append(caught.value)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(review_that_ends_badly)
            with anyio.fail_after(PATIENCE):
                while not (own_process.folder / "reviewing").exists():
                    await anyio.sleep(0.05)
            own_process.kill()
        assert len(ended) == 1
        await refuses_to_answer(compliance)
        assert not (await compliance.readiness()).ready

        await anyio.to_thread.run_sync(own_process.start)
        assert (await compliance.readiness()).ready
        assert timeless(await compliance.review(RED, words(), "colours")) == timeless(
            panel.review(RED, words(), "colours")
        )


async def test_a_service_that_is_asked_to_stop_ends_in_order_though_a_reviewer_hangs(
    reach: Any, own_process: AcsProcess
) -> None:
    async with reach(own_process.url, timeout=PATIENCE) as compliance:
        assert (await compliance.review(PLAIN, words(), "colours")).safe

        async def review_that_ends_badly() -> None:
            with pytest.raises(ReviewUnavailable):
                await compliance.review(picture(corner=SLOW), words(), "colours")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(review_that_ends_badly)
            with anyio.fail_after(PATIENCE):
                while not (own_process.folder / "reviewing").exists():
                    await anyio.sleep(0.05)
            assert await anyio.to_thread.run_sync(own_process.stop) == 0
        await refuses_to_answer(compliance)
