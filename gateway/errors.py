"""The one error tree. The class docstring is the default message; each dialect owns its status and envelope.

x GatewayError
  x BadRequest                the caller can mend it
    + InvalidJson, MissingAction, UnknownAction, InvalidField, PromptRequired, PromptTooLong, InvalidCharacter, BadId
  x BodyTooLarge
  + TooManyRequests           wait, and send it again
  x AccessDenied
    + MissingKey, InvalidKey, DisabledKey, HeldKey
  x PromptBlocked             the content policy refused the words
    + ReferenceBlocked, WatermarkBlocked    or a picture that came with them
  x NotFound
    + JobNotFound, PictureNotFound, CachedResultNotFound, CacheMiss, RouteNotFound, AppealNotFound, ManifestNotFound
  + MethodNotAllowed
  + JobNotOpen                the job has ended, so it cannot be cancelled
  + PictureNotReady           the job has not ended, so there is nothing to show
  + NothingToAppeal, AppealDecided, NotReleasable
  x Unavailable               somebody behind us does not answer; the job survives
    + BackendUnavailable, StorageUnavailable, StoreUnavailable, ComplianceUnavailable, NotifierUnavailable,
      CacheUnavailable
  + BackendRefused            the GPU backend refused the job for good
  + EnhancementFailed         the language model did not give a better prompt
  + FinishingFailed           a drawn picture could not be reviewed, encoded or signed
  + CatalogError, SettingsError   stop the start, never a request
  + InternalError
"""

from __future__ import annotations

from collections.abc import Sequence


class GatewayError(Exception):
    """Something went wrong."""

    code: str = "error"
    retryable: bool = False
    fix: str | None = None

    def __init__(self, message: str | None = None, *, fix: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip())
        if fix is not None:
            self.fix = fix

    @property
    def message(self) -> str:
        return str(self.args[0])


class BadRequest(GatewayError):
    """The request is not valid"""

    code = "bad_request"


class InvalidJson(BadRequest):
    """Invalid JSON"""

    code = "invalid_json"
    fix = 'Send one JSON object in UTF-8, for example {"action": "models"}.'


class MissingAction(BadRequest):
    """Missing action"""

    code = "missing_action"


class UnknownAction(BadRequest):
    """Unknown action"""

    code = "unknown_action"


class InvalidField(BadRequest):
    """A field has a wrong value"""

    code = "invalid_field"

    def __init__(self, field: str, problem: str, *, fix: str | None = None) -> None:
        super().__init__(f"Invalid {field}: {problem}", fix=fix)
        self.field = field


class PromptRequired(BadRequest):
    """Prompt is required"""

    code = "prompt_required"
    fix = 'Send "prompt" as text with at least one word that is not a -negative.'


class PromptTooLong(BadRequest):
    """Prompt too long"""

    code = "prompt_too_long"


class InvalidCharacter(BadRequest):
    """Invalid character"""

    code = "invalid_character"


class BadId(BadRequest):
    """Bad ID"""

    code = "bad_id"
    fix = "Send the id exactly as generate returned it."


class BodyTooLarge(GatewayError):
    """Request body too large"""

    code = "body_too_large"


class TooManyRequests(GatewayError):
    """Too many requests"""

    code = "too_many_requests"
    retryable = True

    def __init__(self, seconds: int) -> None:
        """How many seconds to wait before the next one."""
        super().__init__(fix=f"Send the request again in {seconds} seconds.")
        self.seconds = seconds


class AccessDenied(GatewayError):
    """Unauthorized"""

    code = "unauthorized"


class MissingKey(AccessDenied):
    """Unauthorized"""

    code = "unauthorized"
    fix = "Send the header Authorization: Bearer <API-KEY>."


class InvalidKey(AccessDenied):
    """Invalid API key"""

    code = "invalid_api_key"
    fix = "Check the key; an operator makes a new one with: imgen keys create."


class DisabledKey(AccessDenied):
    """API key is disabled"""

    code = "api_key_disabled"
    fix = "Ask the operator for a new key."


class HeldKey(AccessDenied):
    """API key is disabled"""

    code = "api_key_held"
    fix = "Ask the operator: the key is held after a review."


class PromptBlocked(GatewayError):
    """Prompt blocked"""

    code = "safety_violation"
    fix = "Rewrite the prompt; the named categories are not allowed."

    def __init__(self, rules: Sequence[str], categories: Sequence[str], classes: Sequence[str]) -> None:
        """The ids of the rules that refused it, their names for people, and the classes that they belong to."""
        super().__init__()
        self.rules = tuple(rules)
        self.categories = tuple(categories)
        self.classes = tuple(classes)


class ReferenceBlocked(PromptBlocked):
    """Reference image blocked"""

    fix = "Send another picture; this one is not allowed."


class WatermarkBlocked(PromptBlocked):
    """Watermark image blocked"""

    fix = "Send another wm_image; this one is not allowed."


class NotFound(GatewayError):
    """Not found"""

    code = "not_found"


class RouteNotFound(NotFound):
    """Not found"""


class JobNotFound(NotFound):
    """Job not found"""

    code = "job_not_found"
    fix = "Send an id that generate returned to this API key."


class PictureNotFound(NotFound):
    """Picture not found"""

    code = "picture_not_found"
    fix = "Send the id of a completed job of this API key, and an index that its meta.images has."


class ManifestNotFound(NotFound):
    """Manifest not found"""

    code = "manifest_not_found"
    fix = "Send an id that a match returned."


class AppealNotFound(NotFound):
    """Appeal not found"""

    code = "appeal_not_found"
    fix = "See: imgen appeals list --all"


class CacheMiss(NotFound):
    """No cached result found"""

    code = "cache_miss"
    fix = "Send cache_only: false to generate a new picture."


class CachedResultNotFound(NotFound):
    """Cached result not found or expired"""

    code = "cached_result_not_found"
    fix = "Call generate again; cache handles live for one hour."


class MethodNotAllowed(GatewayError):
    """Method not allowed"""

    code = "method_not_allowed"


class JobNotOpen(GatewayError):
    """Job has already ended"""

    code = "job_not_open"


class PictureNotReady(GatewayError):
    """The picture is not finished yet"""

    code = "picture_not_ready"
    fix = "Ask again after the seconds that Retry-After names."
    retryable = True


class NothingToAppeal(GatewayError):
    """Nothing of this job is blocked"""

    code = "nothing_to_appeal"
    fix = "Appeal a job whose status is blocked, or that has blocked pictures."


class AppealDecided(GatewayError):
    """The appeal has been decided"""

    code = "appeal_decided"
    fix = "The decision is final; generate again with another prompt."


class NotReleasable(GatewayError):
    """Nobody may release this picture"""

    code = "not_releasable"
    fix = "Uphold it: a picture that falls under such a rule is never handed out in any form."


class Unavailable(GatewayError):
    """Temporarily unavailable"""

    code = "unavailable"
    retryable = True


class BackendUnavailable(Unavailable):
    """Generation failed"""

    code = "backend_unavailable"
    fix = "Send the request again in a few seconds."


class StoreUnavailable(Unavailable):
    """The job store does not answer"""

    code = "store_unavailable"


class StorageUnavailable(Unavailable):
    """The picture storage does not answer"""

    code = "storage_unavailable"


class ComplianceUnavailable(Unavailable):
    """The review does not answer"""

    code = "compliance_unavailable"
    fix = "Send the request again in a few seconds."


class CacheUnavailable(Unavailable):
    """The index of the cache does not answer"""

    code = "cache_unavailable"


class NotifierUnavailable(Unavailable):
    """The operator's webhook did not take the event"""

    code = "notifier_unavailable"


class BackendRefused(GatewayError):
    """Generation failed"""

    code = "backend_refused"


class EnhancementFailed(GatewayError):
    """Enhancement failed"""

    code = "enhancement_failed"
    fix = "Send the request again in a few seconds, or use the prompt as it is."
    retryable = True


class FinishingFailed(GatewayError):
    """Generation failed"""

    def __init__(self, code: str, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.code = code
        self.retryable = retryable


class CatalogError(GatewayError):
    """The catalogue is not valid"""

    code = "catalog_error"


class SettingsError(GatewayError):
    """A setting is not valid"""

    code = "settings_error"


class InternalError(GatewayError):
    """Internal server error"""

    code = "internal_error"
    retryable = True
