"""Nothing leaves unreviewed: pictures that are blocked, reviewers that fail, and what is told to whom."""

from __future__ import annotations

import base64
import io
import random
import time
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest
from PIL import Image, ImageDraw

from compliance.verify import verify
from gateway.core import access, advance
from gateway.core.appeals import Appeals
from gateway.core.audit import Audit
from gateway.core.finishing import Finisher
from gateway.jobs.appeals import SqlAppeals
from gateway.jobs.audit import SqlAudit
from gateway.jobs.database import Database
from gateway.jobs.events import SqlEvents
from gateway.jobs.keys import SqlKeys
from gateway.jobs.store import SqlJobs
from gateway.signing import signing_credentials
from tests.acs.rig import KEY as ACS_KEY
from tests.acs.rig import AcsProcess
from tests.reviewers import SeesColours, Silent

pytestmark = pytest.mark.anyio

RULES = """
name = "colours"
title = "No blue"
[[rules]]
id = "blue"
category = "COLOUR"
name = "Blue"
looks_at = "picture"
[rules.reviewers]
detector = ["blue"]
[[rules]]
id = "adult"
category = "ADULT_NSFW"
name = "Adult content"
looks_at = "prompt"
refuse_prompt = true
except_tiers = ["pro"]
[rules.reviewers]
text = ["ADULT_NSFW"]
[[rules]]
id = "gone"
category = "COLOUR"
name = "Gone"
looks_at = "picture"
releasable = false
[rules.reviewers]
detector = ["gone"]
"""


def painted(*colours: str):
    """A brush: picture ``index`` of a job has the colour of that number in its first pixel."""

    def paint(job, index: int) -> bytes:
        image = Image.new("RGB", (job.width, job.height), colours[index % len(colours)])
        # No two jobs draw the same.
        ImageDraw.Draw(image).rectangle((100, 100, 200 + job.seed % 100, 300), fill="white")
        out = io.BytesIO()
        image.save(out, "PNG", compress_level=1)
        return out.getvalue()

    return paint


@pytest.fixture
async def here(open_gateway, tmp_path: Path):
    """Opens a gateway whose detector, in the same process, sees colours; a brush paints them, one after the other."""
    folder = tmp_path / "rulesets"
    folder.mkdir()
    (folder / "colours.toml").write_text(RULES, encoding="utf-8")

    async def open_one(*painted_colours: str, reviewers=(), **changed: str):
        gateway = await open_gateway(SeesColours(), *reviewers, IMGEN_RULESETS=str(folder), **changed)
        gateway.runpod.brush = painted(*painted_colours)
        return gateway

    return open_one


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory):
    """The same detector under the same rules as a compliance service, in a process of its own."""
    folder = tmp_path_factory.mktemp("acs")
    (folder / "colours.toml").write_text(RULES, encoding="utf-8")
    process = AcsProcess(folder, panel="colours")
    try:
        yield process.start()
    finally:
        process.kill()


@pytest.fixture(params=["here", "service"])
async def colours(request: pytest.FixtureRequest, open_gateway, here):
    """`here`, and the same over a compliance service: the gateway must not be told apart by what it answers."""
    if request.param == "here":
        return here
    acs = {"IMGEN_ACS_URL": request.getfixturevalue("service").url, "IMGEN_ACS_KEY": ACS_KEY}

    async def open_one(*painted_colours: str, **changed: str):
        gateway = await open_gateway(**acs, **changed)
        gateway.runpod.brush = painted(*painted_colours)
        return gateway

    return open_one


async def key_with(gateway, *scopes: str, tier: str = "standard", tenant: str = "default") -> str:
    database = Database(gateway.settings.database())
    async with database.open():
        secret = access.new_secret()
        key = access.new_key(secret, name="x", tenant=tenant, now=time.time(), tier=tier, scopes=frozenset(scopes))
        await SqlKeys(database).create(key, access.digest(secret))
    return secret


def local(url: str) -> str:
    return url.removeprefix("http://gateway.test")


async def test_of_several_pictures_the_safe_ones_are_handed_out_and_the_blocked_one_is_explained(colours):
    gateway = await colours("red", "blue", "green")
    job = await gateway.call("generate", prompt="three houses", n=3, seed=7, compliance_ruleset="colours")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["compliance"]) == ("COMPLETED", "safe")
    assert [(image["index"], image["seed"], image["type"]) for image in ended["meta"]["images"]] == [
        (0, 7, "signed"), (0, 7, "thumbnail"), (2, 9, "signed"), (2, 9, "thumbnail")
    ]  # fmt: skip
    assert ended["blocked"] == [
        {"index": 1, "seed": 8, "error": "Content blocked — flagged for: Blue", "filter_categories": ["blue"]}
    ]


async def test_of_two_pictures_the_meta_tells_of_the_one_that_is_there(colours):
    gateway = await colours("blue", "red")
    job = await gateway.call("generate", prompt="two houses", n=2, seed=7, compliance_ruleset="colours")
    meta = (await gateway.ended(job["id"]))["meta"]
    assert meta["seed"] == 8 and meta["fingerprint"] == meta["images"][0]["sha256"]
    assert meta["images"][0]["index"] == 1


async def test_a_blocked_picture_is_shown_to_a_key_with_the_scope_and_to_no_other(colours):
    gateway = await colours("blue")
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    ended = await gateway.ended(job["id"])
    assert (ended["status"], ended["compliance"], ended["filter_categories"]) == ("COMPLETED", "unsafe", ["blue"])
    assert ended["error"] == "Content blocked — flagged for: Blue" and "unsafe_url" not in ended
    seeing = await key_with(gateway, "unsafe_url")
    told = (await gateway.post({"action": "status", "id": job["id"]}, key=seeing)).json()
    url = base64.b64decode(told["unsafe_url"]).decode()
    content = (await gateway.http.get(local(url))).content
    assert verify(content, signing_credentials(gateway.settings).anchors_pem).state == "trusted"
    foreign = await key_with(gateway, "unsafe_url", tenant="other")
    assert (await gateway.post({"action": "status", "id": job["id"]}, key=foreign)).status_code == 404


async def test_the_address_of_a_blocked_picture_is_short_lived(colours):
    gateway = await colours("blue", IMGEN_UNSAFE_URL_TTL="1")
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    await gateway.ended(job["id"])
    seeing = await key_with(gateway, "unsafe_url")
    told = (await gateway.post({"action": "status", "id": job["id"]}, key=seeing)).json()
    url = local(base64.b64decode(told["unsafe_url"]).decode())
    with anyio.fail_after(10):
        while (await gateway.http.get(url)).status_code == 200:
            await anyio.sleep(0.1)
    assert (await gateway.http.get(url)).status_code == 403


@pytest.mark.parametrize("colour", ["cyan", "magenta"])
async def test_what_must_never_be_handed_out_has_no_address_whoever_asks(colours, colour):
    gateway = await colours(colour)
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    await gateway.ended(job["id"])
    seeing = await key_with(gateway, "unsafe_url", tier="pro")
    told = (await gateway.post({"action": "status", "id": job["id"]}, key=seeing)).json()
    assert told["compliance"] == "unsafe" and "unsafe_url" not in told
    pictures = gateway.settings.data / "pictures"
    assert not [path for folder in ("out", "unsafe") for path in (pictures / folder).rglob("*.*")]


@pytest.mark.parametrize("ruleset", ["default", "strict", "adult-allowed", "colours"])
async def test_one_picture_about_minors_blocks_its_job_under_every_ruleset(colours, ruleset):
    gateway = await colours("red", "magenta")
    job = await gateway.call("generate", prompt="two houses", n=2, compliance_ruleset=ruleset)
    ended = await gateway.ended(job["id"])
    assert ended["compliance"] == "unsafe" and ended["filter_categories"] == ["minors.picture"]
    assert [blocked["index"] for blocked in ended["blocked"]] == [0, 1]


async def test_a_picture_about_minors_holds_the_key_cancels_its_queue_and_tells_the_operator(colours):
    gateway = await colours("magenta")
    secret, other = await key_with(gateway), await key_with(gateway)
    gateway.runpod.held = frozenset({1})
    waiting = (await gateway.post({"action": "generate", "prompt": "a house"}, key=secret)).json()
    spared = (await gateway.post({"action": "generate", "prompt": "a house"}, key=other)).json()
    await gateway.post({"action": "generate", "prompt": "a boat"}, key=secret)
    with anyio.fail_after(20):
        while (refused := await gateway.post({"action": "models"}, key=secret)).status_code == 200:
            await anyio.sleep(0.05)
    assert (refused.status_code, refused.json()["error"]) == (401, "API key is disabled")
    assert refused.json()["code"] == "api_key_held"
    assert (await gateway.call("status", id=waiting["id"]))["status"] == "CANCELLED"
    assert (await gateway.call("status", id=spared["id"]))["status"] != "CANCELLED"
    assert gateway.runpod.cancelled
    database = Database(gateway.settings.database())
    async with database.open():
        (event, *_) = await SqlEvents(database).due(now=time.time() + 1, limit=9)
    assert event.kind == "minors" and event.body["key_held"] and "prompt" not in str(event.body)


async def test_a_picture_about_minors_holds_no_key_where_the_operator_says_so(colours):
    gateway = await colours("magenta", IMGEN_MINORS_HOLD="off")
    job = await gateway.call("generate", prompt="a house")
    assert (await gateway.ended(job["id"]))["compliance"] == "unsafe"
    assert (await gateway.post({"action": "models"})).status_code == 200


@asynccontextmanager
async def appeals_of(gateway):
    """What `imgen appeals` works with: the stores beside the running gateway."""
    database = Database(gateway.settings.database())
    async with database.open():
        audit = Audit(SqlAudit(database), now=time.time)
        yield Appeals(store=SqlAppeals(database), jobs=SqlJobs(database), audit=audit, now=time.time)


async def test_an_appeal_brings_a_blocked_picture_to_its_owner_when_a_person_says_so(colours):
    gateway = await colours("red", "blue")
    job = await gateway.call("generate", prompt="two houses", n=2, seed=7, compliance_ruleset="colours")
    before = await gateway.ended(job["id"])
    filed = await gateway.call("appeal", id=job["id"], reason="It is only the sea.")
    assert filed["appeal"]["state"] == "open"
    assert (await gateway.call("appeal", id=job["id"], reason="Please."))["appeal"] == filed["appeal"]
    async with appeals_of(gateway) as appeals:
        await appeals.release(filed["appeal"]["id"], "kim", "It is the sea.")
    with anyio.fail_after(60):
        while "blocked" in (after := await gateway.call("status", id=job["id"])) or "meta" not in after:
            await anyio.sleep(0.1)
    images = after["meta"]["images"]
    assert [image["index"] for image in images if image["type"] == "signed"] == [0, 1]
    assert images[0]["sha256"] == before["meta"]["images"][0]["sha256"]
    assert after["meta"]["release"]["indexes"] == [1] and "kim" not in str(after)
    again = await gateway.post({"action": "appeal", "id": job["id"], "reason": "Once more."})
    assert (again.status_code, again.json()["code"]) == (409, "appeal_decided")
    database = Database(gateway.settings.database())
    async with database.open():
        links = await SqlAudit(database).of(job["gen_id"])
    assert [link.entry.kind for link in links] == ["verdict", "verdict", "appeal", "appeal_decided", "verdict"]
    assert links[-1].entry.body["reviewer"] == "human:kim" and links[-1].entry.body["safe"]
    assert links[1].entry.body["reasons"][0]["rule"] == "blue"


async def test_what_a_person_let_go_outlives_more_faults_than_a_fresh_job_would(colours, monkeypatch):
    gateway = await colours("blue")
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    await gateway.ended(job["id"])
    filed = await gateway.call("appeal", id=job["id"], reason="It is only the sea.")
    tries, release = [], Finisher.release

    async def stumbling(self, job, record):
        tries.append(job.tries)
        if len(tries) <= 4:
            raise RuntimeError("nobody foresaw this")
        return await release(self, job, record)

    monkeypatch.setattr(advance, "MAX_STUMBLES", 2)
    monkeypatch.setattr(Finisher, "release", stumbling)
    async with appeals_of(gateway) as appeals:
        await appeals.release(filed["appeal"]["id"], "kim", "It is the sea.")
    with anyio.fail_after(30):
        while "meta" not in (after := await gateway.call("status", id=job["id"])):
            assert after["status"] in {"IN_PROGRESS", "COMPLETED"}, after
            await anyio.sleep(0.05)
    assert tries == [0, 1, 2, 3, 4] and after["compliance"] == "safe"


async def test_an_upheld_picture_stays_where_it_is(colours):
    gateway = await colours("blue")
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    await gateway.ended(job["id"])
    filed = await gateway.call("appeal", id=job["id"], reason="It is only the sea.")
    async with appeals_of(gateway) as appeals:
        await appeals.uphold(filed["appeal"]["id"], "kim", "It is blue.")
    assert (await gateway.call("status", id=job["id"]))["compliance"] == "unsafe"


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        pytest.param({"reason": ""}, 400, "invalid_field", id="no-reason"),
        pytest.param({"reason": "x" * 2001}, 400, "invalid_field", id="long-reason"),
        pytest.param({"reason": "why?", "id": "run_nobodys"}, 404, "job_not_found", id="unknown"),
        pytest.param({"reason": "why?", "id": "nonsense"}, 400, "bad_id", id="bad-id"),
        pytest.param({"reason": "why?"}, 409, "nothing_to_appeal", id="safe"),
    ],
)
async def test_an_appeal_that_can_not_be_taken_says_why(gateway, body, status, code):
    meta = await gateway.picture()
    answer = await gateway.post({"action": "appeal", "id": meta["id"], **body})
    assert (answer.status_code, answer.json()["code"]) == (status, code)


async def test_nobody_appeals_for_another_tenant(colours):
    gateway = await colours("blue")
    job = await gateway.call("generate", prompt="a house", compliance_ruleset="colours")
    await gateway.ended(job["id"])
    foreign = await key_with(gateway, tenant="other")
    answer = await gateway.post({"action": "appeal", "id": job["id"], "reason": "mine"}, key=foreign)
    assert answer.status_code == 404


@pytest.mark.parametrize(("colour", "held"), [("blue", False), ("magenta", True)])
async def test_a_forbidden_picture_does_not_leave_as_a_logo(colours, colour, held):
    gateway = await colours("red")
    secret = await key_with(gateway)
    logo = io.BytesIO()
    picture = Image.new("RGB", (40, 20), colour)
    picture.paste("white", (20, 0, 40, 20))
    picture.save(logo, "PNG")
    given = f"data:image/png;base64,{base64.b64encode(logo.getvalue()).decode()}"
    body = {"action": "generate", "prompt": "a house", "wm_image": given, "compliance_ruleset": "colours"}
    answer = await gateway.post(body, key=secret)
    assert (answer.status_code, answer.json()["error"]) == (400, "Watermark image blocked")
    assert answer.json()["filter_categories"] and not gateway.runpod.submitted
    assert not list((gateway.settings.data / "pictures").rglob("*.png"))
    with anyio.fail_after(20):
        while held and (await gateway.post({"action": "models"}, key=secret)).status_code == 200:
            await anyio.sleep(0.1)
    database = Database(gateway.settings.database())
    async with database.open():
        links = await SqlAudit(database).after(0, 9)
    assert links[0].entry.kind == "upload_refused"


async def test_a_refused_prompt_is_in_the_audit_without_its_words(gateway):
    await gateway.post({"action": "generate", "prompt": "nude child"})
    database = Database(gateway.settings.database())
    async with database.open():
        (link,) = await SqlAudit(database).after(0, 9)
    assert link.entry.kind == "prompt_refused" and link.entry.body["codes"] == ["minors.prompt"]
    assert "nude" not in str(link.entry.body)
    assert (await gateway.post({"action": "models"})).status_code == 200


async def test_a_tier_may_be_excepted_from_a_rule(gateway):
    pro = await key_with(gateway, tier="pro")
    seen = {}
    for name, key in (("standard", await key_with(gateway)), ("pro", pro)):
        job = (await gateway.post({"action": "generate", "prompt": "a nude woman"}, key=key)).json()
        with anyio.fail_after(20):
            while (told := (await gateway.post({"action": "status", "id": job["id"]}, key=key)).json())[
                "status"
            ] != "COMPLETED":
                await anyio.sleep(0.05)
        seen[name] = told["compliance"]
    assert seen == {"standard": "unsafe", "pro": "safe"}


async def test_a_ruleset_may_refuse_a_prompt_before_it_is_drawn_and_except_a_tier(colours):
    gateway = await colours("red")
    body = {"action": "generate", "prompt": "a nude woman", "compliance_ruleset": "colours"}
    answer = await gateway.post(body, key=await key_with(gateway))
    told = answer.json()
    assert (answer.status_code, told["error"], told["code"]) == (400, "Prompt blocked", "safety_violation")
    assert (told["filter_categories"], told["categories"], told["classes"]) == (
        ["adult"], ["Adult content"], ["ADULT_NSFW"],
    )  # fmt: skip
    assert gateway.runpod.submitted == []
    assert (await gateway.post(body, key=await key_with(gateway, tier="pro"))).status_code == 200


@pytest.mark.parametrize("field", ["cs_title", "cs_author", "cs_description", "cs_organization", "cs_vendor"])
async def test_words_that_are_to_be_signed_pass_the_gate_too(gateway, field):
    answer = await gateway.post({"action": "generate", "prompt": "a house", field: "nude child"})
    assert (answer.status_code, answer.json()["error"]) == (400, "Prompt blocked")


async def test_a_silent_reviewer_keeps_the_job_in_progress_until_it_speaks(here):
    silent = Silent(3)
    gateway = await here("red", reviewers=(silent,))
    job = await gateway.call("generate", prompt="a house")
    states = set()
    with anyio.fail_after(20):
        while (told := await gateway.call("status", id=job["id"]))["status"] != "COMPLETED":
            states.add(told["status"])
            await anyio.sleep(0.02)
    assert states <= {"IN_QUEUE", "IN_PROGRESS"} and told["compliance"] == "safe" and silent.calls < 0


async def test_when_every_reviewer_fails_at_every_call_no_picture_of_a_hundred_jobs_gets_out(here):
    gateway = await here(
        "red", "blue", reviewers=(Silent(lambda: True),), IMGEN_FINISH_DEADLINE="0.3", IMGEN_POLL_INTERVAL="0.05"
    )
    jobs = [await gateway.call("generate", prompt=f"house {number}", width=1024, height=1024) for number in range(100)]
    for job in jobs:
        ended = await gateway.ended(job["id"], seconds=120)
        assert (ended["status"], ended["error"], ended["code"]) == (
            "FAILED", "Generation failed", "compliance_unavailable",
        )  # fmt: skip
    pictures = gateway.settings.data / "pictures"
    assert not [path for folder in ("out", "unsafe", "master") for path in (pictures / folder).rglob("*.*")]


async def test_reviewers_that_fail_by_chance_release_only_what_they_have_seen(here):
    chance = random.Random(5)
    gateway = await here("blue", "red", reviewers=(Silent(lambda: chance.random() < 0.5),))
    jobs = [
        await gateway.call("generate", prompt=f"house {number}", n=2, compliance_ruleset="colours")
        for number in range(12)
    ]
    for job in jobs:
        ended = await gateway.ended(job["id"], seconds=60)
        assert {image["index"] for image in ended["meta"]["images"]} == {1}
        assert [blocked["index"] for blocked in ended["blocked"]] == [0]
