"""Logos that callers send: cleaned, reviewed like a picture, and kept in private before the job is written down."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass

import anyio.to_thread
import structlog

from compliance.errors import BrokenRender, LogoRefused, PictureRefused, ReviewUnavailable
from compliance.logo import MOST_BYTES, Logo, read_logo
from compliance.picture import Raw
from compliance.review import Context
from compliance.verdict import Verdict
from compliance.watermark import POSITIONS
from gateway.core.images import Caller, Delivery, Watermark
from gateway.core.ports import Compliance, Storage
from gateway.core.safeguard import Safeguard
from gateway.errors import ComplianceUnavailable, InvalidField, WatermarkBlocked

__all__ = ["MOST_BYTES", "POSITIONS", "GivenLogo", "LogoDesk", "logo_key"]

log = structlog.get_logger(__name__)

#: What is white on nothing shows on black only, and the other way round.
_GROUNDS = ("white", "black")
_MOST_REMEMBERED = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class GivenLogo:
    """A logo as a caller sent it, with the media type that it was declared as, and its place as in `Watermark`."""

    data: bytes
    mime: str
    position: str
    scale: int
    opacity: int
    rotation: int
    padding_x: int
    padding_y: int


def logo_key(tenant: str, sha256: str) -> str:
    """Where a tenant's logo lies. A logo that comes with every request is kept once."""
    return f"marks/{hashlib.sha256(tenant.encode()).hexdigest()[:32]}/{sha256}.png"


class LogoDesk:
    """Takes logos in. A forbidden picture must not leave on top of an innocent one."""

    def __init__(self, *, storage: Storage, compliance: Compliance, safeguard: Safeguard) -> None:
        self._storage = storage
        self._compliance = compliance
        self._safeguard = safeguard
        #: Safe ones, by all that the verdict depends on: the same logo is not reviewed, and paid for, each time.
        self._passed: OrderedDict[tuple[str, int, str, str, str, str], None] = OrderedDict()

    async def take(
        self, caller: Caller, given: GivenLogo, delivery: Delivery, *, surface: str, request_id: str
    ) -> Watermark:
        """Durable when it returns.

        Raises `InvalidField`, `WatermarkBlocked`, `ComplianceUnavailable` and `StorageUnavailable`.
        """
        try:
            logo = await anyio.to_thread.run_sync(read_logo, given.data, given.mime)
        except LogoRefused as exc:
            raise InvalidField("wm_image", exc.message, fix=exc.fix) from exc
        verdict = await self._review(logo, given.rotation % 360, delivery)
        if verdict is not None:
            log.warning("logo refused", rules=verdict.codes, tenant=caller.tenant)
            await self._safeguard.refused_upload(
                caller, verdict, surface=surface, request_id=request_id, index=0, sha256=logo.sha256
            )
            raise WatermarkBlocked(verdict.codes, verdict.categories, verdict.classes)
        key = logo_key(caller.tenant, logo.sha256)
        await self._storage.keep(key, logo.data)
        return Watermark(
            key=key,
            sha256=logo.sha256,
            position=given.position,
            scale=given.scale,
            opacity=given.opacity,
            rotation=given.rotation,
            padding_x=given.padding_x,
            padding_y=given.padding_y,
        )

    async def _review(self, logo: Logo, rotation: int, delivery: Delivery) -> Verdict | None:
        """The verdict that refuses it, None when there is none. It is looked at as it will be laid."""
        name = delivery.ruleset
        version = self._compliance.rulesets.get(name, "")
        known = (logo.sha256, rotation, name, version, delivery.tier, delivery.precompliance)
        if known in self._passed:
            self._passed.move_to_end(known)
            return None
        context = Context(positive="", tier=delivery.tier, precompliance=delivery.precompliance)
        try:
            for ground in _GROUNDS:
                picture = await anyio.to_thread.run_sync(logo.over, ground, rotation)
                for verdict in (
                    await self._compliance.upload(picture, name),
                    await self._looked_at(picture, context, name),
                ):
                    if verdict is not None and not verdict.safe:
                        return verdict
        except (ReviewUnavailable, PictureRefused) as exc:
            raise ComplianceUnavailable from exc
        self._passed[known] = None
        if len(self._passed) > _MOST_REMEMBERED:
            self._passed.popitem(last=False)
        return None

    async def _looked_at(self, picture: Raw, context: Context, ruleset: str) -> Verdict | None:
        try:
            return await self._compliance.review(picture, context, ruleset)
        except BrokenRender:
            return None  # one colour all over: what it shows on the other ground is looked at there
