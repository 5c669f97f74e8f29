from __future__ import annotations

from handler.pace import Pace


class Clock:
    def __init__(self) -> None:
        self.now = 0.0
        self.slept: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


def polls(pace: Pace, clock: Clock, *seconds: float) -> None:
    for each in seconds:
        clock.now += each
        assert pace(1) == 1


def test_polls_that_are_held_are_never_slowed() -> None:
    clock = Clock()
    polls(Pace(clock=clock, sleep=clock.sleep), clock, *[20.0] * 50)
    assert clock.slept == []


def test_a_few_quick_polls_are_nothing() -> None:
    clock = Clock()
    polls(Pace(clock=clock, sleep=clock.sleep), clock, 20.0, 0.001, 0.001, 0.001, 1.0, 0.001)
    assert clock.slept == []


def test_polls_that_fail_at_once_are_slowed_to_one_a_second() -> None:
    clock = Clock()
    polls(Pace(clock=clock, sleep=clock.sleep), clock, *[0.001] * 3000)
    assert clock.slept[:6] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert set(clock.slept[6:]) == {1.0}


def test_one_poll_that_is_held_makes_all_well_again() -> None:
    clock = Clock()
    pace = Pace(clock=clock, sleep=clock.sleep)
    polls(pace, clock, *[0.001] * 10, 20.0)
    slept = len(clock.slept)
    polls(pace, clock, 0.001, 0.001)
    assert len(clock.slept) == slept


def test_a_process_that_can_draw_no_more_is_ended_before_it_asks_for_a_job() -> None:
    ends, done = [], [False]
    pace = Pace(ended=lambda: done[0], end=lambda: ends.append("ended"))
    assert pace(1) == 1
    assert ends == []
    done[0] = True
    pace(1)
    assert ends == ["ended"]
