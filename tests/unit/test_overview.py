"""What ``understudy report`` says, against rows whose figures are known; over both databases."""

from __future__ import annotations

import json
import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from distill.overview import app, look
from gateway.config_file import load_config
from gateway.store.ledger import DAY_S, RunState
from gateway.store.place import Place
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Status
from tests.fakes.traffic import config_file
from tests.unit.test_store import EXCHANGE

TASK = "banking-intents"
NOW = time.time()


def exchange(number: int, by: str, reason: str, age_s: float, **more: Any) -> Exchange:
    """One answer; a student's took 10 prompt tokens and 2, a teacher's cost 0.25 USD."""
    call = (
        Attempt("s", "student", "ok", 200, 10, 2, 0.0, 5.0)
        if by == "student"
        else Attempt("t", "teacher", "ok", 200, 10, 2, 0.25, 50.0)
    )
    told = {"draw": None, "draw_p": None, "total_ms": 7.0 if by == "student" else 60.0, **more}
    return replace(
        EXCHANGE, id=f"x{number:03}", task=TASK, created_at=NOW - age_s, served_by=by,
        reason=reason, status=Status.COMPLETE, attempts=(call,), **told,
    )  # fmt: skip


def filled(place: Place) -> None:
    """Ten of the student (four drawn: three agree, one answer never came) and five of the teacher
    within a day; one the day before the span."""
    rows = [exchange(n, "student", "in_distribution", 60.0 + n) for n in range(6)]
    drawn = Draw(0.5, "teacher")
    rows += [exchange(n, "student", "in_distribution", 60.0 + n, draw=drawn, draw_p=0.5)
             for n in range(6, 10)]  # fmt: skip
    rows += [exchange(n, "teacher", "ood", 60.0 + n) for n in range(10, 14)]
    rows.append(exchange(14, "teacher", "low_confidence", 80.0))
    rows.append(exchange(15, "teacher", "ood", 8 * DAY_S))
    rows.append(replace(exchange(16, "teacher", "ood", 90.0), task="another"))
    with closing(place.repository()) as store:
        store.put(rows)
        for n in (6, 7, 8):
            store.finish_draw(f"x{n:03}", Draw(0.5, "teacher", DrawState.DONE, 1, {}, True), NOW)
        store.finish_draw("x009", Draw(0.5, "teacher", DrawState.FAILED, 3), NOW)
    with closing(place.ledger()) as ledger:
        run = ledger.start(TASK, "cron", {}, "code", NOW - 50)
        ledger.begin_stage(run, "collect", {}, NOW - 50)
        ledger.spend(run, "collect", 0.5)
        ledger.end_stage(run, "collect", {}, NOW - 40)
        ledger.end(run, RunState.REFUSED, "worse on 3 rows", NOW - 30)


def test_figures_are_those_of_the_rows(place: Place, tmp_path: Path) -> None:
    filled(place)
    task = load_config(config_file(tmp_path, "http://127.0.0.1:9/v1")).tasks[0]
    facts = look(place, task, NOW - 7 * DAY_S, NOW + 1).facts()
    assert facts["requests"] == 15
    assert facts["served_by_student"] == 10
    assert facts["reasons"] == {"in_distribution": 10, "ood": 4, "low_confidence": 1}
    assert facts["teacher_usd"] == pytest.approx(1.25)
    assert facts["avoided_usd"] == pytest.approx(task.teacher.price.cost_usd(100, 20))
    assert (facts["audited"], facts["disagreements"]) == (4, 1)  # a missing answer is one
    assert facts["agreement"] == pytest.approx(0.75)
    assert facts["median_ms"] == {"student": 7.0, "teacher": 60.0}
    assert facts["nights_usd"] == 0.5
    assert [(r["state"], r["reason"]) for r in facts["runs"]] == [("refused", "worse on 3 rows")]
    assert [e["kind"] for e in facts["events"]] == ["run_refused"]


def test_days_add_up_to_the_span(tmp_path: Path) -> None:
    place = Place(tmp_path / "x.db")
    filled(place)
    task = load_config(config_file(tmp_path, "http://127.0.0.1:9/v1")).tasks[0]
    found = look(place, task, NOW - 9 * DAY_S, NOW + 1)
    assert sum(use.total for _, use in found.days) == found.use.total == 16
    assert len(found.days) in {10, 11}


def test_what_a_promotion_taught_is_told(tmp_path: Path) -> None:
    place = Place(tmp_path / "x.db")
    filled(place)
    with closing(place.ledger()) as ledger:
        run = ledger.start(TASK, "cron", {}, "code", NOW - 20)
        ledger.begin_stage(run, "promote", {}, NOW - 15)
        ledger.end_stage(run, "promote", {"student": "v3"}, NOW - 12)
        ledger.end(run, RunState.PROMOTED, "better", NOW - 10)
    task = load_config(config_file(tmp_path, "http://127.0.0.1:9/v1")).tasks[0]
    folder = task.distill.folder / TASK / "runs" / run.id
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({
        "rows": [{"slice": "card"}, {"slice": "card"}, {"slice": "apr"}],
        "incumbent": {"agrees": [True, False, True]},
        "candidates": {"v2": {"agrees": [False]}, "v3": {"agrees": [True, True, False]}},
    }))  # fmt: skip
    (learned,) = look(place, task, NOW - DAY_S, NOW + 1).facts()["learned"]
    assert learned == {"slice": "card", "rows": 2, "before": 0.5, "after": 1.0}
    # A later run that measured against nobody hides nothing of it.
    with closing(place.ledger()) as ledger:
        later = ledger.start(TASK, "cron", {}, "code", NOW - 9)
        ledger.end(later, RunState.PROMOTED, "the first again", NOW - 8)
    (folder.parent / later.id).mkdir()
    (folder.parent / later.id / "evaluation.json").write_text(
        json.dumps({"rows": [], "incumbent": {"agrees": []}, "candidates": {}})
    )
    assert look(place, task, NOW - DAY_S, NOW + 1).facts()["learned"] == [learned]


def test_the_command_writes_a_page_a_table_and_json(tmp_path: Path) -> None:
    config = config_file(tmp_path, "http://127.0.0.1:9/v1")
    settings = load_config(config)
    filled(Place(Path(settings.store.removeprefix("sqlite:///"))))
    run = CliRunner().invoke
    told = run(app, ["--config", str(config)])
    assert told.exit_code == 0, told.output
    assert "10 (66.7%)" in told.output
    (facts,) = json.loads(run(app, ["--config", str(config), "--json"]).output)
    assert facts["requests"] == 15
    out = tmp_path / "week.html"
    told = run(app, ["--config", str(config), "--since", "7d", "--html", "--out", str(out)])
    assert told.exit_code == 0, told.output
    page = out.read_text()
    assert run(app, ["--config", str(config), "--html"]).output.startswith("<!doctype html>")
    assert page.count("<svg") == 1
    assert "75.0% of 4 audited answers" in page
    assert "fewer than 59 prove nothing" in page
    assert "worse on 3 rows" in page
    assert "<script" not in page
    assert not re.search(r"(src|href|url)\W+http", page)  # nothing is fetched
    for since, says in (("400d", "366 days ago"), ("soon", "no span of time")):
        told = run(app, ["--config", str(config), "--since", since])
        assert told.exit_code == 1
        assert says in told.output
    told = run(app, ["--config", str(config), "--task", "nobody"])
    assert told.exit_code == 1


def test_no_store_is_said(tmp_path: Path) -> None:
    config = config_file(tmp_path, "http://127.0.0.1:9/v1")
    told = CliRunner().invoke(app, ["--config", str(config)])
    assert told.exit_code == 1
    assert "has the gateway run" in told.output
