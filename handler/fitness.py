"""Whether this machine can draw at all, asked before the slow part of the start. No torch and no SDK in here.

Each check returns when all is well and raises `Unfit` with a sentence that says what is wrong and what to do. Run as
the SDK's fitness checks they end the worker at once, and their sentence goes to RunPod with the last ping.
"""

from __future__ import annotations

import http.client
import json
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from handler.models import LoraSource, Model

_LARGEST_HEADER = 100_000_000
"""Bytes; the format's own limit."""

_GATEWAY_PATIENCE, _GATEWAY_PAUSE, _GATEWAY_TIMEOUT = 20.0, 1.0, 5.0

#: Checkers of diffusers' own, which the worker never loads.
_NOT_LOADED = {"safety_checker"}


class Unfit(RuntimeError):
    """The worker can't do its work here."""


def check_models(models: Iterable[Model], *, hub_cache: Path, offline: bool) -> None:
    """That the files of these models are there and whole. What the hub can still send is not missed."""
    for model in models:
        if not model.hub:
            _check_folder(Path(model.source), model)
        elif offline:
            _check_folder(_snapshot(model, hub_cache), model)
        if model.ip_adapter is not None:
            _check_weights(model.ip_adapter, f"models.{model.name}.ip_adapter")


def check_loras(loras: Iterable[LoraSource]) -> None:
    """That the files of these LoRAs are there and whole, as far as they are not the hub's."""
    for lora in loras:
        if not lora.hub:
            _check_weights(Path(lora.source), f"loras.{lora.name}")


def check_disk(folder: Path, least: int, *, usage: Callable[[Path], Any] = shutil.disk_usage) -> None:
    """That ``least`` bytes are free where ``folder`` is or will be."""
    if not least:
        return
    there = next(each for each in (folder, *folder.parents) if each.exists())
    free = usage(there).free
    if free < least:
        raise Unfit(
            f"{_gb(free)} GB are free in {there} and IMGEN_MIN_DISK_GB asks for {_gb(least)};"
            " give the container a larger disk, or remove models from the volume"
        )


def check_gpu(free: Sequence[int], *, require: bool, least: int) -> None:
    """``free`` are the free bytes of each GPU that torch can use."""
    if not (require or least):
        return
    if not free:
        raise Unfit(
            "torch sees no GPU and IMGEN_REQUIRE_GPU or IMGEN_MIN_GPU_MEMORY_GB asks for one; choose GPU workers, with"
            " a driver that is new enough for the image's CUDA (docs/runpod.md), or unset it to draw on the CPU"
        )
    if free[0] < least:
        raise Unfit(
            f"{_gb(free[0])} GB of the GPU's memory are free and IMGEN_MIN_GPU_MEMORY_GB asks for {_gb(least)};"
            " choose a larger GPU for the endpoint"
        )


def check_gateway(
    url: str,
    *,
    get: Callable[[str], int] | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """That the gateway answers: whoever can't reach it draws pictures that go nowhere. Empty is not asked."""
    if not url:
        return
    end = clock() + _GATEWAY_PATIENCE
    while True:
        try:
            status = (get or _status)(f"{url}/healthz")
            if status == 200:
                return
            why = f"it answered {status}"
        except (OSError, http.client.HTTPException) as exc:
            why = str(getattr(exc, "reason", None) or exc) or type(exc).__name__
        if clock() >= end:
            raise Unfit(
                f"no gateway answers at {url}/healthz ({why}); IMGEN_GATEWAY_URL must be the gateway's address as the"
                " worker reaches it, the same as the gateway's IMGEN_INTERNAL_URL or IMGEN_PUBLIC_URL"
            )
        sleep(_GATEWAY_PAUSE)


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=_GATEWAY_TIMEOUT) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as exc:
        return exc.code


def _snapshot(model: Model, hub_cache: Path) -> Path:
    """The model's folder in the hub's cache, which is laid out as huggingface_hub lays it out."""
    repository = hub_cache / f"models--{model.source.replace('/', '--')}"
    revision = model.revision or "main"
    ref = repository / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = repository / "snapshots" / commit
    if not folder.is_dir():
        raise Unfit(
            f"models.{model.name}: {model.source} at {revision} is not in {hub_cache} and HF_HUB_OFFLINE forbids to"
            " fetch it; bake it into the image, choose it as the endpoint's cached model, or unset HF_HUB_OFFLINE"
        )
    return folder


def _check_folder(folder: Path, model: Model) -> None:
    where = f"models.{model.name}"
    index = _read(folder / "model_index.json", where)
    for name, kind in index.items():
        # A component is [library, class]; [null, null] is an optional one that this model does without.
        if isinstance(kind, list) and len(kind) == 2 and all(kind) and name not in _NOT_LOADED:
            _check_component(folder / name, model.variant, f"{where}: {name}")


def _check_component(folder: Path, variant: str | None, where: str) -> None:
    if not folder.is_dir() or not any(folder.iterdir()):
        raise Unfit(f"{where}: {folder} is missing or empty; fetch the model again")
    if not (folder / "config.json").is_file():
        # Samplers, tokenizers and processors have no weights.
        return
    weights = _weights(folder, variant, where)
    if not weights:
        raise Unfit(f"{where}: {folder} has no .safetensors weights; fetch the model again, in that format")
    for path in weights:
        _check_weights(path, where)


def _weights(folder: Path, variant: str | None, where: str) -> list[Path]:
    """The weight files that will be read: those of the variant where there are such, and all parts of an index."""
    for wanted in ([variant] if variant else []) + [None]:
        indexes = [p for p in folder.glob("*.safetensors.index*.json") if _variant(p) == wanted]
        if indexes:
            parts = _read(indexes[0], where).get("weight_map")
            if not isinstance(parts, dict) or not parts:
                raise Unfit(f"{where}: {indexes[0]} lists no weight files; fetch the model again")
            return sorted({folder / str(part) for part in parts.values()})
        whole = [p for p in folder.glob("*.safetensors") if _variant(p) == wanted]
        if whole:
            return sorted(whole)
    return sorted(folder.glob("*.safetensors"))


def _variant(path: Path) -> str | None:
    """``fp16`` of ``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors`` or an index of these."""
    rest = path.name.removesuffix(".json").replace(".safetensors", "").replace(".index", "")
    words = [word.partition("-0")[0] for word in rest.split(".")[1:]]
    return words[0] if words else None


def _check_weights(path: Path, where: str) -> None:
    """That a safetensors file is as long as its header says: a cut download, or a pointer to one, is not."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if size < 8 or not 2 <= length <= min(size - 8, _LARGEST_HEADER):
                lfs = "; it is a Git LFS pointer, so git lfs pull was not run" if first.startswith(b"version ") else ""
                raise Unfit(f"{where}: {path} ({size} bytes) is no whole safetensors file{lfs}; fetch it again")
            header = json.loads(file.read(length))
        needs = 8 + length + max((t["data_offsets"][1] for n, t in header.items() if n != "__metadata__"), default=0)
    except OSError as exc:
        raise Unfit(f"{where}: {path} can't be read ({exc.strerror}); fetch it again") from None
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise Unfit(f"{where}: {path} has a damaged header; fetch it again") from None
    if size < needs:
        raise Unfit(f"{where}: {path} has {size} of {needs} bytes, the download was cut; fetch it again")


def _read(path: Path, where: str) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
        raise ValueError("not an object")
    except OSError as exc:
        raise Unfit(f"{where}: {path} can't be read ({exc.strerror}); fetch the model again") from None
    except ValueError as exc:
        raise Unfit(f"{where}: {path} is damaged ({exc}); fetch the model again") from None


def _gb(size: int) -> str:
    return f"{size / 2**30:.1f}"
