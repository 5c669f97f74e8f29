"""The renderer over a real diffusers pipeline, with random weights. What holds for every family: test_families.py."""

from __future__ import annotations

import json
import logging
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from handler import memory
from handler.contract import Lora
from handler.drawing import DeviceLost, Guide, Order, OutOfMemory, Renderer, Stopped
from handler.families import FAMILIES
from handler.guides import Reach, steer, warning, workable
from handler.loras import LoraShelf
from handler.models import LoraSource, Model, ModelsError
from handler.renderer import DiffusersRenderer
from tests.worker import tiny
from tests.worker.onlooker import Onlooker

# Diffusers calls numpy and its own libraries in ways that they have announced to change.
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

ORDER = Order(positive="a hill", negative="fog", width=64, height=64, seeds=(7,), steps=4, guidance=4.0)


def one(renderer: Renderer, order: Order = ORDER, watch: Onlooker | None = None) -> Image.Image:
    (image,) = renderer.draw(order, watch or Onlooker())
    return image


@pytest.fixture(scope="session")
def flux_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.build_flux(tmp_path_factory.mktemp("flux") / "flux")


def flux(folder: Path, **settings: Any) -> Model:
    return Model(name="flux", source=str(folder), family=FAMILIES["flux"], negative=False, **settings)


def test_it_draws_the_size_that_was_asked_for(tiny_renderer: Renderer) -> None:
    image = one(tiny_renderer, replace(ORDER, width=128, height=72))
    assert image.size == (128, 72)
    assert image.mode == "RGB"


def test_another_renderer_of_the_same_weights_draws_the_same_pixels(tiny_renderer: Renderer, tiny_folder: Path) -> None:
    another = DiffusersRenderer.load(Model(name="again", source=str(tiny_folder)))
    assert one(another).tobytes() == one(tiny_renderer).tobytes()


@pytest.mark.parametrize(
    "change",
    [{"seeds": (8,)}, {"positive": "a boat"}, {"negative": "rain"}, {"steps": 5}, {"guidance": 7.0}],
    ids=lambda change: next(iter(change)),
)
def test_whatever_the_order_says_has_an_effect(tiny_renderer: Renderer, change: dict[str, Any]) -> None:
    assert one(tiny_renderer, replace(ORDER, **change)).tobytes() != one(tiny_renderer).tobytes()


def test_each_picture_comes_as_soon_as_its_batch_is_done(tiny_folder: Path) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), batch=2))
    watch = Onlooker()
    pictures = renderer.draw(replace(ORDER, seeds=(1, 2, 3, 4, 5)), watch)
    assert watch.steps == []
    for batches in (1, 1, 2, 2, 3):
        next(pictures)
        assert len(watch.steps) == 4 * batches
    assert [step[:2] for step in watch.steps[::4]] == [(0, 2), (2, 2), (4, 1)]
    assert list(pictures) == []


def test_a_prompt_is_cut_where_the_model_stops_reading(tiny_renderer: Renderer) -> None:
    # Sixteen tokens, two of them for the beginning and the end; the test's vocabulary has letters alone.
    short, long = (replace(ORDER, positive=" ".join(letters)) for letters in ("abcdefghijklmn", "abcdefghijklmno"))
    assert not tiny_renderer.cuts(short.positive)
    assert tiny_renderer.cuts(long.positive)
    assert one(tiny_renderer, long).tobytes() == one(tiny_renderer, short).tobytes()


def test_a_prompt_is_cut_only_where_the_longest_reader_stops(flux_folder: Path) -> None:
    renderer = DiffusersRenderer.load(flux(flux_folder))
    # T5 reads 512 tokens, the last of them its end; here each letter is one, and so is each space.
    assert not renderer.cuts("a" * 510)
    assert renderer.cuts("a" * 511)


def test_a_sampler_with_more_steps_than_asked_for_tells_them_all(tmp_path: Path) -> None:
    model = Model(name="xl", source=str(tiny.build_xl(tmp_path / "xl")), sampler="HeunDiscreteScheduler")
    watch = Onlooker()
    one(DiffusersRenderer.load(model), watch=watch)
    assert watch.steps == [(0, 1, step, 7) for step in range(1, 8)]


def test_a_model_that_heeds_no_negative_prompt_can_not_promise_to(flux_folder: Path) -> None:
    with pytest.raises(ModelsError, match=r"models\.flux\.negative: FluxPipeline heeds no negative prompt"):
        DiffusersRenderer.load(replace(flux(flux_folder), negative=True))


def test_a_pipeline_that_came_later_is_drawn_with_by_its_signature(flux_folder: Path) -> None:
    renderer = DiffusersRenderer.load(Model(name="new", source=str(flux_folder), negative=False))
    assert one(renderer, replace(ORDER, negative=None)).size == (64, 64)


@pytest.fixture
def palette_file(tiny_folder: Path) -> Iterator[Path]:
    path = tiny_folder.parent / "palettes.json"
    path.write_text(json.dumps([["ff0000", "00ff00"], ["0000ff", "ffff00", "808080"]]), encoding="utf-8")
    yield path
    path.unlink()


def test_pixel_art_is_drawn_small_snapped_and_enlarged(tiny_folder: Path, palette_file: Path) -> None:
    model = Model(name="art", source=str(tiny_folder), scale=4, cell=2, palette=palette_file)
    image = one(DiffusersRenderer.load(model), replace(ORDER, width=256, height=128))
    assert image.size == (256, 128)
    allowed = {(255, 0, 0), (0, 255, 0)}, {(0, 0, 255), (255, 255, 0), (128, 128, 128)}
    colours = {colour for _, colour in image.getcolors() or []}
    assert any(colours <= palette for palette in allowed)
    small = image.resize((256 // 8, 128 // 8), 0)
    assert small.resize(image.size, 0).tobytes() == image.tobytes()


def test_without_a_palette_the_picture_is_only_enlarged(tiny_folder: Path, tiny_renderer: Renderer) -> None:
    small = one(tiny_renderer)
    renderer = DiffusersRenderer.load(Model(name="large", source=str(tiny_folder), scale=4))
    large = one(renderer, replace(ORDER, width=256, height=256))
    assert large.tobytes() == small.resize((256, 256), 0).tobytes()


def test_a_palette_file_that_is_none_stops_the_start(tiny_folder: Path) -> None:
    palette = tiny_folder / "model_index.json"
    with pytest.raises(ModelsError, match=r"models\.art\.palette"):
        DiffusersRenderer.load(Model(name="art", source=str(tiny_folder), palette=palette))


def test_the_sampler_can_be_another_one_that_fits(tiny_folder: Path, tiny_renderer: Renderer) -> None:
    euler = DiffusersRenderer.load(Model(name="e", source=str(tiny_folder), sampler="EulerDiscreteScheduler"))
    assert euler.sampler == "EulerDiscreteScheduler"
    assert one(euler).tobytes() != one(tiny_renderer).tobytes()
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


def test_a_model_that_is_not_in_memory_any_more_can_be_loaded_again(tiny_folder: Path) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    first = one(renderer).tobytes()
    renderer.close()
    again = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    assert one(again).tobytes() == first


def test_previews_of_pixel_art_are_in_its_colours(tiny_folder: Path, palette_file: Path) -> None:
    model = Model(name="art", source=str(tiny_folder), scale=4, cell=2, palette=palette_file)
    watch = Onlooker()
    one(DiffusersRenderer.load(model), replace(ORDER, width=256, height=128, preview_every=3), watch)
    ((_, preview),) = watch.previews
    assert preview.size == (32, 16)
    colours = {colour for _, colour in preview.getcolors() or []}
    assert colours <= {(255, 0, 0), (0, 255, 0)} or colours <= {(0, 0, 255), (255, 255, 0), (128, 128, 128)}


@pytest.mark.parametrize(
    "sampler", ["DDIMScheduler", "PNDMScheduler", "EulerDiscreteScheduler", "UniPCMultistepScheduler"]
)
def test_a_late_preview_shows_the_picture_whatever_the_sampler(tiny_folder: Path, sampler: str) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), sampler=sampler))
    watch = Onlooker()
    image = one(renderer, replace(ORDER, steps=20, preview_every=19), watch)
    difference = np.asarray(watch.previews[0][1], np.float32) - np.asarray(image, np.float32)
    assert np.abs(difference).mean() < 0.3 * np.asarray(image).std()


# --- references


def picture(width: int, height: int) -> Image.Image:
    return Image.linear_gradient("L").resize((width, height)).convert("RGB")


def guide(role: str, strength: float = 0.6, size: tuple[int, int] = (40, 30)) -> Guide:
    return Guide(image=picture(*size), role=role, strength=strength)


def test_the_first_picture_to_start_from_is_the_start() -> None:
    steering = steer([guide("guide", 0.1), guide("init", 0.7), guide("init", 0.9)], Reach(starts=True), (64, 32))
    assert steering.start is not None
    assert (steering.start.size, steering.strength, steering.used) == ((64, 32), 0.7, 1)


def test_a_guide_that_becomes_the_start_leaves_the_less_freedom_the_more_it_counts() -> None:
    assert steer([guide("guide", 0.8)], Reach(starts=True), (64, 32)).strength == pytest.approx(0.2)


def test_an_adapter_looks_at_every_guide_beside_the_start() -> None:
    guides = [guide("guide", 0.5), guide("init", 0.7), guide("guide", 1.0)]
    steering = steer(guides, Reach(starts=True, looks=True), (64, 32))
    assert (len(steering.looked_at), steering.weight, steering.strength) == (2, 0.75, 0.7)
    assert steering.used == 3


def test_without_any_way_to_look_nothing_has_an_effect() -> None:
    steering = steer([guide("init")], Reach(), (64, 32))
    assert steering.used == 0
    assert warning("plain", 1, 0) == "plain can't look at reference pictures; it had no effect"
    assert warning("plain", 3, 1) == "plain looks at one reference picture; the others had no effect"
    assert warning("plain", 3, 2) == "plain looks at 2 of the reference pictures; the others had no effect"
    assert warning("plain", 2, 2) is None


def test_a_start_is_cut_in_the_middle_and_never_stretched() -> None:
    image = Image.new("RGB", (300, 100), "red")
    image.paste("blue", (100, 0, 200, 100))
    start = steer([Guide(image=image, role="init", strength=0.5)], Reach(starts=True), (64, 64)).start
    assert start is not None
    assert start.crop((8, 0, 56, 64)).getcolors() == [(48 * 64, (0, 0, 255))]


@pytest.mark.parametrize(("given", "size"), [((30, 40), (64, 85)), ((2000, 20), (512, 64)), ((900, 700), (900, 700))])
def test_a_reference_to_edit_is_neither_tiny_nor_very_long(given: tuple[int, int], size: tuple[int, int]) -> None:
    (image,) = steer([guide("guide", size=given)], Reach(edits=True), (64, 64)).edited
    assert image.size == size


def test_a_strength_leaves_at_least_one_step_and_is_kept_otherwise() -> None:
    for steps in range(1, 101):
        least = workable(0.0, steps)
        assert int(steps * least) == 1, "as Stable Diffusion counts"
        assert steps - int(max(steps - steps * least, 0)) == 1, "as the others count"
    assert (workable(0.5, 10), workable(1.0, 10)) == (0.5, 1.0)


# --- memory


def fault(error: Exception) -> Callable[..., Any]:
    def fail(*_args: object, **_kwargs: object) -> Any:
        raise error

    return fail


SHORTAGES = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    torch.AcceleratorError("CUDA error: out of memory"),
]
LOSSES = [
    torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED"),
]


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
def test_the_devices_lack_of_memory_has_one_name(
    tiny_folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    monkeypatch.setattr(renderer._pipelines.given.unet, "forward", fault(error))
    with pytest.raises(OutOfMemory):
        one(renderer)


@pytest.mark.parametrize("error", LOSSES, ids=str)
def test_a_broken_context_has_one_name(tiny_folder: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    monkeypatch.setattr(renderer._pipelines.given.unet, "forward", fault(error))
    with pytest.raises(DeviceLost):
        one(renderer)


def test_any_other_fault_stays_what_it_is(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    before = one(renderer).tobytes()
    with monkeypatch.context() as broken:
        broken.setattr(renderer._pipelines.given.unet, "forward", fault(RuntimeError("shapes do not match")))
        with pytest.raises(RuntimeError, match="shapes do not match"):
            one(renderer)
    assert one(renderer).tobytes() == before


def test_nothing_of_a_batch_that_did_not_fit_is_held_when_it_is_tried_again(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    unet = renderer._pipelines.given.unet
    forward, held = unet.forward, list[weakref.ref[torch.Tensor]]()

    def small(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(latents) > 2:
            held.append(weakref.ref(latents))
            raise torch.OutOfMemoryError
        assert all(each() is None for each in held)
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", small)
    watch = Onlooker()
    assert len(list(renderer.draw(replace(ORDER, seeds=(1, 2, 3, 4)), watch))) == 4
    assert len(held) == 2
    assert watch.warnings == [
        "the memory was not enough for 4 pictures at once; 2 at a time were drawn",
        "the memory was not enough for 2 pictures at once; 1 at a time were drawn",
    ]


def test_pictures_that_were_handed_over_are_never_drawn_again(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), batch=2))
    order = replace(ORDER, seeds=(1, 2, 3, 4))
    expected = [image.tobytes() for image in renderer.draw(order, Onlooker())]
    unet = renderer._pipelines.given.unet
    forward = unet.forward
    pictures = renderer.draw(order, watch := Onlooker())
    given = [next(pictures).tobytes(), next(pictures).tobytes()]

    def small(latents: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError
        return forward(latents, *args, **kwargs)

    monkeypatch.setattr(unet, "forward", small)
    given += [image.tobytes() for image in pictures]
    assert [step[:2] for step in watch.steps] == [(0, 2)] * 4 + [(2, 1)] * 4 + [(3, 1)] * 4
    assert len(given) == 4
    assert given[:2] == expected[:2]


class Small:
    """A pipeline that needs nothing of the ladder but its switches."""

    def __init__(self) -> None:
        self.vae = tiny._smallest_vae()
        self.offloaded = 0

    def enable_model_cpu_offload(self) -> None:
        self.offloaded += 1


def test_smaller_pictures_still_come_in_full_batches(tiny_folder: Path) -> None:
    ladder = memory.Ladder(Model(name="m", source=str(tiny_folder), batch=8), Small(), can_offload=False)
    ladder.begin(1000, Onlooker())
    ladder.climb(8, 1000, Onlooker())
    assert [ladder.at_once(8, pixels) for pixels in (1000, 2000, 5000, 500, 100)] == [4, 2, 1, 8, 8]


def test_after_twenty_orders_the_full_batch_is_tried_again(tiny_folder: Path) -> None:
    ladder = memory.Ladder(Model(name="m", source=str(tiny_folder), batch=8), Small(), can_offload=False)
    ladder.climb(8, 1000, Onlooker())
    for _ in range(20):
        ladder.begin(1000, Onlooker())
        assert ladder.at_once(8, 1000) == 4
    ladder.begin(1000, Onlooker())
    assert ladder.at_once(8, 1000) == 8


@pytest.mark.parametrize(
    ("offload", "device", "rungs"), [("auto", True, 3), ("never", True, 2), ("auto", False, 2), ("always", True, 2)]
)
def test_the_model_moves_out_only_where_it_may_and_last(
    tiny_folder: Path, offload: str, device: bool, rungs: int
) -> None:
    pipeline = Small()
    model = Model(name="m", source=str(tiny_folder), batch=2, offload=offload)
    ladder = memory.Ladder(model, pipeline, can_offload=device)
    watch = Onlooker()
    ladder.climb(2, 1000, watch)
    for _ in range(rungs - 1):
        ladder.climb(1, 1000, watch)
    assert (len(watch.warnings), pipeline.offloaded) == (rungs, rungs - 2)
    with pytest.raises(OutOfMemory):
        ladder.climb(1, 1000, watch)


# --- speed


def test_weights_in_eight_bits_draw_nearly_the_same_picture(tiny_folder: Path, tiny_renderer: Renderer) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), float8=True))
    kinds = {weight.dtype for weight in renderer._pipelines.denoiser.parameters()}
    assert torch.float8_e4m3fn in kinds
    image = one(renderer)
    assert one(renderer).tobytes() == image.tobytes() != one(tiny_renderer).tobytes()


def test_weights_in_eight_bits_take_a_lora_and_lose_it_again(flux_folder: Path, tmp_path: Path) -> None:
    model = flux(flux_folder, float8=True)
    file = tiny.save_lora(tmp_path / "lora.safetensors", DiffusionPipeline.from_pretrained(flux_folder))
    shelf = LoraShelf({"small": LoraSource(name="small", source=str(file), family=model.family)}, memory=2**20)
    renderer = DiffusersRenderer.load(model, shelf=shelf)
    order = replace(ORDER, negative=None)
    before = one(renderer, order).tobytes()
    assert one(renderer, replace(order, loras=(Lora(name="small", strength=2.0),))).tobytes() != before
    assert one(renderer, order).tobytes() == before


def test_the_step_cache_saves_steps_and_remembers_nothing_of_other_batches(flux_folder: Path) -> None:
    exact = DiffusersRenderer.load(flux(flux_folder))
    skipping = DiffusersRenderer.load(flux(flux_folder, step_cache=10.0, batch=1))
    order = replace(ORDER, negative=None)
    image = one(skipping, order)
    assert image.tobytes() != one(exact, order).tobytes(), "it skipped"
    with pytest.raises(Stopped):
        one(skipping, replace(order, positive="a boat", seeds=(9,)), Onlooker(stop_after=2))
    first, second = skipping.draw(replace(order, seeds=(9, 7)), Onlooker())
    assert second.tobytes() == image.tobytes() != first.tobytes()
    started = one(skipping, replace(order, guides=(guide("init"),)))
    assert one(skipping, replace(order, guides=(guide("init"),))).tobytes() == started.tobytes()


def test_a_step_cache_that_saves_nothing_changes_nothing(flux_folder: Path) -> None:
    order = replace(ORDER, negative=None)
    careful = DiffusersRenderer.load(flux(flux_folder, step_cache=1e-9))
    assert one(careful, order).tobytes() == one(DiffusersRenderer.load(flux(flux_folder)), order).tobytes()


def test_attention_can_be_chosen(flux_folder: Path) -> None:
    order = replace(ORDER, negative=None)
    native = DiffusersRenderer.load(flux(flux_folder, attention="native"))
    assert one(native, order).tobytes() == one(DiffusersRenderer.load(flux(flux_folder)), order).tobytes()


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"step_cache": 0.1}, r"models\.tiny\.step_cache: UNet2DConditionModel can't do it; leave it out"),
        ({"attention": "native"}, r"models\.tiny\.attention: UNet2DConditionModel can't do it; leave it out"),
        ({"compile": True, "float8": True}, r"models\.tiny: float8 and compile together are slower than neither"),
        ({"attention": "quick"}, r"models\.tiny\.attention: 'quick' is unknown; write one of .*flash.*sage"),
    ],
)
def test_what_a_model_can_not_do_stops_the_start(tiny_folder: Path, setting: dict[str, Any], says: str) -> None:
    with pytest.raises(ModelsError, match=says):
        DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), **setting))


def test_attention_that_is_not_installed_stops_the_start(flux_folder: Path) -> None:
    with pytest.raises(ModelsError, match=r"models\.flux\.attention: 'sage' can't be used here"):
        DiffusersRenderer.load(flux(flux_folder, attention="sage"))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[torch.nn.Module]:
    """What was compiled. The graphs are captured as ever; turning them into code would take minutes on a busy CPU."""
    compile_module = torch.nn.Module.compile
    modules = list[torch.nn.Module]()

    def without_code(module: torch.nn.Module, **options: Any) -> None:
        modules.append(module)
        compile_module(module, **options, backend="eager")

    monkeypatch.setattr(torch.nn.Module, "compile", without_code)
    return modules


def test_a_compiled_transformer_draws_the_same_picture(flux_folder: Path, compiled: list[torch.nn.Module]) -> None:
    renderer = DiffusersRenderer.load(flux(flux_folder, compile=True))
    assert {type(module).__name__ for module in compiled} == {"FluxTransformerBlock", "FluxSingleTransformerBlock"}
    order = replace(ORDER, negative=None, steps=1)
    assert one(renderer, order).tobytes() == one(DiffusersRenderer.load(flux(flux_folder)), order).tobytes()


def test_a_compiled_unet_needs_two_programs_for_all_sizes(
    tiny_folder: Path, tiny_renderer: Renderer, compiled: list[torch.nn.Module]
) -> None:
    renderer = DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder), compile=True))
    assert [type(module).__name__ for module in compiled] == ["UNet2DConditionModel"]
    orders = [replace(ORDER, steps=1, width=width, height=height) for width, height in ((64, 64), (96, 80), (80, 112))]
    pictures = [one(renderer, order).tobytes() for order in orders[:2]]
    with torch._dynamo.config.patch(error_on_recompile=True):
        pictures.append(one(renderer, orders[2]).tobytes())
    assert pictures == [one(tiny_renderer, order).tobytes() for order in orders]


@pytest.mark.skipif("IMGEN_TEST_COMPILE" not in os.environ, reason="slow; IMGEN_TEST_COMPILE=1 compiles in earnest")
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU")
@pytest.mark.timeout(1800)
def test_code_that_was_made_of_a_model_draws_nearly_the_same_picture(flux_folder: Path) -> None:
    compiled = DiffusersRenderer.load(flux(flux_folder, compile=True))
    eager = DiffusersRenderer.load(flux(flux_folder))
    # Compiled code rounds to the 16 bits of a GPU's products at other places; a CPU has 32.
    step = 12 if torch.cuda.is_available() else 3
    for order in (replace(ORDER, negative=None), replace(ORDER, negative=None, width=96)):
        difference = np.asarray(one(compiled, order), np.int16) - np.asarray(one(eager, order), np.int16)
        assert np.abs(difference).max() <= step


def test_loading_tells_how_long_each_part_took(tiny_folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "imgen.worker")
    DiffusersRenderer.load(Model(name="tiny", source=str(tiny_folder)))
    (line,) = [record for record in caplog.records if record.getMessage() == "load timing"]
    assert line.fields["seconds"].keys() == {"weights", "move", "speed"}  # type: ignore[attr-defined]
