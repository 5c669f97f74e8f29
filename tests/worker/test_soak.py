"""Two hundred mixed jobs through one worker: every result right, and the memory flat."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, get_peft_model_state_dict
from PIL import Image

from handler.contract import Job, Lora, job_to_wire, result_from_wire
from handler.loras import LoraShelf
from handler.models import Models, read_models
from handler.renderer import DiffusersRenderer
from handler.settings import SHIPPED_MODELS
from handler.worker import Worker
from tests.worker import fakes

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

JOBS = 200
CANCELS = 0.15
GROWTH = 48 * 2**20
"""Bytes. A renderer that were kept after its model was put away would take this within two changes of model."""


def write_lora(model: Path, file: Path, seed: int) -> None:
    """A LoRA of random numbers, large enough to be seen."""
    torch.manual_seed(seed)
    pipeline = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipeline.unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False))
    StableDiffusionPipeline.save_lora_weights(
        file.parent, unet_lora_layers=get_peft_model_state_dict(pipeline.unet), weight_name=file.name
    )


@pytest.fixture
def models(tiny_folder: Path, tmp_path: Path) -> Models:
    """Three models of which two stay loaded, and three LoRAs of which not all fit the memory for them."""
    for number, name in enumerate(("red", "blue", "green")):
        write_lora(tiny_folder, tmp_path / f"{name}.safetensors", number)
    size = (tmp_path / "red.safetensors").stat().st_size
    (tmp_path / "models.toml").write_text(
        f"""
        keep_loaded = 2
        [models.one]
        source = '{tiny_folder}'
        [models.two]
        source = '{tiny_folder}'
        batch = 2
        [models.art]
        source = '{SHIPPED_MODELS.parent / "builtin/model"}'
        scale = 8
        cell = 2
        palette = "palette.json"
        """
        + "".join(f'[loras.{n}]\nsource = "{n}.safetensors"\nfamily = "sd15"\n' for n in ("red", "blue", "green")),
        encoding="utf-8",
    )
    return replace(read_models(tmp_path / "models.toml"), lora_memory=2 * size + size // 2)


@pytest.fixture
def make(models: Models) -> Iterator[Any]:
    made: list[Worker] = []

    def worker(**changes: Any) -> Worker:
        shelf = LoraShelf(models.loras, memory=models.lora_memory)
        made.append(Worker(models, lambda model: DiffusersRenderer.load(model, shelf=shelf), **changes))
        return made[-1]

    yield worker
    for each in made:
        each.close()


@pytest.fixture
async def gallery() -> Any:
    given = fakes.Gallery()
    await given.open()
    yield given
    await given.close()


def kinds(gallery: fakes.Gallery) -> list[Job]:
    """Jobs that differ in all that a worker keeps between two of them."""
    plain = fakes.job(model="one", steps=3)
    art = fakes.job(model="art", steps=2, width=1024, height=1024)
    hill = gallery.reference("hill", Image.linear_gradient("L").resize((96, 64)), strength=0.7)
    red, blue, green = (Lora(name=name, strength=0.7) for name in ("red", "blue", "green"))
    return [
        plain,
        replace(plain, seed=8, width=128),
        replace(plain, n=3),
        replace(plain, loras=(red,)),
        replace(plain, loras=(red, replace(blue, strength=-0.4)), n=2),
        replace(plain, loras=(green,), guidance=1.0),
        replace(plain, references=(hill,)),
        replace(plain, references=(hill,), loras=(blue,), n=2),
        replace(plain, model="two", n=5),
        replace(plain, model="two", loras=(green, red), height=128),
        replace(plain, model="two", negative="", steps=5),
        art,
        replace(art, width=1344, height=768, n=2),
        replace(art, references=(hill,)),
    ]


async def draw(worker: Worker, job: Job) -> list[str]:
    """The hashes of the pictures."""
    answer = await worker.handle({"id": "x", "input": job_to_wire(job)})
    assert "error" not in answer, answer
    return [picture.sha256 for picture in result_from_wire(answer).pictures]


async def cancel(worker: Worker, job: Job, begun: asyncio.Event) -> None:
    """Once its first step was reported, or at once if it never is."""
    begun.clear()
    task = asyncio.create_task(worker.handle({"id": "x", "input": job_to_wire(job)}))
    waiting = asyncio.create_task(begun.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    task.cancel()
    await asyncio.wait({task})


def held() -> int:
    """Bytes of this process's memory."""
    gc.collect()
    return psutil.Process().memory_info().rss


@pytest.mark.timeout(300)
async def test_two_hundred_mixed_jobs_are_each_right_and_leave_nothing_behind(
    make: Any, gallery: fakes.Gallery
) -> None:
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    worker = make(report=lambda *_: loop.call_soon_threadsafe(begun.set))
    chance = random.Random(3)
    jobs = kinds(gallery)
    seen: dict[int, list[str]] = {}
    after_warm_up = 0
    for number in range(JOBS):
        kind = chance.randrange(len(jobs))
        if chance.random() < CANCELS:
            await cancel(worker, replace(jobs[kind], steps=50), begun)
        else:
            pictures = await draw(worker, jobs[kind])
            assert seen.setdefault(kind, pictures) == pictures, f"job {number} differs from an equal one before it"
        if number == JOBS // 3:
            after_warm_up = held()
    assert held() - after_warm_up < GROWTH
    assert set(seen) == set(range(len(jobs)))
    # What came out of a worker that had done much else is what a fresh one gives.
    for kind, job in enumerate(jobs):
        assert await draw(make(), job) == seen[kind], job
