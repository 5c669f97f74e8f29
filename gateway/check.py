"""Looks at every part that a gateway needs, one by one, and says of each what is wrong and how to mend it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import UTC, datetime

import httpx

from compliance.errors import ComplianceError
from gateway.app import compliance_of, signer_of
from gateway.backends.runpod import RunPodBackend
from gateway.core import catalog
from gateway.core.catalog import Catalog
from gateway.core.finishing import EXPIRY_WARNING
from gateway.core.images import Readiness
from gateway.desk.claim import read_note
from gateway.desk.keys import open_keys
from gateway.errors import GatewayError
from gateway.settings import Settings
from gateway.signing import secret_of
from gateway.storage.build import storage_of
from handler.contract import Inventory

Look = Callable[[], Awaitable[str]]
#: State (``ok``, ``failed`` or ``unknown``), name and remark of a part.
Seen = tuple[str, str, str]
#: Seconds for a worker to say what it has: one that has to start first needs most of them.
PATIENCE = 90.0


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
        signer = signer_of(settings)
        signer.probe()
        days = (signer.credentials.not_after - datetime.now(UTC)).days
        soon = f"; it expires in {days} days: renew it" if days < EXPIRY_WARNING / 86_400 else ""
        where = settings.signing_chain or "the data folder's development authority"
        return f"{where}{soon}"

    async def see_storage() -> str:
        storage = storage_of(settings, secret=secret_of(settings))
        place = f"the bucket {settings.s3_bucket}" if settings.s3_bucket else str(settings.data / "pictures")
        async with storage.open():
            readiness = await storage.readiness()
        return _of(readiness, f"pictures in {place}")

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

    async def see_compliance() -> str:
        compliance = compliance_of(settings)
        async with compliance.open():
            return _of(await compliance.readiness(), f"rulesets {' '.join(sorted(compliance.rulesets))}")

    yield "catalogue", see_catalog
    yield "job store", see_jobs
    yield "signing", see_signing
    yield "storage", see_storage
    yield "compliance", see_compliance
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


# What the worker has


async def compared(
    settings: Settings, *, patience: float = PATIENCE, transport: httpx.AsyncBaseTransport | None = None
) -> list[Seen]:
    """The catalogue beside what a worker says it has. Asking may start a worker."""
    url, key = _endpoint(settings)
    if not url:
        fix = "Set IMGEN_BACKEND_URL, or start one with: imgen up."
        return [("failed", "worker", f"there is no endpoint to ask. {fix}")]
    backend = RunPodBackend(url, key, secret=secret_of(settings), webhook_url=None, transport=transport)
    try:
        known = catalog.load(settings.catalog)
        async with backend.open():
            has = await backend.inventory(patience)
    except GatewayError as exc:
        return [("failed", "worker", f"{exc.message} {exc.fix or ''}".rstrip())]
    if has is None:
        return [
            ("unknown", "worker", "can't tell: it runs a release that does not say what it has. Update the worker.")
        ]
    return [("ok", "worker", f"answers with contract {has.version}"), *compare(known, has)]


def compare(known: Catalog, has: Inventory) -> Iterator[Seen]:
    """A row for each model and each LoRA that the catalogue names, and for each LoRA that its model can't wear."""
    for name, model in known.models.items():
        yield _entry(f"model {name}", "models", model.worker, has.models)
    for lora in dict.fromkeys(lora for name in known.models for lora in known.loras_of(name).values()):
        yield _entry(f"lora {lora}", "loras", lora, has.loras)
    for name, model in known.models.items():
        family = has.models.get(model.worker)
        for place, lora in known.loras_of(name).items():
            if family is not None and has.loras.get(lora, family) != family:
                yield "failed", f"model {name}", _misfit(name, family, place, lora, has.loras[lora])


def _endpoint(settings: Settings) -> tuple[str, str]:
    """Address and key of the configured endpoint, or of the desk that runs on the data folder."""
    if settings.backend_url:
        return settings.backend_url, settings.backend_key
    endpoint = read_note(settings.data).get("endpoint") or {}
    return str(endpoint.get("url", "")), str(endpoint.get("key", ""))


def _entry(part: str, table: str, name: str, has: Mapping[str, str]) -> Seen:
    if name in has:
        return "ok", part, f"{name}, {has[name]}"
    instead = f", or name one that it has: {', '.join(sorted(has))}" if has else ""
    return "failed", part, f"the worker lacks it; add [{table}.{name}] to the worker's models.toml{instead}."


def _misfit(model: str, family: str, place: str, lora: str, its_family: str) -> str:
    table, _, name = place.partition(".")
    fix = f"leave {name!r} out of models.{model}.characters" if table == "characters" else f"take it out of {place}"
    return f"is of the family {family}, and the LoRA {lora!r} of {place} of {its_family}; {fix}."
