"""Write a checkpoint as a standard diffusers folder: `python -m handler.builtin.export --run DIR --model FOLDER`."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline

from handler.builtin import autoencoder, networks
from handler.builtin.colours import palettes
from handler.builtin.denoiser import Denoiser


def export(run: Path, folder: Path) -> None:
    """The averaged weights, at half precision, with the palettes beside them."""
    checkpoint = torch.load(run / "unet.pt", map_location="cpu")
    model = Denoiser()
    model.load_state_dict(checkpoint["average"])
    pipeline = StableDiffusionPipeline(
        vae=networks.standard_vae(autoencoder.load(run), scaling_factor=1 / checkpoint["spread"]).half(),
        text_encoder=model.text.half(),
        tokenizer=model.words,
        unet=model.unet.half(),
        scheduler=networks.scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    codes = [[bytes(colour).hex() for colour in palette] for palette in palettes()]
    (folder / "palette.json").write_text(json.dumps(codes, indent=1), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the folder with the checkpoints")
    parser.add_argument("--model", type=Path, required=True, help="the folder to write")
    options = parser.parse_args(arguments)
    export(options.run, options.model)
    print(f"{sum(path.stat().st_size for path in options.model.rglob('*') if path.is_file()) / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
