"""`make train` from nothing to files that draw: the program that made the weights is part of the product."""

import hashlib
import warnings

import pytest
from PIL import Image

from handler.builtin import export, lora, train
from handler.builtin.studio import Studio

pytestmark = [
    # Diffusers reads a tensor in a way that numpy has announced to change.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]


def train_little(folder):
    # Two steps of each part.
    little = ["--workers", "1", "--samples-vae", "16", "--batch", "8", "--samples-unet", "16"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # libraries announce their next versions
        train.main(["--out", str(folder), *little])
        export.main(["--run", str(folder), "--model", str(folder / "model")])
        lora.main(["--model", str(folder / "model"), "--out", str(folder / "loras"), "--workers", "1",
                   "--batch", "8", "--samples", "16"])  # fmt: skip
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
    assert len(digests(first)) == 5
    assert digests(first) == digests(second)


def test_training_goes_on_from_an_exported_folder(first, tmp_path):
    little = ["--workers", "1", "--batch", "8", "--samples-unet", "8"]
    train.main(["--out", str(tmp_path), "--start", str(first / "model"), *little])
    assert (tmp_path / "unet.pt").exists()


@pytest.mark.parametrize("program", [train, lora], ids=["train", "lora"])
def test_several_workers_on_a_gpu_are_refused_with_a_sentence(program, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        program.main(["--out", str(tmp_path), "--device", "cuda", "--workers", "2"])
    assert stopped.value.code == 2
    assert "on a GPU one process trains: leave --workers out" in capsys.readouterr().err
