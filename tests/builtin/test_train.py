"""`make train` from nothing to a folder that draws: the program that made the weights is part of the product."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from handler.builtin.studio import Studio

pytestmark = [
    # Diffusers reads a tensor in a way that numpy has announced to change.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def run(module: str, *arguments: str) -> str:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"handler.builtin.{module}", *arguments]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=240).stdout


def test_a_short_training_ends_in_a_folder_that_draws(tmp_path):
    short = ["--out", str(tmp_path / "run"), "--minutes-vae", "0.05", "--minutes-unet", "0.05", "--workers", "1"]
    run("train", *short)
    run("export", "--run", str(tmp_path / "run"), "--model", str(tmp_path / "model"))
    (picture,) = Studio(tmp_path / "model").draw(["a red house"], (1344, 768), [1], steps=2)
    assert isinstance(picture, Image.Image) and picture.size == (84, 48)
