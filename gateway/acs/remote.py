"""`RemoteCompliance`: the reviewers in a service of their own (`imgen acs`), asked over HTTP.

Whatever goes wrong on the way is `ReviewUnavailable`: no answer, an answer that is no verdict, one about another
ruleset. The word rules about minors are read here too, so that no service can let through what they forbid.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, replace
from typing import Any

import anyio
import anyio.to_thread
import httpx
import orjson
import stamina
import structlog
from aiohttp import ClientError
from httpx_aiohttp import AiohttpTransport

from compliance.errors import BrokenRender, ReviewUnavailable
from compliance.picture import Raw
from compliance.review import Context, decide
from compliance.reviewers.words import Words
from compliance.rulesets import MINORS_FILE, Ruleset, content_version, standing_rules
from compliance.verdict import Asked, Verdict
from gateway.acs.answers import fault_in, rulesets_in, verdict_in
from gateway.acs.local import SHORT
from gateway.core.images import Readiness

log = structlog.get_logger(__name__)

#: Seconds for what a caller waits for: the words of a prompt, and the list of rulesets.
QUICK = 5.0
#: Seconds between two looks at the rulesets: when they are known, and when they are not yet.
LOOK_AGAIN = 30.0
LOOK_SOON = 1.0
_MAX_ANSWER = 4 * 1024 * 1024
_LIMITS = httpx.Limits(max_connections=128, max_keepalive_connections=32, keepalive_expiry=30)
_BUSY = frozenset({429, 502, 503, 504})


class _TryAgain(Exception):
    """The service did not take the question; asking once more does no harm."""


class RemoteCompliance:
    """The port `Compliance` over one service, or several behind one address. Open it with `open` before use.

    `minors` reads prompts here, in front of the service. `timeout` is in seconds, for one review with all its
    attempts. A ruleset is known once the service has answered; until then `rulesets` is empty.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        minors: Words,
        timeout: float,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._url = url.rstrip("/")
        self._key = key
        self._words = minors
        self._rules = tuple(rule for rule in standing_rules() if rule.minors)
        self._rules_version = content_version(MINORS_FILE)
        self._timeout = timeout
        self._transport = transport
        self._client: httpx.AsyncClient | None = None
        self._known: dict[str, str] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """A service that is away does not stop the start: `readiness` says so, and it is looked for all the while."""
        transport = self._transport or AiohttpTransport(limits=_LIMITS, trust_env=False)
        async with httpx.AsyncClient(
            transport=transport,
            headers={"Authorization": f"Bearer {self._key}", "Accept-Encoding": "identity"},
            timeout=httpx.Timeout(self._timeout, connect=min(3, self._timeout)),
            follow_redirects=False,
            trust_env=False,
        ) as client:
            self._client = client
            await self._look()
            looking = asyncio.create_task(self._look_for_ever())
            try:
                yield
            finally:
                looking.cancel()
                await asyncio.gather(looking, return_exceptions=True)
                self._client = None

    # The port

    @property
    def rulesets(self) -> Mapping[str, str]:
        """As the service last told them; empty until it has."""
        return self._known

    async def gate(self, context: Context, ruleset: str) -> Verdict:
        here = await self._minors(context, ruleset)
        try:
            there = await self._ask("gate", {"ruleset": ruleset, "context": asdict(context)}, None)
        except ReviewUnavailable:
            if here.safe:
                raise
            # Nothing that the service could say would allow this.
            return here
        return _joined(here, there)

    async def upload(self, picture: Raw, ruleset: str) -> Verdict:
        return await self._ask("upload", {"ruleset": ruleset}, picture)

    async def review(self, picture: Raw, context: Context, ruleset: str) -> Verdict:
        there = await self._ask("review", {"ruleset": ruleset, "context": asdict(context)}, picture)
        return _joined(await self._minors(context, ruleset), there)

    async def readiness(self) -> Readiness:
        return Readiness(ready=True) if not (problem := await self._look()) else Readiness(ready=False, reason=problem)

    # The word rules here

    async def _minors(self, context: Context, ruleset: str) -> Verdict:
        """What the rules about minors, and only those, say of the words."""
        if len(context.positive) + len(context.negative) <= SHORT:
            opinion = self._words.read(context)
        else:
            opinion = await anyio.to_thread.run_sync(self._words.read, context)
        version = self._known.get(ruleset, self._rules_version)
        rules = Ruleset(name=ruleset, title="", version=version, rules=self._rules)
        asked = Asked(name=self._words.name, version=self._words.version)
        return decide({self._words.name: opinion}, [asked], context.tier, rules.at_the_gate())

    # The wire

    async def _look(self) -> str:
        """Learn the rulesets. What is wrong, in a sentence, when that fails; they stay as they were then."""
        try:
            self._known = rulesets_in(await self._call("GET", "/v1/rulesets", None, min(QUICK, self._timeout)))
        except ReviewUnavailable as exc:
            return exc.message[:1].lower() + exc.message[1:].rstrip(".")
        except (ValueError, BrokenRender):
            return "the compliance service does not tell its rulesets; check IMGEN_ACS_URL"
        return ""

    async def _look_for_ever(self) -> None:
        while True:
            await anyio.sleep(LOOK_AGAIN if self._known else LOOK_SOON)
            try:
                await self._look()
            except Exception:
                # A look that fails in a way that nobody foresaw must not be the last one.
                log.exception("look at the compliance service failed")

    async def _ask(self, stage: str, question: Mapping[str, Any], picture: Raw | None) -> Verdict:
        question, ruleset = {"stage": stage, **question}, question["ruleset"]
        body = await anyio.to_thread.run_sync(_body, question, picture) if picture else _body(question, None)
        seconds = min(QUICK, self._timeout) if stage == "gate" else self._timeout
        try:
            answer = await self._call("POST", "/v1/review", body, seconds)
        except BrokenRender as exc:
            if stage == "review":
                raise
            raise ReviewUnavailable("The compliance service speaks of a render where there is none.") from exc
        try:
            verdict = verdict_in(answer, ruleset, sha256=picture.sha256 if picture else "", by_nobody=stage == "upload")
        except ValueError as exc:
            log.error("compliance service gave no verdict", error=_first_line(exc))
            raise ReviewUnavailable(
                "The compliance service answered something that is no verdict.",
                fix="Check IMGEN_ACS_URL, and that both sides have the same version of imgen.",
            ) from exc
        if self._known.get(ruleset, verdict.ruleset_version) != verdict.ruleset_version:
            self._known = {**self._known, ruleset: verdict.ruleset_version}
        return verdict

    async def _call(self, method: str, path: str, content: bytes | None, seconds: float) -> bytes:
        """One question, asked up to three times within so many seconds. Raises ReviewUnavailable and BrokenRender."""
        assert self._client is not None, "open() comes first"
        again = (_TryAgain, httpx.TransportError, ClientError)
        try:
            with anyio.fail_after(seconds):
                async for attempt in stamina.retry_context(
                    on=again, attempts=3, timeout=seconds, wait_initial=0.1, wait_max=1, wait_jitter=0.2
                ):
                    with attempt:
                        return await self._send(method, path, content)
        except (_TryAgain, TimeoutError, httpx.HTTPError, httpx.InvalidURL, ClientError) as exc:
            log.warning("compliance service unavailable", path=path, error=_first_line(exc) or type(exc).__name__)
            raise ReviewUnavailable(
                "The compliance service does not answer.",
                fix="Check that imgen acs runs at IMGEN_ACS_URL; IMGEN_ACS_TIMEOUT is how long it may take.",
            ) from exc
        raise AssertionError("unreachable")

    async def _send(self, method: str, path: str, content: bytes | None) -> bytes:
        assert self._client is not None
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if request_id := structlog.contextvars.get_contextvars().get("request_id"):
            headers["X-Request-ID"] = str(request_id)
        async with self._client.stream(method, self._url + path, content=content, headers=headers) as response:
            body = bytearray()
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > _MAX_ANSWER:
                    fix = "Check IMGEN_ACS_URL: it is another program."
                    raise ReviewUnavailable("The compliance service answered far too much.", fix=fix)
        if response.status_code == 200:
            return bytes(body)
        code, sentence = fault_in(bytes(body))
        # Its reviewers have had their own attempts by then, and it asks for a pause: that is up to whoever asks us.
        if response.status_code in _BUSY and code != ReviewUnavailable.code:
            raise _TryAgain(f"status {response.status_code}")
        raise _refused(response.status_code, code, sentence)


def _refused(status: int, code: str, sentence: str) -> Exception:
    """What an answer that is neither a verdict nor a pause means. Only a broken render is about the picture."""
    if status == 422 and code == BrokenRender.code:
        return BrokenRender(sentence)
    log.error("compliance service refused", status=status, code=code, error=sentence)
    match status, code:
        case ((401 | 403), _):
            fix = "Give both sides the same IMGEN_ACS_KEY."
            return ReviewUnavailable("The compliance service refuses our key.", fix=fix)
        case 404, "unknown_ruleset":
            fix = "Give it the ruleset's file in its IMGEN_RULESETS."
            return ReviewUnavailable("The compliance service does not have this ruleset.", fix=fix)
        case _, ReviewUnavailable.code:
            fix = "Its log has the reason under this request's id; the next attempt may succeed."
            return ReviewUnavailable("The compliance service has no verdict now.", fix=fix)
        case _, _:
            fix = "Check IMGEN_ACS_URL; the service's log has more."
            return ReviewUnavailable(f"The compliance service answered with status {status}.", fix=fix)


def _body(question: Mapping[str, Any], picture: Raw | None) -> bytes:
    shown = {} if picture is None else {"sha256": picture.sha256, "picture": base64.b64encode(picture.data).decode()}
    return orjson.dumps({**question, **shown})


def _joined(here: Verdict, there: Verdict) -> Verdict:
    """The service's verdict, and what the words alone forbid here. Where it has found that as well, it stands."""
    if here.safe or {*here.codes} <= {*there.codes}:
        return there
    own = tuple(reason for reason in here.reasons if reason.rule not in there.codes)
    return replace(
        there,
        safe=False,
        codes=(*(reason.rule for reason in own), *there.codes),
        categories=tuple(dict.fromkeys((*here.categories, *there.categories))),
        releasable=False,
        minors=True,
        scores={**there.scores, **here.scores},
        reasons=(*own, *there.reasons),
        reviewer=f"{there.reviewer}+{here.reviewer}",
        reviewer_version=f"{there.reviewer_version}+{here.reviewer_version}",
        asked=(*there.asked, *here.asked),
    )


def _first_line(exc: Exception) -> str:
    return str(exc).partition("\n")[0][:200]
