"""Looks at every part that a gateway needs, one by one, and says of each what is wrong and how to mend it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator

from compliance.errors import ComplianceError
from compliance.sign import Signer
from gateway import __version__
from gateway.app import secret_of, signing_credentials
from gateway.backends.runpod import RunPodBackend
from gateway.core import catalog
from gateway.core.images import Readiness
from gateway.desk.keys import open_keys
from gateway.errors import GatewayError
from gateway.settings import Settings
from gateway.storage.disk import DiskStorage

Look = Callable[[], Awaitable[str]]


class NotReady(GatewayError):
    """A part cannot do its work"""

    code = "not_ready"


def looks(settings: Settings) -> Iterator[tuple[str, Look]]:
    """Name and look of each part. A look answers with a remark, or raises `GatewayError` or `ComplianceError`."""

    async def see_catalog() -> str:
        known = catalog.load(settings.catalog)
        return f"models {' '.join(known.models)}; characters {' '.join(known.characters) or 'none'}"

    async def see_jobs() -> str:
        async with open_keys(settings) as keys:
            active = sum(key.disabled_at is None for key in await keys.list())
        return f"active API keys: {active}" if active else "no active API key; make one with: imgen keys create"

    async def see_signing() -> str:
        signer = Signer(signing_credentials(settings), name="imgen", version=__version__, provider=settings.provider)
        signer.probe()
        return str(settings.signing_chain or "the data folder's development authority")

    async def see_storage() -> str:
        storage = DiskStorage(
            settings.data / "pictures",
            secret=secret_of(settings),
            public_url=settings.base_url(),
            internal_url=settings.worker_url(),
            now=time.time,
        )
        async with storage.open():
            return _of(await storage.readiness(), f"pictures in {settings.data / 'pictures'}")

    async def see_endpoint() -> str:
        if not settings.backend_url:
            return "imgen up brings its own; imgen serve needs IMGEN_BACKEND_URL"
        backend = RunPodBackend(
            settings.backend_url,
            settings.backend_key,
            secret=secret_of(settings),
            webhook_url=None,
            min_workers=settings.backend_min_workers,
        )
        async with backend.open():
            return _of(await backend.readiness(), settings.backend_url)

    yield "catalogue", see_catalog
    yield "job store", see_jobs
    yield "signing", see_signing
    yield "storage", see_storage
    yield "endpoint", see_endpoint


async def tried(look: Look) -> tuple[bool, str]:
    """Whether a part is in order, and the remark or the problem with its fix."""
    try:
        return True, await look()
    except (GatewayError, ComplianceError) as exc:
        return False, f"{exc.message} {exc.fix or ''}".rstrip()


def _of(readiness: Readiness, remark: str) -> str:
    if not readiness.ready:
        raise NotReady(f"{readiness.reason}.")
    return remark
