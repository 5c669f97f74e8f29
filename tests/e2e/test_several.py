"""Several pictures of one job, on the real stack."""

import io

import numpy as np
from PIL import Image


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
    assert (several[5] != several[6]).any() and (several[6] != several[7]).any()
    alone = drawn(stack, seed=6)[6]
    # Batches add up in another order, so a pixel at the edge of two colours may fall to the other one.
    assert (alone != several[6]).any(axis=-1).mean() < 0.01
