"""The renderer over a real diffusers pipeline, with random weights."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from handler.drawing import Order, OutOfMemory, Renderer, Stopped
from handler.models import Model, ModelsError
from handler.renderer import DiffusersRenderer
from tests.worker import tiny

# Diffusers calls numpy and its own libraries in ways that they have announced to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

ORDER = Order(positive="a hill", negative="fog", width=64, height=64, seed=7, steps=4, guidance=4.0)


def on(_step: int, _total: int) -> None:
    pass


def going() -> bool:
    return False


def test_it_draws_the_size_that_was_asked_for(tiny_renderer: Renderer) -> None:
    image = tiny_renderer.draw(replace(ORDER, width=128, height=72), on, going)
    assert image.size == (128, 72)
    assert image.mode == "RGB"


def test_the_same_order_gives_the_same_pixels(tiny_renderer: Renderer, tiny_folder: Path) -> None:
    first = tiny_renderer.draw(ORDER, on, going).tobytes()
    assert tiny_renderer.draw(ORDER, on, going).tobytes() == first
    another = DiffusersRenderer.load(Model(name="again", source=str(tiny_folder)))
    assert another.draw(ORDER, on, going).tobytes() == first


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"positive": "a boat"}, {"negative": "rain"}, {"steps": 5}, {"guidance": 7.0}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_order_says_has_an_effect(tiny_renderer: Renderer, change: dict[str, object]) -> None:
    first = tiny_renderer.draw(ORDER, on, going)
    assert tiny_renderer.draw(replace(ORDER, **change), on, going).tobytes() != first.tobytes()  # type: ignore[arg-type]


def test_each_step_is_told_once_and_in_order(tiny_renderer: Renderer) -> None:
    told: list[tuple[int, int]] = []
    tiny_renderer.draw(replace(ORDER, steps=6), lambda step, total: told.append((step, total)), going)
    assert told == [(step, 6) for step in range(1, 7)]


def test_it_stops_within_one_step_and_then_draws_as_if_nothing_had_been(tiny_renderer: Renderer) -> None:
    before = tiny_renderer.draw(ORDER, on, going).tobytes()
    steps: list[int] = []
    with pytest.raises(Stopped):
        tiny_renderer.draw(replace(ORDER, steps=20), lambda step, _: steps.append(step), lambda: len(steps) == 2)
    assert steps == [1, 2]
    assert tiny_renderer.draw(ORDER, on, going).tobytes() == before


def test_a_drawing_that_is_stopped_at_once_takes_no_step(tiny_renderer: Renderer) -> None:
    def never(_step: int, _total: int) -> None:
        raise AssertionError("it drew")

    with pytest.raises(Stopped):
        tiny_renderer.draw(ORDER, never, lambda: True)


def test_a_prompt_is_cut_where_the_model_stops_reading(tiny_renderer: Renderer) -> None:
    # Sixteen tokens, two of them for the beginning and the end; the test's vocabulary has letters alone.
    assert not tiny_renderer.cuts(" ".join("abcdefghijklmn"))
    assert tiny_renderer.cuts(" ".join("abcdefghijklmno"))
    short = tiny_renderer.draw(replace(ORDER, positive=" ".join("abcdefghijklmn")), on, going)
    assert (
        tiny_renderer.draw(replace(ORDER, positive=" ".join("abcdefghijklmno")), on, going).tobytes() == short.tobytes()
    )


def test_stable_diffusion_xl_is_drawn_too(tmp_path: Path) -> None:
    renderer = DiffusersRenderer.load(Model(name="xl", source=str(tiny.build_xl(tmp_path / "xl"))))
    first = renderer.draw(ORDER, on, going)
    assert first.size == (64, 64)
    assert renderer.sampler == "EulerDiscreteScheduler"
    assert renderer.draw(ORDER, on, going).tobytes() == first.tobytes()


def test_a_sampler_with_more_steps_than_asked_for_tells_them_all(tmp_path: Path) -> None:
    model = Model(name="xl", source=str(tiny.build_xl(tmp_path / "xl")), sampler="HeunDiscreteScheduler")
    told: list[tuple[int, int]] = []
    DiffusersRenderer.load(model).draw(ORDER, lambda step, total: told.append((step, total)), going)
    assert told == [(step, 7) for step in range(1, 8)]


def test_flux_is_drawn_too_and_heeds_no_negative_prompt(tmp_path: Path) -> None:
    model = Model(name="flux", source=str(tiny.build_flux(tmp_path / "flux")), size_multiple=16)
    with pytest.raises(ModelsError, match=r"models\.flux\.negative: FluxPipeline heeds no negative prompt"):
        DiffusersRenderer.load(model)
    renderer = DiffusersRenderer.load(replace(model, negative=False))
    told: list[tuple[int, int]] = []
    order = replace(ORDER, negative=None, width=64, height=48)
    image = renderer.draw(order, lambda step, total: told.append((step, total)), going)
    assert image.size == (64, 48)
    assert told == [(step, 4) for step in range(1, 5)]
    assert renderer.sampler == "FlowMatchEulerDiscreteScheduler"
    assert not renderer.cuts("hill " * 40), "its other reader reads on"


@pytest.fixture
def palette_file(tiny_folder: Path) -> Iterator[Path]:
    path = tiny_folder.parent / "palettes.json"
    path.write_text(json.dumps([["ff0000", "00ff00"], ["0000ff", "ffff00", "808080"]]), encoding="utf-8")
    yield path
    path.unlink()


def test_pixel_art_is_drawn_small_snapped_and_enlarged(tiny_folder: Path, palette_file: Path) -> None:
    model = Model(name="art", source=str(tiny_folder), scale=4, cell=2, palette=palette_file)
    image = DiffusersRenderer.load(model).draw(replace(ORDER, width=256, height=128), on, going)
    assert image.size == (256, 128)
    allowed = {(255, 0, 0), (0, 255, 0)}, {(0, 0, 255), (255, 255, 0), (128, 128, 128)}
    colours = {colour for _, colour in image.getcolors() or []}
    assert any(colours <= palette for palette in allowed)
    small = image.resize((256 // 8, 128 // 8), 0)
    assert small.resize(image.size, 0).tobytes() == image.tobytes()


def test_without_a_palette_the_picture_is_only_enlarged(tiny_folder: Path, tiny_renderer: Renderer) -> None:
    small = tiny_renderer.draw(ORDER, on, going)
    large = DiffusersRenderer.load(Model(name="large", source=str(tiny_folder), scale=4)).draw(
        replace(ORDER, width=256, height=256), on, going
    )
    assert large.tobytes() == small.resize((256, 256), 0).tobytes()


def test_a_palette_file_that_is_none_stops_the_start(tiny_folder: Path) -> None:
    palette = tiny_folder / "model_index.json"
    with pytest.raises(ModelsError, match=r"models\.art\.palette"):
        DiffusersRenderer.load(Model(name="art", source=str(tiny_folder), palette=palette))


def test_the_sampler_can_be_another_one_that_fits(tiny_folder: Path, tiny_renderer: Renderer) -> None:
    euler = DiffusersRenderer.load(Model(name="e", source=str(tiny_folder), sampler="EulerDiscreteScheduler"))
    assert euler.sampler == "EulerDiscreteScheduler"
    assert euler.draw(ORDER, on, going).tobytes() != tiny_renderer.draw(ORDER, on, going).tobytes()
    with pytest.raises(ModelsError, match=r"write one of .*EulerDiscreteScheduler"):
        DiffusersRenderer.load(Model(name="e", source=str(tiny_folder), sampler="Euler"))


def test_the_revision_changes_with_the_weights_and_with_nothing_else(tiny_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    for path in tiny_folder.rglob("*"):
        if path.is_file():
            target = copy / path.relative_to(tiny_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    first = DiffusersRenderer.load(Model(name="a", source=str(tiny_folder))).revision
    assert len(first) == 12
    assert DiffusersRenderer.load(Model(name="b", source=str(copy))).revision == first
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    spoilt = bytearray(weights.read_bytes())
    spoilt[-1] ^= 1
    weights.write_bytes(bytes(spoilt))
    assert DiffusersRenderer.load(Model(name="b", source=str(copy))).revision != first


def test_a_folder_without_weights_says_which_model_is_wrong(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_bytes((tiny_folder / "model_index.json").read_bytes())
    with pytest.raises(ModelsError, match=r"models\.broken\.source"):
        DiffusersRenderer.load(Model(name="broken", source=str(tmp_path)))


def test_the_devices_lack_of_memory_has_one_name(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    faults = [
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ]
    for fault in faults:

        def fail(*_args: object, fault: Exception = fault, **_kwargs: object) -> None:
            raise fault

        monkeypatch.setattr(renderer, "_pipeline", fail)
        with pytest.raises(OutOfMemory):
            renderer.draw(ORDER, on, going)


def test_a_model_that_is_not_in_memory_any_more_can_be_loaded_again(tiny_folder: Path) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    first = renderer.draw(ORDER, on, going).tobytes()
    renderer.close()
    again = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    assert again.draw(ORDER, on, going).tobytes() == first
