"""The self-test of a bucket: everything that the storage needs, done once with a small object. All of it blocks."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from urllib3.exceptions import HTTPError

from gateway.storage.bucket import Bucket
from gateway.storage.faults import Fault

_DATA = b"\x89PNG\r\n\x1a\n imgen looks whether this bucket can be used"
_SECONDS = 120
#: What S3 and its relatives call a body that does not fit its checksum.
_CHECKED = frozenset({"BadDigest", "InvalidDigest", "InvalidRequest", "XAmzContentChecksumMismatch"})
_CODE = re.compile(rb"<Code>([A-Za-z0-9]{1,64})</Code>")


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One thing that was tried. ``remark`` is the S3 code and how to mend it where it failed."""

    name: str
    state: Literal["ok", "failed", "unknown"]
    remark: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """What was tried, up to the first thing that failed. ``verifies``: the endpoint refuses a wrong SHA-256."""

    steps: tuple[Step, ...]
    verifies: bool

    @property
    def failed(self) -> Step | None:
        return next((step for step in self.steps if step.state == "failed"), None)


class _Unreachable(Exception):
    """The public address can't be reached from this machine, which need not mean that others can't."""


def try_out(bucket: Bucket) -> Trial:
    """Write, read, write under conditions, go through the addresses, delete. What it wrote is removed in any case."""
    return _Try(bucket).all()


class _Try:
    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        # Under raw/: should this process die here, what it leaves goes with the raw pictures.
        self._folder = f"raw/self-test/{secrets.token_hex(16)}"
        self._key = f"{self._folder}/0.png"
        self._verifies = False

    def all(self) -> Trial:
        done: list[Step] = []
        steps: tuple[tuple[str, Callable[[], str]], ...] = (
            ("write", self._write),
            ("read", self._read),
            ("conditional write", self._conditional),
            ("checksum", self._checksum),
            ("private", self._private),
            ("download address", self._download),
            ("upload address", self._upload),
            ("delete", self._delete),
            ("read what is gone", self._gone),
        )
        try:
            for name, work in steps:
                try:
                    done.append(Step(name=name, state="ok", remark=work()))
                except _Unreachable:
                    done.append(Step(name=name, state="unknown", remark="not reachable from this machine"))
                except Fault as fault:
                    done.append(Step(name=name, state="failed", remark=str(fault)))
                    break
        finally:
            with contextlib.suppress(Fault):
                self._bucket.purge(self._folder, frozenset())
        return Trial(steps=tuple(done), verifies=self._verifies)

    def _write(self) -> str:
        self._bucket.put(self._key, _DATA, once=True)
        return ""

    def _read(self) -> str:
        if self._bucket.read(self._key) != _DATA:
            raise Fault("OtherBytes")
        return ""

    def _conditional(self) -> str:
        try:
            self._bucket.put(self._key, _DATA + b"again", once=True)
        except Fault as fault:
            if fault.status != 412:
                raise
        else:
            raise Fault("OverwriteAccepted", 200)
        return self._read()

    def _checksum(self) -> str:
        try:
            self._bucket.put(f"{self._folder}/1.png", _DATA, sha256=b"\0" * 32)
        except Fault as fault:
            if fault.code not in _CHECKED:
                raise
            self._verifies = True
            return ""
        return "the endpoint does not check SHA-256: each write is read back, which costs one more call"

    def _private(self) -> str:
        for address in sorted(self._bucket.unsigned(self._key)):
            with contextlib.suppress(_Unreachable):
                if self._ask("GET", address)[0] == 200:
                    raise Fault("AnybodyReads", 200)
        return ""

    def _download(self) -> str:
        return self._get(self._bucket.download(self._key, expires_at=time.time() + _SECONDS, filename="a.png"), _DATA)

    def _upload(self) -> str:
        key = f"{self._folder}/2.png"
        address = self._bucket.upload(key, expires_at=time.time() + _SECONDS)
        status, body = self._ask("PUT", address, _DATA + b"sent")
        if not 200 <= status < 300:
            raise _refusal(status, body)
        return self._get(self._bucket.loan(key, expires_at=time.time() + _SECONDS), _DATA + b"sent")

    def _delete(self) -> str:
        self._bucket.purge(self._folder, frozenset())
        return ""

    def _gone(self) -> str:
        """S3 says 403 and not 404 to those who may not list: then a lost picture would look like an outage."""
        if self._bucket.read(self._key) is not None:
            raise Fault("StillThere", 200)
        return ""

    def _get(self, address: str, wanted: bytes) -> str:
        status, body = self._ask("GET", address)
        if status != 200:
            raise _refusal(status, body)
        if body != wanted:
            raise Fault("OtherBytes", status)
        return ""

    def _ask(self, method: str, address: str, data: bytes | None = None) -> tuple[int, bytes]:
        headers = {"Content-Type": "image/png"} if data is not None else {}
        try:
            # A redirect is a failure: a signed address must not be followed to another place.
            answer = self._bucket.http.request(method, address, body=data, headers=headers, redirect=False)
        except HTTPError:
            raise _Unreachable from None
        return answer.status, answer.data


def _refusal(status: int, body: bytes) -> Fault:
    code = _CODE.search(body)
    return Fault(code.group(1).decode() if code else "", status)
