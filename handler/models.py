"""``models.toml``: the model names that jobs may use, and what each one loads.

A file that is wrong stops the start with the key and the fix. The keys of a model:

``source``         a diffusers folder, absolute or relative to the file, or ``hub:owner/name`` of the Hugging Face hub
``revision``       of a hub model: the commit or tag to load
``variant``        the weights' variant, such as ``fp16``, where the folder has more than one
``family``         what the answer calls it: ``sd15``, ``sdxl``, ``flux`` …; informational
``dtype``          ``auto`` (float32 on a CPU, bfloat16 or float16 on a GPU), ``float32``, ``float16``, ``bfloat16``
``sampler``        a diffusers scheduler class instead of the folder's own
``steps``          when the job names none
``max_steps``      more than this is drawn with this many, with a warning
``guidance``       when the job names none
``negative``       whether the model heeds negative prompts
``size_multiple``  what the pipeline's width and height must be multiples of
``scale``          the pipeline draws at the size divided by this, and every pixel becomes a square of this side
``palette``        a palette file, relative to the source folder, to whose colours the picture is snapped
``cell``           with a palette: the side of one art pixel in the pipeline's picture
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HUB = "hub:"
_DTYPES = ("auto", "float32", "float16", "bfloat16")


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
    family: str = "unknown"
    dtype: str = "auto"
    sampler: str | None = None
    steps: int = 30
    max_steps: int = 100
    guidance: float = 5.0
    negative: bool = True
    size_multiple: int = 8
    scale: int = 1
    palette: Path | None = None
    cell: int = 1

    @property
    def grid(self) -> int:
        """Width and height of a picture are multiples of this."""
        return self.size_multiple * self.scale


@dataclass(frozen=True, kw_only=True, slots=True)
class Models:
    """The file. The ``warm`` models are loaded before the first job; up to ``keep_loaded`` stay in memory."""

    by_name: Mapping[str, Model]
    warm: tuple[str, ...]
    keep_loaded: int


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
    warm = tuple(top.take("warm", list, [next(iter(by_name))]))
    for name in warm:
        if not isinstance(name, str) or name not in by_name:
            raise ModelsError(f"{path}: warm names {name!r}, which is no model; write one of {', '.join(by_name)}")
    keep_loaded = top.take("keep_loaded", int, max(1, len(warm)))
    if keep_loaded < max(1, len(warm)):
        raise ModelsError(f"{path}: keep_loaded is {keep_loaded}, too few; write at least {max(1, len(warm))}")
    top.done()
    return Models(by_name=by_name, warm=warm, keep_loaded=keep_loaded)


def _model(name: str, table: _Table, base: Path) -> Model:
    source = table.take("source", str)
    hub = source.startswith(_HUB)
    folder = base / source
    if hub:
        source = source.removeprefix(_HUB)
    elif not (folder / "model_index.json").is_file():
        raise table.wrong(
            "source",
            f"{str(folder)!r} is no diffusers folder (it has no model_index.json); for the hub write hub:owner/name",
        )
    else:
        source = str(folder.resolve())
    palette = table.take("palette", str, None)
    if palette is not None and (hub or not (folder / palette).is_file()):
        raise table.wrong("palette", f"{palette!r} is no file in the source folder; correct it or leave it out")
    dtype = table.take("dtype", str, "auto")
    if dtype not in _DTYPES:
        raise table.wrong("dtype", f"{dtype!r} is unknown; write one of {', '.join(_DTYPES)}")
    max_steps = table.at_least(1, "max_steps", 100)
    model = Model(
        name=name,
        source=source,
        hub=hub,
        revision=table.take("revision", str, None),
        variant=table.take("variant", str, None),
        family=table.take("family", str, "unknown"),
        dtype=dtype,
        sampler=table.take("sampler", str, None),
        steps=table.at_least(1, "steps", min(30, max_steps)),
        max_steps=max_steps,
        guidance=float(table.take("guidance", (int, float), 5.0)),
        negative=table.take("negative", bool, True),
        size_multiple=table.at_least(1, "size_multiple", 8),
        scale=table.at_least(1, "scale", 1),
        palette=None if palette is None else (folder / palette).resolve(),
        cell=table.at_least(1, "cell", 1),
    )
    table.done()
    if model.steps > model.max_steps:
        raise table.wrong("steps", f"{model.steps} is more than max_steps; write at most {model.max_steps}")
    if model.size_multiple % model.cell:
        raise table.wrong("cell", f"{model.cell} does not divide size_multiple, {model.size_multiple}; correct one")
    if not model.guidance >= 0:
        raise table.wrong("guidance", "it must be 0 or more; 0 or 1 mean no guidance")
    return model


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

    def done(self) -> None:
        for key in self._table.keys() - self._known:
            near = difflib.get_close_matches(key, self._known, n=1)
            raise self.wrong(key, f"unknown key; {f'did you mean {near[0]!r}?' if near else 'remove it'}")

    def wrong(self, key: str, why: str) -> ModelsError:
        return ModelsError(f"{self._where}{key}: {why}")
