"""Every family of models, over everything that an order can ask for: a row each, and a column each.

The models are real pipelines with random weights. After each cell the next plain order must give the same bytes as
before it: no order leaves anything behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from handler.contract import Lora
from handler.drawing import Guide, LoraUnfit, Order, OutOfMemory, Stopped
from handler.families import FAMILIES, OTHER, Family, family_of
from handler.loras import LoraShelf
from handler.models import LoraSource, Model
from handler.pipelines import accepted
from handler.renderer import DiffusersRenderer
from tests.worker import tiny
from tests.worker.onlooker import Onlooker

# Diffusers calls numpy and its own libraries in ways that they have announced to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

ORDER = Order(positive="a hill", negative="fog", width=64, height=48, seeds=(7,), steps=3, guidance=4.0)


@dataclass(frozen=True, kw_only=True)
class Row:
    """``name`` is the builder's. ``pictures`` is how many of two guides have an effect. ``lacks`` are the cells that
    are left out, each with the reason."""

    name: str
    family: str
    pictures: int = 1
    sampler: str = "FlowMatchEulerDiscreteScheduler"
    adapter: bool = False
    lacks: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


_QWEN_LACKS = {
    "test_the_prompt_is_cut_exactly_where_the_model_stops_reading": (
        "the pipeline counts its own words before the prompt as 34 tokens, which they are only in the real vocabulary"
    ),
}
ROWS = [
    Row(name="sd15", family="sd15", sampler="DPMSolverMultistepScheduler"),
    Row(name="sd2", family="sd15", sampler="DDIMScheduler"),
    Row(name="sd15-ip-adapter", family="sd15", sampler="DPMSolverMultistepScheduler", adapter=True, pictures=2),
    Row(name="sdxl", family="sdxl", sampler="EulerDiscreteScheduler"),
    Row(name="sd3", family="sd3"),
    Row(name="flux", family="flux"),
    Row(name="flux2", family="flux2", pictures=2),
    Row(name="z-image", family="z-image"),
    Row(name="qwen-image", family="qwen-image", lacks=_QWEN_LACKS),
    Row(name="qwen-image-edit", family="qwen-image-edit", pictures=2, lacks=_QWEN_LACKS),
]

Load = Callable[[Row], DiffusersRenderer]


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny model, built when it is first asked for."""
    root = tmp_path_factory.mktemp("families")

    def folder(name: str) -> Path:
        path = root / name
        return path if path.exists() else tiny.BUILDERS[name](path)

    return folder


@pytest.fixture(scope="session")
def load(folders: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Load:
    """A fresh renderer of a row. It may wear the LoRA ``small``."""
    root = tmp_path_factory.mktemp("extras")

    def loaded(row: Row) -> DiffusersRenderer:
        family = FAMILIES[row.family]
        model = Model(name=row.name, source="", family=family, negative=family.negative, batch=2)
        lora = LoraSource(name="small", source=str(root / f"{row.name}.safetensors"), family=family)
        shelf = LoraShelf({"small": lora}, memory=2**20)
        if row.name == "qwen-image-edit":
            pipeline = tiny.qwen_image_edit()
            tiny.save_lora(Path(lora.source), pipeline)
            return DiffusersRenderer.over(model, pipeline, "in memory", shelf=shelf)
        folder = folders(row.name.removesuffix("-ip-adapter"))
        if row.adapter:
            file = root / "ip-adapter.safetensors"
            model = replace(model, ip_adapter=file if file.exists() else tiny.build_ip_adapter(root, folder))
        tiny.save_lora(Path(lora.source), diffusers.DiffusionPipeline.from_pretrained(folder))
        return DiffusersRenderer.load(replace(model, source=str(folder)), shelf=shelf)

    return loaded


@pytest.fixture(scope="session")
def loaded(load: Load) -> Callable[[Row], tuple[DiffusersRenderer, bytes]]:
    """The one renderer that most cells of a row share, and its plain picture."""
    shared: dict[str, tuple[DiffusersRenderer, bytes]] = {}

    def take(row: Row) -> tuple[DiffusersRenderer, bytes]:
        if row.name not in shared:
            renderer = load(row)
            shared[row.name] = renderer, one(renderer, plain(row)).tobytes()
        return shared[row.name]

    return take


@pytest.fixture(params=ROWS, ids=str)
def row(request: pytest.FixtureRequest) -> Row:
    row: Row = request.param
    if reason := row.lacks.get(request.node.function.__name__):
        pytest.skip(reason)
    return row


@pytest.fixture
def renderer(
    row: Row, loaded: Callable[[Row], tuple[DiffusersRenderer, bytes]], monkeypatch: pytest.MonkeyPatch
) -> Iterator[DiffusersRenderer]:
    # Qwen-Image-Edit looks at references at a megapixel.
    for area in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
        monkeypatch.setattr(diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus, area, 64 * 64)
    renderer, before = loaded(row)
    yield renderer
    monkeypatch.undo()
    assert one(renderer, plain(row)).tobytes() == before, "the order left something behind"


def plain(row: Row) -> Order:
    return ORDER if FAMILIES[row.family].negative else replace(ORDER, negative=None)


def drawn(renderer: DiffusersRenderer, order: Order, watch: Onlooker | None = None) -> list[Image.Image]:
    return list(renderer.draw(order, watch or Onlooker()))


def one(renderer: DiffusersRenderer, order: Order, watch: Onlooker | None = None) -> Image.Image:
    (image,) = drawn(renderer, order, watch)
    return image


def noise(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of two pictures, in levels of 256."""
    return int(np.abs(np.asarray(one, np.int16) - np.asarray(other, np.int16)).max())


def test_it_draws_from_text(row: Row, renderer: DiffusersRenderer) -> None:
    watch = Onlooker()
    image = one(renderer, plain(row), watch)
    assert (image.size, image.mode) == ((64, 48), "RGB")
    assert len(image.getcolors(64 * 48) or []) > 100, "it is not a flat picture"
    assert watch.warnings == []
    assert watch.used is None
    assert renderer.sampler == row.sampler
    for change in ({"seeds": (8,)}, {"positive": "a boat"}, {"steps": 4}, {"width": 48}):
        other = one(renderer, replace(plain(row), **change))  # type: ignore[arg-type]
        assert (other.size, other.tobytes()) != (image.size, image.tobytes()), change


def test_guidance_has_an_effect(row: Row, renderer: DiffusersRenderer) -> None:
    other = one(renderer, replace(plain(row), guidance=7.0))
    assert other.tobytes() != one(renderer, plain(row)).tobytes()


def test_a_negative_prompt_has_the_effect_that_the_family_says(row: Row, renderer: DiffusersRenderer) -> None:
    family = FAMILIES[row.family]
    order = replace(ORDER, guidance=family.negative_above + 0.5)
    with_rain, with_fog = (one(renderer, replace(order, negative=text)) for text in ("rain", "fog"))
    assert (with_rain.tobytes() != with_fog.tobytes()) == family.negative
    order = replace(order, guidance=family.negative_above)
    with_rain, with_fog = (one(renderer, replace(order, negative=text)) for text in ("rain", "fog"))
    assert with_rain.tobytes() == with_fog.tobytes()


def test_the_prompt_is_cut_exactly_where_the_model_stops_reading(row: Row, renderer: DiffusersRenderer) -> None:
    longest = next(count for count in range(1, 2000) if renderer.cuts(" ".join("a" * (count + 1))))
    order = replace(plain(row), steps=1)
    for count, reads in ((longest, True), (longest + 1, False)):
        pictures = {one(renderer, replace(order, positive=" ".join("a" * (count - 1) + end))).tobytes() for end in "ab"}
        assert (len(pictures) == 2) == reads, count


def test_several_pictures_are_what_each_is_alone(row: Row, renderer: DiffusersRenderer) -> None:
    watch = Onlooker()
    images = drawn(renderer, replace(plain(row), seeds=(7, 8, 9)), watch)
    for seed, image in zip((7, 8, 9), images, strict=True):
        assert apart(image, one(renderer, replace(plain(row), seeds=(seed,)))) <= 2
    assert watch.steps == [
        *((0, 2, step, 3) for step in (1, 2, 3)),
        *((2, 1, step, 3) for step in (1, 2, 3)),
    ]


def test_it_starts_from_a_picture_or_looks_at_it(row: Row, renderer: DiffusersRenderer) -> None:
    guide = Guide(image=noise(1), role="init", strength=0.67)
    order = replace(plain(row), guides=(guide,), steps=6)
    watch = Onlooker()
    image = one(renderer, order, watch)
    assert image.size == (64, 48)
    assert (watch.used, watch.warnings) == (1, [])
    steps = 6 if FAMILIES[row.family].edits else len(watch.steps)
    assert steps in (4, 5, 6)
    assert watch.steps == [(0, 1, step, steps) for step in range(1, steps + 1)]
    assert one(renderer, order).tobytes() == image.tobytes()
    other = replace(order, guides=(replace(guide, image=noise(2)),))
    assert one(renderer, other).tobytes() != image.tobytes()


def test_pictures_with_a_reference_are_what_each_is_alone(row: Row, renderer: DiffusersRenderer) -> None:
    order = replace(plain(row), guides=(Guide(image=noise(1), role="init", strength=0.7),))
    second = drawn(renderer, replace(order, seeds=(7, 8)))[1]
    assert apart(second, one(renderer, replace(order, seeds=(8,)))) <= 2


def test_a_strength_near_nothing_still_draws_one_step(row: Row, renderer: DiffusersRenderer) -> None:
    for steps in (1, 3, 49):
        watch = Onlooker(stop_after=2)
        order = replace(plain(row), steps=steps, guides=(Guide(image=noise(1), role="init", strength=0.0),))
        try:
            one(renderer, order, watch)
        except Stopped:
            assert FAMILIES[row.family].edits, "a family that starts from a picture has no second step"
            continue
        assert len(watch.steps) == 1 or FAMILIES[row.family].edits


def test_every_guide_counts_that_the_family_can_look_at(row: Row, renderer: DiffusersRenderer) -> None:
    guides = tuple(Guide(image=noise(seed), role="guide", strength=0.6) for seed in (1, 2))
    order = replace(plain(row), guides=guides)
    watch = Onlooker()
    image = one(renderer, order, watch)
    assert watch.used == row.pictures
    assert bool(watch.warnings) == (row.pictures < 2)
    changed = replace(order, guides=(guides[0], replace(guides[1], image=noise(3))))
    assert (one(renderer, changed).tobytes() != image.tobytes()) == (row.pictures == 2)


def test_an_adapter_with_nothing_to_look_at_leaves_the_model_as_it_was(
    loaded: Callable[[Row], tuple[DiffusersRenderer, bytes]],
) -> None:
    (bare,), (adapted,) = (
        [
            row
            for row in ROWS
            if (row.family, row.sampler, row.adapter) == ("sd15", "DPMSolverMultistepScheduler", adapter)
        ]
        for adapter in (False, True)
    )
    assert loaded(adapted)[1] == loaded(bare)[1]


def test_it_stops_within_one_step_of_a_batch(row: Row, renderer: DiffusersRenderer) -> None:
    for count in range(3):
        watch = Onlooker(stop_after=count)
        with pytest.raises(Stopped):
            drawn(renderer, replace(plain(row), seeds=(7, 8)), watch)
        assert len(watch.steps) == count


def test_an_iterator_that_is_given_up_leaves_nothing_behind(row: Row, renderer: DiffusersRenderer) -> None:
    lora = (Lora(name="small", strength=2.0),)
    pictures = renderer.draw(replace(plain(row), seeds=(7, 8, 9), loras=lora), Onlooker())
    next(pictures)
    pictures.close()  # type: ignore[attr-defined]


def test_previews_are_small_and_change_nothing(row: Row, renderer: DiffusersRenderer) -> None:
    order = replace(plain(row), width=320, height=32, seeds=(7, 8))
    watch = Onlooker()
    with_previews = drawn(renderer, replace(order, preview_every=1), watch)
    assert [(picture, image.size, image.mode) for picture, image in watch.previews] == [(0, (160, 16), "RGB")] * 2
    assert [image.tobytes() for image in with_previews] == [image.tobytes() for image in drawn(renderer, order)]


def test_a_late_preview_is_near_the_picture(row: Row, renderer: DiffusersRenderer) -> None:
    watch = Onlooker()
    image = one(renderer, replace(plain(row), steps=12, preview_every=11), watch)
    ((_, preview),) = watch.previews
    difference = np.asarray(preview, np.float32) - np.asarray(image, np.float32)
    assert np.abs(difference).mean() < 0.3 * np.asarray(image).std()


def test_a_preview_that_fails_costs_nothing(
    row: Row, renderer: DiffusersRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = one(renderer, plain(row)).tobytes()
    monkeypatch.setattr("handler.previews._pooled", fault(ValueError("no such shape")))
    watch = Onlooker()
    assert one(renderer, replace(plain(row), preview_every=1), watch).tobytes() == before
    assert (watch.previews, watch.warnings) == ([], [])


def test_a_lora_has_an_effect_and_goes_without_a_trace(row: Row, renderer: DiffusersRenderer) -> None:
    before = one(renderer, plain(row)).tobytes()
    worn = replace(plain(row), loras=(Lora(name="small", strength=2.0),))
    image = one(renderer, worn).tobytes()
    assert image != before
    assert one(renderer, plain(row)).tobytes() == before
    assert one(renderer, worn).tobytes() == image
    assert one(renderer, replace(plain(row), loras=(Lora(name="small", strength=1.0),))).tobytes() not in (
        image,
        before,
    )
    with pytest.raises(LoraUnfit):
        one(renderer, replace(plain(row), loras=(Lora(name="nobody's"),)))


def test_it_steps_down_when_the_memory_is_not_enough(row: Row, load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = load(row)
    order = replace(plain(row), seeds=(7, 8))
    alone = [one(renderer, replace(order, seeds=(seed,))) for seed in order.seeds]
    with monkeypatch.context() as crowded:
        forward = type(denoiser(renderer)).forward

        def small(self: Any, *args: Any, **kwargs: Any) -> Any:
            first = next(iter([*args, *kwargs.values()]))
            if len(first) > (2 if guided_in_one_call(row) else 1):
                raise torch.OutOfMemoryError("CUDA out of memory")
            return forward(self, *args, **kwargs)

        crowded.setattr(type(denoiser(renderer)), "forward", small)
        watch = Onlooker()
        assert [image.tobytes() for image in drawn(renderer, order, watch)] == [image.tobytes() for image in alone]
        assert [step[:2] for step in watch.steps] == [(0, 1)] * 3 + [(1, 1)] * 3
        assert watch.warnings == ["the memory was not enough for 2 pictures at once; 1 at a time were drawn"]
    watch = Onlooker()
    drawn(renderer, order, watch)
    assert watch.warnings == []
    assert [step[1] for step in watch.steps] == [1] * 6, "it remembers"


def test_it_decodes_in_tiles_when_the_memory_is_not_enough(
    row: Row, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = load(row)
    vae = renderer._pipelines.given.vae
    decode = vae.decode

    def tiled_alone(*args: Any, **kwargs: Any) -> Any:
        if not vae.use_tiling:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return decode(*args, **kwargs)

    monkeypatch.setattr(vae, "decode", tiled_alone)
    for _ in range(2):
        watch = Onlooker()
        assert one(renderer, plain(row), watch).size == (64, 48)
        assert watch.warnings == [
            "the memory was not enough; the picture was put together from tiles, whose seams can show"
        ]
    monkeypatch.setattr(vae, "decode", fault(MemoryError()))
    with pytest.raises(OutOfMemory):
        one(renderer, plain(row))


def fault(error: Exception) -> Callable[..., Any]:
    def fail(*_args: object, **_kwargs: object) -> Any:
        raise error

    return fail


def denoiser(renderer: DiffusersRenderer) -> torch.nn.Module:
    return renderer._pipelines.denoiser


def guided_in_one_call(row: Row) -> bool:
    """Whether the denoiser is called with both halves of the guidance at once."""
    return row.family in ("sd15", "sdxl", "sd3", "z-image")


LISTED = [(family, name) for family in FAMILIES.values() for name in family.pipelines]


@pytest.mark.parametrize(("family", "name"), LISTED, ids=lambda value: value if isinstance(value, str) else None)
def test_the_table_agrees_with_the_pipelines_signatures(family: Family, name: str) -> None:
    kind = getattr(diffusers, name)
    accepts = accepted(kind.__new__(kind))
    assert family_of(name) is family
    assert family.guidance_argument in accepts
    assert ("max_sequence_length" in accepts) == (family.max_tokens is not None)
    assert family.edits == ("image" in accepts and "strength" not in accepts)
    assert family.negative <= ("negative_prompt" in accepts)
    if "true_cfg_scale" in accepts:
        assert family.negative == (family.guidance_argument == "true_cfg_scale")
    assert family.from_text is None or hasattr(diffusers, family.from_text)


def test_every_family_of_the_table_has_a_row() -> None:
    assert {row.family for row in ROWS} == FAMILIES.keys() - {OTHER.name}
