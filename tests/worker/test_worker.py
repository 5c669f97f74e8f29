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
from PIL import Image, ImageChops

from handler.contract import (
    INLINE_LIMIT,
    Failure,
    Inventory,
    Lora,
    Progress,
    Result,
    Upload,
    ask_inventory,
    failure_from_wire,
    inventory_from_wire,
    progress_from_wire,
    result_from_wire,
)
from handler.drawing import DeviceLost, LoraUnfit, Order, OutOfMemory, Renderer, Watch
from handler.families import FAMILIES
from handler.models import Models
from handler.progress import Reporter
from handler.renderer import DiffusersRenderer
from handler.worker import Worker
from tests.worker.fakes import PATIENCE, FlatRenderer, Gallery, model, models, sdk_job

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
    assert renderer.orders == [
        Order(positive="a secret hill", negative="fog", width=64, height=64, seeds=(7, 8), steps=9, guidance=7.5)
    ]


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
    # What a batch rounds otherwise than a picture alone is at most a step of its 255.
    difference = ImageChops.difference(
        *(Image.open(io.BytesIO(base64.b64decode(p.data or ""))) for p in (alone.pictures[0], first.pictures[2]))
    )
    assert max(most for _, most in difference.getextrema()) <= 1


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


LORAS = {"aya": "sd15", "bella": "sd15", "big": "sdxl"}


async def test_loras_reach_the_renderer_and_the_answer_says_which_were_worn(make: Make) -> None:
    renderer = FlatRenderer()
    worn = (Lora(name="aya", strength=0.8), Lora(name="bella", strength=-1.0))
    given = (*worn[:1], Lora(name="big", strength=0.0), *worn[1:])
    worker = make(renderer, models(loras={**LORAS, "big": "sd15"}))
    read = result(await worker.handle(sdk_job(loras=given)))
    assert renderer.orders[0].loras == read.loras == worn


@pytest.mark.parametrize(
    ("loras", "code", "says"),
    [
        ((Lora(name="zed"),), "unknown_lora", "no LoRA named 'zed' on this worker; it has aya, bella, big"),
        (
            (Lora(name="big"),),
            "lora_unfit",
            "the LoRA 'big' is for sdxl models and flat is one of sd15; it fits: no model of this worker",
        ),
        ((Lora(name="aya", strength=5.0),), "bad_job", "the strength of the LoRA 'aya' must be -4 to 4, not 5"),
        ((Lora(name="aya"), Lora(name="aya")), "bad_job", "the LoRA 'aya' is named twice"),
    ],
)
async def test_a_lora_that_cannot_be_worn_says_why(make: Make, loras: Any, code: str, says: str) -> None:
    read = failure(await make(FlatRenderer(), models(loras=LORAS)).handle(sdk_job(loras=loras)))
    assert (read.code, read.retryable) == (code, False)
    assert says in read.message


async def test_a_lora_that_the_renderer_finds_unfit_is_told(make: Make) -> None:
    def unfit(_: Order, seed: int) -> Image.Image:
        raise LoraUnfit("the LoRA 'aya' is damaged; get it again")

    read = failure(await make(FlatRenderer(paint=unfit)).handle(sdk_job()))
    assert (read.code, read.message, read.retryable) == ("lora_unfit", "the LoRA 'aya' is damaged; get it again", False)


async def test_the_inventory_has_the_names_of_models_and_loras_with_their_families(make: Make) -> None:
    worker = make(FlatRenderer(), models(model(), model("xl", family=FAMILIES["sdxl"]), loras=LORAS))
    answer = json.loads(json.dumps(await worker.handle({"id": "x", "input": ask_inventory()})))
    assert inventory_from_wire(answer) == Inventory(models={"flat": "sd15", "xl": "sdxl"}, loras=LORAS)
    assert failure(await worker.handle({"id": "x", "input": {"version": "1.1", "ask": "weights"}})).code == "bad_job"


@pytest.mark.parametrize("given", [None, [], "draw", 3, {}], ids=repr)
async def test_an_input_that_is_no_job_is_a_bad_job(make: Make, given: Any) -> None:
    assert failure(await make(FlatRenderer()).handle({"id": "x", "input": given})).code == "bad_job"


async def test_want_of_memory_can_be_tried_again(make: Make) -> None:
    def full(_: Order, seed: int) -> Image.Image:
        raise OutOfMemory

    read = failure(await make(FlatRenderer(paint=full)).handle(sdk_job()))
    assert (read.code, read.retryable) == ("out_of_memory", True)


async def test_a_lost_device_ends_the_process_and_the_job_can_be_drawn_by_another(make: Make) -> None:
    def lose(_: Order, seed: int) -> Image.Image:
        raise DeviceLost

    renderer = FlatRenderer(paint=lose)
    worker = make(renderer)
    assert not worker.lost
    answer = await worker.handle(sdk_job())
    read = failure(answer)
    assert (read.code, read.retryable) == ("device_lost", True)
    assert answer["refresh_worker"] is True
    assert worker.lost
    # Nothing is drawn on a broken context, also when another job was already there.
    assert failure(await worker.handle(sdk_job())).code == "device_lost"
    assert len(renderer.orders) == 1


async def test_an_unexpected_fault_is_told_without_its_inside_and_logged_with_it(
    make: Make, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Order, seed: int) -> Image.Image:
        raise RuntimeError("/srv/secret/path is broken")

    monkeypatch.setattr(logging.getLogger("imgen.worker"), "propagate", True)
    worker = make(FlatRenderer(paint=broken))
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


def noise(order: Order, _: int) -> Image.Image:
    return Image.frombytes(
        "RGB", (order.width, order.height), random.Random(1).randbytes(order.width * order.height * 3)
    )


async def test_pictures_too_large_for_an_answer_ask_for_upload_addresses(make: Make) -> None:
    side = 1408
    assert side * side * 3 < INLINE_LIMIT < side * side * 4
    read = failure(await make(FlatRenderer(paint=noise)).handle(sdk_job(width=side, height=side)))
    assert (read.code, read.retryable) == ("too_large", False)
    assert "upload address" in read.message


# Progress


async def test_progress_grows_and_has_the_first_and_the_last_step(make: Make) -> None:
    posted: list[Progress] = []
    worker = make(FlatRenderer(), report=lambda _, wire: posted.append(progress_from_wire(wire)))
    worker.warm()
    await worker.handle(sdk_job(n=2, steps=20))
    assert all(p.phase == "drawing" and p.total_steps == 40 and p.pictures == 2 for p in posted)
    assert (posted[0].picture, posted[0].step) == (0, 1)
    assert (posted[-1].picture, posted[-1].step) == (1, 40)
    sequences = [p.sequence for p in posted]
    assert sequences == sorted(set(sequences))
    # Forty steps that took no time: the throttle let the first and the last one through, and few between.
    assert len(posted) < 8


async def test_a_batch_that_is_drawn_again_in_parts_never_lets_the_numbers_fall() -> None:
    posted: list[Progress] = []
    reporter = Reporter(lambda wire: posted.append(progress_from_wire(wire)), pictures=4, first=0)
    reporter.preview(0, Image.new("RGB", (8, 8)))
    for picture, at_once, step in ((0, 4, 3), (0, 2, 1), (0, 2, 4), (2, 2, 4)):
        reporter.drawing(picture, at_once, step, 4)
        reporter.preview(picture, Image.new("RGB", (8, 8)))
    done = [(p.picture, p.step, p.total_steps) for p in posted if p.preview]
    assert done == [(0, 0, 0), (0, 12, 16), (0, 12, 16), (0, 12, 16), (2, 16, 16)]


async def test_previews_are_small_pictures_and_come_when_they_were_asked_for(make: Make) -> None:
    posted: list[Progress] = []
    worker = make(FlatRenderer(), report=lambda _, wire: posted.append(progress_from_wire(wire)))
    await worker.handle(sdk_job())
    assert all(p.preview is None for p in posted)
    posted.clear()
    await worker.handle(sdk_job(preview_every=2))
    previews = [Image.open(io.BytesIO(base64.b64decode(p.preview))) for p in posted if p.preview]
    assert len(previews) == 2
    assert all(preview.format == "WEBP" for preview in previews)


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
        def after_step(self, watch: Watch, picture: int, step: int, order: Order) -> None:
            seen.append(step)
            clock[0] += 1
            super().after_step(watch, picture, step, order)

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
        def after_step(self, watch: Watch, picture: int, step: int, order: Order) -> None:
            give_up = time.monotonic() + PATIENCE
            while picture == 1 and not watch.stopping():
                assert time.monotonic() < give_up
                time.sleep(0.005)

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


# References


@pytest.fixture
async def gallery() -> AsyncIterator[Gallery]:
    given = Gallery()
    await given.open()
    yield given
    await given.close()


async def test_references_are_fetched_and_reach_the_renderer_decoded(make: Make, gallery: Gallery) -> None:
    renderer = FlatRenderer()
    gallery.statuses = {"two": [503]}
    given = (
        gallery.reference("one", Image.new("RGB", (8, 4), (1, 2, 3)), strength=0.25),
        gallery.reference("two", Image.new("L", (4, 8), 9), role="guide"),
    )
    read = result(await make(renderer).handle(sdk_job(references=given)))
    guides = renderer.orders[0].guides
    assert [(g.role, g.strength, g.image.mode, g.image.size) for g in guides] == [
        ("init", 0.25, "RGB", (8, 4)),
        ("guide", 0.6, "RGB", (4, 8)),
    ]
    assert guides[0].image.getpixel((0, 0)) == (1, 2, 3)
    assert read.references == 1
    assert read.timings["fetch"] > 0


@pytest.mark.parametrize(
    ("changes", "code", "retryable", "says"),
    [
        ({"sha256": "0" * 64}, "reference_failed", False, "reference 0 is not the picture that was ordered"),
        ({"sha256": "F" * 64}, "bad_job", False, "'sha256' must be 64 lower-case"),
        ({"role": "mask"}, "bad_job", False, "'role' must be one of guide, init, not 'mask'"),
        ({"strength": 1.5}, "bad_job", False, "'strength' must be 0 to 1, not 1.5"),
        ({"url": "file:///etc/passwd"}, "reference_failed", False, "the address is malformed"),
        ({"url": "http://127.0.0.1:9/gone"}, "reference_failed", True, "its address can't be reached"),
    ],
)
async def test_a_reference_that_cannot_be_used_says_why(
    make: Make, gallery: Gallery, changes: dict[str, Any], code: str, retryable: bool, says: str
) -> None:
    given = replace(gallery.reference("one", Image.new("RGB", (8, 8))), **changes)
    read = failure(await make(FlatRenderer()).handle(sdk_job(references=(given,))))
    assert (read.code, read.retryable) == (code, retryable)
    assert says in read.message
    assert "sig=" not in read.message


@pytest.mark.parametrize(
    ("body", "status", "retryable", "says"),
    [
        (b"GIF89a nonsense", 200, False, "is no picture that can be read (PNG, JPEG, WEBP)"),
        (b"", 403, True, "its address answered 403"),
        (b"", 302, True, "its address answered 302"),
        (bytes(33 * 2**20), 200, False, "is larger than 32 MB"),
    ],
    ids=["no picture", "run out", "elsewhere", "large"],
)
async def test_what_the_address_answers_is_checked(
    make: Make, gallery: Gallery, body: bytes, status: int, retryable: bool, says: str
) -> None:
    given = gallery.hang_up("one", body)
    gallery.statuses = {"one": [status] * 3} if status != 200 else {}
    read = failure(await make(FlatRenderer()).handle(sdk_job(references=(given,))))
    assert (read.code, read.retryable) == ("reference_failed", retryable)
    assert says in read.message


async def test_too_many_references_are_a_bad_job(make: Make, gallery: Gallery) -> None:
    given = gallery.reference("one", Image.new("RGB", (8, 8)))
    assert failure(await make(FlatRenderer()).handle(sdk_job(references=(given,) * 9))).code == "bad_job"


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
