"""What every store must do, whichever database is behind it: SQLite and a real Postgres."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.statistics import statistics
from gateway.store import probes
from gateway.store.access import Use
from gateway.store.audits import Claim, EventKind, GateRow
from gateway.store.faults import WriteError
from gateway.store.feedback import Feedback, FeedbackState, corrections
from gateway.store.keeping import Export, Reading
from gateway.store.place import Place
from gateway.store.records import Draw, DrawState, Exchange, Filter, Status
from gateway.store.repository import Repository
from tests.unit.test_store import EXCHANGE

ODD = replace(
    EXCHANGE,
    id="b",
    created_at=200.0,
    model="m\x00\u2028",
    request={"messages": [{"role": "user", "content": 'h\x00 "é" \U0001f600 100 % ?'}]},
    end_user="u1",
    draw=None,
    draw_p=None,
    score=None,
)


@pytest.fixture
def store(place: Place) -> Iterator[Repository]:
    with contextlib.closing(place.repository()) as opened:
        yield opened


def test_what_goes_in_comes_out_once(store: Repository) -> None:
    assert store.put([EXCHANGE, ODD, EXCHANGE]) == 2
    assert store.put([replace(EXCHANGE, reason="changed")]) == 0
    first, second = store.read(Filter())
    assert first == EXCHANGE
    # Postgres has no NUL in texts; within JSON it stays.
    assert second in (ODD, replace(ODD, model="m\ufffd\u2028"))
    assert store.ids() == {"a", "b"}


@pytest.mark.parametrize(
    ("which", "ids"),
    [
        (Filter(), "ab"),
        (Filter(newest_first=True), "ba"),
        (Filter(newest_first=True, limit=1), "b"),
        (Filter(since=150.0), "b"),
        (Filter(until=150.0), "a"),
        (Filter(after=(100.0, "a")), "b"),
        (Filter(task="none"), ""),
        (Filter(principal="app", status=Status.COMPLETE), "ab"),
        (Filter(fallbacks=True), "ab"),
        (Filter(drawn=True), "a"),
        (Filter(ids=("b", "x")), "b"),
        (Filter(text="100 % ?"), "b"),
        (Filter(text='"é"'), "b"),
    ],
)
def test_filters(store: Repository, which: Filter, ids: str) -> None:
    store.put([EXCHANGE, ODD])
    assert "".join(e.id for e in store.read(which)) == ids
    if which.limit is None:
        assert store.count(which) == len(ids)


def test_many_are_read_in_order_of_one_moment(store: Repository, place: Place) -> None:
    rows = [replace(EXCHANGE, id=f"n{n:04}", created_at=float(n)) for n in range(900)]
    store.put(rows)
    with contextlib.closing(place.reader()) as reader, reader.snapshot():
        found = []
        for row in reader.read(Filter()):
            found.append(row)
            if len(found) == 450:
                store.put([replace(EXCHANGE, id="late", created_at=1e9)])
    assert found == rows


def test_a_failed_batch_stores_nothing(store: Repository) -> None:
    with pytest.raises(WriteError):
        store.put([EXCHANGE, replace(EXCHANGE, id="c", request={"x": {1}})])
    assert store.put([EXCHANGE]) == 1
    assert store.ids() == {"a"}


def test_tail_and_beginnings_of_ids(store: Repository) -> None:
    place = store.last_row()
    store.put([EXCHANGE, ODD])
    rows, end = store.rows_after(place, None)
    assert [e.id for e in rows] == ["a", "b"]
    assert store.rows_after(end, None) == ([], end)
    assert store.rows_after(place, "other")[0] == []
    assert [e.id for e in store.starting_with("a")] == ["a"]
    assert store.starting_with("zz") == []


def test_draws_are_claimed_by_one_and_finished(store: Repository, place: Place) -> None:
    store.put([EXCHANGE])
    with contextlib.closing(place.repository()) as other:
        assert store.claim_draws(5, 1000.0, 60.0, []) == []
        assert store.claim_draws(5, 1000.0, 60.0, ["another"]) == []
        (job,) = store.claim_draws(5, 1000.0, 60.0, ["another", "t"])
        assert (job.exchange_id, job.request) == ("a", EXCHANGE.request)
        assert other.claim_draws(5, 1030.0, 60.0, ["t"]) == []
        # The lease is over.
        assert [j.exchange_id for j in other.claim_draws(5, 1061.0, 60.0, ["t"])] == ["a"]
    done = Draw(0.02, "student", DrawState.DONE, 2, {"choices": []}, False, 0.5)
    store.finish_draw("a", done, 2000.0)
    assert store.claim_draws(5, 3000.0, 60.0, ["t"]) == []
    assert store.pending_draws(5) == []
    assert next(store.read(Filter())).draw == done


def test_judgements_are_kept(store: Repository) -> None:
    assert store.judgement("k") is None
    store.keep_judgement("k", "t", True, 1.0)
    store.keep_judgement("k", "t", False, 2.0)
    assert store.judgement("k") is False


def test_audits_gates_and_events(place: Place) -> None:
    from gateway.auditor import audit_of, begin_epoch
    from gateway.task_settings import Risk

    with contextlib.closing(place.audits()) as audits, contextlib.closing(place.repository()) as s:
        claim = Claim("t", "v1", 0.05, 0.05)
        audit = audit_of(Risk())
        with audits.transaction():
            epoch = begin_epoch(audits, audit, claim, 10.0, why="test")
        found = audits.epoch(claim)
        assert found is not None
        assert found.state == epoch.state
        s.put([replace(EXCHANGE, served_by="student", reason="in_distribution", router="v1")])
        (label,) = audits.labels(found, 10)
        assert (label.counts, label.served, label.disagrees) == (True, True, None)
        assert audits.last_draw("t") == label.seq
        assert audits.pace(claim, 0.0, 200.0) > 0
        assert audits.scores(replace(found, drift_from=0.0), 5) == [(100.0, 1.0)]
        with audits.transaction():
            audits.set_gate("t", "v1", GateRow(True, "why", "me", 1.0))
            audits.set_gate("t", "v1", GateRow(False, "better", "me", 2.0))
            audits.add_event(3.0, "t", EventKind.DRIFT, psi=0.5)
        assert audits.gate("t", "v1") == GateRow(False, "better", "me", 2.0)
        assert audits.events("t")[0].detail == {"psi": 0.5}
        with audits.transaction():
            assert probes.claim(audits, "t", 1.0, 10.0)
            assert not probes.claim(audits, "t", 2.0, 10.0)
            probes.keep(audits, "t", "p", probes.ProbeRun(1.0, "m", {"d": "x"}))
        assert probes.runs(audits, "t", "p")[0].answers == {"d": "x"}


def test_an_exception_within_a_transaction_undoes_it(place: Place) -> None:
    with contextlib.closing(place.audits()) as audits:
        with pytest.raises(KeyError), audits.transaction():
            audits.add_event(1.0, "t", EventKind.DRIFT)
            raise KeyError
        assert audits.events("t") == []


def test_usage_adds_up_and_keys_are_revoked(place: Place) -> None:
    with contextlib.closing(place.access()) as one, contextlib.closing(place.access()) as two:
        one.share({("app", "m5"): Use(1, 2, 0.5)}, ["m5"])
        uses, _ = two.share({("app", "m5"): Use(1, 1, 0.25), ("b", "d1"): Use(1)}, ["m5"])
        assert uses == {("app", "m5"): Use(2, 3, 0.75)}
        two.forget("m6")
        assert one.share({}, ["m5", "d1"])[0] == {("b", "d1"): Use(1)}
        one.revoke("app", "lost", "me", 1.0)
        one.revoke("app", "lost again", "me", 2.0)
        assert two.share({}, ["m5"])[1] == {"app"}
        assert two.restore("app")
        assert not two.restore("app")


def test_feedback_and_its_queue(place: Place, store: Repository) -> None:
    store.put([EXCHANGE, ODD])
    with contextlib.closing(place.feedback()) as feedback:
        assert feedback.task_of("a", "app") == ("t", EXCHANGE.request)
        assert feedback.task_of("a", "other") is None
        said = Feedback("a", "app", "t", "down", "ré\x00", None, FeedbackState.SUGGESTED, 5.0)
        with feedback.transaction():
            feedback.put(said)
            feedback.put(replace(said, at=6.0))
        found = feedback.given("a", "app")
        assert found is not None
        assert (found.rating, found.at) == ("down", 6.0)
        assert feedback.count_since("app", 6.0) == 1
        queued = {c.exchange_id: c for c in feedback.candidates("t", 0.0)}
        assert queued["a"].suggested
        assert queued["a"].rated_down
        with feedback.transaction():
            assert feedback.settle("a", FeedbackState.ACCEPTED) == 1
        assert corrections(store, ["a", "b"])["a"] in ("ré\x00", "ré\ufffd")
        assert {c.exchange_id for c in feedback.candidates("t", 0.0)} == {"b"}


def test_keeping(place: Place, store: Repository, tmp_path: Path) -> None:
    store.put([EXCHANGE, ODD])
    with contextlib.closing(place.keeping()) as keeping:
        (asked,) = keeping.asked_by("u1")
        assert (asked.id, asked.request) == ("b", ODD.request)
        keeping.forget("u1", [asked], "me", 1.0)
        assert keeping.forgotten() == {"b"}
        assert keeping.scrub_files(vacuum=True)
        assert keeping.delete_before("t", 150.0) == 1
        assert keeping.delete_before("t", 150.0) == 0
        assert store.ids() == set()
        export = Export(tmp_path / "x", "rows", 1.0, 5)
        keeping.add_export(export)
        keeping.add_export(export)
        assert keeping.exports() == [export]
        keeping.drop_export(export.path)
        keeping.add_reading(Reading(1.0, "me", "show", {"a": 1}))
        assert keeping.readings(5) == [Reading(1.0, "me", "show", {"a": 1})]


def test_statistics(store: Repository) -> None:
    store.put([EXCHANGE, ODD])
    numbers = statistics(store, "t", None)["t"]
    assert (numbers["requests"], numbers["draws"], numbers["prompt_tokens"]) == (2, 1, 6)
    assert numbers["cost_usd"] == pytest.approx(0.002)
    assert all(isinstance(v, int | float | list) for v in numbers.values())


def test_exchanges_are_not_changed_by_a_type(store: Repository) -> None:
    """Whatever a column may hold: the smallest exchange there is."""
    small = Exchange("s", 0.0, "t", "p", "", False, Status.ERROR, "teacher", "ood", "ood", {}, None)
    store.put([small])
    assert list(store.read(Filter())) == [small]
