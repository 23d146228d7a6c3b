"""The circuit breaker, as a state machine."""

from __future__ import annotations

from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.breaker import Breaker


def opened(now: float = 0.0) -> Breaker:
    breaker = Breaker(threshold=3, pause_s=2.0, longest_pause_s=6.0)
    for _ in range(3):
        breaker.failed(now)
    return breaker


def test_it_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker(threshold=3)
    for _ in range(5):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.succeeded()
    assert breaker.closed
    assert not opened().closed


def test_half_open_lets_one_probe_through() -> None:
    breaker = opened()
    assert not breaker.allow(1.9)
    assert breaker.allow(2.1)
    assert not breaker.allow(2.1)
    breaker.succeeded()
    assert breaker.allow(2.2)
    assert breaker.allow(2.2)


def test_a_failed_probe_doubles_the_pause_up_to_its_limit() -> None:
    breaker = opened()
    now = 2.0
    for pause in (4.0, 6.0, 6.0):
        assert breaker.allow(now)
        breaker.failed(now)
        assert not breaker.allow(now + pause - 0.1)
        now += pause
        assert breaker.allow(now)
        breaker.abandoned()


def test_an_abandoned_probe_leaves_room_for_the_next() -> None:
    breaker = opened()
    assert breaker.allow(3.0)
    breaker.abandoned()
    assert breaker.allow(3.0)


class BreakerMachine(RuleBasedStateMachine):
    """Calls may start and end in any order; an open breaker must always find its way back."""

    def __init__(self) -> None:
        super().__init__()
        self.breaker = Breaker(threshold=2, pause_s=1.0, longest_pause_s=4.0)
        self.now = 0.0
        self.running = 0

    @rule()
    def call(self) -> None:
        self.running += self.breaker.allow(self.now)

    @precondition(lambda self: self.running)
    @rule()
    def succeed(self) -> None:
        self.running -= 1
        self.breaker.succeeded()
        assert self.breaker.closed

    @precondition(lambda self: self.running)
    @rule()
    def fail(self) -> None:
        self.running -= 1
        self.breaker.failed(self.now)

    @precondition(lambda self: self.running)
    @rule()
    def abandon(self) -> None:
        self.running -= 1
        self.breaker.abandoned()

    @rule()
    def wait(self) -> None:
        self.now += 1.5

    @invariant()
    def it_recovers_once_nothing_runs(self) -> None:
        if self.running == 0:
            copy = Breaker(
                self.breaker.threshold, self.breaker.pause_s, self.breaker.longest_pause_s
            )
            for name in ("_failures", "_open_until", "_pause", "_probing"):
                setattr(copy, name, getattr(self.breaker, name))
            assert copy.allow(self.now + 100.0)


BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30)
test_breaker_machine = BreakerMachine.TestCase
