"""Which reviewers there are, by the settings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import structlog

from compliance.panel import Panel
from compliance.review import Reviewer
from compliance.reviewers.builtin import BuiltinCheck
from compliance.reviewers.detector import Detector
from compliance.reviewers.guard import Guarded
from compliance.reviewers.judge import Judge
from compliance.reviewers.known import KnownPictures
from compliance.reviewers.moderation import Moderation
from compliance.reviewers.render import RenderCheck
from compliance.reviewers.words import Words
from compliance.rules import PromptGate
from compliance.rulesets import load_rulesets
from gateway.settings import Settings

log = structlog.get_logger(__name__)


def panel_of(settings: Settings, others: Sequence[Reviewer] = ()) -> Panel:
    """``others`` are asked too. Raises `compliance.errors.BadRules`, which names file, line and fix."""
    gate = PromptGate.from_file(settings.word_rules) if settings.word_rules else PromptGate.built_in()
    folders = [settings.rulesets] if settings.rulesets else []
    looking = [RenderCheck(), *_of_this_machine(settings), *_models(settings), *others]
    return Panel(Words(gate), looking, load_rulesets(*folders))


def _of_this_machine(settings: Settings) -> Iterator[Reviewer]:
    yield BuiltinCheck.shipped()
    if settings.detector:
        detector = Detector.from_file(settings.detector)
        if detector.never_said:
            log.warning("the detector knows nothing of some labels", never_said=sorted(detector.never_said))
        yield detector
    if settings.known_pictures:
        yield KnownPictures.from_file(settings.known_pictures)


def _models(settings: Settings) -> Iterator[Reviewer]:
    """The models that are asked over the network. What they leave open, the job tries again later."""
    if settings.moderation_url:
        moderation = Moderation(
            base_url=settings.moderation_url,
            api_key=settings.moderation_key,
            model=settings.moderation_model,
            timeout=settings.moderation_timeout,
            images=settings.moderation_images,
        )
        yield Guarded(moderation, at_once=settings.acs_threads, attempts=3, patience=settings.moderation_timeout)
    if settings.judge_url:
        judge = Judge(
            base_url=settings.judge_url,
            api_key=settings.judge_key,
            model=settings.judge_model,
            timeout=settings.judge_timeout,
            schema=settings.judge_schema,
            temperature=settings.judge_temperature,
        )
        yield Guarded(judge, at_once=settings.acs_threads, attempts=3, patience=settings.judge_timeout)
