"""``python -m handler.pull models.toml [NAME …]``: fetch what the file names on the hub, so that no worker has to.

Into the hub's cache (``HF_HOME``), which is in an image or on a network volume then. Fetches the very files that the
worker loads and no others. A gated repository needs ``HF_TOKEN``.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from handler import lora_files
from handler.drawing import LoraUnfit
from handler.log import fields, log, start_logging
from handler.models import Model, ModelsError, read_models


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m handler.pull", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("models", type=Path, help="a models.toml")
    parser.add_argument("names", nargs="*", help="models and LoRAs of it; all when none is named")
    given = parser.parse_args(arguments)
    start_logging("INFO")
    try:
        _pull(given.models.absolute(), given.names)
    except (ModelsError, LoraUnfit) as exc:
        log.error("not pulled", extra=fields(reason=str(exc)))
        return 2
    return 0


def _pull(path: Path, names: list[str]) -> None:
    models = read_models(path)
    if unknown := set(names) - {*models.by_name, *models.loras}:
        raise ModelsError(f"{path}: it has no model or LoRA named {', '.join(sorted(unknown))}")
    for model in models.by_name.values():
        if model.hub and (not names or model.name in names):
            _told(model.name, lambda each=model: _model(each))  # type: ignore[misc]
    for lora in models.loras.values():
        if lora.hub and (not names or lora.name in names):
            _told(lora.name, lambda each=lora: lora_files.locate(each))  # type: ignore[misc]


def _model(model: Model) -> Path:
    # Importing it takes seconds, and a file with LoRAs alone or a mistake in it needs none of that.
    from diffusers import DiffusionPipeline

    try:
        # With the arguments of handler.pipelines, so that exactly what is loaded is fetched.
        return Path(
            DiffusionPipeline.download(
                model.source,
                revision=model.revision,
                variant=model.variant,
                use_safetensors=True,
                safety_checker=None,
            )
        )
    except (OSError, ValueError) as exc:
        raise ModelsError(
            f"models.{model.name}.source: {model.source} can't be fetched: {exc};"
            " check source, revision and the network, and HF_TOKEN if the repository is gated"
        ) from exc


def _told(name: str, fetch: Callable[[], Path]) -> None:
    started = time.perf_counter()
    place = fetch()
    log.info("pulled", extra=fields(name=name, place=str(place), seconds=round(time.perf_counter() - started, 1)))


if __name__ == "__main__":
    sys.exit(main())
