"""Rows are read in every documented form, and a bad line is named with file and number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from router.errors import RowError
from router.rows import StudentAnswer, TokenLogprob, read_rows, student_json, write_rows

ANSWER = StudentAnswer(
    "apr", (TokenLogprob("ap", -0.5, (-0.5, -1.5)), TokenLogprob("r", -0.1)), "stop"
)


def one(tmp_path: Path, row: Any) -> Any:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    return read_rows(path, "be brief")[0]


def test_text_rows_get_the_system_message(tmp_path: Path) -> None:
    row = one(tmp_path, {"text": "hi", "label": "greeting"})
    assert [(m.role, m.content) for m in row.messages] == [("system", "be brief"), ("user", "hi")]
    assert (row.completion, row.text, row.student, row.weight) == ("greeting", "hi", None, 1.0)


def test_message_rows_and_their_student_survive_a_round_trip(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "what is my apr"}]
    raw = {"messages": chat, "completion": "apr", "student": student_json(ANSWER), "weight": 50.0}
    path = tmp_path / "rows.jsonl.gz"
    write_rows(path, [raw])
    row = read_rows(path)[0]
    assert row.student == ANSWER
    assert row.weight == 50.0
    first = path.read_bytes()
    write_rows(path, [raw])
    assert path.read_bytes() == first


def test_openai_style_tokens_are_read_too(tmp_path: Path) -> None:
    student = {"text": "a", "tokens": ["a"], "top_logprobs": [{"a": -0.2, "b": -2.0}],
               "finish_reason": "stop"}  # fmt: skip
    row = one(tmp_path, {"text": "x", "label": "a", "student": student})
    assert row.student.tokens == (TokenLogprob("a", -0.2, (-0.2, -2.0)),)
    listed = [[{"token": "b", "logprob": -0.1}, {"token": "a", "logprob": -2.5}]]
    row = one(tmp_path, {"text": "x", "label": "a", "student": {**student, "top_logprobs": listed}})
    assert row.student.tokens == (TokenLogprob("a", -2.5, (-0.1, -2.5)),)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ([], "a row is a JSON object, not list"),
        ({}, "needs 'text' (string) or 'messages'"),
        ({"messages": []}, "needs 'text' (string) or 'messages'"),
        ({"messages": ["x"]}, "each message needs a 'role'"),
        ({"text": "a", "label": 3}, "'label' or 'completion' must be a string"),
        ({"text": "a", "weight": 0}, "'weight' must be a positive finite number"),
        ({"text": "a", "weight": True}, "'weight' must be a positive finite number"),
        ({"text": "a", "student": {}}, "'student' needs 'text'"),
        ({"text": "a", "student": {"text": "b", "tokens": 3}}, "are lists"),
        ({"text": "a", "student": {"text": "b", "tokens": [{}]}}, "malformed student token"),
        ({"text": "a", "student": {"text": "b", "tokens": ["b"]}}, "malformed student token"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: Any, reason: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "fine"}\n\n' + json.dumps(row) + "\n")
    with pytest.raises(RowError) as caught:
        read_rows(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b"{", "not JSON"),
        ("a.jsonl", b'{"text": "\xff"}', "cannot be read"),
        ("a.jsonl.gz", b"plain", "cannot be read"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, raw: bytes, reason: str) -> None:
    path = tmp_path / name
    path.write_bytes(raw)
    with pytest.raises(RowError, match=reason):
        read_rows(path)
    with pytest.raises(RowError, match="cannot be read"):
        read_rows(tmp_path / "none")
