"""What a surface can ask for: submit, optimize, find, cancel, delete. The row is there before a backend hears of it."""

from __future__ import annotations

import secrets
import string
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import anyio.to_thread
import structlog

from compliance.errors import ReviewUnavailable
from compliance.picture import decode
from compliance.review import Context
from gateway.core import prompts
from gateway.core.advance import Advancer, Policy
from gateway.core.appeals import Appeals
from gateway.core.cache_entries import fingerprint
from gateway.core.caching import SWITCHED_OFF, WITH_REFERENCES, CacheWish, Caching, Found
from gateway.core.catalog import Catalog, worn
from gateway.core.deletion import Deletion
from gateway.core.finishing import Finisher, reference_key, signed_reference_key
from gateway.core.images import (
    HANDLE_TTL,
    SEEDS,
    Appeal,
    Caller,
    Delivery,
    Drawing,
    Fault,
    Job,
    Notice,
    PictureReview,
    Readiness,
    Reference,
    State,
    StoredPicture,
)
from gateway.core.logos import GivenLogo, LogoDesk
from gateway.core.optimizing import Optimizing
from gateway.core.ports import Backend, Compliance, Jobs, Storage
from gateway.core.random_prompts import RandomPrompt, RandomPrompts
from gateway.core.references import GivenReference, clean
from gateway.core.safeguard import Safeguard
from gateway.errors import (
    BackendRefused,
    BackendUnavailable,
    CacheMiss,
    ComplianceUnavailable,
    EnhancementFailed,
    JobNotFound,
    JobNotOpen,
    PictureNotFound,
    PictureNotReady,
    PromptBlocked,
    PromptRequired,
    ReferenceBlocked,
    StorageUnavailable,
    Unavailable,
)

log = structlog.get_logger(__name__)

#: Seconds that a hand-over may take, retries included: nobody else may start a second one meanwhile.
HAND_OVER = 25.0
#: The scope of keys that may see what a review blocked.
SEES_UNSAFE = "unsafe_url"
GEN_ID_ALPHABET = string.ascii_lowercase + string.digits
_REMEMBERED_OPEN = 0.25
#: As long as a job that was deleted through another replica may still be shown by this one.
_REMEMBERED_ENDED = 1.0
_MOST_REMEMBERED = 2048


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a dialect asks for, its own syntax already read and its own fallbacks already taken."""

    surface: str
    public_id: str
    request_id: str
    prompt: str
    text: str
    model: str
    style: str
    character: str
    negatives: tuple[str, ...]
    explicit_negative: str
    width: int
    height: int
    delivery: Delivery
    seed: int | None = None
    steps: int | None = None
    guidance: float | None = None
    n: int = 1
    references: tuple[GivenReference, ...] = ()
    logo: GivenLogo | None = None
    #: The names that the caller called, as they are to be called again in a prompt that says it better.
    names: tuple[str, ...] = ()
    optimize: bool = False
    cache: CacheWish | None = None
    notices: tuple[Notice, ...] = ()


def new_gen_id() -> str:
    return "".join(secrets.choice(GEN_ID_ALPHABET) for _ in range(20))


class GenerationService:
    """Everything that a surface can ask for, in the words of no surface."""

    def __init__(
        self,
        *,
        jobs: Jobs,
        backend: Backend,
        storage: Storage,
        catalog: Catalog,
        compliance: Compliance,
        finisher: Finisher,
        advancer: Advancer,
        logos: LogoDesk,
        appeals: Appeals,
        deletion: Deletion,
        safeguard: Safeguard,
        caching: Caching | None,
        optimizing: Optimizing,
        policy: Policy,
        now: Callable[[], float],
        new_id: Callable[[], str] = new_gen_id,
    ) -> None:
        """Without ``caching`` every look into the cache is a miss."""
        self.catalog = catalog
        self._random = RandomPrompts(catalog)
        self._jobs = jobs
        self._backend = backend
        self._storage = storage
        self._compliance = compliance
        self._finisher = finisher
        self._advancer = advancer
        self._logos = logos
        self._appeals = appeals
        self._deletion = deletion
        self._safeguard = safeguard
        self._caching = caching
        self._optimizing = optimizing
        self._policy = policy
        self._now = now
        self._new_id = new_id
        #: When a job was read, and the job; None for one that is deleted.
        self._recent: OrderedDict[tuple[str, str], tuple[float, Job | None]] = OrderedDict()

    async def submit(self, caller: Caller, wish: Wish) -> Job:
        """Accept a job: gate, look in the cache, compose, write it down, hand it over.

        Raises `PromptBlocked`; `CacheMiss` for a wish that wants nothing drawn; `InvalidField` for a reference or a
        logo that is no picture, and `ReferenceBlocked`; `ComplianceUnavailable`; `StorageUnavailable`;
        `BackendUnavailable` or `BackendRefused` when the backend did not take it, and then the job has ended as failed
        and costs nothing.
        """
        drawing, delivery = self._compose(wish), replace(wish.delivery, tier=caller.tier)
        await self._refuse(caller, wish, drawing, delivery)
        found = await self._look_up(caller, wish, drawing, delivery)
        wish = replace(wish, notices=(*wish.notices, *found.notices))
        if wish.logo is not None:
            watermark = await self._logos.take(
                caller, wish.logo, delivery, surface=wish.surface, request_id=wish.request_id
            )
            delivery = replace(delivery, watermark=watermark)
        if found.source is not None:
            return await self._copy(caller, wish, delivery, found)
        if wish.optimize:
            drawing, notices = await self._optimized(caller, wish, drawing, delivery)
            wish = replace(wish, notices=(*wish.notices, *notices))
        gen_id = self._new_id()
        drawing = replace(drawing, references=await self._take_in(caller, gen_id, wish, delivery))
        now = self._now()
        job = Job(
            gen_id=gen_id,
            public_id=wish.public_id,
            surface=wish.surface,
            tenant=caller.tenant,
            key_id=caller.key_id,
            request_id=wish.request_id,
            drawing=drawing,
            delivery=delivery,
            created_at=now,
            deadline_at=now + self._policy.job_ttl,
            next_at=now,
            notices=wish.notices,
        )
        lease = secrets.token_hex(16)
        await self._jobs.add(job, lease=lease, until=now + max(self._policy.lease, HAND_OVER))
        log.info("job accepted", job=job.gen_id, id=job.public_id, tenant=job.tenant, model=drawing.model)
        try:
            return await self._advancer.hand_over(job, lease)
        except (BackendUnavailable, BackendRefused, StorageUnavailable) as exc:
            await self._advancer.end(job, lease, State.FAILED, Fault(code=exc.code))
            raise

    async def _optimized(
        self, caller: Caller, wish: Wish, drawing: Drawing, delivery: Delivery
    ) -> tuple[Drawing, tuple[Notice, ...]]:
        """The drawing with a better prompt. Whatever goes wrong with it, the caller's own is drawn (resolution I36)."""
        parsed = prompts.Parsed(names=wish.names, positive=wish.text, negatives=wish.negatives)
        try:
            better = await self._enhanced(parsed, model=wish.model, style=wish.style, character=wish.character)
        except EnhancementFailed as exc:
            return drawing, (_as_sent(exc.code),)
        if better == parsed:
            return drawing, ()
        text = self._compose(replace(wish, text=better.positive)).positive
        positive, negative = prompts.as_drawn(text, drawing.negative, drawing.guidance)
        if not await self._is_fit(Context(positive=positive, negative=negative, tier=delivery.tier), delivery.ruleset):
            refused = Notice(
                code="enhancement_refused", field="optimize", given="true", used="the prompt as it was sent"
            )
            return drawing, (refused,)
        return replace(drawing, prompt=prompts.render(better), positive=text, optimized=True), ()

    async def _look_up(self, caller: Caller, wish: Wish, drawing: Drawing, delivery: Delivery) -> Found:
        if wish.cache is None:
            return Found()
        if self._caching is None:
            found = SWITCHED_OFF
        elif wish.references:
            found = WITH_REFERENCES
        else:
            found = await self._caching.find(caller, wish.cache, drawing, delivery)
        if found.source is None and wish.cache.only:
            raise CacheMiss
        return found

    async def _copy(self, caller: Caller, wish: Wish, delivery: Delivery, found: Found) -> Job:
        """A job that is drawn by nobody: what was drawn before is finished as this caller asks for it."""
        source = found.source
        assert source is not None and source.drawn is not None and wish.cache is not None
        now = self._now()
        pictures = tuple(picture for picture in source.drawn.pictures if picture.index in found.indexes)
        job = Job(
            gen_id=self._new_id(),
            public_id=wish.cache.public_id,
            surface=wish.surface,
            tenant=caller.tenant,
            key_id=caller.key_id,
            request_id=wish.request_id,
            drawing=replace(source.drawing, n=len(pictures)),
            delivery=delivery,
            created_at=now,
            deadline_at=now + self._policy.job_ttl,
            state=State.FINISHING,
            notices=wish.notices,
            step=source.total_steps,
            total_steps=source.total_steps,
            started_at=now,
            drawn_at=source.drawn_at,
            next_at=now,
            drawn=replace(source.drawn, pictures=pictures),
            source=source.gen_id,
            hit=found.hit,
        )
        # Nobody's at once: whoever looks first may finish it.
        await self._jobs.add(job, lease=secrets.token_hex(16), until=now)
        log.info("job accepted", job=job.gen_id, id=job.public_id, tenant=job.tenant, source=job.source)
        self._advancer.nudge(job.gen_id)
        return job

    def random(self, character: str | None, seed: int | None) -> RandomPrompt:
        """A random prompt; see `RandomPrompts.draw`."""
        return self._random.draw(character, seed)

    @property
    def optimizer(self) -> str:
        """Who enhances prompts."""
        return self._optimizing.name

    async def optimize(
        self, caller: Caller, parsed: prompts.Parsed, *, model: str, surface: str, request_id: str
    ) -> prompts.Parsed:
        """The prompt with a better text, or as it is; nothing is drawn.

        What the ruleset ``default`` refuses is sent to nobody, and an enhancement that it refuses is not used. Raises
        `PromptRequired`, `PromptBlocked`, `ComplianceUnavailable` and `EnhancementFailed`.
        """
        name = next((name for name in parsed.names if name in self.catalog.characters_of(model)), "")
        if not parsed.positive and not name:
            raise PromptRequired
        await self._refuse_words(caller, self._words(caller, parsed, model, name), "default", surface, request_id)
        better = await self._enhanced(parsed, model=model, style="", character=name)
        if better == parsed or await self._is_fit(self._words(caller, better, model, name), "default"):
            return better
        return parsed

    async def _enhanced(self, parsed: prompts.Parsed, *, model: str, style: str, character: str) -> prompts.Parsed:
        entry = self.catalog.models[model]
        return await self._optimizing.optimize(
            parsed,
            model_label=entry.label,
            style_label=entry.styles[style].label if style in entry.styles else "",
            character_label=self.catalog.characters[character].label if character else "",
        )

    async def _is_fit(self, words: Context, ruleset: str) -> bool:
        """Whether the ruleset lets an enhanced prompt pass. If not it is the optimizer's doing and not the caller's: no
        entry in the audit, and no key is held.
        """
        with _translated():
            verdict = await self._compliance.gate(words, ruleset)
        if not verdict.safe:
            log.warning("enhanced prompt refused", rules=verdict.codes, optimizer=self.optimizer)
        return verdict.safe

    @property
    def rulesets(self) -> Mapping[str, str]:
        """The rulesets that a caller may name, each with its version."""
        return self._compliance.rulesets

    async def find(self, caller: Caller, surface: str, public_id: str) -> Job:
        """The caller's job, as it stands. Raises `JobNotFound`, the same for an unknown id and for another tenant's."""
        job = await self._find(surface, public_id)
        if job is None or job.tenant != caller.tenant:
            raise JobNotFound
        if job.source is not None and self._now() >= job.created_at + HANDLE_TTL:
            raise JobNotFound
        return job

    async def get(self, caller: Caller, gen_id: str) -> Job:
        """The caller's job by its ``gen_id``, whatever surface it came through. Raises as `find` does."""
        job = await self._jobs.get(gen_id)
        if job is None:
            raise JobNotFound
        return await self.find(caller, job.surface, job.public_id)

    async def cancel(self, caller: Caller, surface: str, public_id: str) -> Job:
        """End the caller's job. Idempotent; raises `JobNotOpen` once it is being finished or has ended otherwise."""
        job = await self.find(caller, surface, public_id)
        ended = await self._jobs.cancel(job.gen_id, now=self._now())
        self._recent.pop((surface, public_id), None)
        if ended is None:
            current = await self._jobs.get(job.gen_id)
            if current is None or current.deleted_at is not None:
                raise JobNotFound
            if current.state is State.CANCELLED:
                return current
            raise JobNotOpen
        log.info("job cancelled", job=job.gen_id)
        self._advancer.let_go_soon(ended)
        return ended

    async def delete(self, caller: Caller, surface: str, public_id: str) -> Job:
        """Take the caller's job away, whatever its state; see `Deletion.delete`. Raises `JobNotFound`, also for one
        that is deleted already.
        """
        job = await self._jobs.find(surface, public_id)
        if job is None or job.tenant != caller.tenant:
            raise JobNotFound
        deleted = await self._deletion.delete(caller, job)
        self._remember(surface, public_id, None)
        if self._caching is not None:
            self._caching.deleted(deleted.gen_id)
        for known, (_, copy) in list(self._recent.items()):
            if copy is not None and copy.source == job.gen_id:
                self._remember(*known, None)
        return deleted

    async def appeal(self, caller: Caller, surface: str, public_id: str, reason: str) -> Appeal:
        """Ask a person to look at what was blocked. Raises what `Appeals.file` raises."""
        return await self._appeals.file(caller, surface, public_id, reason)

    async def page(self, caller: Caller, *, limit: int, before: tuple[float, str] | None) -> list[Job]:
        """The tenant's jobs, newest first."""
        return await self._jobs.page(caller.tenant, limit=limit, before=before)

    def picture(self, job: Job, *, type: str, index: int | None) -> StoredPicture:
        """One picture of a job that may be handed out, the first of its type when ``index`` is None.

        Raises `PictureNotReady` while the job is open, and `PictureNotFound` whatever else is the reason.
        """
        if job.open:
            raise PictureNotReady
        given = job.outcome.pictures if job.outcome is not None and job.state is State.COMPLETED else ()
        for picture in given:
            if picture.type == type and index in (None, picture.index):
                return picture
        raise PictureNotFound

    def link(self, picture: StoredPicture) -> tuple[str, float]:
        """A fresh signed address of a picture, and when it expires."""
        expires_at = float(int(self._now() + self._policy.url_ttl))
        return self._storage.link(picture.key, filename=picture.filename, expires_at=expires_at), expires_at

    def unsafe_link(self, caller: Caller, job: Job, review: PictureReview) -> str | None:
        """A short-lived address of a blocked picture, for a key with the scope; None for all others, and for what is
        shown to nobody. Every address that is given is logged.
        """
        verdict = review.verdict
        if SEES_UNSAFE not in caller.scopes or review.unsafe is None or verdict.minors or not verdict.releasable:
            return None
        log.warning("blocked picture shown", job=job.gen_id, index=review.index, key=caller.key_id)
        expires_at = float(int(self._now() + self._policy.unsafe_url_ttl))
        return self._storage.link(review.unsafe.key, filename=review.unsafe.filename, expires_at=expires_at)

    async def readiness(self) -> list[Readiness]:
        """What is needed to make a picture now, one entry per part."""
        try:
            await self._jobs.counts()
            store = Readiness(ready=True)
        except Unavailable as exc:
            store = Readiness(ready=False, reason=exc.message)
        return [
            store,
            await self._backend.readiness(),
            await self._storage.readiness(),
            await self._compliance.readiness(),
            self._finisher.readiness(),
        ]

    async def _refuse(self, caller: Caller, wish: Wish, drawing: Drawing, delivery: Delivery) -> None:
        """The prompt gate: what the words alone forbid, those of the credentials that we are to sign among them."""
        positive, negative = prompts.as_drawn(drawing.positive, drawing.negative, drawing.guidance)
        claims = delivery.credentials
        signed = ", ".join(
            filter(None, (claims.title, claims.description, claims.author, claims.organization, claims.vendor))
        )
        for context in (
            Context(positive=positive, negative=negative, tier=delivery.tier),
            *([Context(positive=signed, tier=delivery.tier)] if signed else []),
        ):
            await self._refuse_words(caller, context, delivery.ruleset, wish.surface, wish.request_id)

    async def _refuse_words(
        self, caller: Caller, context: Context, ruleset: str, surface: str, request_id: str
    ) -> None:
        with _translated():
            verdict = await self._compliance.gate(context, ruleset)
        if not verdict.safe:
            log.warning("prompt refused", rules=verdict.codes, tenant=caller.tenant)
            await self._safeguard.refused_prompt(
                caller,
                verdict,
                surface=surface,
                request_id=request_id,
                positive=context.positive,
                negative=context.negative,
            )
            raise PromptBlocked(verdict.codes, verdict.categories, verdict.classes)

    def _words(self, caller: Caller, parsed: prompts.Parsed, model: str, name: str) -> Context:
        """A prompt as the gate reads it where nothing is drawn: with the words of the character, in no style."""
        character = self.catalog.characters.get(name)
        positive, negative = prompts.as_drawn(
            prompts.compose_positive(
                trigger=character.trigger if character else "",
                character=character.positive if character else "",
                prompt=parsed.positive,
                style="",
            ),
            ", ".join(parsed.negatives),
            self.catalog.models[model].guidance,
        )
        return Context(positive=positive, negative=negative, tier=caller.tier)

    async def _take_in(self, caller: Caller, gen_id: str, wish: Wish, delivery: Delivery) -> tuple[Reference, ...]:
        """Written before the row is: after a crash between the two they are swept up with the raw pictures."""
        cleaned = [
            await anyio.to_thread.run_sync(clean, index, picture) for index, picture in enumerate(wish.references)
        ]
        for index, one in enumerate(cleaned):
            picture = await anyio.to_thread.run_sync(decode, one.data, one.sha256)
            with _translated():
                verdict = await self._compliance.upload(picture, delivery.ruleset)
            if not verdict.safe:
                log.warning("reference refused", rules=verdict.codes, tenant=caller.tenant)
                await self._safeguard.refused_upload(
                    caller,
                    verdict,
                    surface=wish.surface,
                    request_id=wish.request_id,
                    index=index,
                    sha256=one.sha256,
                )
                raise ReferenceBlocked(verdict.codes, verdict.categories, verdict.classes)
        kept = []
        for index, one in enumerate(cleaned):
            key = reference_key(gen_id, index)
            await self._storage.keep(key, one.data)
            if one.signed:
                await self._storage.keep(signed_reference_key("raw", gen_id, index), one.sent)
            kept.append(
                Reference(
                    key=key,
                    sha256=one.sha256,
                    role=one.role,
                    strength=one.strength,
                    sent_sha256=one.sent_sha256,
                    signed=one.signed,
                )
            )
        return tuple(kept)

    async def _find(self, surface: str, public_id: str) -> Job | None:
        """Read through a small memory: a settled job can only be deleted, others are read again even sooner."""
        now = self._now()
        known = self._recent.get((surface, public_id))
        if known is not None and (known[1] is None or now - known[0] < _remembered(known[1])):
            return known[1]
        job = await self._jobs.find(surface, public_id)
        if job is None:
            return None
        if (surface, public_id) in self._recent and self._recent[surface, public_id][1] is None:
            # Deleted while it was being read.
            return None
        self._remember(surface, public_id, job)
        return job

    def _remember(self, surface: str, public_id: str, job: Job | None) -> None:
        self._recent[surface, public_id] = (self._now(), job)
        self._recent.move_to_end((surface, public_id))
        if len(self._recent) > _MOST_REMEMBERED:
            self._recent.popitem(last=False)

    def _compose(self, wish: Wish) -> Drawing:
        model = self.catalog.models[wish.model]
        style = model.styles.get(wish.style)
        character = self.catalog.characters.get(wish.character)
        drawing = Drawing(
            prompt=wish.prompt,
            positive=prompts.compose_positive(
                trigger=character.trigger if character else "",
                character=character.positive if character else "",
                prompt=wish.text,
                style=style.tags if style else "",
            ),
            negative=prompts.compose_negative(
                base=model.base_negative,
                style=style.negative if style else "",
                character=character.negative if character else "",
                terms=wish.negatives,
                explicit=wish.explicit_negative,
            ),
            model=wish.model,
            worker_model=model.worker,
            style=wish.style,
            character=wish.character,
            width=wish.width,
            height=wish.height,
            seed=secrets.randbelow(SEEDS - wish.n + 1) if wish.seed is None else wish.seed,
            steps=wish.steps if wish.steps is not None else model.steps,
            guidance=wish.guidance if wish.guidance is not None else model.guidance,
            n=wish.n,
            loras=worn(character, style),
            text=wish.text,
            terms=(*wish.negatives, *filter(None, wish.explicit_negative.split(", "))),
            seeded=wish.seed is not None,
        )
        return replace(drawing, asked=fingerprint(drawing, optimize=wish.optimize))


def _as_sent(code: str) -> Notice:
    return Notice(code=code, field="optimize", given="true", used="the prompt as it was sent")


def _remembered(job: Job) -> float:
    return _REMEMBERED_ENDED if job.settled else _REMEMBERED_OPEN


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except ReviewUnavailable as exc:
        raise ComplianceUnavailable from exc
