"""LoRA files before any of their weights is used: where they lie, and whether they are what they say. No torch in here.

A safetensors file is eight bytes of header length, a header in JSON and the tensors' bytes. The header is checked here,
number by number, because everything after this trusts it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from handler.drawing import LoraUnfit
from handler.models import LoraSource

#: Bytes. The largest LoRAs that are published have about 2 GB; more is a whole model by mistake.
MOST_BYTES = 4 * 2**30
_MOST_HEADER = 16 * 2**20
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1}
_OTHER_ITEM_BYTES = {"I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "U16": 2, "U32": 4, "U64": 8, "BOOL": 1}
_ALL_ITEM_BYTES = _ITEM_BYTES | _OTHER_ITEM_BYTES


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor of a file: ``start`` and ``end`` are positions in the file's bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraFile:
    """A file that was read once: its bytes, their SHA-256, its tensors by name and the header's own notes."""

    data: bytearray
    sha256: str
    entries: Mapping[str, Entry]
    notes: Mapping[str, str]


def locate(source: LoraSource) -> Path:
    """The file; one of the hub from its cache, and only when it is not there from the network. Raises `LoraUnfit`."""
    if not source.hub:
        return Path(source.source)
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    owner, name, filename = source.source.split("/", 2)
    fetch = partial(huggingface_hub.hf_hub_download, f"{owner}/{name}", filename, revision=source.revision)
    try:
        try:
            return Path(fetch(local_files_only=True))
        except LocalEntryNotFoundError:
            return Path(fetch())
    except (OSError, ValueError) as exc:
        raise LoraUnfit(
            f"LoRA {source.name!r} can't be fetched from the hub ({type(exc).__name__}): check source and revision"
            " in models.toml, the network, and HF_TOKEN if the repository is gated"
        ) from exc


def read(source: LoraSource, path: Path) -> LoraFile:
    """All of the file, checked. Raises `LoraUnfit`."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            if size > MOST_BYTES:
                raise LoraUnfit(
                    f"LoRA {source.name!r} has {size / 2**30:.1f} GiB, too much for a LoRA: is it a whole model?"
                )
            start = file.read(8)
            _header_bytes(source.name, start, size)
            data = bytearray(size)
            file.seek(0)
            # A file that is being written or cut while it is read fails its checks below.
            file.readinto(data)
    except OSError as exc:
        raise LoraUnfit(
            f"LoRA {source.name!r} can't be read ({exc.strerror or type(exc).__name__}): put its file back"
            " or correct its source in models.toml"
        ) from exc
    sha256 = hashlib.sha256(data).hexdigest()
    if source.sha256 is not None and sha256 != source.sha256:
        raise LoraUnfit(
            f"LoRA {source.name!r} is another file than models.toml names: its SHA-256 is {sha256[:12]}…,"
            f" not {source.sha256[:12]}…; download it again or correct sha256"
        )
    entries, notes = parse(source.name, data)
    return LoraFile(data=data, sha256=sha256, entries=entries, notes=notes)


def parse(name: str, data: bytes | bytearray) -> tuple[dict[str, Entry], dict[str, str]]:
    """The tensors of a safetensors file's bytes, and the notes in its header. Raises `LoraUnfit` and nothing else."""
    length = _header_bytes(name, bytes(data[:8]), len(data))
    try:
        header = json.loads(data[8 : 8 + length])
    except (ValueError, RecursionError):
        raise _broken(name, "its header is no JSON") from None
    if not isinstance(header, dict):
        raise _broken(name, "its header is no table")
    notes = header.pop("__metadata__", None) or {}
    if not isinstance(notes, dict) or not all(isinstance(value, str) for value in notes.values()):
        raise _broken(name, "its header's notes are no table of texts")
    first = 8 + length
    return {key: _entry(name, key, value, first, len(data)) for key, value in header.items()}, notes


def _header_bytes(name: str, start: bytes, size: int) -> int:
    length = int.from_bytes(start, "little")
    if len(start) < 8 or not 2 <= length <= min(_MOST_HEADER, size - 8):
        raise _broken(name, "it is no safetensors file, or was cut")
    return length


def _entry(name: str, key: str, value: Any, first: int, size: int) -> Entry:
    if not isinstance(value, dict):
        raise _broken(name, f"{key[:80]!r} is described wrongly")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in _ALL_ITEM_BYTES:
        raise _broken(name, f"{key[:80]!r} has a number format that nobody knows here")
    if not _counts(shape) or not all(shape) or not _counts(offsets) or len(offsets) != 2:
        raise _broken(name, f"{key[:80]!r} is described wrongly")
    start, end = offsets[0] + first, offsets[1] + first
    if not start <= end <= size or len(shape) > 8 or math.prod(shape) * _ALL_ITEM_BYTES[dtype] != end - start:
        raise _broken(name, f"{key[:80]!r} does not lie in the file: it was cut or written wrongly")
    return Entry(dtype=dtype, shape=tuple(shape), start=start, end=end)


def _counts(value: Any) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 2**53 for number in value)


def _broken(name: str, why: str) -> LoraUnfit:
    return LoraUnfit(f"LoRA {name!r} can't be read: {why}; download it again")
