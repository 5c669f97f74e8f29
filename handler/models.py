"""``models.toml``: the model and LoRA names that jobs may use, and what each one loads.

A file that is wrong stops the start with the key and the fix. The keys of a model, ``[models.NAME]``; a default that is
not told here is the family's (`handler.families`):

``source``         a diffusers folder, absolute or relative to the file, or ``hub:owner/name`` of the Hugging Face hub
``revision``       of a hub model: the commit or tag to load
``variant``        the weights' variant, such as ``fp16``, where the folder has more than one
``family``         the family's name; a folder tells it itself, of a hub model it must be said
``dtype``          ``auto`` (float32 on a CPU, bfloat16 or float16 on a GPU), ``float32``, ``float16``, ``bfloat16``
``sampler``        a diffusers scheduler class instead of the folder's own
``steps``          when the job names none
``max_steps``      more than this is drawn with this many, with a warning; 100
``guidance``       when the job names none
``negative``       whether the model heeds negative prompts
``size_multiple``  what the pipeline's width and height must be multiples of
``batch``          so many pictures of one job are drawn at once, fewer where the memory is not enough; 4
``scale``          the pipeline draws at the size divided by this, and every pixel becomes a square of this side; 1
``palette``        a palette file, relative to the source folder, to whose colours the picture is snapped
``cell``           with a palette: the side of one art pixel in the pipeline's picture; 1
``ip_adapter``     IP-Adapter weights, a file relative to models.toml, through which the model looks at references

For speed and memory, of use on a GPU (docs/worker.md says when to take which):

``compile``        ``torch.compile`` of the denoiser or its repeated blocks: slower first picture, faster others; false
``attention``      a diffusers attention backend, such as ``flash`` or ``sage``, instead of torch's own
``float8``         the denoiser's weights are kept in 8 bits and computed with in 16; false
``step_cache``     skip steps that change little: a threshold for diffusers' first-block cache, such as 0.1; 0 is off
``offload``        ``auto`` (parts wait in main memory only after the GPU's was not enough), ``always`` or ``never``

The keys of a LoRA, ``[loras.NAME]``:

``source``         a ``.safetensors`` file, absolute or relative to models.toml, or ``hub:owner/name/file.safetensors``
``revision``       of a hub file: the commit or tag
``family``         the family of models that it fits
``sha256``         what the file's hash must be; not checked when absent
``curve``          ``[[asked, worn], …]``: the weight at which it is worn for a strength that is asked for, in straight
                   lines from [0, 0] on and beyond the last point in proportion; as asked when absent. For a LoRA whose
                   effect comes all at once, so that its strengths are of use

Before all tables: ``warm`` (model names that are loaded before the first job; the first model), ``keep_loaded`` (so
many models stay in memory; as many as are warm), ``warm_loras`` (LoRA names that are read before the first job) and
``lora_memory_mb`` (so much main memory holds LoRAs that were used; 1024).
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handler.families import FAMILIES, OTHER, Family, family_of

_HUB = "hub:"
_DTYPES = ("auto", "float32", "float16", "bfloat16")
_OFFLOADS = ("auto", "always", "never")
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ModelsError(ValueError):
    """The models file can't be used; the message names the key and the fix."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Model:
    """One name of the file. ``source`` is an absolute folder, or the hub's id where ``hub`` is set."""

    name: str
    source: str
    hub: bool = False
    revision: str | None = None
    variant: str | None = None
    family: Family = OTHER
    dtype: str = "auto"
    sampler: str | None = None
    steps: int = OTHER.steps
    max_steps: int = 100
    guidance: float = OTHER.guidance
    negative: bool = True
    size_multiple: int = 8
    batch: int = 4
    scale: int = 1
    palette: Path | None = None
    cell: int = 1
    ip_adapter: Path | None = None
    compile: bool = False
    attention: str | None = None
    float8: bool = False
    step_cache: float = 0.0
    offload: str = "auto"

    @property
    def grid(self) -> int:
        """Width and height of a picture are multiples of this."""
        return self.size_multiple * self.scale


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraSource:
    """One LoRA name of the file. ``source`` is an absolute path, or ``owner/name/path`` where ``hub`` is set."""

    name: str
    source: str
    family: Family
    hub: bool = False
    revision: str | None = None
    sha256: str | None = None
    curve: tuple[tuple[float, float], ...] = ()

    def worn(self, strength: float) -> float:
        """The weight that a strength is worn at, by the curve."""
        if strength < 0:
            return -self.worn(-strength)
        before = (0.0, 0.0)
        for asked, weight in self.curve:
            if strength <= asked:
                share = (strength - before[0]) / (asked - before[0])
                return before[1] + share * (weight - before[1])
            before = asked, weight
        return strength * (before[1] / before[0]) if self.curve else strength


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The file. The ``warm`` models are loaded before the first job; up to ``keep_loaded`` stay in memory."""

    by_name: Mapping[str, Model]
    warm: tuple[str, ...]
    keep_loaded: int
    loras: Mapping[str, LoraSource] = field(default_factory=dict)
    warm_loras: tuple[str, ...] = ()
    lora_memory: int = 1024 * 2**20
    """Bytes."""


def read_models(path: Path) -> Models:
    """Raises `ModelsError`. Touches the disk only to see that folders and palettes are there."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelsError(f"{path}: no such file; point IMGEN_MODELS at a models.toml, or unset it") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as exc:
        raise ModelsError(f"{path}: {exc}") from None
    top = _Table(document, f"{path}: ")
    tables = top.take("models", dict, {})
    if not tables:
        raise ModelsError(f"{path}: it has no model; add a table [models.NAME] with a 'source'")
    by_name = {
        name: _model(name, _Table(table, f"{path}: models.{name}."), path.parent) for name, table in tables.items()
    }
    warm = _names(top, "warm", by_name, [next(iter(by_name))])
    keep_loaded = top.take("keep_loaded", int, max(1, len(warm)))
    if keep_loaded < max(1, len(warm)):
        raise ModelsError(f"{path}: keep_loaded is {keep_loaded}, too few; write at least {max(1, len(warm))}")
    loras = {
        name: _lora(name, _Table(table, f"{path}: loras.{name}."), path.parent)
        for name, table in top.take("loras", dict, {}).items()
    }
    warm_loras = _names(top, "warm_loras", loras, [])
    lora_memory = top.at_least(1, "lora_memory_mb", 1024) * 2**20
    top.done()
    return Models(
        by_name=by_name,
        warm=warm,
        keep_loaded=keep_loaded,
        loras=loras,
        warm_loras=warm_loras,
        lora_memory=lora_memory,
    )


def _names(top: _Table, key: str, known: Mapping[str, Any], default: list[str]) -> tuple[str, ...]:
    names = tuple(top.take(key, list, default))
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise top.wrong(key, f"{name!r} has no table of its own; write one of {', '.join(known) or '(none)'}")
    return names


def _model(name: str, table: _Table, base: Path) -> Model:
    source = table.take("source", str)
    hub = source.startswith(_HUB)
    folder = base / source
    family = _family(table)
    if hub:
        source = source.removeprefix(_HUB)
        if family is None:
            raise table.wrong("family", f"of a hub model it must be said; write one of {', '.join(FAMILIES)}")
    elif not (folder / "model_index.json").is_file():
        raise table.wrong(
            "source",
            f"{str(folder)!r} is no diffusers folder (it has no model_index.json); for the hub write hub:owner/name",
        )
    else:
        source = str(folder.resolve())
        family = family or family_of(_pipeline(folder, table))
    palette = table.take("palette", str, None)
    if palette is not None and (hub or not (folder / palette).is_file()):
        raise table.wrong("palette", f"{palette!r} is no file in the source folder; correct it or leave it out")
    ip_adapter = table.take("ip_adapter", str, None)
    if ip_adapter is not None and not (base / ip_adapter).is_file():
        raise table.wrong("ip_adapter", f"{ip_adapter!r} is no file beside models.toml; correct it or leave it out")
    max_steps = table.at_least(1, "max_steps", 100)
    model = Model(
        name=name,
        source=source,
        hub=hub,
        revision=table.take("revision", str, None),
        variant=table.take("variant", str, None),
        family=family,
        dtype=table.one_of(_DTYPES, "dtype", "auto"),
        sampler=table.take("sampler", str, None),
        steps=table.at_least(1, "steps", min(family.steps, max_steps)),
        max_steps=max_steps,
        guidance=table.at_least_zero("guidance", family.guidance),
        negative=table.take("negative", bool, family.negative),
        size_multiple=table.at_least(1, "size_multiple", family.size_multiple),
        batch=table.at_least(1, "batch", 4),
        scale=table.at_least(1, "scale", 1),
        palette=None if palette is None else (folder / palette).resolve(),
        cell=table.at_least(1, "cell", 1),
        ip_adapter=None if ip_adapter is None else (base / ip_adapter).resolve(),
        compile=table.take("compile", bool, False),
        attention=table.take("attention", str, None),
        float8=table.take("float8", bool, False),
        step_cache=table.at_least_zero("step_cache", 0.0),
        offload=table.one_of(_OFFLOADS, "offload", "auto"),
    )
    table.done()
    if model.steps > model.max_steps:
        raise table.wrong("steps", f"{model.steps} is more than max_steps; write at most {model.max_steps}")
    if model.size_multiple % model.cell:
        raise table.wrong("cell", f"{model.cell} does not divide size_multiple, {model.size_multiple}; correct one")
    return model


def _pipeline(folder: Path, table: _Table) -> str:
    """The pipeline class that a diffusers folder is for."""
    try:
        return str(json.loads((folder / "model_index.json").read_text(encoding="utf-8"))["_class_name"])
    except (OSError, ValueError, KeyError, TypeError) as exc:
        raise table.wrong("source", f"its model_index.json names no pipeline class: {exc!r}") from None


def _family(table: _Table) -> Family | None:
    name = table.one_of(FAMILIES, "family", None)
    return None if name is None else FAMILIES[name]


def _lora(name: str, table: _Table, base: Path) -> LoraSource:
    source = table.take("source", str)
    hub = source.startswith(_HUB)
    if not source.endswith(".safetensors"):
        raise table.wrong(
            "source", f"{source!r} is no .safetensors file; other formats can run code when they are read"
        )
    if hub and source.count("/") < 2:
        raise table.wrong("source", f"{source!r} names no file; write hub:owner/name/file.safetensors")
    if not hub and not (base / source).is_file():
        raise table.wrong("source", f"{str(base / source)!r} is no file; correct it, or get it with imgen models pull")
    sha256 = table.take("sha256", str, None)
    if sha256 is not None and not _SHA256.fullmatch(sha256):
        raise table.wrong("sha256", "it must be 64 lower-case hexadecimal digits; sha256sum prints them")
    family = _family(table)
    if family is None:
        raise table.wrong("family", f"it is missing; write the family that it was trained for: {', '.join(FAMILIES)}")
    lora = LoraSource(
        name=name,
        source=source.removeprefix(_HUB) if hub else str((base / source).resolve()),
        family=family,
        hub=hub,
        revision=table.take("revision", str, None),
        sha256=sha256,
        curve=_curve(table),
    )
    table.done()
    return lora


def _curve(table: _Table) -> tuple[tuple[float, float], ...]:
    points = table.take("curve", list, [])
    known = (0.0, 0.0)
    for point in points:
        if not isinstance(point, list) or len(point) != 2 or not all(type(number) in (int, float) for number in point):
            raise table.wrong("curve", f"{point!r} is no pair of numbers; write [[asked, worn], …]")
        if not (known[0] < point[0] < float("inf") and known[1] <= point[1] < float("inf")):
            raise table.wrong("curve", f"{point!r} does not rise above {list(known)}; both numbers must grow")
        known = point[0], point[1]
    return tuple((float(asked), float(worn)) for asked, worn in points)


class _Table:
    """A TOML table that is read key by key, so that what nobody asked for can be called a typing mistake."""

    def __init__(self, table: Any, where: str) -> None:
        if not isinstance(table, dict):
            raise ModelsError(f"{where.removesuffix('.')} must be a table")
        self._table, self._where, self._known = table, where, set[str]()

    def take(self, key: str, types: type | tuple[type, ...], *default: Any) -> Any:
        self._known.add(key)
        if key not in self._table:
            if default:
                return default[0]
            raise self.wrong(key, "it is missing")
        value = self._table[key]
        types = types if isinstance(types, tuple) else (types,)
        # TOML's true is an int in Python.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise self.wrong(key, f"it must be {' or '.join(t.__name__ for t in types)}, not {type(value).__name__}")
        return value

    def at_least(self, least: int, key: str, default: int) -> int:
        value: int = self.take(key, int, default)
        if value < least:
            raise self.wrong(key, f"{value} is too small; write {least} or more")
        return value

    def at_least_zero(self, key: str, default: float) -> float:
        value = float(self.take(key, (int, float), default))
        if not 0 <= value < float("inf"):
            raise self.wrong(key, f"{value} is no number of 0 or more")
        return value

    def one_of(self, choices: Iterable[str], key: str, default: str | None) -> Any:
        value = self.take(key, str, default)
        if value is not None and value not in choices:
            raise self.wrong(key, f"{value!r} is unknown; write one of {', '.join(choices)}")
        return value

    def done(self) -> None:
        for key in self._table.keys() - self._known:
            near = difflib.get_close_matches(key, self._known, n=1)
            raise self.wrong(key, f"unknown key; {f'did you mean {near[0]!r}?' if near else 'remove it'}")

    def wrong(self, key: str, why: str) -> ModelsError:
        return ModelsError(f"{self._where}{key}: {why}")
