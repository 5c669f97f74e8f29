"""`make train` from nothing to files that draw: the program that made the weights is part of the product."""

import hashlib
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


def run(module: str, *arguments: object) -> None:
    environ = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", f"handler.builtin.{module}", *map(str, arguments)]
    subprocess.run(command, env=environ, check=True, capture_output=True, text=True, timeout=240)


def train_little(folder):
    run("train", "--out", folder, "--workers", 1, "--pictures", 60, "--samples-vae", 16, "--samples-unet", 80)
    run("export", "--run", folder, "--model", folder / "model")
    lora = ("--model", folder / "model", "--out", folder / "loras", "--samples", 64, "--pictures", 24)
    run("lora", "--character", "aya", *lora)
    return folder


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    return train_little(tmp_path_factory.mktemp("first"))


def test_a_short_training_ends_in_files_that_draw(first):
    studio = Studio(first / "model")
    studio.wear({"aya": 1.0}, first / "loras")
    (picture,) = studio.draw(["a red house"], (1344, 768), [1], steps=2)
    assert isinstance(picture, Image.Image) and picture.size == (84, 48)


def test_two_runs_of_one_worker_end_in_the_same_bits(first, tmp_path):
    def digests(folder):
        paths = sorted(folder.rglob("*.safetensors"))
        return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    second = train_little(tmp_path)
    assert len(digests(first)) == 4
    assert digests(first) == digests(second)


def test_training_goes_on_from_an_exported_folder(first, tmp_path):
    budget = ("--workers", 1, "--pictures", 60, "--samples-unet", 40)
    run("train", "--out", tmp_path, "--start", first / "model", *budget)
    assert (tmp_path / "unet.pt").exists()
