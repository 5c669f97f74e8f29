"""Finishing fails closed: no verdict, no signature, no storage means no picture, and the job goes on trying in time."""

import io
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import anyio
import pytest
from PIL import Image

from compliance.authority import load_or_create
from compliance.encode import EncodeOptions, encode
from compliance.fingerprint import fingerprint
from compliance.picture import Marked
from compliance.reader import new_context, read_in_detail
from compliance.reviewers.render import RenderCheck
from compliance.sign import Provenance, Signer
from compliance.verify import verify
from gateway.acs.local import LocalCompliance
from gateway.core.finishing import DrawAgain, Finisher, raw_key, signed_reference_key
from gateway.core.images import Credentials, Delivery, Drawing, Drawn, Job, RawPicture, Reference, Release, State
from gateway.core.polishing import Polisher
from gateway.errors import FinishingFailed
from gateway.jobs.database import Database
from gateway.jobs.migrations import migrate
from gateway.jobs.records import SqlRecords
from gateway.storage.disk import DiskStorage
from tests.reviewers import SeesColours, Silent, panel

pytestmark = pytest.mark.anyio


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
        delivery=Delivery(ruleset="colours"), created_at=0.0, deadline_at=1.0, state=State.FINISHING, drawn=drawn,
        drawn_at=1.0,
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


async def unrecorded(index, verdict, sha256):
    pass


def files_of(tmp_path):
    return {str(path.relative_to(tmp_path / "p")) for path in (tmp_path / "p").rglob("*.*") if path.is_file()}


@pytest.fixture
async def make(tmp_path: Path, anyio_backend):
    storage = DiskStorage(
        tmp_path / "p", secret=b"s" * 32, public_url="http://x", internal_url="http://x", now=lambda: 0.0
    )
    url = f"sqlite:///{tmp_path / 'jobs.db'}"
    await migrate(url)
    async with storage.open(), Database(url).open() as database, AsyncExitStack() as stack:

        async def make(*reviewers):
            compliance = LocalCompliance(panel(*reviewers), threads=2)
            await stack.enter_async_context(compliance.open())
            finisher = Finisher(
                storage=storage,
                records=SqlRecords(database),
                compliance=compliance,
                polisher=Polisher(
                    signer=Signer(load_or_create(tmp_path / "ca"), name="imgen", version="0"),
                    defaults=Credentials(),
                    now=lambda: 0.0,
                ),
                threads=1,
                now=lambda: 0.0,
            )
            await finisher.open()
            return finisher, storage

        yield make


async def test_a_silent_reviewer_means_no_picture_and_a_retry(make, tmp_path):
    finisher, storage = await make(RenderCheck(), Silent(1))
    job = job_of(png())
    await storage.keep(raw_key(job, 0), png())
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert (caught.value.code, caught.value.retryable) == ("compliance_unavailable", True)
    assert not list((tmp_path / "p" / "out").rglob("*.*"))
    assert (await finisher.finish(job, unrecorded)).verdict.safe


async def test_a_reviewer_that_has_spoken_is_not_asked_again(make):
    judge = Silent(lambda: next(answers))
    answers = iter((False, True, False))
    finisher, storage = await make(judge)
    job = await several_of(storage, "red", "green")
    with pytest.raises(FinishingFailed):
        await finisher.finish(job, unrecorded)
    assert len((await finisher.finish(job, unrecorded)).pictures) == 4
    assert list(answers) == []


async def test_a_verdict_is_recorded_even_when_the_next_picture_has_none(make, tmp_path):
    answers = iter((False, True))
    finisher, storage = await make(SeesColours(), Silent(lambda: next(answers)))
    job = await several_of(storage, "magenta", "red")
    recorded = []

    async def record(index, verdict, sha256):
        recorded.append((index, verdict.minors, sha256))

    with pytest.raises(FinishingFailed):
        await finisher.finish(job, record)
    assert recorded == [(0, True, job.drawn.pictures[0].sha256)]
    assert {name for name in files_of(tmp_path) if not name.startswith("raw/")} == {f"quarantine/{job.gen_id}/0.png"}


async def test_a_ruleset_that_is_gone_means_no_picture(make):
    finisher, storage = await make(SeesColours())
    job = job_of(png(), delivery=Delivery(ruleset="of-yesterday"))
    await storage.keep(raw_key(job, 0), png())
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert (caught.value.code, caught.value.retryable) == ("compliance_unavailable", True)


@pytest.mark.parametrize(
    ("stored", "code"),
    [
        pytest.param(None, "raw_picture_lost", id="missing"),
        pytest.param(png("blue"), "raw_picture_lost", id="other-bytes"),
    ],
)
async def test_a_picture_that_is_not_the_reported_one_is_drawn_again(make, stored, code):
    finisher, storage = await make(RenderCheck())
    job = job_of(png())
    if stored is not None:
        await storage.keep(raw_key(job, 0), stored)
    with pytest.raises(DrawAgain) as caught:
        await finisher.finish(job, unrecorded)
    assert caught.value.code == code


async def test_a_blank_render_is_drawn_again(make):
    out = io.BytesIO()
    Image.new("RGB", (64, 32)).save(out, "PNG")
    finisher, storage = await make(RenderCheck())
    job = job_of(out.getvalue())
    await storage.keep(raw_key(job, 0), out.getvalue())
    with pytest.raises(DrawAgain) as caught:
        await finisher.finish(job, unrecorded)
    assert caught.value.code == "broken_render"


async def test_two_finishers_of_one_job_never_overwrite_each_other(make, tmp_path):
    finisher, storage = await make(RenderCheck())
    job = job_of(png())
    await storage.keep(raw_key(job, 0), png())
    outcomes = []
    async with anyio.create_task_group() as tasks:

        async def run():
            outcomes.append(await finisher.finish(job, unrecorded))

        tasks.start_soon(run)
        tasks.start_soon(run)
    first, second = outcomes
    assert not {p.key for p in first.pictures} & {p.key for p in second.pictures}
    await finisher.discard(second)
    await finisher.tidy(replace(job, outcome=first))
    assert files_of(tmp_path) == {p.key for p in first.pictures} | set(first.masters)


async def test_several_pictures_are_each_signed_and_kept(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job = await several_of(storage, "red", "green", "yellow")
    outcome = await finisher.finish(job, unrecorded)
    assert [(picture.index, picture.type) for picture in outcome.pictures] == [
        (index, kind) for index in range(3) for kind in ("signed", "thumbnail")
    ]
    assert len({picture.filename for picture in outcome.pictures}) == 6
    await finisher.tidy(replace(job, outcome=outcome))
    assert files_of(tmp_path) == {picture.key for picture in outcome.pictures} | set(outcome.masters)


@pytest.mark.parametrize("colours", [("blue", "red"), ("red", "green", "blue")], ids="-".join)
async def test_of_several_pictures_only_the_blocked_one_stays(make, tmp_path, colours):
    finisher, storage = await make(SeesColours())
    job = await several_of(storage, *colours)
    outcome = await finisher.finish(job, unrecorded)
    blue = colours.index("blue")
    assert outcome.verdict.safe
    assert {picture.index for picture in outcome.pictures} == set(range(len(colours))) - {blue}
    assert [review.verdict.safe for review in outcome.reviews] == [colour != "blue" for colour in colours]
    blocked = outcome.reviews[blue]
    assert blocked.verdict.codes == ("blue",) and blocked.key == f"quarantine/{job.gen_id}/{blue}.png"
    await finisher.tidy(replace(job, outcome=outcome))
    signed = {picture.key for picture in outcome.pictures} | {blocked.unsafe.key}
    assert files_of(tmp_path) == signed | set(outcome.masters)


async def test_a_blocked_picture_has_a_signed_copy_only_where_it_may_be_seen(make, tmp_path):
    finisher, storage = await make(SeesColours())
    outcome = await finisher.finish(await several_of(storage, "blue", "cyan"), unrecorded)
    assert not outcome.verdict.safe and outcome.pictures == ()
    blue, gone = outcome.reviews
    copy = await storage.read(blue.unsafe.key)
    assert verify(copy, load_or_create(tmp_path / "ca").anchors_pem).state == "trusted"
    assert gone.verdict.codes == ("gone",) and gone.unsafe is None


async def test_a_verdict_about_minors_takes_all_pictures_of_the_job_with_it(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job = await several_of(storage, "red", "blue", "magenta")
    outcome = await finisher.finish(job, unrecorded)
    assert outcome.verdict.minors and outcome.pictures == ()
    assert all(review.unsafe is None and review.key.startswith("quarantine/") for review in outcome.reviews)
    await finisher.tidy(replace(job, outcome=outcome))
    assert files_of(tmp_path) == set(outcome.masters)


async def released(finisher, job, *indexes):
    outcome = await finisher.finish(job, unrecorded)
    await finisher.tidy(replace(job, outcome=outcome))
    return replace(job, outcome=outcome, release=Release(indexes=indexes, by="kim", note="", at=2.0))


async def test_what_a_person_lets_go_is_finished_as_usual(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job = await released(finisher, await several_of(storage, "red", "blue"), 1)
    outcome = await finisher.release(job, unrecorded)
    assert outcome.pictures[:2] == job.outcome.pictures
    assert [(p.index, p.type) for p in outcome.pictures[2:]] == [(1, "signed"), (1, "thumbnail")]
    verdict = outcome.reviews[1].verdict
    assert (verdict.safe, verdict.reviewer, verdict.findings) == (True, "human:kim", ("blue",))
    await finisher.tidy(replace(job, outcome=outcome))
    keys = {picture.key for picture in outcome.pictures}
    assert files_of(tmp_path) == keys | {f"master/{job.gen_id}/{index}.png" for index in range(2)}
    for picture in outcome.pictures:
        data = await storage.read(picture.key)
        assert verify(data, load_or_create(tmp_path / "ca").anchors_pem).state == "trusted"


@pytest.mark.parametrize("colour", ["magenta", "cyan"])
async def test_nobody_lets_go_what_is_never_handed_out(make, tmp_path, colour):
    finisher, storage = await make(SeesColours())
    job = await released(finisher, await several_of(storage, colour), 0)
    with pytest.raises(ValueError, match="nobody may release"):
        await finisher.release(job, unrecorded)
    assert not list((tmp_path / "p" / "out").rglob("*.*"))


async def with_references(storage, tmp_path, colours, *, used):
    """A job that was given a signed picture to look at, and an unsigned one to begin with; and the signed file."""
    job = await several_of(storage, *colours)
    strangers = Signer(load_or_create(tmp_path / "strangers"), name="else", version="1")
    stated = Provenance(gen_id="other", model="other", created=datetime(2026, 1, 1, tzinfo=UTC))
    sent = strangers.sign(encode(Marked(pixels=Image.new("RGB", (32, 32), "blue")), EncodeOptions()), stated)
    await storage.keep(signed_reference_key("raw", job.gen_id, 0), sent.data)
    given = (
        Reference(key="raw/a/references/0.png", sha256="0" * 64, role="guide", sent_sha256=sent.sha256, signed=True),
        Reference(key="raw/a/references/1.png", sha256="1" * 64, role="init", sent_sha256="2" * 64),
    )
    drawn = replace(job.drawn, references=used)
    return replace(job, drawing=replace(job.drawing, references=given), drawn=drawn), sent


async def credentials_of(storage, tmp_path, key):
    """The ingredients of a picture as (relationship, its manifest or None), and the name of its first action."""
    data = await storage.read(key)
    anchors = load_or_create(tmp_path / "ca").anchors_pem
    assert verify(data, anchors).state == "trusted"
    store = read_in_detail(data, "image/jpeg", new_context(anchors))
    held = store["manifests"][store["active_manifest"]]["assertion_store"]
    ingredients = sorted(
        (each["relationship"], each.get("activeManifest", {}).get("url", "").rpartition("/")[2] or None)
        for label, each in held.items()
        if label.startswith("c2pa.ingredient")
    )
    return ingredients, held["c2pa.actions.v2"]["actions"][0]["action"]


async def test_the_references_that_had_an_effect_are_in_the_manifest(make, tmp_path):
    finisher, storage = await make(SeesColours())
    seen = {}
    for used in (0, 1, 2):
        job, sent = await with_references(storage, tmp_path, ("red",), used=used)
        outcome = await finisher.finish(job, unrecorded)
        seen[used] = await credentials_of(storage, tmp_path, outcome.pictures[0].key)
    assert seen[0] == ([], "c2pa.created")
    assert seen[1] == ([("parentOf", None)], "c2pa.opened")
    assert seen[2] == ([("inputTo", sent.label), ("parentOf", None)], "c2pa.opened")


async def test_a_reference_that_was_sent_signed_waits_for_the_appeal_and_goes_after_it(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job, sent = await with_references(storage, tmp_path, ("red", "blue"), used=2)
    kept = signed_reference_key("quarantine", job.gen_id, 0)
    job = await released(finisher, job, 1)
    assert kept in files_of(tmp_path) and not any(name.startswith("raw/") for name in files_of(tmp_path))
    outcome = await finisher.release(job, unrecorded)
    fresh = next(picture for picture in outcome.pictures if picture.index == 1)
    assert await credentials_of(storage, tmp_path, fresh.key) == (
        [("inputTo", sent.label), ("parentOf", None)],
        "c2pa.opened",
    )
    await finisher.tidy(replace(job, outcome=outcome))
    assert kept not in files_of(tmp_path)


@pytest.mark.parametrize("colours", [("red",), ("cyan",), ("red", "magenta")], ids="-".join)
async def test_it_goes_at_once_where_nobody_can_let_anything_go(make, tmp_path, colours):
    finisher, storage = await make(SeesColours())
    job, _ = await with_references(storage, tmp_path, colours, used=2)
    outcome = await finisher.finish(job, unrecorded)
    await finisher.tidy(replace(job, outcome=outcome))
    assert not [name for name in files_of(tmp_path) if "references" in name]


async def test_a_reference_whose_file_is_lost_is_still_named_by_its_hash(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job, _ = await with_references(storage, tmp_path, ("red",), used=2)
    await storage.purge(signed_reference_key("raw", job.gen_id, 0))
    outcome = await finisher.finish(job, unrecorded)
    ingredients, _ = await credentials_of(storage, tmp_path, outcome.pictures[0].key)
    assert ingredients == [("inputTo", None), ("parentOf", None)]


async def test_a_reference_that_is_another_file_by_now_means_no_picture(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job, _ = await with_references(storage, tmp_path, ("red",), used=2)
    await storage.keep(signed_reference_key("raw", job.gen_id, 0), png())
    with pytest.raises(FinishingFailed) as caught:
        await finisher.finish(job, unrecorded)
    assert (caught.value.code, caught.value.retryable) == ("reference_lost", False)


async def test_a_lost_original_can_not_be_let_go(make):
    finisher, storage = await make(SeesColours())
    job = await released(finisher, await several_of(storage, "red", "blue"), 1)
    await storage.purge(f"quarantine/{job.gen_id}")
    with pytest.raises(FinishingFailed) as caught:
        await finisher.release(job, unrecorded)
    assert not caught.value.retryable


async def test_one_lost_picture_of_several_means_none(make, tmp_path):
    finisher, storage = await make(SeesColours())
    job = await several_of(storage, "red", "green")
    await storage.purge(raw_key(job, 1))
    with pytest.raises(DrawAgain):
        await finisher.finish(job, unrecorded)
    assert not list((tmp_path / "p" / "out").rglob("*.*"))
