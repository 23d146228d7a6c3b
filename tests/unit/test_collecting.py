"""What of the captured traffic may be learned from, and what calibrates."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.calibrating import at_best_rate, rows_wanted
from distill.collecting import (
    Bill,
    Collected,
    LeftOut,
    collect,
    teacher_changed_at,
)
from gateway.store.feedback import Feedback, FeedbackState
from gateway.store.place import Place
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from gateway.store.samples import Label
from gateway.task_settings import Teacher
from tests.fakes.traffic import TASK, captured
from tests.unit.test_splitting import example

TEACHER = Teacher(base_url="http://127.0.0.1:9/v1", model="big-1")
BASE = replace(captured(1, p=0.0)[0], id="0" * 32)


def answer(text: str) -> dict[str, Any]:
    message = {"role": "assistant", "content": text}
    return {"choices": [{"message": message, "finish_reason": "stop"}]}


def collected(
    folder: Path,
    *rows: Exchange,
    teacher: Teacher = TEACHER,
    labels: dict[str, Label] | None = None,
    changed_at: float | None = None,
    until: float = 1e12,
) -> Collected:
    place = Place(folder / "x.db")
    with contextlib.closing(place.repository()) as store:
        store.put(rows)
        for row in rows:
            if row.draw is not None and row.draw.answer is not None:
                store.finish_draw(row.id, row.draw, 1.0)
        return collect(store, TASK, until, teacher, labels or {}, changed_at)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"no_train": True}, LeftOut.NOT_FOR_TRAINING),
        ({"reason": "override"}, LeftOut.OVERRIDE),
        ({"status": Status.INCOMPLETE}, LeftOut.NOT_COMPLETE),
        ({"bodies": False, "request": {}, "answer": None}, LeftOut.NOT_COMPLETE),
        ({"served_by": "student", "reason": "in_distribution"}, LeftOut.NO_TEACHER_ANSWER),
        ({"request": {**BASE.request, "tools": [{}]}}, LeftOut.NOT_PLAIN),
        ({"request": {**BASE.request, "n": 2}}, LeftOut.NOT_PLAIN),
        ({"request": {**BASE.request, "response_format": {"type": "json_object"}}},
         LeftOut.NOT_PLAIN),
        ({"request": {"messages": [{"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": "data:"}}]}]}}, LeftOut.NOT_PLAIN),
        ({"answer": answer("  ")}, LeftOut.NO_TEXT),
        ({"request": {"messages": [{"role": "system", "content": "s"}]}}, LeftOut.NO_TEXT),
    ],
)  # fmt: skip
def test_what_is_left_out_has_its_reason(
    tmp_path: Path, changes: dict[str, Any], why: LeftOut
) -> None:
    found = collected(tmp_path, replace(BASE, **changes))
    assert (found.examples, found.left_out) == ([], {why.value: 1})


def test_sides_and_probabilities(tmp_path: Path) -> None:
    """A fallback stands for itself; what the student served is known by its draws alone."""
    done = Draw(0.02, "teacher", DrawState.DONE, 1, answer("apr"), True)
    rows = [
        replace(BASE, id="1" * 32, reason="ood"),
        replace(BASE, id="2" * 32, served_by="student", reason="in_distribution", draw_p=0.02,
                draw=done),
        replace(BASE, id="3" * 32, draw_p=0.5, draw=Draw(0.5, "student", DrawState.ALONE)),
        replace(BASE, id="4" * 32, draw_p=0.5),
    ]  # fmt: skip
    found = {e.id[0]: e for e in collected(tmp_path, *rows).examples}
    assert {k: e.p for k, e in found.items()} == {"1": None, "2": 0.02, "3": 0.5, "4": None}
    assert found["2"].completion == "apr"
    assert found["3"].row.weight == 2.0


def test_a_person_s_word_is_the_label(tmp_path: Path) -> None:
    place = Place(tmp_path / "x.db")
    with contextlib.closing(place.feedback()) as said, said.transaction():
        pass
    row = replace(BASE, served_by="student", reason="in_distribution")
    with contextlib.closing(place.repository()) as store:
        store.put([row])
    with contextlib.closing(place.feedback()) as said:
        said.put(Feedback(row.id, "app", TASK, None, "transfer", None, FeedbackState.ACCEPTED, 1.0))
    (found,) = collected(tmp_path, row).examples
    assert (found.completion, found.by) == ("transfer", "human")


def test_answers_of_upstreams_that_forbid_it_are_not_learned(tmp_path: Path) -> None:
    closed = {"base_url": "http://127.0.0.1:9/v1", "model": "m", "terms": "no_distillation"}
    teacher = Teacher(base_url="http://127.0.0.1:9/v1", model="big", fallbacks=[closed])
    first = Attempt(f"{TASK}/teacher", "teacher", "ok", 200, 1, 1, 0.0, 1.0)
    rows = [
        replace(BASE, id="1" * 32, attempts=(first,)),
        replace(BASE, id="2" * 32, attempts=(
            replace(first, outcome="http_500"), replace(first, upstream=f"{TASK}/teacher1"),
        )),
        # A second answer does not say which of the upstreams gave it.
        replace(BASE, id="3" * 32, served_by="student", reason="in_distribution", draw_p=0.5,
                draw=Draw(0.5, "teacher", DrawState.DONE, 1, answer("apr"), True)),
    ]  # fmt: skip
    found = collected(tmp_path, *rows, teacher=teacher)
    assert [e.id[0] for e in found.examples] == ["1"]
    assert found.left_out == {LeftOut.LICENCE.value: 2}


def test_labels_from_before_a_change_are_stale_until_asked_again(tmp_path: Path) -> None:
    rows = [replace(BASE, id=f"{n}" * 32, created_at=float(n)) for n in (1, 2, 3)]
    labels = {
        rows[0].id: Label(rows[0].id, "new word", "big-1", 2.6),
        rows[1].id: Label(rows[1].id, "older word", "big-1", 2.0),
    }
    found = collected(tmp_path, *rows, labels=labels, changed_at=2.5)
    assert [(e.stale, e.completion) for e in found.examples] == [
        (False, "new word"), (True, found.examples[1].completion), (False, BASE_ANSWER),
    ]  # fmt: skip


BASE_ANSWER = str(BASE.answer["choices"][0]["message"]["content"]) if BASE.answer else ""


def test_the_watermark(tmp_path: Path) -> None:
    rows = [replace(BASE, id=f"{n}" * 32, created_at=float(n)) for n in (1, 2, 3)]
    found = collected(tmp_path, *rows, until=3.0)
    assert [e.created_at for e in found.examples] == [1.0, 2.0]


def run(changed: int, count: int = 300) -> dict[str, str]:
    return {str(n): "new" if n < changed else "old" for n in range(count)}


def test_the_last_step_of_the_probe_set_is_the_change() -> None:
    times = [1.0, 2.0, 3.0, 4.0, 5.0]
    same = [run(0)] * 5
    assert teacher_changed_at(same, times, "label") is None
    assert teacher_changed_at(same[:2], times[:2], "label") is None
    once = [run(0), run(0), run(0), run(30), run(30)]
    assert teacher_changed_at(once, times, "label") == 4.0
    twice = [run(0), run(0), run(40), run(40), run(0)]
    assert teacher_changed_at(twice, times, "label") == 5.0
    noise = [run(0), run(3), run(0), run(4), run(1)]
    assert teacher_changed_at(noise, times, "label") is None


def test_draws_of_the_times_that_leave_most_rows() -> None:
    often = [example(n, f"a{n}", 0.5) for n in range(100)]
    seldom = [example(200 + n, f"b{n}", 0.02) for n in range(60)]
    assert at_best_rate([*often, *seldom]) == often  # else 100 * .04 + 60
    many = [example(400 + n, f"c{n}", 0.4) for n in range(60)]
    assert len(at_best_rate([*often, *many])) == 160  # 100 * .8 + 60
    assert at_best_rate([example(1, "a")]) == []


def test_later_certificates_want_more_rows() -> None:
    wanted = [rows_wanted(0.05, 0.05, k) for k in (None, 1, 2, 5)]
    assert wanted == sorted(wanted)
    assert wanted[0] == 150
    assert wanted[-1] > 300


def test_what_the_teacher_cost() -> None:
    bill = Bill()
    for row in captured(4):
        bill.add(row)
    found = bill.told()
    assert found["usd_per_1000"] == pytest.approx(0.15)
    assert found["p50_ms"] == 250.0
    assert found["student_share"] == 0.0
    assert Bill().told()["usd_per_1000"] is None
