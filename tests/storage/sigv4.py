"""Signature version 4 from the other side, written from Amazon's description and without botocore.

Source: "Authenticating Requests (AWS Signature Version 4)" in the Amazon S3 API reference: the canonical request, the
string to sign, the signing key, and both ways to send it (the Authorization header, query parameters).
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from urllib.parse import quote, unquote, urlsplit

#: Seconds that the clocks of both sides may differ.
SKEW = 900
LONGEST = 604_800
_HEX = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """``code`` and ``status`` as S3 answers them."""

    def __init__(self, code: str, status: int = 403) -> None:
        super().__init__(code)
        self.code, self.status = code, status


def verify(method: str, url: str, headers: Mapping[str, str], body: bytes, keys: Mapping[str, str], now: float) -> None:
    """Raises `Refused` unless the request was signed with one of the keys (name → secret), for this, and in time.

    ``url`` is as it was sent, with the encoding that it had; header names in any case.
    """
    sent = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    parts = urlsplit(url)
    query = _parameters(parts.query)
    if "authorization" in sent:
        given = dict(re.findall(r"(Credential|SignedHeaders|Signature)=([^,\s]+)", sent["authorization"]))
        stamp, expires = sent.get("x-amz-date", ""), None
        payload = sent.get("x-amz-content-sha256", "")
        if _HEX.fullmatch(payload) and hashlib.sha256(body).hexdigest() != payload:
            raise Refused("XAmzContentSHA256Mismatch", 400)
    elif "X-Amz-Signature" in query:
        if query.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256":
            raise Refused("AuthorizationQueryParametersError", 400)
        given = {name: query.get(f"X-Amz-{name}", "") for name in ("Credential", "SignedHeaders", "Signature")}
        stamp, expires = query.get("X-Amz-Date", ""), query.get("X-Amz-Expires", "")
        payload = "UNSIGNED-PAYLOAD"
        query.pop("X-Amz-Signature")
    else:
        raise Refused("AccessDenied")
    try:
        name, day, region, service, end = given["Credential"].split("/")
        signed = given["SignedHeaders"].split(";")
        begun = calendar.timegm(time.strptime(stamp, "%Y%m%dT%H%M%SZ"))
    except (KeyError, ValueError):
        raise Refused("AuthorizationQueryParametersError", 400) from None
    if (day, service, end) != (stamp[:8], "s3", "aws4_request") or "host" not in signed:
        raise Refused("AuthorizationQueryParametersError", 400)
    if name not in keys:
        raise Refused("InvalidAccessKeyId")
    canonical = "\n".join(
        (
            method,
            quote(unquote(parts.path), safe="/-_.~") or "/",
            "&".join(f"{_quoted(key)}={_quoted(query[key])}" for key in sorted(query, key=_quoted)),
            *(f"{header}:{sent.get(header, '')}" for header in signed),
            "",
            ";".join(signed),
            payload,
        )
    )
    scope = f"{day}/{region}/s3/aws4_request"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(canonical.encode()).hexdigest()}"
    key = f"AWS4{keys[name]}".encode()
    for part in (day, region, "s3", "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    if not hmac.compare_digest(hmac.digest(key, text.encode(), "sha256").hex(), given["Signature"]):
        raise Refused("SignatureDoesNotMatch")
    # What is sent as x-amz-… must be signed; so must be the type of a body, where it was promised.
    if any(header.startswith("x-amz-") and header not in signed for header in sent):
        raise Refused("AccessDenied")
    if expires is None:
        if abs(now - begun) > SKEW:
            raise Refused("RequestTimeTooSkewed")
    elif not (expires.isdigit() and 1 <= int(expires) <= LONGEST):
        raise Refused("AuthorizationQueryParametersError", 400)
    elif begun > now + SKEW or now >= begun + int(expires):
        raise Refused("AccessDenied")


def ends(url: str) -> int:
    """When a presigned address dies, in seconds since the epoch."""
    query = _parameters(urlsplit(url).query)
    return calendar.timegm(time.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%SZ")) + int(query["X-Amz-Expires"])


def _parameters(query: str) -> dict[str, str]:
    pairs = (part.partition("=") for part in query.split("&") if part)
    return {unquote(name): unquote(value) for name, _, value in pairs}


def _quoted(text: str) -> str:
    return quote(text, safe="-_.~")
