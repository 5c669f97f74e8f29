"""Which storage the settings mean: a bucket where they name one, else a folder."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gateway.settings import Settings
from gateway.storage.disk import DiskStorage

if TYPE_CHECKING:
    from gateway.storage.bucket import Place
    from gateway.storage.s3 import S3Storage


def storage_of(settings: Settings, *, secret: bytes) -> DiskStorage | S3Storage:
    """Builds without I/O. The secret signs the addresses of the folder; S3 signs its own."""
    if settings.s3_bucket:
        # boto3 takes a moment to import: only who has a bucket pays for it.
        from gateway.storage.s3 import S3Storage

        return S3Storage(place_of(settings))
    return DiskStorage(
        settings.data / "pictures",
        secret=secret,
        public_url=settings.base_url(),
        internal_url=settings.worker_url(),
        now=time.time,
    )


def place_of(settings: Settings) -> Place:
    """The bucket of the settings."""
    from gateway.storage.bucket import Place

    return Place(
        bucket=settings.s3_bucket,
        region=settings.s3_region,
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        prefix=settings.s3_prefix,
        path_style=settings.s3_path_style,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key,
    )
