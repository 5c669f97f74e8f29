"""The routes of the service, and which fault each error of the library is.

Nothing is kept between two calls, so that any number of these can stand behind one address.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import structlog
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from compliance.errors import BrokenRender, PictureRefused, ReviewUnavailable
from compliance.panel import Panel
from compliance.rulesets import Ruleset
from compliance.service import faults
from compliance.service.faults import Fault, Json
from compliance.service.questions import MAX_BODY, Question, read_question
from compliance.verdict import Verdict

log = structlog.get_logger(__name__)
_T = TypeVar("_T")

#: Questions about pictures that may wait for each thread: one more would outlive the patience of whoever asks.
WAITING = 16
#: Characters of a prompt that are read on the spot: the way to a thread and back would cost more than the reading.
SHORT = 600
_PLAIN = re.compile(rb"[A-Za-z0-9._-]{8,64}")


def create_app(panel: Panel, *, key: str, threads: int) -> Starlette:
    """The service over a panel. `key` is what callers of /v1/* must show, `threads` how many pictures are reviewed at
    the same time. Raises ValueError without a key.
    """
    if not key:
        raise ValueError("the service needs a key")
    service = _Service(panel, key, threads)
    return Starlette(
        routes=[
            Route("/healthz", service.healthz),
            Route("/readyz", service.readyz),
            Route("/v1/rulesets", service.rulesets),
            Route("/v1/review", service.review, methods=["POST"]),
        ],
        middleware=[Middleware(_RequestId)],
        exception_handlers={Fault: _told, HTTPException: _told, ClientDisconnect: _gone, Exception: _told},
    )


class _Service:
    def __init__(self, panel: Panel, key: str, threads: int) -> None:
        self._panel = panel
        self._key = _digest(key)
        self._threads = threads
        self._limiter = anyio.CapacityLimiter(threads)
        self._slots = anyio.Semaphore(threads)

    async def healthz(self, request: Request) -> Response:
        return Json({"status": "ok"})

    async def readyz(self, request: Request) -> Response:
        missing = ["time: more questions wait than can be answered soon"] if self._crowded else []
        return Json({"ready": not missing, "missing": missing}, 503 if missing else 200)

    async def rulesets(self, request: Request) -> Response:
        self._admit(request)
        return Json(
            {
                "rulesets": [_described(ruleset) for ruleset in self._panel.rulesets.values()],
                "reviewers": [
                    {
                        "name": each.name,
                        "version": each.version,
                        "labels": None if each.labels is None else sorted(each.labels),
                    }
                    for each in self._panel.reviewers
                ],
                "request_id": _request_id(request),
            }
        )

    async def review(self, request: Request) -> Response:
        self._admit(request)
        body = await _read(request)
        # A large body is a picture in base64, which takes its time to be unpacked.
        question = read_question(body) if len(body) < 65_536 else await _in_thread(lambda: read_question(body))
        if question.ruleset not in self._panel.rulesets:
            known = ", ".join(self._panel.rulesets)
            raise faults.UnknownRuleset(f"There is no ruleset {question.ruleset[:64]!r}.", fix=f"Use one of: {known}.")
        try:
            verdict = await self._verdict(question, request)
        except PictureRefused as exc:
            raise faults.NoPicture(exc.message, fix=exc.fix) from exc
        except BrokenRender as exc:
            raise faults.Broken(exc.message, fix=exc.fix) from exc
        except ReviewUnavailable as exc:
            # What a reviewer's error says may name an address or a file of ours: it goes into the log alone.
            log.warning("no verdict", stage=question.about, ruleset=question.ruleset, error=str(exc))
            raise faults.NoVerdict from exc
        log.info(
            "verdict",
            stage=question.about,
            ruleset=verdict.ruleset,
            version=verdict.ruleset_version,
            safe=verdict.safe,
            codes=list(verdict.codes),
            latency_ms=verdict.latency_ms,
        )
        # The hash says which picture this is about, wherever an answer may have lain on its way.
        about = None if question.about == "gate" else (question.sha256 or "").lower()
        return Json({"verdict": verdict.as_dict(), "sha256": about, "request_id": _request_id(request)})

    async def _verdict(self, question: Question, request: Request) -> Verdict:
        context = question.words
        if question.about == "gate":
            if len(context.positive) + len(context.negative) <= SHORT:
                return self._panel.gate(context, question.ruleset)
            return await _in_thread(lambda: self._panel.gate(context, question.ruleset))
        if self._crowded:
            raise ReviewUnavailable("Too many questions wait.")
        async with self._slots:
            # Who has stopped waiting has asked again by now: to answer the old question would only add to the crowd.
            if await request.is_disconnected():
                raise ClientDisconnect
            return await anyio.to_thread.run_sync(self._look, question, limiter=self._limiter)

    def _look(self, question: Question) -> Verdict:
        picture = question.read_picture()
        if question.about == "upload":
            return self._panel.upload(picture, question.ruleset)
        return self._panel.review(picture, question.words, question.ruleset)

    @property
    def _crowded(self) -> bool:
        return self._slots.statistics().tasks_waiting >= WAITING * self._threads

    def _admit(self, request: Request) -> None:
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        # Digests, so that not even the key's length shows in how long it takes.
        if not hmac.compare_digest(_digest(secret.strip()), self._key) or scheme.lower() != "bearer":
            raise faults.KeyRefused


def _described(ruleset: Ruleset) -> dict[str, Any]:
    return {
        "name": ruleset.name,
        "title": ruleset.title,
        "version": ruleset.version,
        "requires": sorted(ruleset.requires),
        "rules": [
            {
                "id": rule.id,
                "category": rule.category,
                "name": rule.name,
                "looks_at": rule.looks_at,
                "action": rule.action,
                "refuse_prompt": rule.refuse_prompt,
                "releasable": rule.releasable,
                "except_tiers": sorted(rule.except_tiers),
                "reviewers": {name: dict(labels) for name, labels in rule.reviewers.items()},
            }
            for rule in ruleset.rules
        ],
    }


async def _read(request: Request) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > MAX_BODY:
        raise faults.TooLarge(f"The body has more than {MAX_BODY} bytes.")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise faults.TooLarge(f"The body has more than {MAX_BODY} bytes.")
    return bytes(body)


async def _in_thread(work: Callable[[], _T]) -> _T:
    return await anyio.to_thread.run_sync(work)


async def _told(request: Request, exc: Exception) -> Response:
    """Every fault in one form. What nobody foresaw goes into the log, and nothing of it to the caller."""
    match exc:
        case Fault():
            fault = exc
        case HTTPException(status_code=404):
            fault = faults.UnknownPath()
        case HTTPException(status_code=405):
            fault = faults.WrongMethod()
        case _:
            log.error("question failed", request_id=_request_id(request), exc_info=exc)
            fault = faults.Unexpected()
    return fault.answer(_request_id(request))


async def _gone(request: Request, exc: Exception) -> Response:
    """The caller has left; whatever is answered, nobody reads it."""
    return faults.BadQuestion("The caller left before the end.").answer(_request_id(request))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode()).digest()


def _request_id(request: Request) -> str:
    return str(request.scope.get("compliance.request_id", ""))


class _RequestId:
    """Takes the caller's ``X-Request-ID`` when it is a plain token, else makes one; logs and answers carry it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
        request_id = given.decode() if _PLAIN.fullmatch(given) else f"acs_{secrets.token_hex(10)}"
        scope["compliance.request_id"] = request_id

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (b"x-request-id", request_id.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=request_id):
            await self.app(scope, receive, send_with_id)
