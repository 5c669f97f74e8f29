"""Looks at every part that a gateway needs, one by one, and says of each what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator

from compliance.errors import ComplianceError
from compliance.sign import Signer
from gateway import __version__
from gateway.app import signing_credentials
from gateway.core import catalog
from gateway.desk.keys import open_keys
from gateway.errors import GatewayError
from gateway.settings import Settings

Look = Callable[[], Awaitable[str]]


def looks(settings: Settings) -> Iterator[tuple[str, Look]]:
    """Name and look of each part. A look answers with a remark, or raises `GatewayError` or `ComplianceError`."""

    async def see_catalog() -> str:
        known = catalog.load(settings.catalog)
        return f"{len(known.models)} models, {len(known.characters)} characters"

    async def see_jobs() -> str:
        async with open_keys(settings) as keys:
            active = sum(key.disabled_at is None for key in await keys.list())
        if not active and not settings.api_key:
            return "no active API key; make one with: imgen keys create"
        return f"{active} active API keys"

    async def see_signing() -> str:
        signer = Signer(signing_credentials(settings), name="imgen", version=__version__, provider=settings.provider)
        signer.probe()
        return "development CA" if settings.signing_chain is None else str(settings.signing_chain)

    yield "catalogue", see_catalog
    yield "job store", see_jobs
    yield "signing", see_signing


async def tried(look: Look) -> tuple[bool, str]:
    """Whether a part is in order, and the remark or the problem with its fix."""
    try:
        return True, await look()
    except (GatewayError, ComplianceError) as exc:
        return False, f"{exc.message} {exc.fix or ''}".rstrip()
