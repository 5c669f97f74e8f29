"""The handler as the SDK calls it: jobs in, answers out."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import logging
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import pytest
from aiohttp import web
from PIL import Image

from handler.contract import (
    INLINE_LIMIT,
    Failure,
    Progress,
    Result,
    Upload,
    failure_from_wire,
    progress_from_wire,
    result_from_wire,
)
from handler.drawing import Order, OutOfMemory, Renderer, Stopped
from handler.models import Models
from handler.renderer import DiffusersRenderer
from handler.worker import Worker
from tests.worker.fakes import PATIENCE, FlatRenderer, model, models, sdk_job

pytestmark = [
    pytest.mark.anyio,
    # Diffusers reads a tensor in a way that numpy has announced to change.
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

Make = Callable[..., Worker]


@pytest.fixture
def make() -> Any:
    made: list[Worker] = []

    def worker(renderer: Renderer, given: Models | None = None, **changes: Any) -> Worker:
        made.append(Worker(given or models(), lambda _: renderer, **changes))
        return made[-1]

    yield worker
    for each in made:
        each.close()


def result(answer: dict[str, Any]) -> Result:
    assert "error" not in answer, answer
    # What the SDK posts is JSON.
    return result_from_wire(json.loads(json.dumps(answer)))


def failure(answer: dict[str, Any]) -> Failure:
    read = failure_from_wire(json.loads(json.dumps(answer))["failure"])
    assert answer["error"] == read.message
    return read


async def until(event: threading.Event) -> None:
    """The event belongs to the drawing thread, so that waiting for it must not stop the loop."""
    assert await asyncio.to_thread(event.wait, PATIENCE)


# What comes back


async def test_a_job_comes_back_as_lossless_pictures_and_what_they_were_drawn_with(make: Make) -> None:
    answer = await make(FlatRenderer()).handle(sdk_job(n=2, width=128))
    read = result(answer)
    assert (read.steps, read.guidance, read.sampler, read.family, read.revision) == (4, 4.0, "Flat", "sd15", "flat-1")
    assert read.negative_used
    assert read.warnings == ()
    assert set(read.timings) == {"load", "draw", "encode", "upload"}
    for index, picture in enumerate(read.pictures):
        png = base64.b64decode(picture.data or "")
        assert (picture.index, picture.seed) == (index, 7 + index)
        assert picture.sha256 == hashlib.sha256(png).hexdigest()
        assert picture.bytes == len(png)
        image = Image.open(io.BytesIO(png))
        assert image.format == "PNG"
        assert image.size == (picture.width, picture.height) == (128, 64)
        assert image.getpixel((0, 0)) == (7 + index, 10, 20)


async def test_the_order_of_the_job_reaches_the_renderer(make: Make) -> None:
    renderer = FlatRenderer()
    await make(renderer).handle(sdk_job(steps=9, guidance=7.5, n=2))
    first = Order(positive="a secret hill", negative="fog", width=64, height=64, seed=7, steps=9, guidance=7.5)
    assert renderer.orders == [first, replace(first, seed=8)]


async def test_more_steps_than_the_model_allows_are_cut_with_a_warning(make: Make) -> None:
    read = result(await make(FlatRenderer()).handle(sdk_job(steps=80)))
    assert read.steps == 50
    assert read.warnings == ("flat draws with at most 50 steps; 80 were asked for",)


@pytest.mark.parametrize(
    ("negative", "guidance", "why"),
    [
        pytest.param(False, 4.0, "at all", id="the model has none"),
        pytest.param(True, 1.0, "with a guidance of 1 or less", id="no guidance"),
    ],
)
async def test_a_negative_prompt_without_effect_is_said_to_have_none(
    make: Make, negative: bool, guidance: float, why: str
) -> None:
    renderer = FlatRenderer()
    worker = make(renderer, models(model(negative=negative)))
    read = result(await worker.handle(sdk_job(guidance=guidance)))
    assert not read.negative_used
    assert read.warnings == (f"flat heeds no negative prompt {why}; it was left out",)
    assert renderer.orders[0].negative is None
    assert result(await worker.handle(sdk_job(guidance=guidance, negative=""))).warnings == ()


async def test_a_prompt_that_is_longer_than_the_model_reads_is_told(make: Make) -> None:
    long = "hill " * 300
    read = result(await make(FlatRenderer()).handle(sdk_job(positive=long, negative=long)))
    assert read.warnings == (
        "the prompt is longer than flat reads; its end had no effect",
        "the negative prompt is longer than flat reads; its end had no effect",
    )


async def test_a_real_pipeline_draws_the_same_bytes_for_the_same_job(
    make: Make, tiny_renderer: DiffusersRenderer
) -> None:
    worker = make(tiny_renderer)
    first = result(await worker.handle(sdk_job(n=3)))
    assert result(await worker.handle(sdk_job(n=3))).pictures == first.pictures
    assert len({picture.sha256 for picture in first.pictures}) == 3
    alone = result(await worker.handle(sdk_job(seed=9)))
    assert replace(alone.pictures[0], index=2) == first.pictures[2]


# What is refused


@pytest.mark.parametrize(
    ("changes", "code", "says"),
    [
        ({"model": "xl"}, "unknown_model", r"no model named 'xl' on this worker; it has: flat"),
        ({"width": 1000, "height": 1001}, "bad_job", r"multiples of 8; 1000x1001 is not one, the nearest is 1000x1000"),
        ({"steps": 0}, "bad_job", "'steps' must be 1 or more"),
        ({"guidance": -1.0}, "bad_job", "'guidance' must be"),
        ({"seed": -1}, "bad_job", "'seed' must be"),
        ({"seed": 2**63}, "bad_job", "'seed' must be"),
        ({"width": 8}, "bad_job", "outside 16..4096"),
        ({"version": "2.0"}, "bad_job", "contract version"),
        ({"deadline": 99.0}, "deadline", "deadline passed"),
    ],
)
async def test_a_job_that_cannot_be_drawn_says_why(make: Make, changes: dict[str, Any], code: str, says: str) -> None:
    answer = await make(FlatRenderer(), now=lambda: 100.0).handle(sdk_job(**changes))
    read = failure(answer)
    assert (read.code, read.retryable) == (code, False)
    assert says in read.message


async def test_the_size_rule_counts_the_scale_in(make: Make) -> None:
    worker = make(FlatRenderer(), models(model(scale=8)))
    read = failure(await worker.handle(sdk_job(width=1000, height=20)))
    assert read.message == "flat draws sizes in multiples of 64; 1000x20 is not one, the nearest is 1024x64"


async def test_loras_and_references_are_refused_and_not_passed_over(make: Make) -> None:
    worker = make(FlatRenderer())
    wire = sdk_job()
    wire["input"]["loras"] = [{"name": "aya"}]
    read = failure(await worker.handle(wire))
    assert (read.code, read.message) == ("unknown_lora", "no LoRA named 'aya' on this worker; it has none")
    wire = sdk_job()
    wire["input"]["references"] = [{"url": "http://x/", "sha256": "0"}]
    assert failure(await worker.handle(wire)).code == "unsupported"


@pytest.mark.parametrize("given", [None, [], "draw", 3, {}], ids=repr)
async def test_an_input_that_is_no_job_is_a_bad_job(make: Make, given: Any) -> None:
    assert failure(await make(FlatRenderer()).handle({"id": "x", "input": given})).code == "bad_job"


async def test_want_of_memory_can_be_tried_again(make: Make) -> None:
    def full(_: Order) -> Image.Image:
        raise OutOfMemory

    read = failure(await make(FlatRenderer(draw=full)).handle(sdk_job()))
    assert (read.code, read.retryable) == ("out_of_memory", True)


async def test_an_unexpected_fault_is_told_without_its_inside_and_logged_with_it(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Order) -> Image.Image:
        raise RuntimeError("/srv/secret/path is broken")

    monkeypatch.setattr(logging.getLogger("imgen.worker"), "propagate", True)
    worker = make(FlatRenderer(draw=broken))
    answer = await worker.handle(sdk_job())
    read = failure(answer)
    assert (read.code, read.retryable) == ("internal", True)
    assert "secret" not in json.dumps(answer)
    assert "Traceback" not in json.dumps(answer)
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]
    assert "/srv/secret/path" in (record.exc_text or "")
    assert vars(record)["fields"]["job"] == "run_1"
    assert vars(record)["fields"]["request_id"] == "req_1"


async def test_prompts_are_logged_at_debug_alone(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("imgen.worker"), "propagate", True)
    caplog.set_level("DEBUG", "imgen.worker")
    await make(FlatRenderer()).handle(sdk_job())
    telling = {r.levelname for r in caplog.records if "secret hill" in str(vars(r))}
    assert telling == {"DEBUG"}
    assert {"job started", "job finished"} <= {r.getMessage() for r in caplog.records if r.levelname == "INFO"}


def noise(order: Order) -> Image.Image:
    return Image.frombytes(
        "RGB", (order.width, order.height), random.Random(1).randbytes(order.width * order.height * 3)
    )


async def test_pictures_too_large_for_an_answer_ask_for_upload_addresses(make: Make) -> None:
    side = 1408
    assert side * side * 3 < INLINE_LIMIT < side * side * 4
    read = failure(await make(FlatRenderer(draw=noise)).handle(sdk_job(width=side, height=side)))
    assert (read.code, read.retryable) == ("too_large", False)
    assert "upload address" in read.message


# Progress


async def test_progress_grows_and_has_the_first_and_the_last_step(make: Make) -> None:
    posted: list[Progress] = []
    worker = make(FlatRenderer(), report=lambda _, wire: posted.append(progress_from_wire(wire)))
    worker.warm()
    await worker.handle(sdk_job(n=2, steps=20))
    assert all(p.phase == "drawing" and p.total_steps == 20 and p.pictures == 2 for p in posted)
    assert (posted[0].picture, posted[0].step) == (0, 1)
    assert (posted[-1].picture, posted[-1].step) == (1, 20)
    sequences = [p.sequence for p in posted]
    assert sequences == sorted(set(sequences))
    # Forty steps that took no time: the throttle let the first and the last one through, and few between.
    assert len(posted) < 8


async def test_a_second_attempt_counts_on_from_the_first(make: Make) -> None:
    posted: list[Progress] = []
    clock = iter([1000.0, 1000.5])
    worker = make(
        FlatRenderer(), report=lambda _, wire: posted.append(progress_from_wire(wire)), now=lambda: next(clock)
    )
    worker.warm()
    await worker.handle(sdk_job())
    first = posted[-1].sequence
    await worker.handle(sdk_job())
    assert posted[-1].sequence > first
    assert posted[2].sequence > first


async def test_progress_names_the_sdk_s_job(make: Make) -> None:
    jobs: list[str] = []
    await make(FlatRenderer(), report=lambda given, _: jobs.append(given["id"])).handle(sdk_job())
    assert set(jobs) == {"sdk-1"}


async def test_a_model_that_must_be_loaded_first_says_so(make: Make) -> None:
    posted: list[Progress] = []
    worker = make(FlatRenderer(), report=lambda _, wire: posted.append(progress_from_wire(wire)))
    await worker.handle(sdk_job())
    assert posted[0].phase == "loading"


# Cancel and deadline


async def test_a_cancelled_job_is_over_only_when_its_thread_is(make: Make) -> None:
    gate = threading.Semaphore(0)
    renderer = FlatRenderer(gate=gate)
    worker = make(renderer)
    task = asyncio.create_task(worker.handle(sdk_job(steps=50)))
    await until(renderer.step_begun)
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done, "the thread still stands in its step"
    # The SDK may be told twice.
    task.cancel()
    done, _ = await asyncio.wait({task}, timeout=0.05)
    assert not done
    gate.release()
    await asyncio.wait({task}, timeout=PATIENCE)
    assert task.cancelled()
    assert renderer.at_work == 0
    gate.release(100)
    assert result(await worker.handle(sdk_job())).pictures
    assert renderer.most_at_work == 1


async def test_a_cancelled_real_pipeline_stops_between_steps(make: Make, tiny_renderer: DiffusersRenderer) -> None:
    steps: list[int] = []
    begun = threading.Event()

    def report(_: Any, wire: dict[str, Any]) -> None:
        steps.append(wire["step"])
        begun.set()

    worker = make(tiny_renderer, models(model(max_steps=100_000)), report=report)
    worker.warm()
    task = asyncio.create_task(worker.handle(sdk_job(steps=900)))
    await until(begun)
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE)
    assert task.cancelled()
    assert max(steps) < 900
    before = len(steps)
    await worker.handle(sdk_job(steps=1))
    assert steps[before:] == [1]


async def test_jobs_that_come_at_once_are_drawn_one_after_the_other(make: Make) -> None:
    renderer = FlatRenderer()
    worker = make(renderer)
    answers = await asyncio.gather(*(worker.handle(sdk_job(seed=seed)) for seed in range(4)))
    assert [result(answer).pictures[0].seed for answer in answers] == [0, 1, 2, 3]
    assert renderer.most_at_work == 1


async def test_a_job_past_its_deadline_stops_drawing(make: Make) -> None:
    clock = [100.0]
    seen: list[int] = []

    class Slow(FlatRenderer):
        def draw(self, order: Order, on_step: Any, stopping: Any) -> Image.Image:
            def step(done: int, total: int) -> None:
                seen.append(done)
                clock[0] += 1
                on_step(done, total)

            return super().draw(order, step, stopping)

    read = failure(await make(Slow(), now=lambda: clock[0]).handle(sdk_job(steps=50, deadline=103.0)))
    assert (read.code, read.retryable) == ("deadline", False)
    assert seen == [1, 2, 3]


# Uploads


class Bucket:
    def __init__(self) -> None:
        self.url = ""
        self.statuses: dict[str, list[int]] = {}
        self.held: dict[str, bytes] = {}
        self.hang = asyncio.Event()
        self.asked = asyncio.Event()

    async def put(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        body = await request.read()
        self.asked.set()
        if name == "never":
            await self.hang.wait()
        if self.statuses.get(name):
            return web.Response(status=self.statuses[name].pop(0))
        self.held[name] = body
        return web.Response()

    def upload(self, name: str) -> Upload:
        return Upload(url=f"{self.url}/{name}", headers={"x-signed": name})


@pytest.fixture
async def bucket() -> AsyncIterator[Bucket]:
    given = Bucket()
    app = web.Application(client_max_size=2**26)
    app.router.add_put("/{name}", given.put)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    given.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield given
    given.hang.set()
    await runner.cleanup()


async def test_pictures_go_to_their_addresses_and_not_into_the_answer(make: Make, bucket: Bucket) -> None:
    bucket.statuses = {"b": [503, 503]}
    answer = await make(FlatRenderer()).handle(sdk_job(n=2, uploads=(bucket.upload("a"), bucket.upload("b"))))
    read = result(answer)
    assert [p.data for p in read.pictures] == [None, None]
    assert [p.sha256 for p in read.pictures] == [hashlib.sha256(bucket.held[n]).hexdigest() for n in "ab"]
    assert [p.bytes for p in read.pictures] == [len(bucket.held[n]) for n in "ab"]
    assert Image.open(io.BytesIO(bucket.held["b"])).getpixel((0, 0)) == (8, 10, 20)
    assert read.timings["upload"] > 0


async def test_an_upload_that_is_refused_fails_the_job_and_ends_its_drawing(make: Make, bucket: Bucket) -> None:
    class SecondNeverEnds(FlatRenderer):
        def draw(self, order: Order, on_step: Any, stopping: Callable[[], bool]) -> Image.Image:
            if order.seed == 7:
                return super().draw(order, on_step, stopping)
            give_up = time.monotonic() + PATIENCE
            while not stopping():
                assert time.monotonic() < give_up
                time.sleep(0.005)
            raise Stopped

    bucket.statuses = {"a": [403]}
    uploads = (bucket.upload("a"), bucket.upload("b"))
    read = failure(await make(SecondNeverEnds()).handle(sdk_job(n=2, uploads=uploads)))
    assert (read.code, read.retryable) == ("upload_failed", True)
    assert read.message == "picture 0: the upload address answered 403; the order needs a new upload address"
    assert bucket.held == {}


async def test_an_upload_ends_at_the_deadline(make: Make, bucket: Bucket) -> None:
    now = asyncio.get_running_loop().time
    worker = make(FlatRenderer(), now=now)
    read = failure(await worker.handle(sdk_job(uploads=(bucket.upload("never"),), deadline=now() + 0.5)))
    assert read.code == "deadline"


async def test_a_job_cancelled_during_its_upload_ends_at_once(make: Make, bucket: Bucket) -> None:
    task = asyncio.create_task(make(FlatRenderer()).handle(sdk_job(uploads=(bucket.upload("never"),))))
    async with asyncio.timeout(PATIENCE):
        await bucket.asked.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=PATIENCE)
    assert task.cancelled()


# Loaded models


async def test_only_as_many_models_as_the_operator_allows_stay_loaded() -> None:
    loaded: dict[str, FlatRenderer] = {}

    def load(given: Any) -> FlatRenderer:
        loaded[given.name] = FlatRenderer()
        return loaded[given.name]

    worker = Worker(models(model("a"), model("b"), model("c"), keep_loaded=2), load)
    try:
        worker.warm()
        assert set(loaded) == {"a"}
        await worker.handle(sdk_job(model="b"))
        await worker.handle(sdk_job(model="a"))
        await worker.handle(sdk_job(model="c"))
        assert {name for name, renderer in loaded.items() if renderer.closed} == {"b"}
        kept = loaded["a"]
        await worker.handle(sdk_job(model="a"))
        assert loaded["a"] is kept
    finally:
        worker.close()
