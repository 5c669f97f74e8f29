"""A certificate chain with its key, checked against the C2PA certificate profile before anything is signed with it.

The profile (C2PA 2.2, "Trust model", and what the SDK enforces): leaf first, then intermediates; the leaf has keyUsage
digitalSignature, an AuthorityKeyIdentifier and the emailProtection EKU (the C2PA EKU alone is not known to every
reader); the key is a PKCS#8 PEM. What goes wrong here is said with its fix; what only a reader can see is found by
`Signer.probe`.
"""

import datetime as dt
import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from compliance.errors import BadCredentials

_E = TypeVar("_E", bound=x509.ExtensionType)
C2PA_EKU = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")
_CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}


class RemoteKey(Protocol):
    """A private key that is kept elsewhere, such as `compliance.kms.KmsKey`."""

    def sign(self, data: bytes, algorithm: str) -> bytes:
        """The signature over `data`. Raises SigningUnavailable, and BadCredentials for what no retry mends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What signs: PEM texts, and facts read from them. `chain_pem` is leaf first, without the root.

    `anchors_pem` are the roots that a reader must trust; `algorithm` is the C2PA name of the signature algorithm. The
    private key is `key_pem` or, where that is empty, `remote`. `not_before` and `not_after` are those of the whole
    chain: when its first certificate expires, so does it.
    """

    chain_pem: bytes
    key_pem: bytes = field(repr=False)
    anchors_pem: bytes = field(repr=False)
    algorithm: str
    subject: str
    issuer: str
    not_before: dt.datetime
    not_after: dt.datetime
    remote: RemoteKey | None = field(default=None, repr=False)

    @classmethod
    def from_pem(cls, chain_pem: bytes, key_pem: bytes, anchors_pem: bytes) -> "Credentials":
        """Checks that the three fit together. Raises BadCredentials, which says what is wrong and how to mend it.

        Validity in time is not checked here, but when a picture is signed.
        """
        leaf = certificates(chain_pem, "The signing chain")[0]
        _check_key(leaf, key_pem)
        return cls._checked(chain_pem, anchors_pem, key_pem, None)

    @classmethod
    def from_remote_key(cls, chain_pem: bytes, key: RemoteKey, anchors_pem: bytes) -> "Credentials":
        """The same for a key that is kept elsewhere. That it fits the certificate is seen when it first signs."""
        return cls._checked(chain_pem, anchors_pem, b"", key)

    @classmethod
    def _checked(cls, chain_pem: bytes, anchors_pem: bytes, key_pem: bytes, remote: RemoteKey | None) -> "Credentials":
        chain = certificates(chain_pem, "The signing chain")
        anchors = certificates(anchors_pem, "The list of anchors")
        leaf = chain[0]
        algorithm = _algorithm(leaf)
        _check_profile(leaf)
        _check_order(chain, anchors)
        return cls(
            chain_pem=chain_pem,
            key_pem=key_pem,
            anchors_pem=anchors_pem,
            algorithm=algorithm,
            subject=_name(leaf.subject),
            issuer=_name(leaf.issuer),
            not_before=max(certificate.not_valid_before_utc for certificate in chain),
            not_after=min(certificate.not_valid_after_utc for certificate in chain),
            remote=remote,
        )

    @classmethod
    def from_pem_files(cls, chain: Path, key: Path, anchors: Path) -> "Credentials":
        """`from_pem` over three files, for a chain that a certificate authority gave."""
        return cls.from_pem(_read(chain), _read(key), _read(anchors))

    @classmethod
    def from_remote_key_files(cls, chain: Path, key: RemoteKey, anchors: Path) -> "Credentials":
        """`from_remote_key` over two files."""
        return cls.from_remote_key(_read(chain), key, _read(anchors))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as exc:
        raise BadCredentials(
            f"{path} can't be read: {exc.strerror}.", fix="Check the path and that this user may read the file."
        ) from exc


def certificates(pem: bytes, what: str) -> list[x509.Certificate]:
    """The certificates of a PEM text in order, at least one. Raises BadCredentials, which calls the text `what`."""
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as exc:
        raise BadCredentials(
            f"{what} has no readable certificate: {exc}.",
            fix="Give PEM text, each certificate between BEGIN CERTIFICATE and END CERTIFICATE.",
        ) from exc


def trusted_leaf(chain_pem: bytes, anchors_pem: bytes) -> x509.Certificate:
    """The certificate at the start of a chain that leads to one of the anchors and may sign. Raises BadCredentials.

    Validity in time is not checked here.
    """
    chain = certificates(chain_pem, "The signing chain")
    _check_profile(chain[0])
    _check_order(chain, certificates(anchors_pem, "The list of anchors"))
    for issuer in chain[1:]:
        constraints = _extension(issuer, x509.BasicConstraints)
        if constraints is None or not constraints.ca:
            raise BadCredentials(
                f"In the chain, {_name(issuer.subject)!r} has issued a certificate, but is no authority.",
                fix="Trust nothing that was signed with this chain.",
            )
    return chain[0]


def common_name(name: x509.Name) -> str:
    """What people call the subject or issuer of a certificate."""
    return _name(name)


def _check_key(leaf: x509.Certificate, key_pem: bytes) -> None:
    if b"BEGIN PRIVATE KEY" not in key_pem:
        raise BadCredentials(
            "The signing key is not an unencrypted PKCS#8 PEM.",
            fix="Convert it: openssl pkcs8 -topk8 -nocrypt -in key.pem -out key.pkcs8.pem",
        )
    try:
        key = load_pem_private_key(key_pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise BadCredentials(f"The signing key can't be read: {exc}.", fix="Give an unencrypted PKCS#8 PEM.") from exc
    spki = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != leaf.public_key().public_bytes(*spki):
        raise BadCredentials(
            "The signing key does not belong to the first certificate of the chain.",
            fix="Put the signer's own certificate first, or give the key that this certificate was made for.",
        )


def _algorithm(leaf: x509.Certificate) -> str:
    match leaf.public_key():
        case ec.EllipticCurvePublicKey() as key if key.curve.name in _CURVES:
            return _CURVES[key.curve.name]
        case ed25519.Ed25519PublicKey():
            return "ed25519"
        case rsa.RSAPublicKey() as key if key.key_size >= 2048:
            return "ps256"
    raise BadCredentials("C2PA has no signature algorithm for this key.", fix="Use a key on the curve P-256.")


def _check_profile(leaf: x509.Certificate) -> None:
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature or usage.key_cert_sign:
        raise BadCredentials(
            "The signing certificate's keyUsage must have digitalSignature and not keyCertSign.",
            fix="Ask the authority for an end-entity certificate for signing.",
        )
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    if purposes is None or ExtendedKeyUsageOID.EMAIL_PROTECTION not in purposes:
        raise BadCredentials(
            "The signing certificate lacks the extended key usage emailProtection.",
            fix="Ask for emailProtection, best together with the C2PA usage 1.3.6.1.4.1.62558.2.1.",
        )
    if _extension(leaf, x509.AuthorityKeyIdentifier) is None:
        raise BadCredentials(
            "The signing certificate lacks an AuthorityKeyIdentifier.", fix="Have it issued with that extension."
        )


def _check_order(chain: list[x509.Certificate], anchors: list[x509.Certificate]) -> None:
    """Each certificate is issued by the next one, and the last one is, or is issued by, an anchor."""
    for child, parent in itertools.pairwise(chain):
        if not _issued_by(child, parent):
            raise BadCredentials(
                f"In the chain, {_name(child.subject)!r} is not issued by {_name(parent.subject)!r}, which follows it.",
                fix="Order the chain: the signer's certificate first, then the one that issued it, and so on.",
            )
    if chain[-1] not in anchors and not any(_issued_by(chain[-1], anchor) for anchor in anchors):
        raise BadCredentials(
            f"The chain ends with {_name(chain[-1].subject)!r}, which no anchor has issued.",
            fix="Add the missing intermediate to the chain, or its root to the anchors.",
        )


def _issued_by(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


def _extension(certificate: x509.Certificate, kind: type[_E]) -> _E | None:
    try:
        return certificate.extensions.get_extension_for_class(kind).value
    except (x509.ExtensionNotFound, ValueError):
        return None


def _name(name: x509.Name) -> str:
    common = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(common[0].value) if common else name.rfc4514_string()
