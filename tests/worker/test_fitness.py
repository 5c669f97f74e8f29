"""The checks before the slow part of the start: what is broken is told in one sentence that says what to do."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest

from handler import fitness
from handler.families import FAMILIES
from handler.fitness import Unfit
from handler.models import LoraSource, Model, read_models
from handler.settings import SHIPPED_MODELS

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A model to break."""
    return shutil.copytree(tiny_folder, tmp_path / "tiny")


def check(folder: Path, **changes: object) -> None:
    model = Model(name="tiny", source=str(folder), **changes)  # type: ignore[arg-type]
    fitness.check_models([model], hub_cache=Path("nowhere"), offline=True)


def weights(size: int = 16) -> bytes:
    header = json.dumps({"t": {"dtype": "U8", "shape": [size], "data_offsets": [0, size]}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


def test_the_shipped_model_and_a_freshly_saved_one_are_whole(folder: Path) -> None:
    models = read_models(SHIPPED_MODELS)
    fitness.check_models(models.by_name.values(), hub_cache=Path("nowhere"), offline=True)
    check(folder)


def cut(folder: Path) -> None:
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def pointer(folder: Path) -> None:
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"
    (folder / "unet/diffusion_pytorch_model.safetensors").write_text(text, encoding="utf-8")


def without_a_part(folder: Path) -> None:
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    index = {"weight_map": {"a": "part-00001-of-00002.safetensors", "b": "part-00002-of-00002.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "unet/part-00001-of-00002.safetensors").write_bytes(weights())


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        pytest.param(cut, r"unet: .* has \d+ of \d+ bytes, the download was cut; fetch it again", id="cut"),
        pytest.param(pointer, r"unet: .* no whole safetensors file; it is a Git LFS pointer", id="lfs"),
        pytest.param(without_a_part, r"unet: .*part-00002-of-00002\.safetensors can't be read", id="part"),
        pytest.param(lambda f: shutil.rmtree(f / "vae"), r"vae: .* is missing or empty", id="component"),
        pytest.param(lambda f: (f / "vae/diffusion_pytorch_model.safetensors").unlink(), "no .safetensors", id="none"),
        pytest.param(
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b""), r"\(0 bytes\)", id="empty"
        ),
        pytest.param(
            lambda f: (f / "vae/diffusion_pytorch_model.safetensors").write_bytes(b"\x10" + bytes(7) + b"{" * 16),
            "a damaged header",
            id="header",
        ),
        pytest.param(lambda f: (f / "model_index.json").write_text("{", encoding="utf-8"), "is damaged", id="index"),
        pytest.param(lambda f: (f / "model_index.json").unlink(), r"model_index\.json can't be read", id="no-index"),
    ],
)
def test_a_broken_model_is_told_before_it_is_loaded(
    folder: Path, damage: Callable[[Path], object], sentence: str
) -> None:
    damage(folder)
    with pytest.raises(Unfit, match=rf"models\.tiny.*{sentence}"):
        check(folder)


def test_only_the_weights_that_will_be_read_must_be_whole(folder: Path) -> None:
    half = folder / "unet/diffusion_pytorch_model.fp16.safetensors"
    half.write_bytes(b"cut")
    check(folder)
    with pytest.raises(Unfit, match="fp16"):
        check(folder, variant="fp16")
    half.write_bytes(weights())
    cut(folder)
    check(folder, variant="fp16")


def test_an_index_of_a_variant_is_told_from_the_other(folder: Path) -> None:
    without_a_part(folder)
    index = {"weight_map": {"a": "x.fp16-00001-of-00001.safetensors"}}
    (folder / "unet/diffusion_pytorch_model.safetensors.index.fp16.json").write_text(json.dumps(index), "utf-8")
    (folder / "unet/x.fp16-00001-of-00001.safetensors").write_bytes(weights())
    check(folder, variant="fp16")
    with pytest.raises(Unfit, match="part-00002"):
        check(folder)


def test_a_model_of_the_hub_must_be_in_the_cache_only_where_nothing_can_be_fetched(folder: Path) -> None:
    cache, commit = folder.parent / "hub", "0123456789abcdef0123456789abcdef01234567"
    repository = cache / "models--someone--tiny"
    model = Model(name="tiny", source="someone/tiny", hub=True, family=FAMILIES["sd15"])
    fitness.check_models([model], hub_cache=cache, offline=False)
    with pytest.raises(Unfit, match=r"someone/tiny at main is not in .*hub and HF_HUB_OFFLINE forbids"):
        fitness.check_models([model], hub_cache=cache, offline=True)
    shutil.copytree(folder, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit, encoding="utf-8")
    fitness.check_models([model], hub_cache=cache, offline=True)
    cut(repository / "snapshots" / commit)
    with pytest.raises(Unfit, match="the download was cut"):
        fitness.check_models([model], hub_cache=cache, offline=True)


def test_a_cut_lora_is_told(tmp_path: Path) -> None:
    path = tmp_path / "ink.safetensors"
    lora = LoraSource(name="ink", source=str(path), family=FAMILIES["sdxl"])
    path.write_bytes(weights())
    fitness.check_loras([lora])
    path.write_bytes(weights()[:-1])
    with pytest.raises(Unfit, match=r"loras\.ink: .* the download was cut"):
        fitness.check_loras([lora])


def test_a_cut_adapter_is_told(folder: Path) -> None:
    path = folder.parent / "adapter.safetensors"
    path.write_bytes(weights())
    check(folder, ip_adapter=path)
    path.write_bytes(weights()[:-1])
    with pytest.raises(Unfit, match=r"models\.tiny\.ip_adapter: .* the download was cut"):
        check(folder, ip_adapter=path)


def test_a_full_disk_is_told_before_a_download_fails_on_it(tmp_path: Path) -> None:
    asked = []

    def usage(folder: Path) -> Usage:
        asked.append(folder)
        return Usage(100, 0, 3 * 2**30)

    fitness.check_disk(tmp_path / "hub/that/is/not/there/yet", 2 * 2**30, usage=usage)
    assert asked == [tmp_path]
    with pytest.raises(Unfit, match=r"3\.0 GB are free in .* IMGEN_MIN_DISK_GB asks for 4\.0"):
        fitness.check_disk(tmp_path, 4 * 2**30, usage=usage)
    fitness.check_disk(tmp_path, 0)


def test_the_gpu_is_asked_for_only_where_the_operator_wants_one() -> None:
    gb = 2**30
    fitness.check_gpu([], require=False, least=0)
    fitness.check_gpu([23 * gb], require=True, least=20 * gb)
    with pytest.raises(Unfit, match="torch sees no GPU"):
        fitness.check_gpu([], require=True, least=0)
    with pytest.raises(Unfit, match="torch sees no GPU"):
        fitness.check_gpu([], require=False, least=gb)
    with pytest.raises(Unfit, match=r"15\.0 GB of the GPU's memory are free and .* asks for 20\.0"):
        fitness.check_gpu([15 * gb], require=False, least=20 * gb)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


def test_a_gateway_that_comes_up_late_is_waited_for() -> None:
    clock, asked = Clock(), []

    def get(url: str) -> int:
        asked.append(url)
        if len(asked) < 4:
            raise ConnectionRefusedError(111, "Connection refused")
        return 200

    fitness.check_gateway("https://pictures.example", get=get, clock=clock, sleep=clock.sleep)
    assert asked == ["https://pictures.example/healthz"] * 4
    fitness.check_gateway("", get=lambda url: pytest.fail("nobody asked for a gateway"))


def test_a_gateway_that_is_away_ends_the_worker_after_twenty_seconds() -> None:
    clock = Clock()
    with pytest.raises(Unfit, match=r"no gateway answers at https://pictures\.example/healthz \(it answered 502\)"):
        fitness.check_gateway("https://pictures.example", get=lambda url: 502, clock=clock, sleep=clock.sleep)
    assert clock.now == 20


def test_a_gateway_is_really_asked_over_http(tmp_path: Path) -> None:
    clock = Clock()
    with pytest.raises(Unfit, match=r"127\.0\.0\.1:9/healthz \(.*refused"):
        fitness.check_gateway("http://127.0.0.1:9", clock=clock, sleep=clock.sleep)
