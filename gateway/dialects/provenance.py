"""Where pictures come from, for everybody and without a key: `POST /api/verify`, and C2PA's soft binding look-ups.

The latter follow the C2PA Soft Binding Resolution API, read-only: `/matches/byBinding`, `/matches/byContent`,
`/manifests/{id}`, `/services/supportedAlgorithms`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, ClassVar

import anyio
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.core.recognition import FINGERPRINTS, MOST_MATCHES, WATERMARKS, Findings, Match, Recognition
from gateway.core.throttle import Throttle
from gateway.dialects.base import Json, fault, iso, read_body, read_object
from gateway.errors import (
    BadRequest,
    BodyTooLarge,
    GatewayError,
    InvalidField,
    ManifestNotFound,
    MethodNotAllowed,
    NotFound,
    TooManyRequests,
    Unavailable,
)

BODY_LIMIT = 32 * 1024 * 1024
#: Pictures that are in memory at the same time, and the seconds that one may take to arrive: whoever sends slowly, or
#: much at once, without a key, must not fill the memory that paid-for pictures are finished in.
AT_ONCE = 8
ARRIVAL = 30.0
_SEND = "Send the picture as the body, or as the field file of a form."

_HTTP_STATUS: tuple[tuple[type[GatewayError], int], ...] = (
    (BodyTooLarge, 413),
    (TooManyRequests, 429),
    (NotFound, 404),
    (MethodNotAllowed, 405),
    (BadRequest, 400),
    (Unavailable, 503),
)
_SUMMARY = {
    "trusted": "Signed by a signer that is trusted here, and unchanged since.",
    "valid": "Signed and unchanged since, but by a signer that is not known here.",
    "tampered": "Changed after it was signed.",
    "invalid": "Signed, but the signature does not count.",
    "unsigned": "The picture says nothing of where it comes from.",
    "unreadable": "This is no picture that can be read here.",
}


class ProvenanceDialect:
    """``POST /api/verify`` and the soft binding look-ups."""

    prefix: ClassVar[str] = "/api/verify"

    def __init__(self, recognition: Recognition, throttle: Throttle) -> None:
        self._recognition = recognition
        self._throttle = throttle
        self._room = anyio.Semaphore(AT_ONCE)

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/api/verify", self._answered(self._verify), methods=["POST"]),
            Route("/matches/byBinding", self._answered(self._by_binding), methods=["GET", "POST"]),
            Route("/matches/byContent", self._answered(self._by_content), methods=["POST"]),
            Route("/manifests/{label}", self._answered(self._manifest), methods=["GET"]),
            Route("/services/supportedAlgorithms", self._answered(self._algorithms), methods=["GET"]),
        ]

    def error(self, error: GatewayError, *, request_id: str) -> Response:
        status = next((code for kind, code in _HTTP_STATUS if isinstance(error, kind)), 500)
        body = fault(error, request_id=request_id) | ({"fix": "Send a POST."} if status == 405 else {})
        headers = {}
        if isinstance(error, TooManyRequests):
            headers["retry-after"] = str(error.seconds)
        if status == 405:
            headers["allow"] = "POST"
        if status == 503:
            headers["retry-after"] = "5"
        return Json(body, status, headers)

    def _answered(self, handler: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        """The handler, throttled, and with its faults in this dialect's voice on all of its paths."""

        async def answered(request: Request) -> Response:
            try:
                self._throttle.take(request.client.host if request.client else "")
                return await handler(request)
            except GatewayError as exc:
                return self.error(exc, request_id=request.scope["imgen.request_id"])

        return answered

    async def _verify(self, request: Request) -> Response:
        async with self._room:
            findings = await self._recognition.examine(await _picture(request))
        return Json(findings_as_json(findings) | {"request_id": request.scope["imgen.request_id"]})

    async def _by_binding(self, request: Request) -> Response:
        given: dict[str, Any] = dict(request.query_params)
        if request.method == "POST":
            given |= await read_object(request, limit=65_536)
        algorithm, value = given.get("alg"), given.get("value")
        if not isinstance(algorithm, str) or not isinstance(value, str):
            raise InvalidField("value", "alg and value are required", fix="Send both as text, the value in Base64.")
        if algorithm not in (*WATERMARKS, *FINGERPRINTS):
            raise InvalidField("alg", "is not known here", fix="See GET /services/supportedAlgorithms.")
        try:
            matches = await self._recognition.bound(algorithm, value, _limit(given.get("maxResults")))
        except ValueError as exc:
            raise InvalidField("value", f"is none of {algorithm}", fix="Send it in Base64.") from exc
        return Json(_matches(matches))

    async def _by_content(self, request: Request) -> Response:
        limit = _limit(request.query_params.get("maxResults"))
        async with self._room:
            return Json(_matches(await self._recognition.similar(await _picture(request), limit)))

    async def _manifest(self, request: Request) -> Response:
        active = request.query_params.get("returnActiveManifest", "").lower() == "true"
        manifest = await self._recognition.manifest(request.path_params["label"], active=active)
        if manifest is None:
            raise ManifestNotFound
        return Response(manifest, media_type="application/c2pa", headers={"cache-control": "no-store"})

    async def _algorithms(self, request: Request) -> Response:
        return Json(
            {
                "watermarks": [{"alg": algorithm} for algorithm in WATERMARKS],
                "fingerprints": [{"alg": algorithm} for algorithm in FINGERPRINTS],
            }
        )


async def _picture(request: Request) -> bytes:
    """The bytes of the picture: the body itself, or the field `file` of a form."""
    try:
        with anyio.fail_after(ARRIVAL):
            body = await read_body(request, limit=BODY_LIMIT)
    except TimeoutError as exc:
        raise InvalidField("file", f"did not arrive within {ARRIVAL:g} seconds", fix="Send a smaller copy.") from exc
    if request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        body = await _file_of(request, body)
    if not body:
        raise InvalidField("file", "is empty", fix=_SEND)
    return body


async def _file_of(request: Request, body: bytes) -> bytes:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        form = await MultiPartParser(request.headers, whole(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as exc:
        raise InvalidField("file", "the form can't be read", fix=_SEND) from exc
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise InvalidField("file", "is not in the form", fix=_SEND)
        return await file.read()
    finally:
        await form.close()


def _limit(given: object) -> int:
    try:
        limit = int(str(given)) if given is not None else MOST_MATCHES
    except ValueError as exc:
        raise InvalidField("maxResults", "must be a number", fix=f"Send 1 to {MOST_MATCHES}.") from exc
    if limit < 1:
        raise InvalidField("maxResults", "must be positive", fix=f"Send 1 to {MOST_MATCHES}.")
    return min(limit, MOST_MATCHES)


def _matches(matches: Sequence[Match]) -> dict[str, Any]:
    return {"matches": [{"manifestId": match.record.label, **_similarity(match)} for match in matches]}


def _similarity(match: Match) -> dict[str, int]:
    """A score of 0 to 100 where it was found by a fingerprint."""
    return {} if match.distance is None else {"similarityScore": round(100 * (64 - match.distance) / 64)}


def findings_as_json(findings: Findings) -> dict[str, Any]:
    """What `POST /api/verify` answers, but for the id of the request."""
    report = findings.report
    signed = report.state not in ("unsigned", "unreadable")
    return {
        "state": report.state,
        "summary": _summary(findings),
        "signer": {"name": report.signer, "issuer": report.issuer} if report.signer or report.issuer else None,
        "time": report.when or None,
        "generator": report.generator or None,
        "model": report.model or None,
        "ai_generated": report.ai_generated if signed else None,
        "actions": [
            {"action": step.action, "description": step.description, "when": step.when} for step in report.history
        ],
        "claims": dict(report.said),
        "training": dict(report.training) if report.training else None,
        "pixels_changed": report.pixels_changed,
        "failures": list(report.failures),
        "found": [
            {
                "id": match.record.gen_id,
                "manifest": match.record.label,
                "created": iso(match.record.created_at),
                "model": match.model,
                "by": list(match.by),
                "distance": match.distance,
                "mirrored": match.mirrored,
            }
            for match in findings.found
        ],
    }


def _summary(findings: Findings) -> str:
    """One or two sentences for people. What the pixels point to is never said to be proven."""
    said = _SUMMARY[findings.report.state]
    if findings.report.state in ("trusted", "valid") or not findings.found:
        return said
    best = findings.found[0]
    when = iso(best.record.created_at)[:10]
    if "sha256" in best.by:
        return f"{said} It is picture {best.record.gen_id} of {when}, byte for byte."
    how = "An id in its pixels points to" if "pixel_mark" in best.by else "It looks like"
    how = "Its manifest is that of" if "manifest" in best.by else how
    return f"{said} {how} picture {best.record.gen_id} of {when}, which proves nothing by itself."
