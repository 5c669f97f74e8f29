"""Appeals: who may object to what, who decides, and what no person may let go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from compliance.verdict import Verdict
from gateway.core.appeals import Appeals, new_appeal_id
from gateway.core.images import Appeal, Caller, Job, Outcome, State
from gateway.errors import (
    AppealDecided,
    AppealNotFound,
    InvalidField,
    JobNotFound,
    NothingToAppeal,
    NotReleasable,
)
from tests.core.desk import BLOCKED, MINORS, SAFE, UNRELEASABLE, Desk, Killed, open_desk, reviewed
from tests.jobs.samples import job

pytestmark = pytest.mark.anyio

OWNER = Caller(key_id="key_other_of_the_tenant", tenant="default")
STRANGER = Caller(key_id="key_1", tenant="other")


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with open_desk(tmp_path) as opened:
        yield opened


def appeals_of(desk: Desk) -> Appeals:
    return Appeals(store=desk.appeals, jobs=desk.jobs, audit=desk.audit, now=desk.clock, new_id=lambda: next(desk.ids))


@pytest.fixture
def appeals(desk: Desk) -> Appeals:
    return appeals_of(desk)


async def filed(desk: Desk, new: Job) -> Appeal:
    await desk.add(new)
    return await appeals_of(desk).file(OWNER, "imgen", new.public_id, "it is a kidney")


async def test_an_appeal_waits_for_a_person(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    appeal = await filed(desk, blocked)
    assert appeal == Appeal(
        id="app_000000000000000000000001",
        gen_id=blocked.gen_id,
        tenant="default",
        key_id=OWNER.key_id,
        public_id=blocked.public_id,
        surface="imgen",
        reason="it is a kidney",
        created_at=5000.5,
    )
    assert await appeals.list() == [appeal]
    assert await appeals.get(appeal.id) == (appeal, blocked)
    (body,) = await desk.recorded("appeal")
    assert (body["appeal"], body["gen_id"]) == (appeal.id, blocked.gen_id)
    assert "it is a kidney" not in body.values(), "the words are the caller's"


def test_an_id_of_an_appeal_can_not_be_guessed() -> None:
    ids = {new_appeal_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(id.startswith("app_") and len(id) == 28 for id in ids)


async def test_whoever_appeals_again_gets_the_open_appeal(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    appeal = await filed(desk, blocked)
    assert await appeals.file(OWNER, "imgen", blocked.public_id, "again") == appeal
    assert len(await appeals.list(None)) == 1
    assert len(await desk.recorded("appeal")) == 1


async def test_of_appeals_at_once_all_get_the_same(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    await desk.add(blocked)
    got: list[Appeal] = []

    async def file() -> None:
        got.append(await appeals.file(OWNER, "imgen", blocked.public_id, "why?"))

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(file)
    assert len(got) == 5 and len({each.id for each in got}) == 1


async def test_another_tenants_job_is_not_there(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    await desk.add(blocked)
    for caller, surface, public_id in (
        (STRANGER, "imgen", blocked.public_id),
        (OWNER, "umrgen", blocked.public_id),
        (OWNER, "imgen", "run_unknown"),
    ):
        with pytest.raises(JobNotFound):
            await appeals.file(caller, surface, public_id, "why?")
    assert await appeals.list(None) == []


@pytest.mark.parametrize(
    "new",
    [
        pytest.param(reviewed(SAFE, SAFE), id="safe"),
        pytest.param(reviewed(BLOCKED, state=State.FINISHING), id="being-finished"),
        pytest.param(job(), id="queued"),
        pytest.param(job(state=State.FAILED), id="failed"),
        pytest.param(job(state=State.COMPLETED, outcome=Outcome(verdict=SAFE)), id="safe-of-before"),
    ],
)
async def test_where_nothing_is_blocked_there_is_nothing_to_appeal(desk: Desk, appeals: Appeals, new: Job) -> None:
    await desk.add(new)
    with pytest.raises(NothingToAppeal):
        await appeals.file(OWNER, "imgen", new.public_id, "why?")
    assert await appeals.list(None) == []


@pytest.mark.parametrize(
    "reason", ["", "  \n ", "x" * 2001, "a\0b", "half \ud800"], ids=["no", "blank", "long", "nul", "half"]
)
async def test_a_reason_is_text_of_1_to_2000_characters(desk: Desk, appeals: Appeals, reason: str) -> None:
    blocked = reviewed(BLOCKED)
    await desk.add(blocked)
    with pytest.raises(InvalidField, match="Invalid reason") as caught:
        await appeals.file(OWNER, "imgen", blocked.public_id, reason)
    assert caught.value.fix
    assert (await appeals.file(OWNER, "imgen", blocked.public_id, "x" * 2000)).reason == "x" * 2000


async def test_a_released_picture_is_finished_with_the_human_verdict_on_record(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(SAFE, BLOCKED, BLOCKED)
    appeal = await filed(desk, blocked)
    decided = await appeals.release(appeal.id, "Ada", "a kidney indeed")
    assert decided == replace(appeal, state="released", decided_at=5000.5, decided_by="Ada", note="a kidney indeed")
    reopened = await desk.jobs.get(blocked.gen_id)
    assert reopened is not None and reopened.release is not None
    assert (reopened.state, reopened.release.indexes, reopened.release.by) == (State.FINISHING, (1, 2), "Ada")
    assert reopened.outcome == blocked.outcome, "what it is finished from is still there"
    assert await desk.jobs.due(now=desk.now, limit=9) == [blocked.gen_id]
    (body,) = await desk.recorded("appeal_decided")
    assert (body["decision"], body["by"], body["note"]) == ("released", "Ada", "a kidney indeed")
    human = [(each["index"], each["safe"], each["reviewer"], each["findings"]) for each in body["pictures"]]
    assert human == [(1, True, "human:Ada", ["adult.nudity"]), (2, True, "human:Ada", ["adult.nudity"])]


async def test_releasing_again_changes_nothing(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    appeal = await filed(desk, blocked)
    decided = await appeals.release(appeal.id, "Ada", "fine")
    assert await appeals.release(appeal.id, "Bob", "fine too") == decided
    assert len(await desk.recorded("appeal_decided")) == 1
    with pytest.raises(AppealDecided):
        await appeals.uphold(appeal.id, "Bob", "no")


async def test_an_upheld_picture_stays_blocked_for_good(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(BLOCKED)
    appeal = await filed(desk, blocked)
    decided = await appeals.uphold(appeal.id, "Ada", "it is none")
    assert (decided.state, decided.decided_by) == ("upheld", "Ada")
    assert await appeals.uphold(appeal.id, "Ada", "it is none") == decided
    assert await desk.jobs.get(blocked.gen_id) == blocked
    with pytest.raises(AppealDecided):
        await appeals.release(appeal.id, "Bob", "it is one")
    with pytest.raises(AppealDecided, match="upheld"):
        await appeals.file(OWNER, "imgen", blocked.public_id, "once more")
    (body,) = await desk.recorded("appeal_decided")
    assert [each["safe"] for each in body["pictures"]] == [False]


async def test_a_released_job_can_not_be_appealed_again(desk: Desk, appeals: Appeals) -> None:
    appeal = await filed(desk, reviewed(BLOCKED))
    await appeals.release(appeal.id, "Ada", "fine")
    with pytest.raises(AppealDecided, match="released"):
        await appeals.file(OWNER, "imgen", appeal.public_id, "once more")


@pytest.mark.parametrize(
    "verdicts",
    [
        pytest.param((MINORS,), id="minors"),
        pytest.param((BLOCKED, MINORS), id="minors-beside"),
        pytest.param((replace(MINORS, releasable=True),), id="minors-whatever-the-rule-says"),
        pytest.param((UNRELEASABLE,), id="unreleasable"),
    ],
)
async def test_what_nobody_may_release_stays_where_it_is(
    desk: Desk, appeals: Appeals, verdicts: tuple[Verdict, ...]
) -> None:
    blocked = reviewed(*verdicts)
    appeal = await filed(desk, blocked)
    with pytest.raises(NotReleasable):
        await appeals.release(appeal.id, "Ada", "fine")
    assert await desk.jobs.get(blocked.gen_id) == blocked
    assert await appeals.list() == [appeal]
    assert await desk.recorded("appeal_decided") == []
    assert (await appeals.uphold(appeal.id, "Ada", "of course")).state == "upheld"


async def test_beside_a_picture_that_nobody_may_release_the_others_can_be(desk: Desk, appeals: Appeals) -> None:
    blocked = reviewed(UNRELEASABLE, BLOCKED)
    appeal = await filed(desk, blocked)
    await appeals.release(appeal.id, "Ada", "fine")
    reopened = await desk.jobs.get(blocked.gen_id)
    assert reopened is not None and reopened.release is not None and reopened.release.indexes == (1,)


async def test_a_blocked_job_of_before_has_one_verdict_for_its_first_picture(desk: Desk, appeals: Appeals) -> None:
    old = job(state=State.BLOCKED, outcome=Outcome(verdict=BLOCKED, masters=("quarantine/x/0.png",)))
    appeal = await filed(desk, old)
    await appeals.release(appeal.id, "Ada", "fine")
    reopened = await desk.jobs.get(old.gen_id)
    assert reopened is not None and reopened.release is not None and reopened.release.indexes == (0,)


async def test_an_unknown_appeal_is_not_found(appeals: Appeals) -> None:
    for decide in (appeals.release, appeals.uphold):
        with pytest.raises(AppealNotFound):
            await decide("app_unknown", "Ada", "fine")


@pytest.mark.parametrize(("by", "note"), [("", "fine"), ("Ada", "")])
async def test_who_decides_says_who_and_why(desk: Desk, appeals: Appeals, by: str, note: str) -> None:
    appeal = await filed(desk, reviewed(BLOCKED))
    for decide in (appeals.release, appeals.uphold):
        with pytest.raises(InvalidField):
            await decide(appeal.id, by, note)
    assert await appeals.list() == [appeal]


@pytest.mark.parametrize("finished_meanwhile", [False, True], ids=["at-once", "finished-meanwhile"])
@pytest.mark.parametrize("writes", range(4))
async def test_a_release_that_was_killed_between_two_writes_can_be_done_again(
    desk: Desk, appeals: Appeals, writes: int, finished_meanwhile: bool
) -> None:
    """Three writes: audit, job, appeal. However many were done, doing it again ends the same way, and once."""
    blocked = reviewed(BLOCKED)
    appeal = await filed(desk, blocked)
    desk.database.left = writes
    if writes < 3:
        with pytest.raises(Killed):
            await appeals.release(appeal.id, "Ada", "fine")
    else:
        await appeals.release(appeal.id, "Ada", "fine")
    desk.database.left = None
    stopped = await desk.jobs.get(blocked.gen_id)
    assert stopped is not None
    assert (stopped.release is not None) == (writes >= 2)
    # Never a picture on its way without the human verdict on record.
    assert stopped.release is None or len(await desk.recorded("appeal_decided")) == 1
    if finished_meanwhile and stopped.release is not None and stopped.outcome is not None:
        await desk.jobs.claim(blocked.gen_id, lease="mine", now=desk.now, until=desk.now + 9)
        reviews = tuple(replace(each, verdict=each.verdict.released("Ada")) for each in stopped.outcome.reviews)
        done = replace(stopped, state=State.COMPLETED, outcome=replace(stopped.outcome, reviews=reviews))
        assert await desk.jobs.save(done, lease="mine", release=True)
    desk.now += 60
    decided = await appeals_of(desk).release(appeal.id, "Ada", "fine")
    assert decided.state == "released"
    assert len(await desk.recorded("appeal_decided")) == 1
    after = await desk.jobs.get(blocked.gen_id)
    assert after is not None and after.release is not None and after.release.indexes == (0,)
    if stopped.release is not None and finished_meanwhile:
        assert after.state is State.COMPLETED, "it is not finished a second time"


async def test_what_is_released_already_can_not_be_upheld_after_a_crash(desk: Desk, appeals: Appeals) -> None:
    appeal = await filed(desk, reviewed(BLOCKED))
    desk.database.left = 2
    with pytest.raises(Killed):
        await appeals.release(appeal.id, "Ada", "fine")
    desk.database.left = None
    with pytest.raises(AppealDecided):
        await appeals.uphold(appeal.id, "Bob", "no")
    assert (await appeals.release(appeal.id, "Ada", "fine")).state == "released"


async def test_an_appeal_whose_filing_was_killed_is_on_record_when_it_is_filed_again(
    desk: Desk, appeals: Appeals
) -> None:
    blocked = reviewed(BLOCKED)
    await desk.add(blocked)
    desk.database.left = 1
    with pytest.raises(Killed):
        await appeals.file(OWNER, "imgen", blocked.public_id, "why?")
    desk.database.left = None
    appeal = await appeals.file(OWNER, "imgen", blocked.public_id, "why?")
    assert await appeals.list() == [appeal]
    assert len(await desk.recorded("appeal")) == 1
