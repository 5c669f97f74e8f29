"""What a job comes to with its model's defaults and limits; all that can be refused before a step is drawn."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from handler.contract import Failure, Job, Lora, Reference
from handler.drawing import Guide, Order
from handler.models import Model, Models

_LARGEST_SEED = 2**63 - 1
_LARGEST_STRENGTH = 4.0
_MOST_REFERENCES = 8
_ROLES = ("init", "guide")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class Refused(Exception):
    """The job ends here, for a reason that the client is told."""

    def __init__(self, code: str, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.failure = Failure(code=code, message=message, retryable=retryable)


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """A job that can be drawn, and how."""

    job: Job
    model: Model
    steps: int
    guidance: float
    negative: str | None
    loras: tuple[Lora, ...]
    warnings: tuple[str, ...]

    def order(self, guides: tuple[Guide, ...]) -> Order:
        return Order(
            positive=self.job.positive,
            negative=self.negative,
            width=self.job.width,
            height=self.job.height,
            seeds=tuple(self.job.seed + index for index in range(self.job.n)),
            steps=self.steps,
            guidance=self.guidance,
            loras=self.loras,
            guides=guides,
            preview_every=self.job.preview_every,
        )


def plan(job: Job, models: Models) -> Plan:
    """Raises `Refused` with ``bad_job``, ``unknown_model``, ``unknown_lora`` or ``lora_unfit``."""
    model = models.by_name.get(job.model)
    if model is None:
        raise Refused("unknown_model", f"no model named {job.model!r} on this worker; it has: {_list(models.by_name)}")
    _check_size(job, model)
    if not 0 <= job.seed <= _LARGEST_SEED - job.n:
        raise Refused("bad_job", f"'seed' must be 0 to 2**63 - 1, not {job.seed}")
    _check_references(job.references)
    loras = _loras(job, model, models)
    warnings = []
    steps = model.steps if job.steps is None else job.steps
    if steps < 1:
        raise Refused("bad_job", f"'steps' must be 1 or more, not {steps}")
    if steps > model.max_steps:
        warnings.append(f"{model.name} draws with at most {model.max_steps} steps; {steps} were asked for")
        steps = model.max_steps
    guidance = model.guidance if job.guidance is None else job.guidance
    if not (math.isfinite(guidance) and guidance >= 0):
        raise Refused("bad_job", f"'guidance' must be a number of 0 or more, not {guidance}")
    # Without guidance a pipeline never looks at the negative prompt.
    heeds = model.negative and guidance > model.family.negative_above
    if job.negative and not heeds:
        why = f"with a guidance of {model.family.negative_above:g} or less" if model.negative else "at all"
        warnings.append(f"{model.name} heeds no negative prompt {why}; it was left out")
    return Plan(
        job=job,
        model=model,
        steps=steps,
        guidance=guidance,
        negative=job.negative if heeds else None,
        loras=loras,
        warnings=tuple(warnings),
    )


def _check_size(job: Job, model: Model) -> None:
    if job.width % model.grid or job.height % model.grid:
        raise Refused(
            "bad_job",
            f"{model.name} draws sizes in multiples of {model.grid}; {job.width}x{job.height} is not one,"
            f" the nearest is {_nearest(job.width, model.grid)}x{_nearest(job.height, model.grid)}",
        )


def _loras(job: Job, model: Model, models: Models) -> tuple[Lora, ...]:
    """Those that have an effect."""
    named = set[str]()
    for lora in job.loras:
        source = models.loras.get(lora.name)
        if source is None:
            has = _list(models.loras) or "none"
            raise Refused("unknown_lora", f"no LoRA named {lora.name!r} on this worker; it has {has}")
        if source.family is not model.family:
            fits = _list(name for name, each in models.by_name.items() if each.family is source.family)
            raise Refused(
                "lora_unfit",
                f"the LoRA {lora.name!r} is for {source.family.name} models and {model.name} is one of"
                f" {model.family.name}; it fits: {fits or 'no model of this worker'}",
            )
        if abs(lora.strength) > _LARGEST_STRENGTH:
            raise Refused("bad_job", f"the strength of the LoRA {lora.name!r} must be -4 to 4, not {lora.strength:g}")
        if lora.name in named:
            raise Refused("bad_job", f"the LoRA {lora.name!r} is named twice; name it once, with one strength")
        named.add(lora.name)
    return tuple(lora for lora in job.loras if lora.strength)


def _check_references(references: tuple[Reference, ...]) -> None:
    if len(references) > _MOST_REFERENCES:
        raise Refused("bad_job", f"{len(references)} references are too many; send at most {_MOST_REFERENCES}")
    for index, reference in enumerate(references):
        if reference.role not in _ROLES:
            raise Refused(
                "bad_job", f"reference {index}: 'role' must be one of {_list(_ROLES)}, not {reference.role!r}"
            )
        if not 0 <= reference.strength <= 1:
            raise Refused("bad_job", f"reference {index}: 'strength' must be 0 to 1, not {reference.strength:g}")
        if not _SHA256.fullmatch(reference.sha256):
            raise Refused("bad_job", f"reference {index}: 'sha256' must be 64 lower-case hexadecimal digits")


def _nearest(length: int, grid: int) -> int:
    """The nearest multiple that is no picture of nothing."""
    return max(grid, (length + grid // 2) // grid * grid)


def _list(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
