"""Pictures, signatures and certificates for the tests of the library."""

import datetime as dt
import hashlib
import io

import numpy as np
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from compliance.encode import EncodeOptions, encode
from compliance.picture import Marked, Raw, decode
from compliance.sign import Claims, Provenance, Signer

WHEN = dt.datetime(2026, 5, 28, 20, 2, 50, tzinfo=dt.UTC)
FORMATS = ["jpeg", "png", "webp", "avif"]
ONLY_EMAIL = (ExtendedKeyUsageOID.EMAIL_PROTECTION,)


def scene(width=256, height=192, seed=1):
    """A picture that is neither flat nor pure noise: a few blurred colours with some grain."""
    chance = np.random.default_rng(seed)
    coarse = Image.fromarray(chance.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), dtype=np.int16)
    grain = chance.integers(-8, 9, (height, width, 3), dtype=np.int16)
    return Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))


def noise(width=97, height=61, seed=2):
    """Random pixels with odd edges: the hardest case for a codec that claims to be exact."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def bytes_of(image, format="PNG", **settings):
    out = io.BytesIO()
    image.save(out, format, **settings)
    return out.getvalue()


def pixels_of(data):
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def decoded(data) -> Raw:
    return decode(data, hashlib.sha256(data).hexdigest())


def provenance(**claims) -> Provenance:
    return Provenance(gen_id="a1b2c3d4e5f6g7h8i9j0", model="eros", created=WHEN, claims=Claims(**claims))


def new_signer(credentials, **more) -> Signer:
    return Signer(credentials, name="imgen", version="0.1.0", provider="Example Pictures", **more)


def signed(signer, format="jpeg", image=None, *, lossless=False, **claims):
    encoded = encode(Marked(pixels=image or scene()), EncodeOptions(format=format, lossless=lossless))
    return signer.sign(encoded, provenance(**claims))


def tampered(picture):
    """The picture with one bit of its pixel data flipped; the manifest is as it was."""
    # Of the four formats only WebP has its manifest after the pixels.
    end = picture.data.rindex(b"C2PA") if picture.mime == "image/webp" else len(picture.data)
    data = bytearray(picture.data)
    data[end - 40] ^= 0x10
    return bytes(data)


class _Held:
    """A private key that is elsewhere."""

    def __init__(self, public_key):
        self.public_key = lambda: public_key


class Authority:
    """A root and an intermediate, and leaves with whatever flaw a test needs. Everything is PEM bytes."""

    def __init__(self):
        self.root_key, self.issuer_key = (
            ec.generate_private_key(ec.SECP256R1()),
            ec.generate_private_key(ec.SECP256R1()),
        )
        self.root = self._certificate("root", self.root_key, "root", self.root_key, ca=True)
        self.issuer = self._certificate("issuer", self.issuer_key, "root", self.root_key, ca=True)

    def leaf(self, key=None, *, purposes=ONLY_EMAIL, signature=True, known_issuer=True, begins=-1, ends=30):
        """(certificate, key); `begins` and `ends` are days from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        leaf = self._certificate(
            "leaf", key, "issuer", self.issuer_key, False, purposes, signature, known_issuer, begins, ends
        )
        return leaf, private_pem(key)

    def leaf_of(self, public_key):
        """The certificate of a key that somebody else holds."""
        return self._certificate("leaf", _Held(public_key), "issuer", self.issuer_key, False, ONLY_EMAIL)

    def leaf_of_a_leaf(self, issuer_key):
        """(certificate, key) as the holder of a leaf, who is no authority, could make them."""
        key = ec.generate_private_key(ec.SECP256R1())
        return self._certificate("leaf of a leaf", key, "leaf", issuer_key, False, ONLY_EMAIL), private_pem(key)

    def _certificate(
        self, name, key, issuer, issuer_key, ca, purposes=(), signature=True, known_issuer=True, begins=-1, ends=30
    ):
        now = dt.datetime.now(dt.UTC)
        usage = dict.fromkeys(_USAGES, False) | {"key_cert_sign": ca, "crl_sign": ca}
        usage |= {"digital_signature": signature and not ca, "key_encipherment": not signature}
        builder = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(_name(issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + dt.timedelta(days=begins))
            .not_valid_after(now + dt.timedelta(days=ends))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.KeyUsage(**usage), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        if purposes:
            builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        if known_issuer:
            identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        return builder.sign(issuer_key, hashes.SHA256()).public_bytes(Encoding.PEM)


_USAGES = [
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
    "encipher_only",
    "decipher_only",
]


def private_pem(key, format=PrivateFormat.PKCS8):
    return key.private_bytes(Encoding.PEM, format, NoEncryption())


def _name(common):
    attributes = [(NameOID.ORGANIZATION_NAME, "Example Pictures"), (NameOID.COMMON_NAME, f"Example {common}")]
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in attributes])
