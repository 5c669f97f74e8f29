"""The models.toml that comes with the worker, and the model in it."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

from handler import pixelart
from handler.contract import result_from_wire
from handler.models import read_models
from handler.renderer import DiffusersRenderer
from handler.settings import SHIPPED_MODELS
from handler.worker import Worker
from tests.worker.fakes import sdk_job

pytestmark = [
    pytest.mark.anyio,
    # Diffusers reads a tensor in a way that numpy has announced to change.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

SIZES = [(1024, 1024), (1344, 768), (768, 1344), (1216, 832), (832, 1216), (1152, 896), (896, 1152)]


def test_the_built_in_model_is_loaded_first_and_draws_all_sizes_of_the_product() -> None:
    models = read_models(SHIPPED_MODELS)
    assert models.warm == ("builtin",)
    grid = models.by_name["builtin"].grid
    assert [(width % grid, height % grid) for width, height in SIZES] == [(0, 0)] * len(SIZES)


async def test_the_built_in_model_draws_flat_squares_in_the_colours_of_one_palette() -> None:
    models = read_models(SHIPPED_MODELS)
    model = models.by_name["builtin"]
    worker = Worker(models, DiffusersRenderer.load)
    try:
        job = sdk_job(model="builtin", positive="a red house at night", width=1344, height=768, steps=2)
        first, second = [result_from_wire(await worker.handle(job)) for _ in range(2)]
    finally:
        worker.close()
    assert first.pictures == second.pictures
    assert first.warnings == ()
    image = Image.open(io.BytesIO(base64.b64decode(first.pictures[0].data or "")))
    assert image.size == (1344, 768)
    side = model.scale * model.cell
    art = image.resize((1344 // side, 768 // side), Image.Resampling.NEAREST)
    assert pixelart.upscale(art, side).tobytes() == image.tobytes()
    assert model.palette is not None
    palettes = [{tuple(colour) for colour in palette.tolist()} for palette in pixelart.read_palettes(model.palette)]
    colours = {colour for _, colour in image.getcolors(10_000) or []}
    assert any(colours <= palette for palette in palettes)
