"""Hold and release: the judge sees the same prefix always, and nothing goes out unjudged."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.gate import Gate, Signal
from router.confidence import Prefix
from router.rows import StudentAnswer, TokenLogprob
from tests.fakes.answers import vllm_chunk, vllm_events

WORDS = st.lists(st.sampled_from(["a", "bc", " d", "é"]), min_size=1, max_size=12)
HOLDS = st.one_of(st.just("all"), st.integers(1, 15))


def run(gate: Gate, events: list[dict[str, Any]], *, accept: bool = True) -> list[Signal]:
    """Feed everything; accept at the gate if told to."""
    seen: list[Signal] = []
    for event in [*events, None]:
        signals = gate.end() if event is None else gate.feed(event)
        for signal in signals:
            seen.append(signal)
            if signal is Signal.JUDGE and accept:
                seen += gate.accept()
    return seen


@given(WORDS, HOLDS, st.integers(1, 8))
def test_the_judge_is_asked_once_and_before_release(
    words: list[str], hold: Any, gate_tokens: int
) -> None:
    signals = run(Gate(gate_tokens, hold), vllm_events(words))
    assert signals.count(Signal.JUDGE) == 1
    assert signals.count(Signal.RELEASE) == 1
    assert signals.index(Signal.JUDGE) < signals.index(Signal.RELEASE)


@given(WORDS, HOLDS, st.integers(1, 8))
def test_nothing_is_released_without_acceptance(
    words: list[str], hold: Any, gate_tokens: int
) -> None:
    gate = Gate(gate_tokens, hold)
    assert Signal.RELEASE not in run(gate, vllm_events(words), accept=False)
    assert not gate.released


@given(WORDS, HOLDS, st.integers(1, 8))
def test_the_prefix_is_that_of_fitting_however_long_the_hold(
    words: list[str], hold: Any, gate_tokens: int
) -> None:
    gate = Gate(gate_tokens, hold)
    prefixes: list[Prefix] = []
    for event in vllm_events(words):
        for signal in gate.feed(event):
            if signal is Signal.JUDGE:
                prefixes.append(gate.prefix)
    tokens = tuple(TokenLogprob(t.token, t.logprob, t.top) for t in gate.tokens)
    fitted = Prefix.of(StudentAnswer("".join(words), tokens, "stop"), gate_tokens)
    assert prefixes == [fitted]


@given(WORDS, st.integers(0, 12))
def test_a_cut_stream_is_never_released_whole(words: list[str], kept: int) -> None:
    events = vllm_events(words)
    gate = Gate(4, "all")
    signals = run(gate, events[: min(kept, len(words) + 1)])
    assert Signal.RELEASE not in signals
    assert signals[-1] is Signal.FAULT


def test_an_in_band_error_makes_a_later_done_void() -> None:
    gate = Gate(32, "all")
    events = vllm_events(["a", "b"])
    assert run(gate, [*events[:2], {"error": {"message": "boom", "code": 500}}, *events[2:]]) == [
        Signal.FAULT
    ]
    assert gate.fault == "in_band_error"


@pytest.mark.parametrize("finish", ["length", "content_filter", "abort"])
def test_an_answer_that_did_not_stop_by_itself_is_a_fault(finish: str) -> None:
    gate = Gate(32, "all")
    assert run(gate, vllm_events(["a"], finish=finish)) == [Signal.FAULT]
    assert gate.fault == f"finish_{finish}"


def test_a_cut_off_after_release_is_a_fault_too() -> None:
    gate = Gate(2, 2)
    signals = run(gate, vllm_events(["a", "b", "c", "d"], finish="length"))
    assert signals == [Signal.JUDGE, Signal.RELEASE, Signal.FAULT]


def test_an_empty_answer_is_a_fault() -> None:
    assert run(Gate(32, "all"), vllm_events([""])) == [Signal.FAULT]
    assert run(Gate(32, "all"), []) == [Signal.FAULT]


def test_hold_shorter_than_the_gate_is_the_gate() -> None:
    gate = Gate(3, 1)
    released_at = []
    for number, event in enumerate(vllm_events(["a"] * 8)):
        for signal in gate.feed(event):
            if signal is Signal.JUDGE:
                assert Signal.RELEASE in gate.accept()
                released_at.append(number)
    assert released_at == [4]


def test_only_the_fitted_number_of_alternatives_counts() -> None:
    event = vllm_chunk(
        {"content": "a"},
        {
            "content": [
                {"token": "a", "logprob": -0.1, "top_logprobs": [{"logprob": -i} for i in range(9)]}
            ]
        },
    )
    gate = Gate(32, "all")
    gate.feed(event)
    assert len(gate.tokens[0].top) == 5
