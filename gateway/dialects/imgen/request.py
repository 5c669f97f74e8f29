"""Reading a request of the Imgen API: every field, every silent fallback of the reference, each made visible."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

from gateway.core import prompts
from gateway.core.cache_entries import MATCHES
from gateway.core.caching import CacheWish
from gateway.core.catalog import Catalog
from gateway.core.images import SEEDS, Credentials, Delivery, Notice
from gateway.core.logos import MOST_BYTES, POSITIONS, GivenLogo
from gateway.core.references import GivenReference
from gateway.core.service import Wish
from gateway.dialects.fields import Fields
from gateway.errors import BadId, InvalidCharacter, InvalidField, PromptRequired, PromptTooLong

PROMPT_LIMIT = 4000
PRECOMPLIANCE_LIMIT = 2000
SIZES = ((1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152))
DEFAULT_SIZE = (1344, 768)
FORMATS = ("jpeg", "png", "webp", "avif")
#: Pictures of one job, as the worker's contract has it.
MAX_PICTURES = 8
#: Reference pictures of one job: what a request's body can carry.
MAX_REFERENCES = 4
ROLES = ("init", "guide")
#: Fields that carry pictures: many megabytes of Base64, to be read in a thread.
PICTURES = ("references", "wm_image")
#: Stray dashes that a warning is given for; a prompt of nothing else would be answered with a thousand.
MAX_STRAY = 8

_RUN = re.compile(r"run_[A-Za-z0-9_-]{1,128}")
_DATA_URI = re.compile(r"data:(image/[a-z0-9.+-]{1,64});base64,", re.IGNORECASE)
_CACHE = re.compile(r"cache_[0-9a-f]{32}")


class RequestReader:
    """Reads `generate` requests against a catalogue and the names of the rulesets, which a remote ACS may change."""

    def __init__(
        self, catalog: Catalog, *, rulesets: Callable[[], Collection[str]], unknown_character: str, unknown_ruleset: str
    ) -> None:
        self._rulesets = rulesets
        self._catalog = catalog
        self._unknown_character = unknown_character
        self._unknown_ruleset = unknown_ruleset

    def wish(self, fields: Fields, request_id: str) -> Wish:
        """Raises a `BadRequest` that names what is wrong; fallbacks are noted in the wish."""
        prompt = read_prompt(fields)
        parsed = prompts.parse(prompt)
        for word in parsed.stray[:MAX_STRAY]:
            fields.notices.append(
                Notice(code="stray_dash", field="prompt", given=word, used="positive text; put a comma before -term")
            )
        model = self._model(fields)
        character = self._character(fields, parsed.names, model)
        if not parsed.positive and not character:
            raise PromptRequired
        explicit = prompts.explicit_negatives(fields.text("negative", most=PROMPT_LIMIT))
        width, height = _size(fields)
        n = fields.integer("n", 1, MAX_PICTURES, default=1) or 1
        wish = Wish(
            surface="imgen",
            public_id=f"run_{secrets.token_urlsafe(18)}",
            request_id=request_id,
            prompt=prompt,
            text=parsed.positive,
            model=model,
            style=self._style(fields, model),
            character=character,
            negatives=parsed.negatives,
            explicit_negative=explicit,
            width=width,
            height=height,
            delivery=self._delivery(fields),
            seed=_seed(fields, n),
            steps=fields.integer("steps", 1, 150),
            guidance=fields.decimal("guidance", 0.0, 30.0),
            n=n,
            references=_references(fields),
            logo=_logo(fields),
            names=parsed.names,
            optimize=fields.flag("optimize"),
            cache=_cache(fields),
        )
        return replace(wish, notices=tuple(fields.notices))

    def character(self, fields: Fields) -> str | None:
        """Whom `random` is to call: ``""`` for nobody, None for chance, as for a name that is unknown (I39)."""
        if not fields.given("character"):
            return None
        name = fields.text("character").strip().lower().removeprefix("@")
        if name and name not in self._catalog.characters:
            fields.note("unknown_character", "character", "a random character")
            return None
        return name

    def seed(self, fields: Fields) -> int | None:
        """The seed of a random prompt; -1 and nothing both mean a random one."""
        return _seed(fields, 1)

    def _model(self, fields: Fields) -> str:
        return fields.choice("model", self._catalog.models, self._catalog.default_model)

    def _style(self, fields: Fields, model: str) -> str:
        wanted = fields.text("style").strip().lower()
        style = self._catalog.style(model, wanted)
        if wanted and style != wanted:
            fields.note("fallback", "style", style)
        return style

    def _character(self, fields: Fields, names: tuple[str, ...], model: str) -> str:
        allowed = self._catalog.characters_of(model)
        known = [name for name in dict.fromkeys(names) if name in allowed]
        for name in dict.fromkeys(names):
            if name in allowed:
                continue
            if self._unknown_character == "error":
                raise InvalidCharacter(fix=f"Use one of: {', '.join('@' + n for n in allowed) or '(none configured)'}.")
            fields.notices.append(Notice(code="unknown_character", field="prompt", given=f"@{name}", used=""))
        for name in known[1:]:
            fields.notices.append(Notice(code="one_character", field="prompt", given=f"@{name}", used=f"@{known[0]}"))
        return known[0] if known else ""

    def _delivery(self, fields: Fields) -> Delivery:
        return Delivery(
            format=fields.choice("format", FORMATS, "jpeg"),
            quality=fields.integer("quality", 1, 100, default=95) or 95,
            lossless=fields.flag("lossless"),
            ruleset=self._ruleset(fields),
            precompliance=fields.text("precompliance", most=PRECOMPLIANCE_LIMIT),
            credentials=Credentials(
                author=prompts.clean(fields.text("cs_author", most=256)),
                title=prompts.clean(fields.text("cs_title", most=256)),
                description=prompts.clean(fields.text("cs_description", most=2000)),
                organization=prompts.clean(fields.text("cs_organization", most=256)),
                vendor=prompts.clean(fields.text("cs_vendor", most=256)),
            ),
        )

    def _ruleset(self, fields: Fields) -> str:
        wanted = fields.text("compliance_ruleset").strip()
        known = self._rulesets()
        # Before a service of its own has answered once nobody knows its names: the gate says so, retryable.
        if not wanted or wanted in known or not known:
            return wanted or "default"
        if self._unknown_ruleset == "error":
            raise InvalidField(
                "compliance_ruleset", "is not known here", fix=f"Use one of: {', '.join(sorted(known))}."
            )
        fields.note("fallback", "compliance_ruleset", "default")
        return "default"


def read_prompt(fields: Fields) -> str:
    """The prompt, cleaned. Raises `PromptRequired` and `PromptTooLong`."""
    raw = fields.text("prompt")
    # Blanks do not count, but nobody needs so many: a megabyte of them is not even looked at.
    prompt = prompts.clean(raw[: 4 * PROMPT_LIMIT])
    if not prompt:
        raise PromptRequired
    if len(prompt) > PROMPT_LIMIT or len(raw) > 4 * PROMPT_LIMIT:
        raise PromptTooLong(fix=f"Send at most {PROMPT_LIMIT} characters; this prompt has {len(raw)}.")
    return prompt


def job_id(body: Mapping[str, Any]) -> str:
    """The job id of a request. ``prompt`` and ``model`` beside it are not read: the job's row is the truth (I24)."""
    value = body.get("id")
    if isinstance(value, str) and (_RUN.fullmatch(value) or is_hit(value)):
        return value
    raise BadId


def is_hit(public_id: str) -> bool:
    """Whether an id is one that a hit of the cache gets."""
    return bool(_CACHE.fullmatch(public_id))


def _size(fields: Fields) -> tuple[int, int]:
    """A valid pair, or the default. A missing half is filled with the default's (resolution I10)."""
    width = fields.integer("width", 1, 16384, default=DEFAULT_SIZE[0])
    height = fields.integer("height", 1, 16384, default=DEFAULT_SIZE[1])
    if (width, height) in SIZES:
        return width or 0, height or 0
    used = f"{DEFAULT_SIZE[0]}x{DEFAULT_SIZE[1]}; valid: {', '.join(f'{w}x{h}' for w, h in SIZES)}"
    fields.notices.append(Notice(code="fallback", field="width,height", given=f"{width}x{height}", used=used))
    return DEFAULT_SIZE


def _seed(fields: Fields, n: int) -> int | None:
    """-1 and nothing both mean a random seed; the last picture's is still one that can be asked for alone."""
    seed = fields.integer("seed", -1, SEEDS - n)
    return None if seed == -1 else seed


def _references(fields: Fields) -> tuple[GivenReference, ...]:
    """Pictures in the body itself: no address that a caller gives is fetched."""
    given = fields.objects("references", MAX_REFERENCES)
    return tuple(
        GivenReference(
            data=_picture(one),
            role=one.choice("role", ROLES, "init"),
            strength=_strength(one),
        )
        for one in given
    )


def _strength(one: Fields) -> float:
    strength = one.decimal("strength", 0.0, 1.0)
    return 0.6 if strength is None else strength


def _picture(one: Fields) -> bytes:
    try:
        mime, data = _data_uri(one.text("image"))
        if mime not in ("image/png", "image/jpeg", "image/webp"):
            raise ValueError
    except ValueError as exc:
        raise InvalidField(
            "references", "an image is no data URI", fix='Send "image" as data:image/png;base64,… (or jpeg, webp).'
        ) from exc
    return data


def _logo(fields: Fields) -> GivenLogo | None:
    """The visible mark of the caller and its place (resolutions I11, I46, I47); None when none was sent."""
    position = fields.choice("wm_position", POSITIONS, "bottom-right")
    scale = _whole(fields, "wm_scale", 1, 100, 5)
    opacity = _whole(fields, "wm_transparency", 0, 100, 100)
    rotation = _whole(fields, "wm_rotation", -360, 360, 0)
    padding_x = _whole(fields, "wm_padding_x", 0, 500, 10)
    padding_y = _whole(fields, "wm_padding_y", 0, 500, 10)
    text = fields.text("wm_image").strip()
    if not text:
        return None
    if len(text) > 4 * (MOST_BYTES // 3 + 1) + 100:
        raise InvalidField("wm_image", "is too large", fix=f"Send a picture of {MOST_BYTES} bytes at most.")
    try:
        mime, data = _data_uri(text)
    except ValueError as exc:
        raise InvalidField(
            "wm_image", "is no base64 data URI", fix="Send it as data:image/png;base64,… (or jpeg, webp)."
        ) from exc
    return GivenLogo(
        data=data,
        mime=mime,
        position=position,
        scale=scale,
        opacity=opacity,
        rotation=rotation,
        padding_x=padding_x,
        padding_y=padding_y,
    )


def _data_uri(text: str) -> tuple[str, bytes]:
    """Media type and bytes. Raises ValueError."""
    start = _DATA_URI.match(text)
    if start is None:
        raise ValueError("not a data URI")
    mime = start[1].lower()
    return "image/jpeg" if mime == "image/jpg" else mime, base64.b64decode(text[start.end() :], validate=True)


def _whole(fields: Fields, name: str, least: int, most: int, default: int) -> int:
    number = fields.integer(name, least, most)
    return default if number is None else number


def _cache(fields: Fields) -> CacheWish | None:
    """What is wanted of the cache; None when it is not to be looked at (resolutions I14 to I18)."""
    wanted, only, force = fields.flag("use_cache"), fields.flag("cache_only"), fields.flag("cache_force")
    pick = fields.integer("cache_pick", 1, 10, default=5) or 5
    match = frozenset(fields.words("cache_match", MATCHES))
    if only and not wanted:
        fields.note("implied", "cache_only", "use_cache: true")
    if not (wanted or only):
        return None
    return CacheWish(public_id=f"cache_{secrets.token_hex(16)}", only=only, force=force, pick=pick, match=match)


def read_cursor(text: str) -> tuple[float, str] | None:
    """The place in the list that a page ended at: (created_at, gen_id)."""
    if not text:
        return None
    try:
        when, _, gen_id = base64.urlsafe_b64decode(text[:256] + "=" * (-len(text) % 4)).decode("ascii").partition(":")
        before = float(when)
        if not re.fullmatch(r"[a-z0-9]{20}", gen_id) or not abs(before) < 1e12:
            raise ValueError
    except (ValueError, binascii.Error) as exc:
        raise InvalidField("cursor", "is not one that jobs returned", fix='Send "next" of the last page.') from exc
    return before, gen_id
