"""`Bucket`: one prefix of one S3 bucket, by key. All of it blocks, and raises `Fault`; threads may share it."""

from __future__ import annotations

import hashlib
import time
from base64 import b64encode
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any
from urllib.parse import parse_qs, quote, urlsplit

import boto3
import structlog
import urllib3
from botocore.config import Config
from botocore.exceptions import BotoCoreError

from gateway.storage.faults import Fault, translated
from gateway.storage.keys import checked, mime_of
from gateway.storage.web import MOST_BYTES

log = structlog.get_logger(__name__)

#: Calls at the same time, and connections that are kept.
THREADS = 32
#: Seconds that a presigned address can live: SigV4's own limit.
LONGEST = 7 * 86_400
#: Keys in one DeleteObjects.
_BATCH = 1000
_TRIES = 3
_PRIVATE = "private, no-store"


@dataclass(frozen=True, kw_only=True, slots=True)
class Place:
    """Where a bucket is and how it is spoken to. Without ``access_key`` boto3 looks for credentials itself.

    ``public_endpoint`` is how callers and workers reach it, where that differs. ``prefix`` is empty or ends in a slash.
    """

    bucket: str
    region: str = ""
    endpoint: str = ""
    public_endpoint: str = ""
    prefix: str = ""
    path_style: bool = False
    access_key: str = ""
    secret_key: str = field(default="", repr=False)
    connect_timeout: float = 5
    read_timeout: float = 20
    attempts: int = 3


class Bucket:
    """Objects by key. ``verifies`` says whether the endpoint checks SHA-256 itself; where not, a write is read back."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.verifies = False
        self._client: Any = None
        self._signer: Any = None
        self.http = urllib3.PoolManager(
            timeout=urllib3.Timeout(connect=place.connect_timeout, read=place.read_timeout), retries=False
        )

    def prepare(self) -> None:
        """Make the clients: reads boto's own files, and no network."""
        place = self.place
        with translated():
            session = boto3.session.Session(
                aws_access_key_id=place.access_key or None,
                aws_secret_access_key=place.secret_key or None,
                region_name=place.region or None,
            )
            config = Config(
                signature_version="s3v4",
                # "auto" would presign for the global host, which redirects: a signature does not survive that.
                s3={"addressing_style": "path" if place.path_style else "virtual"},
                retries={"mode": "standard", "total_max_attempts": place.attempts},
                connect_timeout=place.connect_timeout,
                read_timeout=place.read_timeout,
                max_pool_connections=THREADS,
                # Ours is SHA-256, by name: a second, older checksum is what other makers' endpoints stumble over.
                request_checksum_calculation="when_required",
                response_checksum_validation="when_supported",
            )
            region = session.region_name or "us-east-1"
            public = place.public_endpoint or place.endpoint
            try:
                self._client = session.client("s3", region, endpoint_url=place.endpoint or None, config=config)
                self._signer = session.client("s3", region, endpoint_url=public or None, config=config)
            except ValueError as error:
                raise error if isinstance(error, BotoCoreError) else Fault("InvalidEndpoint") from None

    def close(self) -> None:
        for client in (self._client, self._signer):
            if client is not None:
                client.close()
        self.http.clear()

    # Writing

    def put(self, key: str, data: bytes, *, once: bool = False, sha256: bytes | None = None) -> None:
        """Store an object. With ``once`` an object that is there makes it fail, with status 412."""
        more = {"IfNoneMatch": "*"} if once else {}
        with translated():
            self._client.put_object(
                **self._at(key),
                Body=data,
                ContentType=mime_of(key),
                CacheControl=_PRIVATE,
                ChecksumSHA256=b64encode(sha256 or hashlib.sha256(data).digest()).decode(),
                **more,
            )

    def write(self, key: str, data: bytes) -> None:
        """Durable and whole when it returns; replaces what was there."""
        self.put(key, data)
        self._make_sure(key, data)

    def write_once(self, key: str, data: bytes) -> None:
        """The same for a key that follows from the content: what is there already stays, if it is the same."""
        for _ in range(_TRIES):
            try:
                self.put(key, data, once=True)
            except Fault as fault:
                if fault.status == 409:  # another replica is writing it this moment
                    continue
                if fault.status != 412:
                    raise
                # An earlier try of ours, or another replica's: the answer to a write can get lost after the write.
                found = self.read(key)
                if found == data:
                    return
                if found is not None:
                    log.error("stored picture had other bytes than its name says; written anew", key=key)
                    self.write(key, data)
                    return
                continue  # purged between the two calls
            self._make_sure(key, data)
            return
        # Others write and purge it without a pause. The same name means the same bytes: replacing them harms nobody.
        self.write(key, data)

    def _make_sure(self, key: str, data: bytes) -> None:
        if self.verifies:
            return
        found = self.read(key)
        if found is not None and found != data:  # None: somebody has purged it
            raise Fault("OtherBytes")

    # Reading

    def read(self, key: str) -> bytes | None:
        """None when there is no such object, or one so large that no picture of ours is."""
        try:
            with translated():
                answer = self._client.get_object(**self._at(key), ChecksumMode="ENABLED")
                with answer["Body"] as body:
                    # A presigned PUT has no limit of its own, and a worker is not trusted with our memory.
                    if answer["ContentLength"] > MOST_BYTES:
                        log.warning("object is too large to be a picture", key=key, bytes=answer["ContentLength"])
                        return None
                    data: bytes = body.read()
                    return data
        except Fault as fault:
            if fault.code == "NoSuchKey":
                return None
            raise

    def look(self) -> None:
        """The least that shows that the bucket answers and lets us in."""
        with translated():
            self._client.list_objects_v2(
                Bucket=self.place.bucket, Prefix=f"{self.place.prefix}raw/self-test/", MaxKeys=1
            )

    # Removing

    def purge(self, prefix: str, keep: Collection[str]) -> None:
        """Remove a key, or all below a prefix, but the keys to keep. It has two segments: it never means everything."""
        top = checked(prefix.removesuffix("/"))
        doomed = (key for key in self._below(top) if key not in keep)
        while batch := list(islice(doomed, _BATCH)):
            objects = [{"Key": self.place.prefix + key} for key in batch]
            with translated():
                answer = self._client.delete_objects(
                    Bucket=self.place.bucket, Delete={"Objects": objects, "Quiet": True}
                )
            if errors := answer.get("Errors"):
                raise Fault(str(errors[0].get("Code", "")), 403 if errors[0].get("Code") == "AccessDenied" else 500)

    def _below(self, top: str) -> Iterator[str]:
        """The key itself and all below it, page by page: S3 knows no folders, and ``job10`` begins like ``job1``."""
        pages = self._client.get_paginator("list_objects_v2").paginate(
            Bucket=self.place.bucket, Prefix=self.place.prefix + top
        )
        with translated():
            for page in pages:
                for each in page.get("Contents", ()):
                    key = each["Key"].removeprefix(self.place.prefix)
                    if key == top or key.startswith(f"{top}/"):
                        yield key

    # Addresses

    def download(self, key: str, *, expires_at: float, filename: str) -> str:
        more = {
            "ResponseContentType": mime_of(key),
            "ResponseContentDisposition": _disposition(filename or key.rpartition("/")[2]),
        }
        return self._sign("get_object", key, expires_at, more, cached=True)

    def upload(self, key: str, *, expires_at: float) -> str:
        """For a PUT with exactly ``Content-Type: image/png``, which is signed too."""
        return self._sign("put_object", key, expires_at, {"ContentType": "image/png"})

    def loan(self, key: str, *, expires_at: float) -> str:
        more = {"ResponseContentType": "image/png", "ResponseCacheControl": "no-store"}
        return self._sign("get_object", key, expires_at, more)

    def unsigned(self, key: str) -> set[str]:
        """Where the object lies for us and for callers, without a signature: nobody must be let in there."""
        with translated():
            urls = [c.generate_presigned_url("get_object", Params=self._at(key)) for c in (self._client, self._signer)]
        return {url.partition("?")[0] for url in urls}

    def _sign(self, operation: str, key: str, expires_at: float, more: dict[str, str], *, cached: bool = False) -> str:
        """An address that dies at ``expires_at`` rounded down to a second; one second is the shortest life there is."""
        end = int(expires_at)
        url = ""
        for _ in range(_TRIES):
            begun = int(time.time())
            seconds = max(1, end - begun)
            if seconds > LONGEST:
                raise ValueError(f"an S3 address lives {LONGEST} seconds at most, not {seconds}")
            if cached:
                more = {**more, "ResponseCacheControl": f"private, max-age={seconds}"}
            with translated():
                url = self._signer.generate_presigned_url(
                    operation, Params={**self._at(key), **more}, ExpiresIn=seconds
                )
            # boto looks at the clock itself: when a second has passed since we did, the end would be off by one.
            if parse_qs(urlsplit(url).query)["X-Amz-Date"] == [time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(begun))]:
                break
        return url

    # The rules of the bucket

    def rules(self) -> dict[str, Any]:
        """``Rules`` as S3 has them, and what else belongs to them; no rules when none were ever put."""
        try:
            with translated():
                answer = self._client.get_bucket_lifecycle_configuration(Bucket=self.place.bucket)
        except Fault as fault:
            if fault.code == "NoSuchLifecycleConfiguration":
                return {"Rules": []}
            raise
        return {name: answer[name] for name in ("Rules", "TransitionDefaultMinimumObjectSize") if name in answer}

    def put_rules(self, rules: dict[str, Any]) -> None:
        """Replace all rules of the bucket; S3 has no way to put one."""
        more = {name: value for name, value in rules.items() if name != "Rules"}
        with translated():
            self._client.put_bucket_lifecycle_configuration(
                Bucket=self.place.bucket, LifecycleConfiguration={"Rules": rules["Rules"]}, **more
            )

    def _at(self, key: str) -> dict[str, str]:
        return {"Bucket": self.place.bucket, "Key": self.place.prefix + checked(key)}


def _disposition(filename: str) -> str:
    """As the disk's downloads have it: nothing in a name can break out of the header."""
    quoted = quote(filename, safe="")
    return f'inline; filename="{filename}"' if quoted == filename else f"inline; filename*=utf-8''{quoted}"
