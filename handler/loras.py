"""LoRAs: read and checked once, kept in main memory, and put on a pipeline by changing its weights in place.

A LoRA is pairs of small matrices; a pair changes one weight W to W + strength x scale x (up @ down). Because that sum
is written into W itself, drawing with a LoRA costs no more per step than without, and a compiled model stays compiled:
it sees the same tensors with other numbers. What a weight was before is kept, so that taking a LoRA off is exact.

Every pair of a file must find its weight. The libraries' own loaders guess one naming for a whole file and leave out
what does not follow it; here each pair is placed by itself, and one that can't be placed refuses the LoRA.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from handler import lora_files
from handler.drawing import LoraUnfit
from handler.families import OTHER, Family
from handler.lora_files import Entry, LoraFile
from handler.models import LoraSource, Model

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
}
#: How the two halves of a pair are called; what stands before is the name of the weight.
_HALVES = (
    (".lora_A.weight", ".lora_B.weight"),
    (".lora_A.default.weight", ".lora_B.default.weight"),
    (".lora_down.weight", ".lora_up.weight"),
    (".down.weight", ".up.weight"),
)
_OTHER_KINDS = {
    "dora_scale": "a DoRA",
    "lora_magnitude_vector": "a DoRA",
    ".lokr_": "a LoKr",
    ".hada_": "a LoHa",
    ".lora_mid": "a LoCon with a third matrix",
    ".oft_": "an OFT",
    "lora_embedding_": "a LoRA of word embeddings",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """``base`` is the file's name of the weight; ``down`` and ``up`` are the names of the halves there."""

    base: str
    down_key: str
    up_key: str
    down: Tensor
    up: Tensor
    scale: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, weakref_slot=True)
class LoraWeights:
    """A LoRA in main memory. ``bytes`` is what it takes there."""

    name: str
    family: Family
    sha256: str
    bytes: int
    pairs: tuple[Pair, ...]


class LoraShelf:
    """The LoRAs that were used last, in up to ``memory`` bytes of main memory. Not safe for two threads at once."""

    def __init__(self, sources: Mapping[str, LoraSource], *, memory: int) -> None:
        self._sources = sources
        self._memory = memory
        self._kept: OrderedDict[str, tuple[tuple[int, int], LoraWeights]] = OrderedDict()
        self._paths: dict[str, Path] = {}

    @property
    def bytes(self) -> int:
        """What the kept ones take."""
        return sum(weights.bytes for _, weights in self._kept.values())

    def worn(self, name: str, strength: float) -> tuple[LoraWeights, float]:
        """A LoRA, and the weight at which it is worn for this strength. Raises `LoraUnfit`."""
        weights = self.take(name)
        return weights, self._sources[name].worn(strength)

    def take(self, name: str) -> LoraWeights:
        """From memory, or from its file if it is not there or the file has changed. Raises `LoraUnfit`."""
        if name not in self._sources:
            raise LoraUnfit(
                f"LoRA {name!r} is unknown to this worker; use one of: {', '.join(self._sources) or '(none)'}"
            )
        source = self._sources[name]
        path = self._paths.get(name)
        if path is None or not path.exists():
            path = self._paths[name] = lora_files.locate(source)
        stamp = _stamp(path)
        kept = self._kept.pop(name, None)
        weights = kept[1] if kept is not None and kept[0] == stamp else read(source, path)
        # One that is too large for the shelf must not push the others off it.
        if weights.bytes <= self._memory:
            self._kept[name] = (stamp, weights)
            while self.bytes > self._memory:
                self._kept.popitem(last=False)
        return weights


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        # Reading it says what is wrong.
        return -1, -1
    return status.st_mtime_ns, status.st_size


def read(source: LoraSource, path: Path) -> LoraWeights:
    """Raises `LoraUnfit` when the file is not a LoRA that can be put on a model."""
    file = lora_files.read(source, path)
    pairs = _pairs(source.name, file)
    return LoraWeights(
        name=source.name, family=source.family, sha256=file.sha256, bytes=len(file.data), pairs=tuple(pairs)
    )


def _pairs(name: str, file: LoraFile) -> list[Pair]:
    left = dict(file.entries)
    for mark, kind in _OTHER_KINDS.items():
        if any(mark in key for key in left):
            raise LoraUnfit(f"LoRA {name!r} is {kind}, which is not supported; choose a plain LoRA")
    found = list(_halves(left))
    if not found:
        raise LoraUnfit(
            f"LoRA {name!r} is no LoRA: it has no pair of down and up weights; if it is a whole model,"
            " give it a table [models.NAME] of its own"
        )
    pairs, notes = [], _adapter_notes(file)
    for base, down_key, up_key in found:
        down, up = _tensor(name, down_key, left.pop(down_key), file), _tensor(name, up_key, left.pop(up_key), file)
        if down.ndim < 2 or up.ndim < 2 or not down.shape[0] or up.shape[1:].numel() != down.shape[0]:
            raise LoraUnfit(f"LoRA {name!r} is broken: the two halves of {base!r} don't fit; download it again")
        alpha_key = next((key for key in _alpha_keys(base) if key in left), None)
        alpha = None if alpha_key is None else _number(_tensor(name, alpha_key, left.pop(alpha_key), file))
        pairs.append(
            Pair(
                base=base,
                down_key=down_key,
                up_key=up_key,
                down=down,
                up=up,
                scale=_scale(notes, base, alpha, down.shape[0]),
            )
        )
    rest = [key for key, entry in left.items() if _tensor(name, key, entry, file).any()]
    if rest:
        raise LoraUnfit(
            f"LoRA {name!r} has {len(rest)} of {len(file.entries)} tensors that belong to no pair, such as"
            f" {rest[0]!r}; only plain LoRAs are supported, choose another"
        )
    if not all(math.isfinite(pair.scale) for pair in pairs):
        raise LoraUnfit(f"LoRA {name!r} is broken: it has an alpha that is no number; download it again")
    return pairs


def _halves(entries: Mapping[str, Entry]) -> Iterator[tuple[str, str, str]]:
    for key in entries:
        for down, up in _HALVES:
            if key.endswith(down) and key.removesuffix(down) + up in entries:
                base = key.removesuffix(down)
                if down != ".down.weight" or "lora" in base:
                    yield base, key, base + up
                    break


def _alpha_keys(base: str) -> tuple[str, ...]:
    return f"{base}.alpha", f"{_bare(base)}.alpha"


def _bare(base: str) -> str:
    """Old names have the word in the middle: ``to_q_lora.down``, ``to_q.lora.down``, ``fc1.lora_linear_layer.down``."""
    return re.sub(r"[._]lora(_linear_layer)?$", "", base)


def _number(tensor: Tensor) -> float:
    return float(tensor.reshape(-1)[0]) if tensor.numel() == 1 else math.nan


def _scale(notes: Mapping[str, Any], base: str, alpha: float | None, rank: int) -> float:
    """What the pair counts at strength 1. PEFT writes alphas into the header's notes, everyone else beside the pair."""
    if alpha is not None:
        return alpha / rank
    part, _, path = base.partition(".")
    pattern = notes.get(f"{part}.alpha_pattern")
    told = [value for key, value in (pattern if isinstance(pattern, dict) else {}).items() if _names(key, path)]
    alpha = (told or [notes.get(f"{part}.lora_alpha")])[0]
    if not isinstance(alpha, int | float):
        return 1.0
    # An integer of a JSON text can be too long for a float.
    return alpha / (math.sqrt(rank) if notes.get(f"{part}.use_rslora") else rank) if abs(alpha) < 1e9 else math.nan


def _names(pattern: str, path: str) -> bool:
    """PEFT takes the end of a module's name, or all of it after ``^``, as a pattern."""
    return path == pattern.removeprefix("^") or path.endswith(f".{pattern}")


def _adapter_notes(file: LoraFile) -> dict[str, Any]:
    try:
        notes = json.loads(file.notes.get("lora_adapter_metadata", "{}"))
    except (ValueError, RecursionError):
        return {}
    return notes if isinstance(notes, dict) else {}


def _tensor(name: str, key: str, entry: Entry, file: LoraFile) -> Tensor:
    """A view of the file's bytes, not a copy. Raises `LoraUnfit` for what is no number."""
    dtype = _DTYPES.get(entry.dtype)
    if dtype is None:
        raise LoraUnfit(f"LoRA {name!r} has {entry.dtype} numbers in {key!r}; choose one in 16 or 32 bits")
    raw = torch.frombuffer(file.data, dtype=torch.uint8, count=entry.end - entry.start, offset=entry.start)
    # A header of odd length leaves numbers that begin between two words.
    tensor = (raw if entry.start % dtype.itemsize == 0 else raw.clone()).view(dtype).view(entry.shape)
    tensor = tensor.half() if dtype.itemsize == 1 else tensor
    if not tensor.isfinite().all():
        raise LoraUnfit(f"LoRA {name!r} is broken: {key!r} has values that are no numbers; choose another")
    return tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class _Change:
    """``factor`` x (``up`` @ ``down``) is added to the weight of ``module``, both as plain matrices."""

    module: nn.Module
    down: Tensor
    up: Tensor
    factor: float


class Wardrobe:
    """Puts LoRAs on one pipeline and takes them off again."""

    def __init__(self, pipeline: Any, model: Model) -> None:
        self._model = model
        self._places = _Places(pipeline)
        self._worn: tuple[tuple[str, float], ...] = ()
        self._originals: dict[nn.Module, Tensor] = {}
        self._placed: WeakKeyDictionary[LoraWeights, list[_Change]] = WeakKeyDictionary()

    def wear(self, loras: Sequence[tuple[LoraWeights, float]]) -> None:
        """Exactly these, with their strengths, instead of those that are worn now; none for the plain model.

        Raises `LoraUnfit`, and leaves the plain model behind, as with any other fault.
        """
        wanted = [(weights, strength) for weights, strength in loras if strength]
        names = tuple((weights.sha256, strength) for weights, strength in wanted)
        if names == self._worn:
            return
        try:
            changes = self._changes(wanted)
            self._worn = ()
            self._restore()
            for module, parts in changes.items():
                self._originals[module] = _copy(_weight(module))
                _add(_weight(module), parts)
            self._worn = names
        except BaseException:
            self._worn = ()
            self._restore()
            raise

    def _changes(self, loras: Sequence[tuple[LoraWeights, float]]) -> dict[nn.Module, list[_Change]]:
        """By the module; by one of the modules where several share a weight."""
        owners: dict[int, nn.Module] = {}
        changes: dict[nn.Module, list[_Change]] = {}
        for weights, strength in loras:
            for part in self._place(weights):
                module = owners.setdefault(id(part.module.weight), part.module)
                factor = part.factor * strength
                changes.setdefault(module, []).append(_Change(module=module, down=part.down, up=part.up, factor=factor))
        return changes

    def _place(self, weights: LoraWeights) -> list[_Change]:
        if weights not in self._placed:
            self._fits(weights)
            self._placed[weights] = self._places.of(weights)
        return self._placed[weights]

    def _fits(self, weights: LoraWeights) -> None:
        family = self._model.family
        if weights.family != family and OTHER not in (weights.family, family):
            raise LoraUnfit(
                f"LoRA {weights.name!r} is for {weights.family.name} models and model {self._model.name!r} is"
                f" {family.name}; choose another LoRA or another model"
            )

    @torch.no_grad()
    def _restore(self) -> None:
        while self._originals:
            module, original = next(iter(self._originals.items()))
            _weight(module).copy_(original, non_blocking=True)
            del self._originals[module]


def _weight(module: nn.Module) -> Tensor:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.data


def _copy(weight: Tensor) -> Tensor:
    """In main memory. Pinned, so that neither this nor the way back waits for the GPU."""
    copy = torch.empty_like(weight, device="cpu", pin_memory=weight.is_cuda)
    return copy.copy_(weight, non_blocking=True)


@torch.no_grad()
def _add(weight: Tensor, changes: Sequence[_Change]) -> None:
    """Sums in 32 bits and rounds once."""
    device = torch.device("cuda") if torch.cuda.is_available() else weight.device
    total = weight.to(device, torch.float32, memory_format=torch.contiguous_format)
    flat = total.view(total.shape[0], -1)
    for change in changes:
        down, up = change.down.to(device, torch.float32), change.up.to(device, torch.float32)
        flat.addmm_(up, down, alpha=change.factor)
    if total.data_ptr() != weight.data_ptr():
        weight.copy_(_rounded(total, weight.dtype))


def _rounded(total: Tensor, dtype: torch.dtype) -> Tensor:
    """To 8 bits by chance in proportion, the same each time; otherwise to the nearest.

    A LoRA's change is mostly less than half a step of an 8-bit number, so the nearest one would be the old one.
    """
    if dtype.itemsize > 1:
        return total
    info = torch.finfo(dtype)
    bits = round(-math.log2(info.eps))
    _, exponent = torch.frexp(total)
    least = round(math.log2(info.smallest_normal)) + 1
    step = torch.ldexp(torch.ones_like(total), exponent.clamp(min=least) - 1 - bits)
    chance = torch.rand(total.shape, generator=torch.Generator(total.device).manual_seed(0), device=total.device)
    return ((total / step + chance).floor() * step).clamp(info.min, info.max).to(dtype)


#: How files call the parts of a pipeline, the longest first; no name at all is the denoiser.
_DENOISER = ("unet", "transformer")
_PART_NAMES = (
    ("model.diffusion_model.", _DENOISER),
    ("diffusion_model.", _DENOISER),
    ("transformer.", _DENOISER),
    ("unet.", _DENOISER),
    ("lora_unet_", _DENOISER),
    ("lora_transformer_", _DENOISER),
    ("text_encoders.clip_l.transformer.", ("text_encoder",)),
    ("text_encoders.clip_g.transformer.", ("text_encoder_2",)),
    ("text_encoders.t5xxl.transformer.", ("t5",)),
    ("text_encoder.", ("text_encoder",)),
    ("text_encoder_2.", ("text_encoder_2",)),
    ("text_encoder_3.", ("text_encoder_3",)),
    ("lora_te_", ("text_encoder",)),
    ("lora_te1_", ("text_encoder",)),
    ("lora_te2_", ("text_encoder_2",)),
    ("lora_te3_", ("t5",)),
)


class _Places:
    """Finds the weight of a pair among a pipeline's modules, whatever naming the file follows."""

    def __init__(self, pipeline: Any) -> None:
        self._pipeline = pipeline
        self._parts: dict[str, dict[str, nn.Module]] = {}

    def of(self, weights: LoraWeights) -> list[_Change]:
        """Raises `LoraUnfit` unless every pair has its place."""
        placed, lost = list[_Change](), list[str]()
        for pair in weights.pairs:
            changes = self._direct(weights.name, pair) or self._converted(weights.name, pair)
            placed.extend(changes)
            # One that is all zeros changes nothing wherever it belongs; trainers write such for parts left alone.
            if not changes and pair.up.any() and pair.down.any():
                lost.append(pair.base)
        if lost:
            raise LoraUnfit(
                f"LoRA {weights.name!r} does not fit this model: {len(lost)} of its {len(weights.pairs)} layers"
                f" have no place in it, such as {lost[0]!r}; choose a LoRA that was trained for this model"
            )
        return placed

    def _direct(self, name: str, pair: Pair) -> list[_Change]:
        """By name alone. Empty if the pair names no weight of the pipeline, or one of another shape."""
        part, path = _split(pair.base)
        modules = self._modules(part)
        module = next((modules[spelling] for spelling in _spellings(path) if spelling in modules), None)
        if module is None:
            return []
        weight = _weight(module)
        if not weight.is_floating_point() or weight.is_meta:
            raise LoraUnfit(
                f"LoRA {name!r} can't be worn by this model, whose weights are quantized or wait outside of memory;"
                " choose a model in 16 bits"
            )
        if weight.shape[0] != pair.up.shape[0] or weight.shape[1:].numel() != pair.down.shape[1:].numel():
            return []
        return [_Change(module=module, down=pair.down.flatten(1), up=pair.up.flatten(1), factor=pair.scale)]

    def _converted(self, name: str, pair: Pair) -> list[_Change]:
        """Through the library's own conversion, for names of other programs and for layers that these have in one.

        The pair goes alone, since a whole file's naming is only guessed, and everything that goes in must come out.
        """
        for down_key, up_key in dict.fromkeys([(pair.down_key, pair.up_key), _kohya(pair.base)]):
            found = self._convert({down_key: pair.down, up_key: pair.up})
            changes = [self._direct(name, replace(pair, base=base, down=down, up=up)) for base, down, up in found]
            if changes and all(changes) and sum(up.shape[0] for _, _, up in found) == pair.up.shape[0]:
                return [change for each in changes for change in each]
        return []

    def _convert(self, state: dict[str, Tensor]) -> list[tuple[str, Tensor, Tensor]]:
        convert = getattr(type(self._pipeline), "lora_state_dict", None)
        if convert is None:
            return []
        unet = getattr(self._pipeline, "unet", None)
        try:
            answer = convert(state, **({} if unet is None else {"unet_config": unet.config}))
        except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
            # The library has no common error for names that it does not know.
            return []
        state = answer[0] if isinstance(answer, tuple) else answer
        entries = {key: state[key] for key in state}
        return [
            (key.removesuffix(down), entries[key], entries[key.removesuffix(down) + up])
            for key in entries
            for down, up in _HALVES
            if key.endswith(down) and key.removesuffix(down) + up in entries
        ]

    def _modules(self, names: Sequence[str]) -> dict[str, nn.Module]:
        """The changeable modules of the first part that the pipeline has, by name with ``_`` for ``.``."""
        for name in names:
            if name not in self._parts:
                self._parts[name] = _by_flat_name(self._part(name))
            if self._parts[name]:
                return self._parts[name]
        return {}

    def _part(self, name: str) -> nn.Module | None:
        parts = {key: part for key, part in self._pipeline.components.items() if isinstance(part, nn.Module)}
        if name != "t5":
            return parts.get(name)
        return next((part for part in parts.values() if type(part).__name__.startswith("T5")), None)


def _split(base: str) -> tuple[tuple[str, ...], str]:
    base = base.removeprefix("base_model.model.")
    for prefix, part in _PART_NAMES:
        if base.startswith(prefix):
            return part, base.removeprefix(prefix)
    return _DENOISER, base


def _spellings(path: str) -> Iterator[str]:
    """The names that a module may have for what the file calls it, with ``_`` for ``.``."""
    flat = _bare(path).replace(".", "_").replace("_processor_", "_")
    for name in (flat, flat.removeprefix("text_model_"), f"text_model_{flat}"):
        yield name
        # Old names of attention: to_out for the first of two, and to_q of a text encoder's q_proj.
        yield re.sub(r"_to_out$", "_to_out_0", name)
        yield re.sub(r"_to_(q|k|v|out)$", r"_\1_proj", name)


def _kohya(base: str) -> tuple[str, str]:
    """The names of the halves in kohya's scripts, which the library knows best."""
    part, path = _split(base)
    prefix = "lora_unet_" if part == _DENOISER else "lora_te_" if part == ("text_encoder",) else "lora_te2_"
    name = prefix + path.replace(".", "_")
    return f"{name}.lora_down.weight", f"{name}.lora_up.weight"


def _by_flat_name(part: nn.Module | None) -> dict[str, nn.Module]:
    if part is None:
        return {}
    # A compiled model wraps the one that has the names.
    inner = getattr(part, "_orig_mod", part)
    found: dict[str, nn.Module] = {}
    twice: set[str] = set()
    for name, module in inner.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            flat = name.replace(".", "_")
            twice |= found.keys() & {flat}
            found[flat] = module
    return {name: module for name, module in found.items() if name not in twice}
