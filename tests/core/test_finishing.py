"""Finishing fails closed: no verdict, no signature, no storage means no picture, and the job goes on trying in time."""

import io
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from PIL import Image

from compliance.authority import load_or_create
from compliance.errors import ReviewUnavailable
from compliance.fingerprint import fingerprint
from compliance.review import Opinion, PictureCheck, load_rulesets
from compliance.rules import Violation
from compliance.sign import Signer
from gateway.core.finishing import DrawAgain, Finisher, raw_key
from gateway.core.images import Credentials, Delivery, Drawing, Drawn, Job, RawPicture, State
from gateway.errors import FinishingFailed
from gateway.storage.disk import DiskStorage

pytestmark = pytest.mark.anyio


class Flaky:
    """A reviewer that has no answer for its first calls."""

    name, version = "flaky", "1"

    def __init__(self, silent):
        self.silent = silent

    def review(self, case):
        self.silent -= 1
        if self.silent >= 0:
            raise ReviewUnavailable
        return Opinion()


class NoBlue:
    """A reviewer that blocks blue pictures."""

    name, version = "no-blue", "1"

    def review(self, case):
        blue = case.raw.pixels.getpixel((0, 0)) == (0, 0, 255)
        seen = Violation(rule="blue", category=min(case.ruleset.block), name="Blue")
        return Opinion(violations=(seen,) if blue else ())


def png(colour="red", size=(64, 32)):
    image = Image.new("RGB", size, colour)
    image.paste("white", (4, 4, 20, 20))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def job_of(data, **changed):
    drawing = Drawing(
        prompt="p", positive="p", negative="", model="eros", worker_model="builtin", style="", character="",
        width=64, height=32, seed=1,
    )  # fmt: skip
    raw = RawPicture(index=0, seed=1, sha256=fingerprint(data), width=64, height=32)
    drawn = Drawn(pictures=(raw,), steps=1, guidance=1.0, sampler="s", family="f", revision="r")
    job = Job(
        gen_id="a" * 20, public_id="run_a", surface="imgen", tenant="t", key_id="k", request_id="r", drawing=drawing,
        delivery=Delivery(), created_at=0.0, deadline_at=1.0, state=State.FINISHING, drawn=drawn, drawn_at=1.0,
    )  # fmt: skip
    return replace(job, **changed)


async def several_of(storage, *colours):
    """A drawn job with one picture per colour, the first with seed 1."""
    job = job_of(png())
    raws = tuple(
        RawPicture(index=index, seed=1 + index, sha256=fingerprint(png(colour)), width=64, height=32)
        for index, colour in enumerate(colours)
    )
    job = replace(job, drawing=replace(job.drawing, n=len(raws)), drawn=replace(job.drawn, pictures=raws))
    for raw, colour in zip(raws, colours, strict=True):
        await storage.keep(raw_key(job, raw.index), png(colour))
    return job


def files_of(tmp_path):
    return {str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*.*") if path.is_file()}


@pytest.fixture
async def make(tmp_path: Path, anyio_backend):
    storage = DiskStorage(
        tmp_path / "p", secret=b"s" * 32, public_url="http://x", internal_url="http://x", now=lambda: 0.0
    )
    async with storage.open():

        async def make(*reviewers):
            finisher = Finisher(
                storage=storage,
                reviewers=reviewers,
                rulesets=load_rulesets(),
                signer=Signer(load_or_create(tmp_path / "ca"), name="imgen", version="0"),
                defaults=Credentials(),
                threads=1,
                now=lambda: 0.0,
            )
            await finisher.open()
            return finisher, storage

        yield make


async def test_a_silent_reviewer_means_no_picture_and_a_retry(make, tmp_path):
    finisher, storage = await make(PictureCheck(), Flaky(1))
    job = job_of(png())
    await storage.keep(raw_key(job, 0), png())
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job)
    assert (caught.value.code, caught.value.retryable) == ("compliance_unavailable", True)
    assert not list((tmp_path / "p" / "out").rglob("*.*"))
    assert (await finisher.finish(job)).verdict.safe


async def test_no_reviewer_at_all_means_no_picture(make):
    finisher, storage = await make()
    job = job_of(png())
    await storage.keep(raw_key(job, 0), png())
    with pytest.raises(FinishingFailed):
        await finisher.finish(job)


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        pytest.param(None, "raw_picture_lost", id="missing"),
        pytest.param(png("blue"), "raw_picture_lost", id="other-bytes"),
    ],
)
async def test_a_picture_that_is_not_the_reported_one_is_drawn_again(make, stored, code):
    finisher, storage = await make(PictureCheck())
    job = job_of(png())
    if stored is not None:
        await storage.keep(raw_key(job, 0), stored)
    with pytest.raises(DrawAgain) as caught:
        await finisher.finish(job)
    assert caught.value.code == code


async def test_a_blank_render_is_drawn_again(make):
    out = io.BytesIO()
    Image.new("RGB", (64, 32)).save(out, "PNG")
    finisher, storage = await make(PictureCheck())
    job = job_of(out.getvalue())
    await storage.keep(raw_key(job, 0), out.getvalue())
    with pytest.raises(DrawAgain) as caught:
        await finisher.finish(job)
    assert caught.value.code == "broken_render"


async def test_two_finishers_of_one_job_never_overwrite_each_other(make, tmp_path):
    finisher, storage = await make(PictureCheck())
    job = job_of(png())
    await storage.keep(raw_key(job, 0), png())
    outcomes = []
    async with anyio.create_task_group() as tasks:

        async def run():
            outcomes.append(await finisher.finish(job))

        tasks.start_soon(run)
        tasks.start_soon(run)
    first, second = outcomes
    assert not {p.key for p in first.pictures} & {p.key for p in second.pictures}
    await finisher.discard(second)
    await finisher.tidy(replace(job, outcome=first))
    assert files_of(tmp_path) == {p.key for p in first.pictures} | set(first.masters)


async def test_several_pictures_are_each_signed_and_kept(make, tmp_path):
    finisher, storage = await make(NoBlue())
    job = await several_of(storage, "red", "green", "yellow")
    outcome = await finisher.finish(job)
    assert [(picture.index, picture.type) for picture in outcome.pictures] == [
        (index, kind) for index in range(3) for kind in ("signed", "thumbnail")
    ]
    assert len({picture.filename for picture in outcome.pictures}) == 6
    await finisher.tidy(replace(job, outcome=outcome))
    assert files_of(tmp_path) == {picture.key for picture in outcome.pictures} | set(outcome.masters)


@pytest.mark.parametrize("colours", [("blue", "red"), ("red", "green", "blue")], ids="-".join)
async def test_one_blocked_picture_keeps_all_of_its_job(make, tmp_path, colours):
    finisher, storage = await make(NoBlue())
    job = await several_of(storage, *colours)
    outcome = await finisher.finish(job)
    assert not outcome.verdict.safe and outcome.pictures == ()
    assert not list((tmp_path / "p" / "out").rglob("*.*"))
    await finisher.tidy(replace(job, outcome=outcome))
    assert files_of(tmp_path) == set(outcome.masters) == {f"quarantine/{job.gen_id}/{colours.index('blue')}.png"}


async def test_one_lost_picture_of_several_means_none(make, tmp_path):
    finisher, storage = await make(NoBlue())
    job = await several_of(storage, "red", "green")
    await storage.purge(raw_key(job, 1))
    with pytest.raises(DrawAgain):
        await finisher.finish(job)
    assert not list((tmp_path / "p" / "out").rglob("*.*"))
