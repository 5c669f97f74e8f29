"""What the service answers when there is no verdict. Each class is one status; its docstring is the default sentence.

x Fault
  + BadQuestion        400  the body says something wrong
  + KeyRefused         401
  + UnknownPath        404
  + UnknownRuleset     404
  + WrongMethod        405
  + TooLarge           413
  + NoPicture          422  these bytes are no picture that we take
  + Broken             422  the picture is blank or of the wrong size: have it drawn again
  + Unexpected         500
  + NoVerdict          503  a reviewer has no answer, or too many questions wait
"""

from typing import Any, ClassVar

import orjson
from starlette.responses import Response


class Json(Response):
    """A JSON answer that nobody may cache."""

    media_type = "application/json"

    def __init__(self, content: Any, status_code: int = 200, headers: dict[str, str] | None = None) -> None:
        super().__init__(orjson.dumps(content), status_code, headers={"cache-control": "no-store", **(headers or {})})


class Fault(Exception):
    """There is no verdict."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    fix: ClassVar[str] = ""
    retryable: ClassVar[bool] = False
    headers: ClassVar[dict[str, str]] = {}

    def __init__(self, message: str = "", *, fix: str = "") -> None:
        self.message = message or (type(self).__doc__ or "").strip()
        self.told_fix = fix or self.fix
        super().__init__(self.message)

    def answer(self, request_id: str) -> Response:
        body = {
            "error": self.message,
            "code": self.code,
            "fix": self.told_fix,
            "retryable": self.retryable,
            "request_id": request_id,
        }
        return Json(body, self.status, self.headers)


class BadQuestion(Fault):
    """The question is not valid."""

    status, code = 400, "bad_request"


class KeyRefused(Fault):
    """The key is missing or wrong."""

    status, code = 401, "unauthorized"
    fix = "Send the header Authorization: Bearer <key>, with the key that this service was started with."
    headers: ClassVar[dict[str, str]] = {"www-authenticate": "Bearer"}


class UnknownPath(Fault):
    """There is nothing at this path."""

    status, code = 404, "not_found"
    fix = "Use POST /v1/review, GET /v1/rulesets, GET /healthz or GET /readyz."


class UnknownRuleset(Fault):
    """There is no such ruleset."""

    status, code = 404, "unknown_ruleset"


class WrongMethod(Fault):
    """This path does not take this method."""

    status, code = 405, "method_not_allowed"
    fix = "Use POST /v1/review, GET /v1/rulesets, GET /healthz or GET /readyz."


class TooLarge(Fault):
    """The body is too large."""

    status, code = 413, "body_too_large"
    fix = "Send a smaller picture."


class NoPicture(Fault):
    """These bytes are not a picture that we take."""

    status, code = 422, "picture_refused"
    fix = "Send PNG, lossless WebP or JPEG, with the sha256 of exactly these bytes."


class Broken(Fault):
    """The renderer gave a broken picture."""

    status, code, retryable = 422, "broken_render", True
    fix = "Have the picture drawn again."


class Unexpected(Fault):
    """The service failed, and there is no verdict."""

    status, code, retryable = 500, "internal_error", True
    fix = "Try again; the service's log has the reason under this request_id."


class NoVerdict(Fault):
    """The review gave no verdict."""

    status, code, retryable = 503, "compliance_unavailable", True
    fix = "Try again in a few seconds; the service's log has the reason under this request_id."
    headers: ClassVar[dict[str, str]] = {"retry-after": "5"}
