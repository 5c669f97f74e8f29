"""What S3 says when it can't or won't, in a sentence with the way to mend it. Never an address, a bucket or a key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError
from urllib3.exceptions import HTTPError

_CREDENTIALS = "the credentials are not accepted: check IMGEN_S3_ACCESS_KEY and IMGEN_S3_SECRET_KEY, or boto3's own"
_REGION = "the bucket is in another region: set IMGEN_S3_REGION to the bucket's"
_BUSY = "it is busy or has a fault of its own; it is tried again"
_AWAY = "it does not answer: check IMGEN_S3_ENDPOINT, IMGEN_S3_REGION and the network; it is tried again"
_UNKNOWN_THERE = "it does not know this: use an endpoint with conditional writes, SHA-256 checksums and batch deletes"

_SENTENCES = {
    "AccessDenied": "the credentials may not do this: grant what the README lists under Pictures in S3",
    "NoSuchBucket": "there is no such bucket: check IMGEN_S3_BUCKET, IMGEN_S3_REGION and IMGEN_S3_ENDPOINT",
    "InvalidBucketName": "this is no bucket's name: check IMGEN_S3_BUCKET",
    "ParamValidationError": "this is no bucket's name: check IMGEN_S3_BUCKET",
    "InvalidAccessKeyId": _CREDENTIALS,
    "SignatureDoesNotMatch": _CREDENTIALS,
    "InvalidToken": _CREDENTIALS,
    "ExpiredToken": "the credentials have expired: renew them, or give the machine a role",
    "NoCredentialsError": "there are none: set IMGEN_S3_ACCESS_KEY and IMGEN_S3_SECRET_KEY, or give the machine a role",
    "PartialCredentialsError": _CREDENTIALS,
    "CredentialRetrievalError": "the instance gives no credentials: check its role",
    "RequestTimeTooSkewed": "the clocks differ by more than 15 minutes: set this machine's by NTP",
    "PermanentRedirect": _REGION,
    "AuthorizationHeaderMalformed": _REGION,
    # What S3 says to a presigned address of another region; in all else ours are well formed.
    "AuthorizationQueryParametersError": _REGION,
    "IllegalLocationConstraintException": _REGION,
    "NotImplemented": _UNKNOWN_THERE,
    "MethodNotAllowed": _UNKNOWN_THERE,
    "SlowDown": _BUSY,
    "ServiceUnavailable": _BUSY,
    "InternalError": _BUSY,
    "BadDigest": "what arrived is not what was sent; it is tried again",
    "FlexibleChecksumError": "what came back does not fit its checksum; it is tried again",
    "ProfileNotFound": "boto3 has no such profile: check AWS_PROFILE",
    "InvalidRegionError": "this is no region: check IMGEN_S3_REGION",
    "InvalidEndpoint": "this is no address: check IMGEN_S3_ENDPOINT and IMGEN_S3_PUBLIC_ENDPOINT",
    # Our own findings, in S3's manner.
    "OverwriteAccepted": "it ignores If-None-Match: use an endpoint with conditional writes",
    "AnybodyReads": "anybody can read what is private: block all public access to the bucket",
    "OtherBytes": "what was read is not what was written",
    "StillThere": "what was deleted is still there",
}
_BY_STATUS = {
    301: _REGION,
    403: _SENTENCES["AccessDenied"],
    404: _SENTENCES["NoSuchBucket"],
    429: _BUSY,
    501: _UNKNOWN_THERE,
}
_CODE = re.compile(r"[A-Za-z0-9]{1,64}")


class Fault(Exception):
    """S3 refused, or was not reached. ``code`` is S3's own or the name of boto's error; ``status`` 0 without answer."""

    def __init__(self, code: str, status: int = 0) -> None:
        self.code = code if _CODE.fullmatch(code) else "Unknown"
        self.status = status
        super().__init__(f"{self.code}: {self.sentence}")

    @property
    def sentence(self) -> str:
        """What is wrong and how to mend it."""
        if known := _SENTENCES.get(self.code):
            return known
        if self.status >= 500:
            return _BY_STATUS.get(self.status, _BUSY)
        return _BY_STATUS.get(self.status, f"it answered {self.status}") if self.status else _AWAY


@contextmanager
def translated() -> Iterator[None]:
    """Everything that boto raises becomes a `Fault`, without its text: that names addresses and keys."""
    try:
        yield
    except ClientError as error:
        said = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        raise Fault(str(said), int(status)) from None
    except (BotoCoreError, ResponseParserError, HTTPError, HTTPException, OSError) as error:
        raise Fault(type(error).__name__) from None
