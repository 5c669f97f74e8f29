"""Secrets and certificates as the settings name them: for the gateway, and for commands that need no more of it.

The gateway's own module takes two seconds to import, of which a command like `imgen verify` needs nothing.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.errors import SettingsError
from gateway.settings import Settings

if TYPE_CHECKING:
    from compliance.credentials import Credentials, RemoteKey
    from compliance.pixelmark import PixelMark


def secret_of(settings: Settings) -> bytes:
    """The signing secret: the setting, or a file that only its owner can read, made at the first start."""
    if settings.secret:
        return settings.secret.encode()
    path = settings.data / "secret"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = path.with_name(f".secret.{os.getpid()}.{secrets.token_hex(4)}")
    if not path.exists():
        # Written whole, then linked into place: two first starts at once end with one secret.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(fresh, path)
        fresh.unlink()
    return path.read_bytes().strip()


def signing_credentials(settings: Settings) -> Credentials:
    """The configured chain, or the development authority of the data folder. Raises `SettingsError`."""
    from compliance.authority import load_or_create
    from compliance.credentials import Credentials
    from compliance.errors import ComplianceError

    try:
        if settings.signing_chain is None:
            return load_or_create(authority_folder(settings))
        if settings.signing_anchors is None:
            raise SettingsError("IMGEN_SIGNING_ANCHORS: name the PEM file with the root of the signing chain")
        if settings.signing_key is None:
            return Credentials.from_remote_key_files(
                settings.signing_chain, _kms_key(settings), settings.signing_anchors
            )
        return Credentials.from_pem_files(settings.signing_chain, settings.signing_key, settings.signing_anchors)
    except ComplianceError as exc:
        raise SettingsError(f"IMGEN_SIGNING_CHAIN: {exc.message}", fix=exc.fix) from exc


def _kms_key(settings: Settings) -> RemoteKey:
    # Imported where it is wanted: it brings AWS's whole SDK.
    from compliance.kms import KmsKey

    return KmsKey(
        key_id=settings.signing_kms_key, region=settings.signing_kms_region, endpoint=settings.signing_kms_endpoint
    )


def anchors_of(settings: Settings, file: Path | None = None) -> bytes:
    """The PEM roots to trust: of a file, those configured, or the development authority's. None is an answer, too."""
    path = file or settings.signing_anchors or authority_folder(settings) / "anchors.pem"
    return path.read_bytes() if file or path.exists() else b""


def authority_folder(settings: Settings) -> Path:
    """Where the development authority lives."""
    return settings.data / "signing"


def pixel_mark_of(settings: Settings, secret: bytes) -> PixelMark:
    """What lays ids into pixels and finds them there; also where none are laid any more, for those that are out."""
    from compliance.pixelmark import PixelMark

    key = settings.pixel_mark_key.encode() or hmac.digest(secret, b"imgen pixel mark", "sha256")
    return PixelMark(key)
