"""What the worker costs over a plain diffusers call, a swap of LoRAs, and the start by phase: the built-in model, CPU.

The plain call is what anybody would write: the stock pipeline, one picture, 20 steps. The worker's job is the same
picture by `Worker.handle`: checks, progress, snapping, PNG and an upload over HTTP. The two take turns in one process.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from statistics import median
from threading import Thread

import torch
from diffusers import DiffusionPipeline

from handler.contract import Job, Upload, job_to_wire
from handler.loras import LoraShelf, Wardrobe
from handler.models import Models, read_models
from handler.renderer import DiffusersRenderer
from handler.settings import SHIPPED_MODELS
from handler.worker import Worker

STEPS = 20
WIDTH, HEIGHT = 1344, 768
PROMPT, NEGATIVE = "a red house on the left, night, moon", "lowres, blurry"


def run(*, rounds: int) -> None:
    models = read_models(SHIPPED_MODELS)
    torch.set_num_threads(1)
    _overhead(models, rounds)
    _swap(models, rounds)
    _start()


def _overhead(models: Models, rounds: int) -> None:
    plain = _plain(models)
    with _uploads() as url:
        job = _job(url)
        worker = Worker(models, lambda model: DiffusersRenderer.load(model, shelf=None), report=lambda *_: None)
        worker.warm()

        def ours() -> None:
            answer = asyncio.run(worker.handle({"id": "bench", "input": job}))
            assert "error" not in answer, answer

        theirs, mine = _turns(plain, ours, rounds)
        worker.close()
    ratio = median(b / a for a, b in zip(theirs, mine, strict=True))
    print(f"\none picture of {WIDTH}x{HEIGHT}, {STEPS} steps, one thread, {rounds} turns (median, least, most)")
    _line("plain diffusers call", theirs)
    _line("a job through the worker", mine)
    print(f"{'the worker adds':<44}{100 * (ratio - 1):>8.1f} %")


def _plain(models: Models) -> Callable[[], object]:
    model = models.by_name[models.warm[0]]
    pipeline = DiffusionPipeline.from_pretrained(model.source, safety_checker=None, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return lambda: pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        width=WIDTH // model.scale,
        height=HEIGHT // model.scale,
        num_inference_steps=STEPS,
        guidance_scale=model.guidance,
        generator=torch.Generator("cpu").manual_seed(1),
    ).images[0]


def _job(url: str) -> dict[str, object]:
    return job_to_wire(
        Job(
            id="bench",
            request_id="bench",
            model="builtin",
            positive=PROMPT,
            negative=NEGATIVE,
            width=WIDTH,
            height=HEIGHT,
            seed=1,
            steps=STEPS,
            uploads=(Upload(url=url),),
        )
    )


def _swap(models: Models, rounds: int) -> None:
    """From no LoRA to one, from one to another, and back to none, without a picture in between."""
    if len(models.loras) < 2:
        return
    model = models.by_name[models.warm[0]]
    shelf = LoraShelf(models.loras, memory=models.lora_memory)
    first, second = (shelf.take(name) for name in list(models.loras)[:2])
    wardrobe = Wardrobe(
        DiffusionPipeline.from_pretrained(model.source, safety_checker=None, dtype=torch.float32), model
    )
    theirs = _peft(models)
    times: dict[str, list[float]] = {name: [] for name in ("on", "swap", "off", "peft")}
    for _ in range(max(rounds, 5)):
        for name, worn in (("on", [(first, 1.0)]), ("swap", [(second, 1.0)]), ("off", [])):
            times[name].append(_seconds(lambda worn=worn: wardrobe.wear(worn)))  # type: ignore[misc]
        times["peft"].append(_seconds(theirs))
    print(f"\na LoRA on the built-in model, {max(rounds, 5)} turns; the weights are patched in place")
    _line("put on", times["on"], unit=1000)
    _line("swap for another", times["swap"], unit=1000)
    _line("take off", times["off"], unit=1000)
    _line("swap by diffusers (unload, load)", times["peft"], unit=1000)


def _peft(models: Models) -> Callable[[], object]:
    pipeline = DiffusionPipeline.from_pretrained(
        models.by_name[models.warm[0]].source, safety_checker=None, dtype=torch.float32
    )
    files = [Path(lora.source) for lora in list(models.loras.values())[:2]]

    def swap() -> None:
        pipeline.unload_lora_weights()
        files.reverse()
        pipeline.load_lora_weights(files[0].parent, weight_name=files[0].name)

    swap()
    return swap


def _start() -> None:
    """The phases that a worker logs when it is ready, of a fresh process that draws one test job and ends."""
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("RUNPOD_", "IMGEN_"))}
    job = {"input": job_to_wire(Job(id="x", request_id="x", model="builtin", positive="", negative="", width=1024,
                                    height=1024, seed=1))}  # fmt: skip
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        command = [sys.executable, "-m", "handler", "--test_input", json.dumps(job)]
        done = subprocess.run(
            command,
            env=environ | {"HOME": home, "PYTHONPATH": str(Path(__file__).parents[1])},
            cwd=home,
            capture_output=True,
            text=True,
            check=True,
        )
        whole = time.perf_counter() - began
    lines = [json.loads(line) for line in done.stdout.splitlines() + done.stderr.splitlines() if line[:1] == "{"]
    (ready,) = [line for line in lines if line["message"] == "worker ready"]
    print("\nstart of a worker, seconds by phase")
    for phase, seconds in ready["seconds"].items():
        print(f"{phase:<44}{seconds:>8.2f} s")
    print(f"{'process start to the end of its first picture':<44}{whole:>8.2f} s")


def _turns(one: Callable[[], object], other: Callable[[], object], rounds: int) -> tuple[list[float], list[float]]:
    for warm_up in (one, other):
        warm_up()
    ones, others = [], []
    for _ in range(rounds):
        gc.collect()
        ones.append(_seconds(one))
        others.append(_seconds(other))
    return ones, others


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _line(text: str, seconds: list[float], unit: int = 1) -> None:
    middle, least, most = (unit * value for value in (median(seconds), min(seconds), max(seconds)))
    name, digits = ("ms", 1) if unit == 1000 else ("s", 3)
    print(f"{text:<44}{middle:>8.{digits}f} {name}  ({least:.{digits}f}-{most:.{digits}f})")


@contextmanager
def _uploads() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/0"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
