"""An S3 over real HTTP: moto's, with a door in front that checks what moto does not.

moto takes any signature, any address however old, and any checksum. The door refuses those as S3 does (see
`tests.storage.sigv4`), and has the faults that a test switches on.
"""

from __future__ import annotations

import base64
import hashlib
import io
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import boto3
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

from gateway.storage.bucket import Place
from tests.storage.sigv4 import Refused, verify

ACCESS, SECRET = "AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
REGION = "eu-central-1"


class _Quiet(WSGIRequestHandler):
    disable_nagle_algorithm = True

    def log(self, *args: Any) -> None:
        pass


@dataclass
class FakeS3:
    """``url`` reaches it. ``fault`` answers a request (method, URL with its query) with a status and code, or None.

    ``lost`` so many writes are done and then answered with 500. ``ahead`` is how far its clock is before ours, seconds;
    ``checks`` whether it looks at SHA-256, ``conditional`` whether it knows If-None-Match, ``public`` whether anybody
    reads. ``asked`` are the requests that came.
    """

    url: str = ""
    fault: Callable[[str, str], tuple[int, str] | None] = lambda method, url: None
    lost: int = 0
    ahead: float = 0
    slow: float = 0
    checks: bool = True
    conditional: bool = True
    public: bool = False
    asked: list[tuple[str, str]] = field(default_factory=list)
    app: Any = None

    def place(self, **changed: Any) -> Place:
        """A fresh bucket of it, and patience for tests."""
        bucket = f"pictures-{secrets.token_hex(6)}"
        self.client.create_bucket(Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION})
        facts: dict[str, Any] = {
            "bucket": bucket,
            "region": REGION,
            "endpoint": self.url,
            "path_style": True,
            "access_key": ACCESS,
            "secret_key": SECRET,
            "connect_timeout": 2,
            "read_timeout": 5,
        }
        return Place(**{**facts, **changed})

    @cached_property
    def client(self) -> Any:
        session = boto3.session.Session(ACCESS, SECRET, region_name=REGION)
        return session.client("s3", endpoint_url=self.url)

    def keys(self, bucket: str) -> list[str]:
        """All that lies in a bucket."""
        return [each["Key"] for each in self.client.list_objects_v2(Bucket=bucket).get("Contents", ())]

    def empty(self, bucket: str) -> None:
        for key in self.keys(bucket):
            self.client.delete_object(Bucket=bucket, Key=key)

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        method, url = environ["REQUEST_METHOD"], environ["REQUEST_URI"]
        self.asked.append((method, url))
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        headers = {name[5:].replace("_", "-"): value for name, value in environ.items() if name.startswith("HTTP_")}
        if environ.get("CONTENT_TYPE"):
            headers["CONTENT-TYPE"] = environ["CONTENT_TYPE"]
        if self.slow:
            time.sleep(self.slow)
        if answer := self.fault(method, url):
            return _refusal(start, *answer)
        if not (self.public and method == "GET" and "AUTHORIZATION" not in headers and "?" not in url):
            try:
                verify(method, url, headers, body, {ACCESS: SECRET}, time.time() + self.ahead)
            except Refused as refused:
                return _refusal(start, refused.status, refused.code)
        # moto has its own, wrong idea of who may see what; whoever came so far has shown a signature.
        environ["HTTP_AUTHORIZATION"] = f"AWS4-HMAC-SHA256 Credential={ACCESS}/20200101/{REGION}/s3/aws4_request"
        environ["QUERY_STRING"] = "&".join(p for p in environ["QUERY_STRING"].split("&") if not p.startswith("X-Amz-"))
        environ["REQUEST_URI"] = environ["RAW_URI"] = f"{url.partition('?')[0]}?{environ['QUERY_STRING']}".rstrip("?")
        promised = headers.get("X-AMZ-CHECKSUM-SHA256")
        if self.checks and promised and promised != base64.b64encode(hashlib.sha256(body).digest()).decode():
            return _refusal(start, 400, "BadDigest")
        if not self.conditional:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        environ["wsgi.input"] = io.BytesIO(body)
        if self.lost and method == "PUT":
            self.lost -= 1
            b"".join(self.app(environ, lambda status, headers, trace=None: None))
            return _refusal(start, 500, "InternalError")
        return self.app(environ, start)  # type: ignore[no-any-return]


def _refusal(start: Callable[..., Any], status: int, code: str) -> list[bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>secret-host secret-key</Message></Error>'.encode()
    start(f"{status} {code}", [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]


@contextmanager
def running() -> Iterator[FakeS3]:
    """It serves on a free port while the block runs."""
    fake = FakeS3(app=DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, fake, threaded=True, request_handler=_Quiet)
    server.daemon_threads = True
    fake.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield fake
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
