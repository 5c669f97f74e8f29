"""The development certificate authority: made at the first start, so that a laptop signs pictures like production does.

It has a root, an intermediate and a leaf. The root's key signs the intermediate and is then thrown away: it never
touches the disk. The folder (mode 0700) holds

    signer.pem    key, leaf and intermediate in one file, so that a key can never meet another key's certificate (0600)
    issuer.pem    the intermediate's key and certificate, with which a new leaf is made (0600)
    anchors.pem   every root that this folder ever had, to be trusted by readers (0644); it only grows
    lock          held while the others are written

Nobody else trusts this root, and nobody should: `Credentials.from_pem_files` takes a chain from a real authority.
"""

import contextlib
import datetime as dt
import fcntl
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from compliance.credentials import C2PA_EKU, Credentials
from compliance.errors import BadCredentials

# Without a timestamp authority a picture verifies only as long as the leaf that signed it is valid. So a leaf is valid
# for long and replaced early: every picture verifies for at least four years.
ROOT_LIFE = dt.timedelta(days=20 * 365)
LEAF_LIFE = dt.timedelta(days=5 * 365)
LEAF_MIN_LEFT = dt.timedelta(days=4 * 365)
_START_UP = "Move the folder away; the next start makes a new authority."
_NO_USAGE = dict.fromkeys(
    [
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    ],
    False,
)


def utc_now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


def load_or_create(folder: Path, *, now: Callable[[], dt.datetime] = utc_now) -> Credentials:
    """The folder's credentials; made when there are none, the leaf renewed when less than LEAF_MIN_LEFT of it is left.

    Safe when several processes start at once: they end with the same authority. Raises BadCredentials when the folder
    can't be written or holds files that do not read.
    """
    try:
        with _locked(folder):
            _renew(folder, now())
            return _load(folder)
    except OSError as exc:
        raise BadCredentials(
            f"The signing folder {folder} can't be used: {exc.strerror or exc}.",
            fix="Give a folder that this user may write, on a file system with locks.",
        ) from exc


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _load(folder: Path) -> Credentials:
    key, chain = _split((folder / "signer.pem").read_bytes())
    return Credentials.from_pem(chain, key, (folder / "anchors.pem").read_bytes())


def _renew(folder: Path, now: dt.datetime) -> None:
    """Makes what is missing or too old, outermost first: a crash between two writes leaves nothing that misleads."""
    signer, issuer, anchors = folder / "signer.pem", folder / "issuer.pem", folder / "anchors.pem"
    if signer.exists() and anchors.exists() and _expiry(signer) - now >= LEAF_MIN_LEFT:
        return
    if not (issuer.exists() and anchors.exists()) or _expiry(issuer) - now < LEAF_LIFE:
        root, issuer_key, issuer_certificate = _new_authority(now)
        _write(anchors, (anchors.read_bytes() if anchors.exists() else b"") + _pem(root), 0o644)
        _write(issuer, _key_pem(issuer_key) + _pem(issuer_certificate), 0o600)
    _write(signer, _new_leaf(issuer, now), 0o600)


def _new_authority(
    now: dt.datetime,
) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey, x509.Certificate]:
    root_key = ec.generate_private_key(ec.SECP256R1())
    issuer_key = ec.generate_private_key(ec.SECP256R1())
    root_name = _subject("imgen development root, not for production")
    root = _authority(root_name, root_key.public_key(), root_name, root_key, now, path_length=1)
    issuer_name = _subject("imgen development issuer")
    issuer = _authority(issuer_name, issuer_key.public_key(), root_name, root_key, now, path_length=0)
    return root, issuer_key, issuer


def _authority(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    path_length: int,
) -> x509.Certificate:
    usage = _NO_USAGE | {"key_cert_sign": True, "crl_sign": True}
    builder = _builder(subject, public_key, issuer, issuer_key, now, ROOT_LIFE)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
    return builder.add_extension(x509.KeyUsage(**usage), critical=True).sign(issuer_key, hashes.SHA256())


def _new_leaf(issuer_file: Path, now: dt.datetime) -> bytes:
    """Key, leaf and intermediate as one PEM text."""
    issuer_key_pem, issuer_pem = _split(issuer_file.read_bytes())
    issuer = _first(issuer_pem, issuer_file)
    issuer_key = _issuer_key(issuer_key_pem, issuer_file)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject("imgen development signer")
    leaf = (
        _builder(subject, key.public_key(), issuer.subject, issuer_key, now, LEAF_LIFE)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**(_NO_USAGE | {"digital_signature": True})), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION, C2PA_EKU]), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    return _key_pem(key) + _pem(leaf) + _pem(issuer)


def _builder(
    subject: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    issuer: x509.Name,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: dt.datetime,
    life: dt.timedelta,
) -> x509.CertificateBuilder:
    """What all three certificates have in common. They begin an hour ago, for readers whose clock is behind."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + life)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, "imgen development"),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _expiry(path: Path) -> dt.datetime:
    return _first(_split(path.read_bytes())[1], path).not_valid_after_utc


def _first(pem: bytes, path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificates(pem)[0]
    except ValueError as exc:
        raise BadCredentials(f"{path} has no readable certificate.", fix=_START_UP) from exc


def _issuer_key(pem: bytes, path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as exc:
        raise BadCredentials(f"{path} has no readable key.", fix=_START_UP) from exc
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadCredentials(f"{path} has a key of another kind than this program makes.", fix=_START_UP)
    return key


def _split(pem: bytes) -> tuple[bytes, bytes]:
    """The key at the start of one of our files, and the certificates after it."""
    head, separator, rest = pem.partition(b"-----END PRIVATE KEY-----\n")
    return head + separator, rest


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.PEM)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(path: Path, data: bytes, mode: int) -> None:
    """All or nothing: a temporary file (0600 from its first moment) is filled, flushed and renamed."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(mode)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
