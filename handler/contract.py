"""What the gateway and the worker say to each other. Standard library only.

A `Job` travels in the ``input`` of a RunPod job; `Progress` is what the worker posts while it draws; a `Result` or a
`Failure` is what it answers. Readers ignore keys that they do not know and refuse another major version, so a newer
gateway may talk to an older worker within one major. ``tests/contract/`` holds one recorded sample per kind that must
read for ever.

Names, never paths or addresses of weights: what a model or LoRA name loads is the worker's own ``models.toml``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

VERSION = "1.1"
MAJOR = 1

#: A result above this many bytes of base64 does not fit RunPod's 10 MB answer; send pixels by upload instead.
INLINE_LIMIT = 7_000_000


class ContractError(ValueError):
    """The message does not follow the job contract."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Lora:
    """A LoRA by the name that the worker's ``models.toml`` gives it."""

    name: str
    strength: float = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A picture to start from (role ``init``) or to look at (``guide``): a signed GET address and its SHA-256 in hex.

    ``strength`` is 0 to 1: how far away from an ``init`` the drawing may go, and how much a ``guide`` counts.
    """

    url: str
    sha256: str
    role: str = "init"
    strength: float = 0.6


@dataclass(frozen=True, kw_only=True, slots=True)
class Upload:
    """Where one picture goes: a signed PUT address with the headers that were signed with it."""

    url: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """One order to draw ``n`` pictures of ``width`` x ``height`` pixels.

    ``seed`` is the seed of the first picture; picture *i* uses ``seed + i``, so that each can be drawn again alone.
    ``uploads`` is empty or has ``n`` entries. ``deadline`` is in seconds since the epoch, UTC; the worker gives up
    then. ``preview_every`` asks for a small preview after so many steps; 0 for none. Nobody has reviewed a preview.
    """

    id: str
    request_id: str
    model: str
    positive: str
    negative: str
    width: int
    height: int
    seed: int
    steps: int | None = None
    guidance: float | None = None
    n: int = 1
    loras: tuple[Lora, ...] = ()
    references: tuple[Reference, ...] = ()
    uploads: tuple[Upload, ...] = ()
    deadline: float | None = None
    preview_every: int = 0
    version: str = VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How far the worker is. ``sequence`` only grows within one job: posts can arrive out of order.

    ``total_steps`` are the steps of all pictures together and ``step`` those that are done of them; neither ever falls.
    ``picture`` is the first one of those that are being drawn now. ``preview`` is the base64 of a small WebP of it.
    """

    sequence: int
    phase: str
    picture: int = 0
    pictures: int = 1
    step: int = 0
    total_steps: int = 0
    preview: str | None = None
    version: str = VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One lossless PNG. ``data`` is its base64, only when the job carried no upload address."""

    index: int
    seed: int
    sha256: str
    width: int
    height: int
    bytes: int
    data: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """What was drawn, and with what. ``timings`` are seconds per phase; ``warnings`` are sentences.

    ``references`` is how many of the job's reference pictures had an effect.
    """

    pictures: tuple[Picture, ...]
    steps: int
    guidance: float
    sampler: str
    family: str
    revision: str
    negative_used: bool = True
    loras: tuple[Lora, ...] = ()
    references: int = 0
    timings: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    version: str = VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Inventory:
    """What a worker answers to `ask_inventory`: its model and LoRA names, each with the family that it belongs to."""

    models: Mapping[str, str]
    loras: Mapping[str, str] = field(default_factory=dict)
    version: str = VERSION


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why the worker drew nothing. ``retryable`` says whether the same job can succeed later."""

    code: str
    message: str
    retryable: bool = False
    version: str = VERSION


def _major(wire: Mapping[str, Any]) -> None:
    version = wire.get("version")
    if not isinstance(version, str) or version.partition(".")[0] != str(MAJOR):
        raise ContractError(f"contract version {version!r} is not {MAJOR}.x; run a worker and a gateway of one major")


def _get(wire: Mapping[str, Any], key: str, *types: type) -> Any:
    value = wire.get(key)
    # bool is an int in Python; a flag where a number belongs is a mistake of the sender.
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        raise ContractError(f"{key!r} must be {' or '.join(t.__name__ for t in types)}, not {type(value).__name__}")
    return value


def _objects(wire: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = wire.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, Mapping) for v in value):
        raise ContractError(f"{key!r} must be a list of objects")
    return value


def _object(wire: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = wire.get(key) or {}
    if not isinstance(value, Mapping):
        raise ContractError(f"{key!r} must be an object, not {type(value).__name__}")
    return value


def _real(wire: Mapping[str, Any], key: str) -> float:
    value = _get(wire, key, int, float)
    # Python reads NaN, Infinity and integers of any length from JSON.
    if not -1e300 < value < 1e300:
        raise ContractError(f"{key!r} must be a finite number")
    return float(value)


def _number(wire: Mapping[str, Any], key: str, default: float | None = None) -> float | None:
    return default if wire.get(key) is None else _real(wire, key)


def _whole(wire: Mapping[str, Any], key: str, default: int) -> int:
    return default if wire.get(key) is None else int(_get(wire, key, int))


def job_to_wire(job: Job) -> dict[str, Any]:
    return {
        "version": job.version,
        "id": job.id,
        "request_id": job.request_id,
        "model": job.model,
        "positive": job.positive,
        "negative": job.negative,
        "width": job.width,
        "height": job.height,
        "seed": job.seed,
        "steps": job.steps,
        "guidance": job.guidance,
        "n": job.n,
        "loras": _loras_to_wire(job.loras),
        "references": [
            {"url": r.url, "sha256": r.sha256, "role": r.role, "strength": r.strength} for r in job.references
        ],
        "uploads": [{"url": u.url, "headers": dict(u.headers)} for u in job.uploads],
        "deadline": job.deadline,
        "preview_every": job.preview_every,
    }


def job_from_wire(wire: Mapping[str, Any]) -> Job:
    """Raises `ContractError` naming the key that is wrong."""
    _major(wire)
    n = _get(wire, "n", int) if wire.get("n") is not None else 1
    if not 1 <= n <= 8:
        raise ContractError(f"'n' must be 1 to 8, not {n}")
    uploads = tuple(
        Upload(url=_get(u, "url", str), headers={str(k): str(v) for k, v in _object(u, "headers").items()})
        for u in _objects(wire, "uploads")
    )
    if uploads and len(uploads) != n:
        raise ContractError(f"'uploads' must be empty or have one entry per picture ({n}), not {len(uploads)}")
    width, height = _get(wire, "width", int), _get(wire, "height", int)
    if not (16 <= width <= 4096 and 16 <= height <= 4096):
        raise ContractError(f"size {width}x{height} is outside 16..4096")
    return Job(
        version=wire["version"],
        id=_get(wire, "id", str),
        request_id=str(wire.get("request_id") or ""),
        model=_get(wire, "model", str),
        positive=_get(wire, "positive", str),
        negative=_get(wire, "negative", str),
        width=width,
        height=height,
        seed=_get(wire, "seed", int),
        steps=None if wire.get("steps") is None else _get(wire, "steps", int),
        guidance=_number(wire, "guidance"),
        n=n,
        loras=_loras_from_wire(wire),
        references=tuple(
            Reference(
                url=_get(r, "url", str),
                sha256=_get(r, "sha256", str),
                role=str(r.get("role") or "init"),
                strength=0.6 if r.get("strength") is None else _real(r, "strength"),
            )
            for r in _objects(wire, "references")
        ),
        uploads=uploads,
        deadline=_number(wire, "deadline"),
        preview_every=max(0, _whole(wire, "preview_every", 0)),
    )


def _loras_to_wire(loras: Iterable[Lora]) -> list[dict[str, Any]]:
    return [{"name": lora.name, "strength": lora.strength} for lora in loras]


def _loras_from_wire(wire: Mapping[str, Any]) -> tuple[Lora, ...]:
    return tuple(
        Lora(name=_get(x, "name", str), strength=1.0 if x.get("strength") is None else _real(x, "strength"))
        for x in _objects(wire, "loras")
    )


def progress_to_wire(progress: Progress) -> dict[str, Any]:
    return {
        "version": progress.version,
        "sequence": progress.sequence,
        "phase": progress.phase,
        "picture": progress.picture,
        "pictures": progress.pictures,
        "step": progress.step,
        "total_steps": progress.total_steps,
        **({"preview": progress.preview} if progress.preview is not None else {}),
    }


def progress_from_wire(wire: Mapping[str, Any]) -> Progress:
    """Raises `ContractError`."""
    _major(wire)
    return Progress(
        version=wire["version"],
        sequence=_get(wire, "sequence", int),
        phase=_get(wire, "phase", str),
        picture=_whole(wire, "picture", 0),
        pictures=_whole(wire, "pictures", 1),
        step=_whole(wire, "step", 0),
        total_steps=_whole(wire, "total_steps", 0),
        preview=None if wire.get("preview") is None else _get(wire, "preview", str),
    )


def result_to_wire(result: Result) -> dict[str, Any]:
    return {
        "version": result.version,
        "pictures": [
            {
                "index": p.index,
                "seed": p.seed,
                "sha256": p.sha256,
                "width": p.width,
                "height": p.height,
                "bytes": p.bytes,
                **({"data": p.data} if p.data is not None else {}),
            }
            for p in result.pictures
        ],
        "steps": result.steps,
        "guidance": result.guidance,
        "sampler": result.sampler,
        "family": result.family,
        "revision": result.revision,
        "negative_used": result.negative_used,
        "loras": _loras_to_wire(result.loras),
        "references": result.references,
        "timings": dict(result.timings),
        "warnings": list(result.warnings),
    }


def result_from_wire(wire: Mapping[str, Any]) -> Result:
    """Raises `ContractError`."""
    _major(wire)
    pictures = tuple(
        Picture(
            index=_get(p, "index", int),
            seed=_get(p, "seed", int),
            sha256=_get(p, "sha256", str),
            width=_get(p, "width", int),
            height=_get(p, "height", int),
            bytes=_get(p, "bytes", int),
            data=None if p.get("data") is None else _get(p, "data", str),
        )
        for p in _objects(wire, "pictures")
    )
    if not pictures:
        raise ContractError("'pictures' is empty")
    timings = _object(wire, "timings")
    warnings = wire.get("warnings") or []
    if not isinstance(warnings, list):
        raise ContractError("'warnings' must be a list")
    return Result(
        version=wire["version"],
        pictures=pictures,
        steps=_get(wire, "steps", int),
        guidance=_real(wire, "guidance"),
        sampler=_get(wire, "sampler", str),
        family=_get(wire, "family", str),
        revision=_get(wire, "revision", str),
        negative_used=wire.get("negative_used") is not False,
        loras=_loras_from_wire(wire),
        references=_whole(wire, "references", 0),
        timings={str(k): _real(timings, k) for k in timings},
        warnings=tuple(str(w) for w in warnings),
    )


def ask_inventory() -> dict[str, Any]:
    """The input that asks a worker for its `Inventory` instead of for pictures."""
    return {"version": VERSION, "ask": "inventory"}


def asks_inventory(wire: Mapping[str, Any]) -> bool:
    """Raises `ContractError` when it asks for something that nobody knows."""
    if (asked := wire.get("ask")) is None:
        return False
    _major(wire)
    if asked != "inventory":
        raise ContractError(f"'ask' must be 'inventory' or absent, not {asked!r}")
    return True


def inventory_to_wire(inventory: Inventory) -> dict[str, Any]:
    return {"version": inventory.version, "models": dict(inventory.models), "loras": dict(inventory.loras)}


def inventory_from_wire(wire: Mapping[str, Any]) -> Inventory:
    """Raises `ContractError`."""
    _major(wire)
    _get(wire, "models", Mapping)
    models, loras = _object(wire, "models"), _object(wire, "loras")
    return Inventory(
        version=wire["version"],
        models={str(name): str(family) for name, family in models.items()},
        loras={str(name): str(family) for name, family in loras.items()},
    )


def failure_to_wire(failure: Failure) -> dict[str, Any]:
    return {
        "version": failure.version,
        "code": failure.code,
        "message": failure.message,
        "retryable": failure.retryable,
    }


def failure_from_wire(wire: Mapping[str, Any]) -> Failure:
    """Raises `ContractError`."""
    _major(wire)
    return Failure(
        version=wire["version"],
        code=_get(wire, "code", str),
        message=_get(wire, "message", str),
        retryable=wire.get("retryable") is True,
    )
