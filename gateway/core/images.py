"""Value objects of the core. Times are seconds since the epoch, UTC; sizes are pixels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from compliance.verdict import Verdict


class State(StrEnum):
    """The states of a generation; `OPEN` ones can still change."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHING = "finishing"
    COMPLETED = "completed"
    BLOCKED = "blocked"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"


OPEN = frozenset({State.QUEUED, State.RUNNING, State.FINISHING})
#: States in which a cancel can still win: from `FINISHING` on the picture is paid for and is handed out.
CANCELLABLE = frozenset({State.QUEUED, State.RUNNING})
#: Seeds are below this, the last picture's too: whatever was drawn can be asked for again by its seed.
SEEDS = 2**31
#: Seconds that a hit of the cache can be asked for.
HANDLE_TTL = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """Who is asking: resolved from an API key."""

    key_id: str
    tenant: str
    tier: str = "standard"
    scopes: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True, slots=True)
class ApiKey:
    """An API key as it is stored: the secret itself is never kept, only its SHA-256."""

    id: str
    tenant: str
    name: str
    prefix: str
    tier: str = "standard"
    scopes: frozenset[str] = frozenset()
    created_at: float
    disabled_at: float | None = None
    #: A held key is refused until an operator releases it; what it asked for in vain stays on record.
    held_at: float | None = None
    held_reason: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A fallback made visible: what the caller gave for a field and what was used instead."""

    code: str
    field: str
    given: str
    used: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Credentials:
    """What the caller claims in the content credentials (``cs_*``); empty means the configured default."""

    author: str = ""
    title: str = ""
    description: str = ""
    organization: str = ""
    vendor: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """Weights that a model wears on top of its own, by the worker's name for them; at strength 0 they do nothing."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A picture that steers the drawing, kept under a private key until the job has ended.

    As ``init`` the drawing starts from it and goes ``strength`` (0..1) of the way away from it; as ``guide`` the model
    looks at it with that strength, where it can.

    ``sent_sha256`` is of the file as the caller sent it, empty in rows of before it was kept. ``signed`` says that the
    file came with content credentials, and is kept too until the job is settled.
    """

    key: str
    sha256: str
    role: str = "init"
    strength: float = 0.6
    sent_sha256: str = ""
    signed: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawing:
    """What to draw. ``prompt`` is the text as it was asked for, ``positive`` and ``negative`` what the model gets.

    ``n`` pictures are drawn; ``seed`` is the first one's, and picture *i* has ``seed + i``.

    ``text`` and ``terms`` are the positive and the negative words of the caller alone, before anything optimised them;
    ``asked`` names all that was asked for and decides the picture but the seed (see `caching.fingerprint`). All three
    are empty in rows of before there was a cache.
    """

    prompt: str
    positive: str
    negative: str
    model: str
    worker_model: str
    style: str
    character: str
    width: int
    height: int
    seed: int
    steps: int | None = None
    guidance: float | None = None
    n: int = 1
    optimized: bool = False
    loras: tuple[Lora, ...] = ()
    references: tuple[Reference, ...] = ()
    text: str = ""
    terms: tuple[str, ...] = ()
    asked: str = ""
    #: Whether the caller named the seed.
    seeded: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Hit:
    """What a job has from the cache: finished anew from the originals of the job ``gen_id``, and drawn by nobody.

    ``similarity`` is of the words that were asked for and those of ``matched``, 1 when all that was asked is equal
    (``exact``). ``prompt`` is the caller's own. ``saved`` are the seconds that the drawing took then.
    """

    gen_id: str
    exact: bool
    similarity: float
    matched: str
    prompt: str
    saved: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What the cache knows of a completed job: what it was asked for, and what it may stand for.

    ``key`` is an opaque word for everything that was asked, of whom and under which ruleset version; ``scope`` one for
    what must be equal before words are compared. ``forms`` are the guard's canonical forms of the words, by level.
    ``pictures`` is how many of them may be handed out. ``vector`` holds little-endian 32-bit floats by the encoder of
    the hash ``encoder``; None until somebody has embedded the words. ``number`` grows with each entry, 0 until stored.
    """

    gen_id: str
    tenant: str
    key: str
    scope: str
    text: str
    forms: dict[str, str]
    width: int
    height: int
    seed: int
    pictures: int
    created_at: float
    expires_at: float | None = None
    encoder: str = ""
    vector: bytes | None = field(default=None, repr=False)
    number: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class CacheShare:
    """What the cache has and did for a tenant: ``saved`` are the seconds of drawing that its hits did not cost."""

    tenant: str
    entries: int
    embedded: int
    hits: int
    saved: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Watermark:
    """A visible mark that the caller wants on the picture, its file (an RGBA PNG) kept in private.

    ``scale`` is percent of the picture's width, ``opacity`` percent, ``rotation`` degrees clockwise, paddings pixels
    from the edges that ``position`` names (resolutions I46, I47).
    """

    key: str
    sha256: str
    position: str = "bottom-right"
    scale: int = 5
    opacity: int = 100
    rotation: int = 0
    padding_x: int = 10
    padding_y: int = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Delivery:
    """How to hand it over: encoding, review, visible mark and credentials."""

    format: str = "jpeg"
    quality: int = 95
    lossless: bool = False
    ruleset: str = "default"
    precompliance: str = ""
    credentials: Credentials = field(default_factory=Credentials)
    #: The tier of the key that asked, as it was then: rules may make exceptions for it.
    tier: str = "standard"
    watermark: Watermark | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class RawPicture:
    """A lossless picture as the worker delivered it. ``data`` only when it travelled inline."""

    index: int
    seed: int
    sha256: str
    width: int
    height: int
    data: bytes | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Drawn:
    """What the worker answered. ``timings`` are seconds per phase.

    ``loras`` are those that had an effect, and ``references`` is how many reference pictures had one.
    """

    pictures: tuple[RawPicture, ...]
    steps: int
    guidance: float
    sampler: str
    family: str
    revision: str
    negative_used: bool = True
    timings: dict[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()
    references: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredPicture:
    """A signed file: ``type`` is ``signed``, ``thumbnail`` or ``unsafe``, ``key`` its place in the storage.

    The first two may be handed out to whoever owns the job. ``unsafe`` is what a review blocked, for keys with the
    scope to see such pictures.
    """

    key: str
    type: str
    index: int
    filename: str
    mime: str
    bytes: int
    sha256: str
    width: int
    height: int
    #: The URN of its C2PA manifest; empty in rows of before it was kept.
    label: str = ""
    #: Whether its signature has a time stamp; None where none was asked for.
    stamped: bool | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Record:
    """How a signed file is found again when it comes back without its manifest.

    ``label`` is the manifest's URN and ``manifest`` the manifest store (JUMBF). ``mark`` is the 48-bit id in the
    pixels, ``code`` the 64-bit ISCC image code; None where the file has none. Says nothing that the file did not say.
    """

    label: str
    gen_id: str
    index: int
    type: str
    tenant: str
    key: str
    sha256: str
    mime: str
    width: int
    height: int
    created_at: float
    manifest: bytes = field(repr=False)
    mark: int | None = None
    code: int | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PictureReview:
    """The verdict about one picture of a job. ``key`` is where its lossless original lies: in private, blocked or not;
    empty when its time was over.

    ``unsafe`` is the signed copy of a blocked picture that may be shown to keys with the scope for it, None where it
    never may.
    """

    index: int
    verdict: Verdict
    key: str
    unsafe: StoredPicture | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Outcome:
    """What came of a job. ``masters`` are private keys of the lossless pictures (of the quarantine, when blocked).

    ``verdict`` is that of the first picture that is handed out or, if none is, the one that explains why; ``reviews``
    has each picture's own, in order.
    """

    verdict: Verdict
    pictures: tuple[StoredPicture, ...] = ()
    masters: tuple[str, ...] = ()
    reviews: tuple[PictureReview, ...] = ()
    quality: int | None = None
    lossless: bool = False
    timings: dict[str, float] = field(default_factory=dict)

    @property
    def each(self) -> tuple[PictureReview, ...]:
        """``reviews``; in a row of before there were any, the one verdict speaks for the first picture."""
        first = self.masters[0] if self.masters else ""
        return self.reviews or (PictureReview(index=0, verdict=self.verdict, key=first),)


@dataclass(frozen=True, kw_only=True, slots=True)
class Release:
    """A person's decision that blocked pictures of a job may leave after all."""

    indexes: tuple[int, ...]
    by: str
    note: str
    at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Fault:
    """Why a job ended without a picture; ``message`` is safe to show."""

    code: str
    message: str = "Generation failed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One generation, a row of the job store. ``gen_id`` names it for ever, ``public_id`` is its id on its surface."""

    gen_id: str
    public_id: str
    surface: str
    tenant: str
    key_id: str
    request_id: str
    drawing: Drawing
    delivery: Delivery
    created_at: float
    deadline_at: float
    state: State = State.QUEUED
    notices: tuple[Notice, ...] = ()
    backend_id: str | None = None
    #: How often the job was handed to the backend; uploads of another attempt never mix with this one's.
    attempt: int = 0
    step: int = 0
    total_steps: int = 0
    started_at: float | None = None
    drawn_at: float | None = None
    finished_at: float | None = None
    #: When the sweeper looks at it next.
    next_at: float = 0.0
    #: Failed tries of the present stage, for the back-off.
    tries: int = 0
    drawn: Drawn | None = None
    outcome: Outcome | None = None
    fault: Fault | None = None
    release: Release | None = None
    #: When it was taken away: from then on it is nobody's, whatever its state, and it is never drawn (again).
    deleted_at: float | None = None
    #: The job whose originals it is finished from, and how it came to that; None for all that is drawn.
    source: str | None = None
    hit: Hit | None = None

    @property
    def open(self) -> bool:
        return self.state in OPEN

    @property
    def settled(self) -> bool:
        """Whether nothing of it can change any more: what a review blocked, a person may let go."""
        blocked = self.outcome is not None and any(not review.verdict.safe for review in self.outcome.each)
        return not (self.open or self.state is State.BLOCKED or blocked)


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """A signed PUT address for one raw picture."""

    url: str
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderOrder:
    """What a backend needs to know of a job. ``loans`` are signed GET addresses, one for each of its references."""

    gen_id: str
    request_id: str
    drawing: Drawing
    slots: tuple[Slot, ...]
    loans: tuple[str, ...]
    webhook: str | None
    execution_timeout: float
    ttl: float
    deadline_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What a backend says of a job: queued, running, completed, failed, timed_out, cancelled, or gone (forgotten)."""

    state: str
    step: int = 0
    total_steps: int = 0
    drawn: Drawn | None = None
    #: Seconds that the worker was at it, where the backend says so.
    execution_time: float = 0.0
    fault: Fault | None = None
    retryable: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Readiness:
    """Whether a part can do its work now, and in a sentence what is missing if not."""

    ready: bool
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Appeal:
    """A caller's objection to what a review blocked: ``open``, then ``upheld`` (it stays blocked) or ``released``.

    ``closed`` when its job was deleted before anybody decided.
    """

    id: str
    gen_id: str
    tenant: str
    key_id: str
    public_id: str
    surface: str
    reason: str
    created_at: float
    state: str = "open"
    decided_at: float | None = None
    decided_by: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Event:
    """Something that the operator must be told. The body is what JSON can hold, and never pixels or prompts."""

    id: str
    at: float
    kind: str
    body: Mapping[str, Any]
    #: How often its delivery was begun.
    tries: int = 0
