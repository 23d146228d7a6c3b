"""Comparators: what counts as the same answer, and what never does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.agreement import ErrorRate, false_agree, false_disagree, row_comparator
from router.comparator import (
    KINDS,
    Spec,
    calls_text,
    comparator,
    json_differences,
    parse,
)
from router.errors import FitError
from router.rows import Row, StudentAnswer
from router.template import Message
from tests.fakes.rig import encoders

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-1000, 1000) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("name", "one", "other", "same"),
    [
        ("label", " apr\n", "apr", True),
        ("label", "APR", "apr", False),
        ("text", "The  answer is\n4.", "the answer is 4", True),
        ("text", "4", "5", False),
        ("json", '{"a": 1, "b": [1, 2]}', '{"b": [1, 2], "a": 1.0}', True),
        ("json", '{"a": 1}', '{"a": 1, "b": null}', False),
        ("json", '{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ("json:unordered=1", '{"a": [1, 2]}', '{"a": [2, 1]}', True),
        ("json:unordered=1", "[1, 1, 2]", "[1, 2, 2]", False),
        ("json", '{"a": true}', '{"a": 1}', False),
        ("json", '{"a": "1"}', '{"a": 1}', False),
        ("json:tolerance=0.01", '{"a": 100}', '{"a": 100.9}', True),
        ("json:tolerance=0.01", '{"a": 100}', '{"a": 102}', False),
        ("json:ignore=id+ts", '{"a": 1, "id": 2}', '{"a": 1, "ts": 3}', True),
        ("json:only=a", '{"a": 1, "b": 2}', '{"a": 1}', True),
        ("json:only=a", '{"a": 1}', '{"a": 2}', False),
        ("json", "not json", "Not  JSON.", True),
        ("json", "not json", "{}", False),
        ("json", "[" * 100_000, "{}", False),
        ("json:tolerance=0.1,unordered=1", "[100, 109]", "[109, 118]", True),
        ("number", "so it is 1,234.50 dollars", "#### 1234.5", True),
        ("number", "first 3, then 4", "4", True),
        ("number", "4", "-4", False),
        ("number", "x #### 12 apples out of 20", "12", True),
        ("number:tolerance=0.001", "3.1415", "3.1416", True),
        ("number", "no idea", "No idea.", True),
        ("number", "no idea", "7", False),
        ("tool_calls", '[{"name": "f", "arguments": {"x": 1, "y": 2}}]',
         '[{"name": "f", "arguments": {"y": 2, "x": 1.0}}]', True),
        ("tool_calls", '[{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]',
         '[{"name": "g", "arguments": {}}, {"name": "f", "arguments": {}}]', True),
        ("tool_calls", '[{"name": "f", "arguments": {}}]', '[{"name": "g", "arguments": {}}]',
         False),
        ("tool_calls", '[{"name": "f", "arguments": {}}]', "I cannot do that", False),
        ("tool_calls", "I cannot do that", "i cannot do that.", True),
    ],
)  # fmt: skip
def test_what_is_the_same(name: str, one: str, other: str, same: bool) -> None:
    agree = comparator(name)
    assert agree(one, other) is same
    assert agree(other, one) is same


@given(JSON, st.randoms())
def test_json_equality_does_not_see_key_order_and_finds_each_difference(
    value: Any, random: Any
) -> None:
    def shuffled(v: Any) -> Any:
        if isinstance(v, dict):
            items = list(v.items())
            random.shuffle(items)
            return {k: shuffled(i) for k, i in items}
        return [shuffled(i) for i in v] if isinstance(v, list) else v

    raw = json.dumps(value)
    assert not json_differences(raw, json.dumps(shuffled(value)), Spec("json"))
    whole = json.dumps({"changed": 1, "kept": value}), json.dumps({"changed": 2, "kept": value})
    assert json_differences(*whole, Spec("json")) == ["$.changed"]


@given(st.lists(JSON, max_size=5), st.randoms())
def test_bags_are_equal_in_any_order(values: list[Any], random: Any) -> None:
    mixed = list(values)
    random.shuffle(mixed)
    spec = Spec("json", unordered=True)
    assert not json_differences(json.dumps(values), json.dumps(mixed), spec)
    assert json_differences(json.dumps([*values, "more"]), json.dumps(mixed), spec)


def test_tool_calls_are_read_from_completions() -> None:
    calls = [
        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"b":1,"a":2}'}}
    ]
    assert json.loads(calls_text(calls)) == [{"name": "f", "arguments": {"a": 2, "b": 1}}]
    broken = [{"function": {"name": "f", "arguments": "{"}}]
    assert json.loads(calls_text(broken)) == [{"name": "f", "arguments": "{"}]


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("label", "label"),
        ("json:unordered=1,tolerance=0.010", "json:tolerance=0.01,unordered=1"),
        ("json:ignore=b+a", "json:ignore=a+b"),
        ("embedding:threshold=0.9", "embedding"),
        ("number:tolerance=0", "number"),
    ],
)
def test_a_name_has_one_canonical_form(name: str, canonical: str) -> None:
    assert parse(name).name == canonical
    assert parse(canonical).name == canonical


@pytest.mark.parametrize(
    "name", ["vibes", "label:tolerance=1", "json:tolerance=2", "json:tolerance=nan", "json:x", ""]
)
def test_a_name_that_names_nothing_is_refused(name: str) -> None:
    with pytest.raises(FitError, match="comparator"):
        parse(name)


def test_kinds_that_need_more_say_so() -> None:
    assert set(KINDS) >= {"label", "text", "json", "tool_calls", "number", "embedding", "judge"}
    with pytest.raises(FitError, match="sentence encoder"):
        comparator("embedding")
    with pytest.raises(FitError, match="rows need 'agrees'"):
        comparator("judge", encoders())


def test_embeddings_tell_a_paraphrase_from_another_matter() -> None:
    agree = comparator("embedding:threshold=0.7", encoders())
    assert agree("Your card arrives within five days.", "The card will arrive in 5 days.")
    assert not agree("Your card arrives within five days.", "We cannot raise your limit.")


def row(student: str, teacher: str, **flags: bool) -> Row:
    answer = StudentAnswer(student, (), "stop")
    return Row((Message("user", "q"),), teacher, answer, **flags)  # type: ignore[arg-type]


def test_error_rates_where_gold_is_known() -> None:
    rows = [
        row("4", "4.0", equivalent=True),
        row("4", "4", equivalent=False),
        row("four", "4", equivalent=True),
        row("5", "4", equivalent=False),
        row("6", "4"),
    ]
    agrees = row_comparator("number", None)
    assert false_agree(rows, agrees) == ErrorRate(1, 4)
    assert false_disagree(rows, agrees) == ErrorRate(1, 4)
    assert false_agree(rows[-1:], agrees) is None
    assert ErrorRate(0, 59).upper == pytest.approx(0.0495, abs=2e-4)
    assert ErrorRate(3, 3).upper == 1.0


def test_the_judge_s_word_in_a_row_goes_first() -> None:
    agrees = row_comparator("judge", None)
    assert agrees(row("a", "b", agrees=True))
    assert not agrees(row("a", "a", agrees=False))
    with pytest.raises(FitError, match="rows need 'agrees'"):
        agrees(row("a", "b"))
