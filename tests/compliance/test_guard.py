"""What is done about a reviewer that fails: how often it is asked again, by how many, and when it is left alone."""

import threading
from itertools import cycle, islice

import pytest

from compliance.errors import BrokenRender, ReviewUnavailable
from compliance.review import Context, Opinion, review
from compliance.reviewers.guard import Guarded
from compliance.reviewers.judge import Judge
from compliance.reviewers.moderation import Moderation
from compliance.reviewers.render import RenderCheck
from compliance.rulesets import load_rulesets
from tests.compliance.fake_openai import FAULTS, KEY, VISION, FakeOpenAI, azure_filter, completion, error, rate_limited
from tests.compliance.samples import bytes_of, decoded, scene

DEFAULT = load_rulesets()["default"]
PICTURE = decoded(bytes_of(scene()))
CONTEXT = Context(positive="a hill, fog")


class Clock:
    """Time that passes only while somebody sleeps, or when the test says so."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds


class Seer:
    """A reviewer that does what it is told, one step per call; after the last step it is content."""

    name, version, labels, always = "judge", "7", None, True

    def __init__(self, *steps):
        self.steps = list(steps)
        self.calls = 0

    def review(self, picture, context, ruleset):
        self.calls += 1
        step = self.steps.pop(0) if self.steps else Opinion()
        if isinstance(step, BaseException):
            raise step
        return step() if callable(step) else step


@pytest.fixture
def clock():
    return Clock()


def down(message="It is down.", **more):
    return ReviewUnavailable(message, **more)


def guarded(reviewer, clock, **settings):
    return Guarded(reviewer, **{"clock": clock, "sleep": clock.sleep, "chance": lambda: 1.0, **settings})


def ask(reviewer):
    return reviewer.review(PICTURE, CONTEXT, DEFAULT)


def test_it_stands_in_for_its_reviewer(clock):
    guard = guarded(Seer(Opinion(picture={"gore": 0.9})), clock)
    assert (guard.name, guard.version, guard.labels, guard.always) == ("judge", "7", None, True)
    assert review(PICTURE, CONTEXT, DEFAULT, [guard]).codes == ("gore",)


# Asking again.


def test_it_asks_again_with_longer_and_longer_waits(clock):
    seer = Seer(down(), down(), down())
    assert ask(guarded(seer, clock, attempts=4, first_wait=1.0)) == Opinion()
    assert (seer.calls, clock.slept) == (4, [1.0, 2.0, 4.0])


def test_no_wait_is_longer_than_the_longest(clock):
    ask(guarded(Seer(*[down()] * 4), clock, attempts=9, first_wait=1.0, longest_wait=3.0))
    assert clock.slept == [1.0, 2.0, 3.0, 3.0]


def test_chance_shortens_a_wait_by_at_most_half(clock):
    ask(guarded(Seer(down(), down()), clock, first_wait=1.0, chance=iter([0.0, 0.5]).__next__))
    assert clock.slept == [0.5, 1.5]


def test_it_gives_up_after_so_many_attempts_with_the_last_error(clock):
    seer = Seer(*[down(f"Failure {number}.") for number in range(9)])
    with pytest.raises(ReviewUnavailable, match=r"Failure 2\."):
        ask(guarded(seer, clock, attempts=3))
    assert seer.calls == 3


def test_it_gives_up_when_the_next_call_would_be_too_late(clock):
    seer = Seer(*[down()] * 99)
    with pytest.raises(ReviewUnavailable, match="down"):
        ask(guarded(seer, clock, attempts=99, patience=10.0, first_wait=1.0, trips_after=99))
    assert clock.slept == [1.0, 2.0, 4.0]


def test_it_waits_as_long_as_the_reviewer_asks_for(clock):
    ask(guarded(Seer(down(after=7.0)), clock))
    assert clock.slept == [7.0]


def test_a_wait_beyond_its_patience_is_not_begun(clock):
    seer = Seer(down(after=3600.0))
    with pytest.raises(ReviewUnavailable) as caught:
        ask(guarded(seer, clock))
    assert (seer.calls, clock.slept, caught.value.after) == (1, [], 3600.0)


def test_what_asking_again_does_not_help_is_asked_once(clock):
    seer = Seer(down("Bad key.", fix="Give another.", again=False))
    with pytest.raises(ReviewUnavailable, match="Give another"):
        ask(guarded(seer, clock))
    assert (seer.calls, clock.slept) == (1, [])


@pytest.mark.parametrize("raised", [BrokenRender(), RuntimeError("a bug")], ids=["broken-render", "bug"])
def test_what_is_no_outage_of_a_reviewer_is_not_asked_again(clock, raised):
    seer = Seer(raised)
    with pytest.raises(type(raised)):
        ask(guarded(seer, clock))
    assert seer.calls == 1


# Leaving it alone.


def fail(guard, times=1):
    for _ in range(times):
        with pytest.raises((ReviewUnavailable, BrokenRender, RuntimeError)):
            ask(guard)


def test_after_so_many_failures_in_a_row_nobody_asks(clock):
    seer = Seer(*[down("It is down.", fix="Start it.")] * 99)
    guard = guarded(seer, clock, attempts=1, trips_after=3, rest=30.0)
    fail(guard, 3)
    with pytest.raises(ReviewUnavailable, match=r"left alone after 3 failures\. It is down\. Start it\.") as caught:
        ask(guard)
    assert (seer.calls, clock.slept) == (3, [])
    assert (caught.value.again, caught.value.after) == (False, 30.0)
    assert guard.trouble == "It is down. Start it."


def test_an_answer_between_failures_starts_the_count_again(clock):
    seer = Seer(*[down(), down(), Opinion()] * 5)
    guard = guarded(seer, clock, attempts=1, trips_after=3)
    for _ in range(5):
        fail(guard, 2)
        ask(guard)
    assert seer.calls == 15


def test_the_retries_of_one_review_count_too(clock):
    seer = Seer(*[down()] * 9)
    fail(guarded(seer, clock, attempts=9, trips_after=3))
    assert seer.calls == 3


def test_after_the_rest_an_answer_ends_the_trouble(clock):
    guard = guarded(Seer(down(), down()), clock, attempts=1, trips_after=2, rest=30.0)
    fail(guard, 2)
    clock.now += 30.0
    assert ask(guard) == ask(guard) == Opinion()
    assert guard.trouble == ""


def test_after_the_rest_a_failure_begins_another_rest(clock):
    seer = Seer(*[down()] * 9)
    guard = guarded(seer, clock, attempts=1, trips_after=2, rest=30.0)
    fail(guard, 2)
    for calls in (3, 4):
        clock.now += 30.0
        fail(guard, 5)
        assert seer.calls == calls


def test_after_the_rest_only_one_call_tries(clock):
    begun, end = threading.Event(), threading.Event()

    def slowly():
        begun.set()
        assert end.wait(10)
        return Opinion()

    seer = Seer(down(), down(), slowly)
    guard = guarded(seer, clock, attempts=1, trips_after=2, rest=30.0)
    fail(guard, 2)
    clock.now += 31.0
    trial = threading.Thread(target=ask, args=[guard])
    trial.start()
    assert begun.wait(10)
    fail(guard, 5)
    assert seer.calls == 3
    end.set()
    trial.join(10)
    assert ask(guard) == Opinion()


@pytest.mark.parametrize(
    "neutral", [BrokenRender(), down(outage=False, again=False)], ids=["broken-render", "no-answer-to-this"]
)
def test_what_is_no_outage_neither_opens_nor_closes_the_circuit(clock, neutral):
    seer = Seer(*[neutral] * 9, down(), neutral, down(), neutral, down(), Opinion())
    guard = guarded(seer, clock, attempts=1, trips_after=2, rest=30.0)
    fail(guard, 9)
    assert guard.trouble == ""
    fail(guard, 3)
    assert guard.trouble
    clock.now += 31.0
    assert guard.trouble == ""  # it may be asked: one call is let through
    fail(guard)
    fail(guard)  # the trial has shown nothing, so this one is another: it fails, and the rest begins anew
    assert guard.trouble
    clock.now += 31.0
    assert ask(guard) == Opinion()
    assert guard.trouble == ""


def test_a_bug_counts_as_a_failure(clock):
    seer = Seer(*[RuntimeError("secret")] * 9)
    guard = guarded(seer, clock, attempts=1, trips_after=2)
    fail(guard, 5)
    assert seer.calls == 2
    assert guard.trouble == "It raised RuntimeError."


# How many at once.


def test_no_more_than_so_many_call_at_once_and_all_are_answered(clock):
    inside, most, lock, together = [0], [0], threading.Lock(), threading.Barrier(3)

    def count():
        with lock:
            inside[0] += 1
            most[0] = max(most[0], inside[0])
        together.wait(10)
        with lock:
            inside[0] -= 1
        return Opinion()

    guard = guarded(Seer(*[count] * 12), clock, at_once=3)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(ask(guard))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (most[0], len(answers)) == (3, 12)


def test_who_finds_no_place_in_time_gives_up_and_the_reviewer_is_not_blamed(clock):
    begun, end = threading.Event(), threading.Event()

    def slowly():
        begun.set()
        assert end.wait(10)
        return Opinion()

    seer = Seer(slowly)
    guard = guarded(seer, clock, at_once=1, patience=0.0, trips_after=1)
    busy = threading.Thread(target=ask, args=[guard])
    busy.start()
    assert begun.wait(10)
    with pytest.raises(ReviewUnavailable, match="too much to do"):
        ask(guard)
    end.set()
    busy.join(10)
    assert guard.trouble == ""
    assert ask(guard) == Opinion()


def test_a_failed_call_gives_its_place_back(clock):
    seer = Seer(*[down()] * 5, RuntimeError(), BrokenRender())
    guard = guarded(seer, clock, at_once=1, attempts=1, trips_after=99)
    fail(guard, 7)
    assert ask(guard) == Opinion()


# Over the wire.


@pytest.fixture
def server():
    with FakeOpenAI() as server:
        yield server


def judge(server, timeout=10.0):
    return Judge(base_url=server.url, api_key=KEY, model=VISION, timeout=timeout)


def moderation(server, timeout=10.0):
    return Moderation(base_url=server.url, api_key=KEY, timeout=timeout)


def test_a_service_that_recovers_gives_its_verdict(server, clock):
    server.judge = lambda rule, data: (0.0, 0.9 if rule["id"] == "gore" else 0.0)
    server.script(rate_limited(after=3), error(503), completion("What?"))
    assert review(PICTURE, CONTEXT, DEFAULT, [guarded(judge(server), clock)]).codes == ("gore",)
    assert len(server.asked) == 4
    assert clock.slept == [3.0, 1.0, 2.0]


def test_a_wrong_key_is_used_once(server, clock):
    server.default = error(401, "invalid_api_key")
    with pytest.raises(ReviewUnavailable, match="valid key"):
        review(PICTURE, CONTEXT, DEFAULT, [guarded(moderation(server), clock)])
    assert len(server.asked) == 1


def test_a_policy_refusal_is_asked_once_and_is_no_outage(server, clock):
    server.default = azure_filter()
    guard = guarded(judge(server), clock, trips_after=1)
    for number in range(1, 4):
        assert review(PICTURE, CONTEXT, DEFAULT, [guard]).codes == ("provider.refused",)
        assert len(server.asked) == number
    assert (guard.trouble, clock.slept) == ("", [])


def test_a_model_that_refuses_is_asked_again_and_is_no_outage(server, clock):
    server.default = completion(None, refusal="I can't help with that.")
    guard = guarded(judge(server), clock, attempts=3, trips_after=1)
    with pytest.raises(ReviewUnavailable, match="refused to judge"):
        review(PICTURE, CONTEXT, DEFAULT, [guard])
    assert (len(server.asked), guard.trouble) == (3, "")


@pytest.mark.parametrize("trips_after", [5, 10_000], ids=["breaker", "no-breaker"])
def test_when_every_reviewer_fails_at_every_call_no_review_has_a_verdict(server, clock, trips_after):
    """Each order of reviewers, each fault; every third time the first two calls are well, and what comes then fails."""
    kinds = [
        guarded(made(server, timeout=0.1), clock, attempts=2, trips_after=trips_after) for made in (moderation, judge)
    ]
    faults = [fault for fault, _, _ in FAULTS.values()] + [completion(None, refusal="No."), completion("{}", "length")]
    verdicts, errors = [], []
    for number, fault in enumerate(islice(cycle(faults), 100)):
        server.default = fault
        server.script(*[None] * 2 * (number % 3 == 0))
        try:
            reviewers = [RenderCheck(), *(kinds if number % 2 else reversed(kinds))]
            verdicts.append(review(PICTURE, CONTEXT, DEFAULT, reviewers))
        except ReviewUnavailable as exc:
            errors.append(exc)
        clock.now += 31.0
    assert (len(verdicts), len(errors)) == (0, 100)
    assert not any(KEY in str(exc) for exc in errors)
