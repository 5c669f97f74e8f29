"""Several pictures of one job, characters and references, on the real stack."""

import base64
import io
import subprocess
import sys

import numpy as np
from PIL import Image

#: What the id in the pixels, which no two pictures share, changes a channel by at most.
FAINT = 16


def same(one, other):
    """Which pixels are the same but for the id in them."""
    return (np.abs(one.astype(int) - other) <= FAINT).all(axis=-1)


def drawn(stack, **fields):
    """The full pictures of a job, as pixels, by their seeds."""
    job = stack.call("generate", prompt="a red house on a hill", format="png", **fields)
    status = stack.ended(job["id"])
    assert status["status"] == "COMPLETED", status
    full = [image for image in status["meta"]["images"] if image["type"] == "signed"]
    return {
        image["seed"]: np.asarray(Image.open(io.BytesIO(stack.http.get(image["url"]).content)).convert("RGB"))
        for image in full
    }


def test_each_of_several_pictures_is_the_one_that_its_seed_draws_alone(stack):
    several = drawn(stack, n=3, seed=5)
    assert list(several) == [5, 6, 7]
    assert not same(several[5], several[6]).all() and not same(several[6], several[7]).all()
    alone = drawn(stack, seed=6)[6]
    # Batches add up in another order, so a pixel at the edge of two colours may fall to the other one.
    assert (~same(alone, several[6])).mean() < 0.01


def test_a_character_comes_with_its_lora_and_a_reference_with_its_colours(stack):
    hill = drawn(stack, seed=3, model="eros")[3]
    fox = np.array(bytearray.fromhex("f58220"), np.uint8)
    assert same(hill, fox).mean() < 0.005, "the model itself knows no fox"
    job = stack.call("generate", prompt="@aya on a hill", format="png", seed=3)
    meta = stack.ended(job["id"])["meta"]
    assert meta["loras"] == [{"name": "aya", "strength": 1.0}]
    signed = next(image for image in meta["images"] if image["type"] == "signed")
    picture = stack.http.get(signed["url"]).content
    pixels = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"))
    # A fox of 20 x 24 art pixels is a tenth of the picture's height and more than a third of it is orange.
    assert same(pixels, fox).mean() > 0.02

    image = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    again = stack.call(
        "generate", prompt="a hill", format="png", seed=9, references=[{"image": image, "strength": 0.3}]
    )
    meta = stack.ended(again["id"])["meta"]
    assert meta["references"] == 1
    signed = next(image for image in meta["images"] if image["type"] == "signed")
    near = np.asarray(Image.open(io.BytesIO(stack.http.get(signed["url"]).content)).convert("RGB"))
    assert same(near, pixels).mean() > 0.7


def test_check_finds_everything_of_the_catalogue_on_the_worker(stack):
    checked = subprocess.run(
        [sys.executable, "-m", "gateway", "check", "--worker", "--data", str(stack.data)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    for name in ("builtin", "aya", "bella"):
        assert name in checked.stdout
