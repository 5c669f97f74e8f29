"""Reading what a client hands to /run and /runsync, with RunPod's ranges."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from handler.endpoint.http import json_text, parse_json
from handler.endpoint.job import Submission

WEEK_MS = 7 * 24 * 3600 * 1000
EXECUTION_TIMEOUT_MS = (5_000, 600_000, WEEK_MS)
TTL_MS = (10_000, 86_400_000, WEEK_MS)


class BadSubmission(ValueError):
    """The request is not one that the endpoint can queue."""


def read_submission(body: bytes, *, sync: bool) -> Submission:
    """Check a body; whatever is wrong names its field."""
    try:
        given = parse_json(body)
    except ValueError as exc:
        raise BadSubmission(f"the body is not JSON: {exc}") from None
    if not isinstance(given, dict):
        raise BadSubmission("the body must be a JSON object")
    if not isinstance(given.get("input"), dict):
        raise BadSubmission("input is missing or not an object")
    policy = given.get("policy")
    if policy is None:
        policy = {}
    if not isinstance(policy, dict):
        raise BadSubmission("policy must be an object")
    if not isinstance(policy.get("lowPriority", False), bool):
        raise BadSubmission("policy.lowPriority must be true or false")
    s3_config = given.get("s3Config")
    if s3_config is not None and not isinstance(s3_config, dict):
        raise BadSubmission("s3Config must be an object")
    try:
        return Submission(
            input=json_text(given["input"]),
            sync=sync,
            webhook=_webhook(given.get("webhook")),
            execution_timeout=_milliseconds(policy, "executionTimeout", EXECUTION_TIMEOUT_MS),
            ttl=_milliseconds(policy, "ttl", TTL_MS),
            s3_config=None if s3_config is None else json_text(s3_config),
            request_id=_request_id(given["input"]),
        )
    except BadSubmission:
        raise
    except ValueError as exc:
        raise BadSubmission(f"the body can't be passed on as JSON: {exc}") from None


def read_wait(text: str | None) -> float:
    """The `wait` of /runsync in seconds."""
    if text is None:
        return 90.0
    if not (text.isascii() and text.isdigit() and len(text) < 8 and 1000 <= int(text) <= 300_000):
        raise BadSubmission("wait must be 1000 to 300000 milliseconds")
    return int(text) / 1000


def _milliseconds(policy: dict[str, Any], name: str, bounds: tuple[int, int, int]) -> float:
    least, default, most = bounds
    value = policy.get(name)
    if value is None:
        value = default
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise BadSubmission(f"policy.{name} must be {least} to {most} milliseconds")
    return value / 1000


def _webhook(value: Any) -> str | None:
    if value is None:
        return None
    refusal = BadSubmission("webhook must be an http or https URL of at most 2048 characters")
    if not isinstance(value, str) or not value.isascii() or len(value) > 2048:
        raise refusal
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise refusal from None
    if not usable or any(character.isspace() for character in value):
        raise refusal
    return value


def _request_id(given: dict[str, Any]) -> str | None:
    value = given.get("request_id")
    return value if isinstance(value, str) and 0 < len(value) <= 200 and value.isprintable() else None
