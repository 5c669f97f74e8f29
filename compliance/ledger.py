"""A record to which one can only add: each entry carries the hash of the one before it, and an export is sealed.

    hash = SHA-256(previous hash, as 64 hex digits, + the entry as canonical JSON)

An export is text, one JSON object a line:

    {"format": "imgen-audit", "version": 1, "previous": …}     what the first entry follows; GENESIS for a whole record
    {"seq": 1, "at": …, "kind": …, "body": {…}, "previous": …, "hash": …}                            for each entry
    {"seal": {"head": SHA-256 of the first line, "count", "first", "last", "previous", "hash", "exported_at",
              "algorithm", "certificates"}, "signature": Base64 over the seal as canonical JSON}

The chain shows that no entry was changed, taken out or moved; the seal that none is missing at the end and whose record
it is. It is signed with the key that signs the pictures. All lines are canonical JSON (sorted keys, no blanks, ASCII
only), so any other spelling of the same thing is a change, too.

Whoever holds the key and the database can still write another record from scratch, or forget its newest entries. An
earlier export betrays that: `verify` says whether a later one goes on where it ended.
"""

import base64
import binascii
import datetime as dt
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from compliance.credentials import Credentials, common_name, trusted_leaf
from compliance.errors import BadCredentials, SigningUnavailable

FORMAT = "imgen-audit"
VERSION = 1
#: What the first entry of all follows.
GENESIS = "0" * 64
#: Problems that a report names; a file that is no export at all would have one per line.
MOST_PROBLEMS = 100

_PSS = padding.PSS(mgf=padding.MGF1(hashes.SHA256()), salt_length=32)
_CURVE_HASHES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One thing that happened. `at` is ISO 8601 in UTC with milliseconds, `body` whatever JSON can hold."""

    seq: int
    at: str
    kind: str
    body: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return {"seq": self.seq, "at": self.at, "kind": self.kind, "body": dict(self.body)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """An entry in its place."""

    entry: Entry
    previous: str
    hash: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an export holds, and everything that is wrong with it. `previous` is GENESIS where it is a whole record."""

    count: int = 0
    first: int = 0
    last: int = 0
    previous: str = ""
    hash: str = ""
    exported_at: str = ""
    signer: str = ""
    issuer: str = ""
    problems: tuple[str, ...] = ()

    @property
    def intact(self) -> bool:
        return not self.problems

    @property
    def whole(self) -> bool:
        """Whether it begins with the first entry of all."""
        return self.previous == GENESIS


def canonical(value: Any) -> str:
    """The one way to write a value. Raises ValueError or TypeError for what JSON can't hold."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def moment(at: float) -> str:
    """Seconds since the epoch as an entry says it."""
    return dt.datetime.fromtimestamp(at, dt.UTC).isoformat(timespec="milliseconds")


def link(entry: Entry, previous: str) -> Link:
    """The entry after the one that has the hash `previous`."""
    return Link(entry=entry, previous=previous, hash=_sha256(previous + canonical(entry.as_dict())))


class Export:
    """Writes an export line by line: `head`, then `line` for each entry in order, then `seal`."""

    def __init__(self, previous: str = GENESIS) -> None:
        """`previous` is the hash that the first entry follows."""
        self.head = canonical({"format": FORMAT, "version": VERSION, "previous": previous})
        self._previous = previous
        self._hash = previous
        self._count = self._first = self._last = 0

    def line(self, link: Link) -> str:
        """The link as it stands: what is broken in the record is broken in the export, too."""
        self._first = self._first or link.entry.seq
        self._last = link.entry.seq
        self._count += 1
        self._hash = link.hash
        return canonical({**link.entry.as_dict(), "previous": link.previous, "hash": link.hash})

    def seal(self, credentials: Credentials, at: dt.datetime) -> str:
        """Raises SigningUnavailable."""
        seal = {
            "head": _sha256(self.head),
            "count": self._count,
            "first": self._first,
            "last": self._last,
            "previous": self._previous,
            "hash": self._hash,
            "exported_at": moment(at.timestamp()),
            "algorithm": credentials.algorithm,
            "certificates": credentials.chain_pem.decode("ascii", "replace"),
        }
        signature = _sign(credentials, canonical(seal).encode())
        return canonical({"seal": seal, "signature": base64.b64encode(signature).decode()})


def export(links: Iterable[Link], credentials: Credentials, at: dt.datetime, previous: str = GENESIS) -> Iterator[str]:
    """All lines of an export, without their ends."""
    writer = Export(previous)
    yield writer.head
    for each in links:
        yield writer.line(each)
    yield writer.seal(credentials, at)


def verify(lines: Iterable[str], anchors: bytes, earlier: Report | None = None) -> Report:
    """Reads an export once, from front to back, and says what it holds and what is wrong with it; it never raises.

    `anchors` is PEM text with the roots that are trusted to have issued the signer's certificate. With the report of an
    earlier export this one must hold or follow that one's last entry.
    """
    reader = _Reader(anchors, earlier if earlier and earlier.count else None)
    for number, text in enumerate(lines, 1):
        reader.take(number, text.removesuffix("\n"))
    return reader.report()


class _Reader:
    def __init__(self, anchors: bytes, earlier: Report | None) -> None:
        self._anchors = anchors
        #: What is still to be met of the earlier export.
        self._earlier = earlier
        self._problems: list[str] = []
        self._head = ""
        self._begin = ""
        self._count = self._first = self._last = 0
        self._hash = ""
        self._sealed_at_line = 0
        self._exported_at = self._signer = self._issuer = ""

    def take(self, number: int, text: str) -> None:
        said = _parsed(text)
        if number == 1:
            self._take_head(text, said)
        elif self._sealed_at_line:
            self._wrong(number, f"comes after the seal in line {self._sealed_at_line}")
        elif said is not None and "seal" in said:
            self._sealed_at_line = number
            self._take_seal(number, said)
        elif (found := _as_link(said)) is None:
            self._wrong(number, "is no entry as it was exported: it was changed")
        else:
            self._take_link(number, found)

    def report(self) -> Report:
        if not self._sealed_at_line:
            self._problems.append("The end is missing: there is no seal.")
        if self._earlier:
            self._problems.append(
                f"The earlier export ends with entry {self._earlier.last}; this one does not go on from there."
            )
        return Report(
            count=self._count,
            first=self._first,
            last=self._last,
            previous=self._begin,
            hash=self._hash,
            exported_at=self._exported_at,
            signer=self._signer,
            issuer=self._issuer,
            problems=tuple(self._problems[:MOST_PROBLEMS]),
        )

    def _take_head(self, text: str, said: dict[str, Any] | None) -> None:
        if said is None or said.keys() != {"format", "version", "previous"} or said["format"] != FORMAT:
            self._wrong(1, "is not the beginning of an export: that is missing, or it was changed")
        elif not _is_number(said["version"]) or said["version"] != VERSION:
            self._wrong(1, f"has version {said['version']}; this program reads version {VERSION}")
        else:
            self._head = _sha256(text)
            self._begin = self._hash = str(said["previous"])
            if self._earlier and self._begin == self._earlier.hash:
                self._earlier = None

    def _take_link(self, number: int, found: Link) -> None:
        entry = found.entry
        if self._count == 0:
            if (entry.seq == 1) != (self._begin == GENESIS):
                self._wrong(number, f"has entry {entry.seq} at the beginning: entries before it are missing")
        elif entry.seq > self._last + 1:
            self._wrong(number, f"has entry {entry.seq} after entry {self._last}: what was between them is missing")
        elif entry.seq <= self._last:
            self._wrong(number, f"has entry {entry.seq} after entry {self._last}: it was moved or repeated")
        if found.previous != self._hash:
            self._wrong(number, f"has entry {entry.seq}, which does not follow the entry before it")
        if link(entry, found.previous).hash != found.hash:
            self._wrong(number, f"has entry {entry.seq}, which was changed: its hash is another one")
        if self._earlier and entry.seq == self._earlier.last:
            if found.hash != self._earlier.hash:
                self._wrong(number, f"has entry {entry.seq}, which is another one than in the earlier export")
            self._earlier = None
        self._first = self._first or entry.seq
        self._last, self._hash = entry.seq, found.hash
        self._count += 1

    def _take_seal(self, number: int, said: dict[str, Any]) -> None:
        seal, signature = said.get("seal"), said.get("signature")
        if said.keys() != {"seal", "signature"} or not isinstance(seal, dict) or not isinstance(signature, str):
            self._wrong(number, "is no seal as it was exported: it was changed")
            return
        found = {
            "head": self._head,
            "count": self._count,
            "first": self._first,
            "last": self._last,
            "previous": self._begin,
            "hash": self._hash,
        }
        for name, value in found.items():
            if seal.get(name) != value:
                self._wrong(number, f"seals another record: its {name} is {seal.get(name)!r}, but here it is {value!r}")
        self._exported_at = str(seal.get("exported_at", ""))
        try:
            self._check_signer(seal, signature)
        except BadCredentials as exc:
            self._wrong(number, f"has no signer whom these anchors vouch for: {exc.message.rstrip('.')}")
        except (InvalidSignature, binascii.Error, ValueError):
            self._wrong(number, "has a signature that does not hold: the seal was changed")

    def _check_signer(self, seal: dict[str, Any], signature: str) -> None:
        leaf = trusted_leaf(str(seal.get("certificates", "")).encode("ascii", "replace"), self._anchors)
        raw = base64.b64decode(signature, validate=True)
        if base64.b64encode(raw).decode() != signature:
            raise ValueError("the same signature, spelt otherwise")
        _check_signature(leaf.public_key(), raw, canonical(seal).encode())
        exported = dt.datetime.fromisoformat(self._exported_at)
        if exported.tzinfo is None or not leaf.not_valid_before_utc <= exported <= leaf.not_valid_after_utc:
            raise BadCredentials(f"the signer's certificate was not valid on {self._exported_at}")
        self._signer, self._issuer = common_name(leaf.subject), common_name(leaf.issuer)

    def _wrong(self, number: int, what: str) -> None:
        if len(self._problems) < MOST_PROBLEMS:
            self._problems.append(f"Line {number} {what}.")


def _parsed(text: str) -> dict[str, Any] | None:
    """The object of a line; None when it is none, or is not written as we write it."""
    try:
        said = json.loads(text)
        return said if isinstance(said, dict) and canonical(said) == text else None
    except (ValueError, RecursionError):
        return None


def _as_link(said: dict[str, Any] | None) -> Link | None:
    if said is None or said.keys() != {"seq", "at", "kind", "body", "previous", "hash"}:
        return None
    texts = [said[name] for name in ("at", "kind", "previous", "hash")]
    if not (_is_number(said["seq"]) and isinstance(said["body"], dict) and all(isinstance(t, str) for t in texts)):
        return None
    entry = Entry(seq=said["seq"], at=said["at"], kind=said["kind"], body=said["body"])
    return Link(entry=entry, previous=said["previous"], hash=said["hash"])


def _is_number(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _sign(credentials: Credentials, data: bytes) -> bytes:
    if credentials.remote is not None:
        return credentials.remote.sign(data, credentials.algorithm)
    key = load_pem_private_key(credentials.key_pem, password=None)
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(data, ec.ECDSA(_CURVE_HASHES[key.curve.name]))
        case ed25519.Ed25519PrivateKey():
            return key.sign(data)
        case rsa.RSAPrivateKey():
            return key.sign(data, _PSS, hashes.SHA256())
    raise SigningUnavailable("A record can't be sealed with a key of this kind.", fix="Use a key on the curve P-256.")


def _check_signature(key: Any, signature: bytes, data: bytes) -> None:
    """Raises InvalidSignature."""
    match key:
        case ec.EllipticCurvePublicKey() if key.curve.name in _CURVE_HASHES:
            key.verify(signature, data, ec.ECDSA(_CURVE_HASHES[key.curve.name]))
        case ed25519.Ed25519PublicKey():
            key.verify(signature, data)
        case rsa.RSAPublicKey():
            key.verify(signature, data, _PSS, hashes.SHA256())
        case _:
            raise InvalidSignature
