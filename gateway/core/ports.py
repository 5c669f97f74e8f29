"""What the core needs of the outside. Adapters live in ``acs``, ``backends``, ``jobs``, ``llm`` and ``storage``."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

from compliance.ledger import Link
from compliance.picture import Raw, Signed
from compliance.review import Context
from compliance.verdict import Verdict
from gateway.core.images import (
    ApiKey,
    Appeal,
    CacheShare,
    Entry,
    Event,
    Job,
    Readiness,
    Record,
    Release,
    RenderOrder,
    Report,
    Slot,
    State,
)


class Jobs(Protocol):
    """The job store. Every method raises `StoreUnavailable` when the database does not answer."""

    async def add(self, job: Job, *, lease: str, until: float) -> None:
        """Durable when it returns; whoever adds it holds its first lease."""

    async def get(self, gen_id: str) -> Job | None:
        """Deleted ones too."""

    async def find(self, surface: str, public_id: str) -> Job | None:
        """None for a deleted one, from the moment of its mark on."""

    async def page(self, tenant: str, *, limit: int, before: tuple[float, str] | None) -> list[Job]:
        """The tenant's jobs but copies and deleted ones, newest first, older than ``before`` = (created_at, gen_id) of
        the last one seen.
        """

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        """Take the job to work on it. None when it has ended, is unknown, or somebody holds a lease that still runs."""

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        """False when the lease was lost: stop working."""

    async def save(self, job: Job, *, lease: str, release: bool) -> bool:
        """Write all that can change. False, and nothing written, when the lease was lost or the job has ended, or when
        it was deleted meanwhile and would be drawn again.
        """

    async def counts(self) -> dict[str, int]:
        """Number of jobs in each open state."""

    async def cancel(self, gen_id: str, *, now: float) -> Job | None:
        """End the job as cancelled if it is still `CANCELLABLE`, lease or not. None when it was not."""

    async def cancel_of_key(self, key_id: str, *, now: float) -> list[Job]:
        """End all jobs of a key that are still `CANCELLABLE` as cancelled; those that were."""

    async def reopen(self, gen_id: str, release: Release, *, now: float) -> Job | None:
        """Have a blocked or completed job finished once more with what the release lets go.

        None, and nothing written, when it is in another state, deleted, or was reopened for the same pictures before.
        """

    async def adopt(self, gen_id: str, backend_id: str) -> None:
        """Note the backend id of an open job that has none: the crash came between the hand-over and the write."""

    async def due(self, *, now: float, limit: int) -> list[str]:
        """Ids of open jobs with ``next_at`` in the past and no running lease, longest waiting first."""


class Deletions(Protocol):
    """Jobs on their way out: marked, purged, and then only a line of what they were."""

    async def mark(self, gen_id: str, *, now: float) -> Job | None:
        """Take a job away, durable when it returns: nobody finds it any more.

        If it is still `CANCELLABLE` it ends as cancelled, lease or not, and its copies go with it. None, and nothing
        written, when it is unknown or was deleted before.
        """

    async def expire(self, *, ended_before: float, now: float, limit: int) -> list[str]:
        """Take away some of the jobs that ended before a time; the ids of those that it took."""

    async def expire_copies(self, *, created_before: float, now: float, limit: int) -> list[str]:
        """Take away some of the ended copies that were made before a time; the ids of those that it took."""

    async def due(self, *, now: float, limit: int) -> list[str]:
        """Ids of deleted jobs that have ended, are not purged, and that nobody has in hand; newest deletion first."""

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        """Take one that is due to purge it. None when it is not, or somebody else has it."""

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        """False when the lease was lost: stop working."""

    async def later(self, gen_id: str, *, lease: str, tries: int, next_at: float) -> None:
        """Give it back, to be tried again at a time."""

    async def put_away(self, job: Job, *, lease: str, purged_at: float | None, next_at: float) -> bool:
        """Write what is left of a purged job, and give it back. ``purged_at`` is the end of it.

        False, and nothing written, when the lease was lost.
        """

    async def reopen(self, gen_id: str, *, now: float) -> bool:
        """Have a deleted job purged once more, whatever was purged of it. False when it is not deleted."""


class KeptOriginals(Protocol):
    """Ended jobs that are not deleted, and which originals their outcomes still name."""

    async def ended(
        self, state: State, *, holding: str, before: float, after: tuple[float, str], limit: int
    ) -> list[tuple[tuple[float, str], bool]]:
        """Places (next_at, gen_id) of jobs that ended in a state before a time, in order, beginning after a place.

        With each, whether its outcome names something in the folder ``holding``.
        """

    async def claim(self, gen_id: str, *, lease: str, now: float, until: float) -> Job | None:
        """Take one to purge its originals. None when it is open again or deleted, or somebody else has it."""

    async def renew(self, gen_id: str, *, lease: str, until: float) -> bool:
        """False when the lease was lost: stop working."""

    async def put(self, job: Job, *, lease: str) -> bool:
        """Write its outcome and give it back. False, and nothing written, when the lease was lost."""


class Records(Protocol):
    """Manifests by id, and by what is left of them in the pixels."""

    async def add(self, record: Record) -> None:
        """Durable when it returns. A label that is there already changes nothing."""

    async def get(self, label: str) -> Record | None: ...

    async def of_mark(self, mark: int) -> Sequence[Record]:
        """Those that carry this id in their pixels, newest first."""

    async def of_picture(self, sha256: str) -> Sequence[Record]:
        """Those whose file has this SHA-256 (hex)."""

    async def codes(self, *, after: int, limit: int) -> Sequence[tuple[int, str, int]]:
        """Image codes of what may be told of as (number, label, code), by the number that each got when it was added.

        A number may become visible after a higher one.
        """

    async def purge(self, gen_id: str, *, keep: frozenset[str] = frozenset()) -> None:
        """Forget the records of a job, but the labels to keep."""

    async def forget(self, labels: Collection[str]) -> None:
        """Forget these records, where they are there."""


class Entries(Protocol):
    """What the cache knows of completed jobs, at most one entry for each."""

    async def add(self, entry: Entry) -> None:
        """Durable when it returns. One that is there already changes nothing."""

    async def get(self, gen_id: str) -> Entry | None: ...

    async def of_key(self, key: str, *, seed: int | None, now: float, limit: int) -> list[Entry]:
        """Those of a key that have not expired, and of a seed if one is given, newest first."""

    async def after(self, number: int, *, limit: int) -> list[Entry]:
        """Entries in the order of their numbers. A number may become visible after a higher one."""

    async def unindexed(self, index: str, *, limit: int) -> list[Entry]:
        """Those that a shared index of this name has not got."""

    async def indexed(self, gen_ids: Sequence[str], index: str) -> None:
        """The shared index of this name has them now."""

    async def embedded(self, gen_id: str, encoder: str, vector: bytes) -> None:
        """Keep the vector of an entry's words."""

    async def remove(self, gen_id: str) -> None: ...

    async def expire(self, *, now: float, limit: int) -> list[str]:
        """Remove some whose time is over; the ids of those."""

    async def clear(self, tenant: str | None = None) -> list[str]:
        """Remove all, or all of a tenant; their ids."""

    async def missing(self, after: str, *, limit: int) -> tuple[str | None, list[Job]]:
        """The completed jobs without an entry among the next few by ``gen_id``, and the last id that was looked at;
        None for that at the end.
        """

    async def shares(self) -> list[CacheShare]:
        """What each tenant has of it."""


class Keys(Protocol):
    """API keys by the SHA-256 (hex) of their secret."""

    async def find(self, digest: str) -> ApiKey | None: ...

    async def create(self, key: ApiKey, digest: str) -> None: ...

    async def list(self) -> Sequence[ApiKey]: ...

    async def disable(self, key_id: str, *, now: float) -> bool: ...

    async def hold(self, key_id: str, reason: str, *, now: float) -> bool:
        """Refuse the key until it is released. False when there is no such key, or it was held before."""

    async def release(self, key_id: str) -> bool:
        """Accept a held key again. False when there is no such key, or it is not held."""


class AuditLog(Protocol):
    """The audit: entries that follow each other without a gap and are never changed."""

    async def append(self, kind: str, at: float, gen_id: str | None, body: Mapping[str, Any]) -> int:
        """Durable when it returns the entry's number. What the body says must be what JSON can hold."""

    async def after(self, seq: int, limit: int) -> list[Link]:
        """The entries after a number, in order."""

    async def of(self, gen_id: str) -> list[Link]:
        """The entries about a job, in order."""

    async def head(self) -> Link | None:
        """The newest entry, None when there is none."""


class AppealStore(Protocol):
    """Appeals. A job has one open appeal at most."""

    async def add(self, appeal: Appeal) -> bool:
        """False, and nothing written, when the job has an open one."""

    async def get(self, appeal_id: str) -> Appeal | None: ...

    async def latest(self, gen_id: str) -> Appeal | None:
        """The job's newest appeal."""

    async def list(self, state: str | None) -> Sequence[Appeal]:
        """Those in a state, or all, oldest first."""

    async def decide(self, appeal_id: str, state: str, *, by: str, note: str, now: float) -> Appeal | None:
        """Close an open appeal. None when it was not open."""

    async def forget(self, gen_id: str, *, keep_words: bool, now: float) -> None:
        """Close what is open of a deleted job as ``closed``, and blank the words of its callers in all its appeals."""


class Events(Protocol):
    """What the operator must be told, kept until it was delivered."""

    async def add(self, event: Event) -> bool:
        """Durable when it returns. False when an event of this id is there already."""

    async def due(self, *, now: float, limit: int) -> Sequence[Event]:
        """Those to deliver now, longest waiting first."""

    async def later(self, event: Event, *, next_at: float) -> bool:
        """Note that a delivery begins, and when the next one may if this fails. False when another replica began it."""

    async def delivered(self, event_id: str, *, now: float) -> None: ...


class Notifier(Protocol):
    """How the operator is told."""

    async def send(self, event: Event) -> None:
        """Raises `NotifierUnavailable` when it did not arrive; it may arrive twice."""


class Backend(Protocol):
    """A GPU endpoint. Raises `BackendUnavailable` (try again) or `BackendRefused` (never)."""

    async def submit(self, order: RenderOrder) -> str:
        """The backend's id of the job."""

    async def poll(self, backend_id: str) -> Report: ...

    async def cancel(self, backend_id: str) -> None: ...

    async def readiness(self) -> Readiness: ...


class Compliance(Protocol):
    """Who reviews. Raises `compliance.errors.ReviewUnavailable` when there is no answer: then nothing may leave."""

    @property
    def rulesets(self) -> Mapping[str, str]:
        """The names of the rulesets, each with its version."""

    async def gate(self, context: Context, ruleset: str) -> Verdict:
        """What the words alone forbid, before anything is drawn."""

    async def upload(self, picture: Raw, ruleset: str) -> Verdict:
        """Whether a picture that a caller sends is one of the known bad ones."""

    async def review(self, picture: Raw, context: Context, ruleset: str) -> Verdict:
        """The verdict about a drawn picture. Raises `compliance.errors.BrokenRender` too."""

    async def readiness(self) -> Readiness: ...


class Optimizer(Protocol):
    """Who says a prompt better."""

    #: What callers are told that it was: ``templates``, or the name of a language model.
    name: str

    async def enhance(self, text: str, *, model: str, style: str, character: str) -> str:
        """A better text, or the same one. Raises `EnhancementFailed`.

        ``text`` is what a picture shall show, without names and negatives; it is empty when it shall show a character
        and nothing else is said. The others are labels of the catalogue, empty where there is none. The answer may be
        anything: whoever asks cleans it.
        """


class Meter(Protocol):
    """Who counts what is signed, from any thread."""

    def signed(self, seconds: float, stamped: bool | None) -> None:
        """``stamped`` as in `compliance.picture.Signed`."""

    def signing_failed(self, code: str) -> None: ...


class CacheMeter(Protocol):
    """Who counts what the cache is asked."""

    def cache_hit(self, tier: str, similarity: float, seconds: float) -> None:
        """``tier`` is exact or semantic, ``seconds`` are those that a worker need not draw."""

    def cache_missed(self) -> None: ...

    def cache_refused(self, count: int) -> None:
        """So many were similar enough, and the guard refused them."""

    def cache_failed(self, cause: str) -> None:
        """It could not be asked, or not whole."""


class Storage(Protocol):
    """Pictures. Only what is `Signed` can be published; the rest is private. Raises `StorageUnavailable`."""

    async def publish(self, key: str, picture: Signed) -> None: ...

    def link(self, key: str, *, filename: str, expires_at: float) -> str:
        """A signed address of something published, valid until ``expires_at``."""

    def slot(self, key: str, *, expires_at: float) -> Slot:
        """A signed address to which a worker can upload one private PNG."""

    def loan(self, key: str, *, expires_at: float) -> str:
        """A signed address from which a worker can read one private PNG that belongs to its job."""

    async def keep(self, key: str, data: bytes) -> None:
        """Store something private."""

    async def read(self, key: str) -> bytes | None:
        """Something private; None when it is not there."""

    async def purge(self, prefix: str, *, keep: frozenset[str] = frozenset()) -> None:
        """Remove the key, or everything under the prefix, but the keys to keep."""

    async def readiness(self) -> Readiness: ...
