"""The audit's memory: an older file is taken over, and each label counts once, in order."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.auditor import begin_epoch, close_gate, open_gate
from gateway.errors import StoreError
from gateway.store.audits import ANY_VERSION, AuditStore, Claim, EventKind, GateRow
from gateway.store.database import SqliteDatabase
from gateway.store.place import Place
from gateway.store.records import Draw, DrawState, Exchange, Filter
from gateway.store.schema import _EXCHANGES, SCHEMA_VERSION
from gateway.store.sqlite import SqliteStore
from router.audit import Audit, AuditStatus
from tests.unit.test_store import EXCHANGE

AUDIT = Audit(0.05, 0.05)
CLAIM = Claim("t", "v1-aa", 0.05, 0.05)


def served(id_: str, created_at: float = 1.0, **changes: object) -> Exchange:
    """A drawn, student-served exchange of the audited version."""
    values: dict[str, object] = {
        "id": id_, "created_at": created_at, "served_by": "student", "reason": "in_distribution",
        "router": "v1-aa", "draw": Draw(0.5, "teacher"), "threshold": 0.1, **changes,
    }  # fmt: skip
    return replace(EXCHANGE, **values)  # type: ignore[arg-type]


def finished(store: SqliteStore, id_: str, agrees: bool, score: float | None = None) -> None:
    store.finish_draw(id_, Draw(0.0, "", DrawState.DONE, 1, {}, agrees, score), 5.0)


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[SqliteStore, AuditStore]]:
    path = tmp_path / "x.db"
    main, audits = SqliteStore.open(path), Place(path).audits()
    yield main, audits
    audits.close()
    main.close()


def test_a_file_of_the_first_schema_is_taken_over_with_its_draws(tmp_path: Path) -> None:
    path = tmp_path / "old.db"
    db = sqlite3.connect(path)
    db.executescript(_EXCHANGES)
    db.execute("PRAGMA user_version=1")
    db.close()
    old = SqliteStore.open(path)
    assert old.connection.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION
    old.close()
    # With rows, as an older gateway left them.
    path = tmp_path / "rows.db"
    db = sqlite3.connect(path)
    db.executescript(_EXCHANGES)
    db.execute("PRAGMA user_version=1")
    for name in ("b", "a"):
        db.execute(
            "INSERT INTO exchanges (id, created_at, task, principal, model, stream, status, "
            "served_by, reason, would_be_reason, arm, request, overhead_ms, total_ms) "
            "VALUES (?, 1, 't', 'p', 'm', 0, 'complete', 'teacher', 'ood', 'ood', 'incumbent', "
            "x'7b7d', 0, 0)",
            (name,),
        )
        db.execute(
            "INSERT INTO draws VALUES (?, 't', 0.5, 'student', 'done', 1, NULL, 1, 2.0)", (name,)
        )
    db.commit()
    db.close()
    store = SqliteStore.open(path)
    rows = store.connection.execute("SELECT seq, exchange_id FROM draws ORDER BY seq").fetchall()
    assert rows == [(1, "b"), (2, "a")]
    draws = [e.draw for e in store.read(Filter())]
    assert draws == [Draw(0.5, "student", DrawState.DONE, 1, None, True)] * 2
    store.close()


def test_an_epoch_comes_back_as_it_was(stores: tuple[SqliteStore, AuditStore]) -> None:
    _, audits = stores
    assert audits.epoch(CLAIM) is None
    with audits.transaction():
        first = begin_epoch(audits, AUDIT, CLAIM, 10.0, why="test")
    assert audits.epoch(CLAIM) == first
    state = AUDIT.feed(first.state, [True, False] * 40)
    later = replace(first, state=state, status=AUDIT.status(state), cursor=7, drift=0.5)
    with audits.transaction():
        audits.save(later, 11.0)
    assert audits.epoch(CLAIM) == later
    assert audits.epoch(replace(CLAIM, router="v2-bb")) is None
    assert audits.epoch(replace(CLAIM, alpha=0.02)) is None
    assert audits.next_number("t") == 2


def test_labels_are_served_draws_of_the_version_in_order(
    stores: tuple[SqliteStore, AuditStore],
) -> None:
    main, audits = stores
    with audits.transaction():
        epoch = begin_epoch(audits, AUDIT, CLAIM, 0.0, why="test")
    main.put(
        [
            served("late", 9.0),
            served("early", 2.0),
            served("other version", router="v0-00"),
            served("override", reason="override"),
            served("fallback", served_by="teacher", reason="low_confidence"),
            served("closed, would serve", served_by="teacher", reason="gate_closed"),
            served("closed, would not", served_by="teacher", reason="gate_closed"),
        ]
    )
    for name in ("late", "early", "fallback"):
        finished(main, name, agrees=name == "early")
    finished(main, "closed, would serve", agrees=False, score=0.09)
    finished(main, "closed, would not", agrees=False, score=0.11)
    rows = audits.labels(epoch, 10)
    assert [row.seq for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [(row.seq, row.disagrees, row.served) for row in rows if row.counts] == [
        (1, True, True), (2, False, True), (6, True, False),
    ]  # fmt: skip
    assert [row.seq for row in audits.labels(replace(epoch, cursor=1), 2)] == [2, 3]
    assert audits.pace(CLAIM, 0.0, now=12.0) == pytest.approx(3 / 11)
    assert audits.pace(CLAIM, 5.0, now=14.0) == pytest.approx(1 / 5)
    assert audits.pace(CLAIM, 50.0, now=60.0) == 0.0


def test_a_new_epoch_starts_behind_the_draws_that_are_there(
    stores: tuple[SqliteStore, AuditStore],
) -> None:
    main, audits = stores
    main.put([served("a")])
    with audits.transaction():
        epoch = begin_epoch(audits, AUDIT, CLAIM, 0.0, why="test")
    main.put([served("b")])
    assert [row.seq for row in audits.labels(epoch, 10)] == [2]


def test_a_transaction_that_fails_changes_nothing(
    stores: tuple[SqliteStore, AuditStore],
) -> None:
    _, audits = stores
    with pytest.raises(StoreError, match="no such table"), audits.transaction():
        audits.add_event(1.0, "t", EventKind.DRIFT)
        audits._db.execute("SELECT * FROM nowhere")
    with pytest.raises(RuntimeError, match="ours"), audits.transaction():
        audits.add_event(1.0, "t", EventKind.DRIFT)
        raise RuntimeError("ours")
    assert audits.events("t") == []


def test_an_operator_s_word_holds_over_versions_and_the_audit_s_for_one(
    stores: tuple[SqliteStore, AuditStore],
) -> None:
    _, audits = stores
    assert audits.gate("t", "v1-aa") is None
    with audits.transaction():
        audits.set_gate("t", "v1-aa", GateRow(True, "refuted", "audit", 1.0))
    gate = audits.gate("t", "v1-aa")
    assert gate is not None
    assert gate.closed
    assert audits.gate("t", "v2-bb") is None
    close_gate(audits, "t", "incident 7", "ops", 2.0)
    for version in ("v1-aa", "v2-bb"):
        assert audits.gate("t", version) == GateRow(True, "incident 7", "ops", 2.0)
    open_gate(audits, AUDIT, replace(CLAIM, router="v2-bb"), "fixed", "ops", 3.0)
    assert audits.gate("t", "v2-bb") == GateRow(False, "fixed", "ops", 3.0)
    # What the audit refuted was not what the operator opened.
    assert audits.gate("t", "v1-aa") == GateRow(True, "refuted", "audit", 1.0)
    kinds = [event.kind for event in audits.events("t")]
    assert kinds == [EventKind.GATE_OPENED, EventKind.GATE_CLOSED]
    assert ANY_VERSION not in {"v1-aa", "v2-bb"}


def test_reopening_a_refuted_version_begins_anew_with_less_delta(
    stores: tuple[SqliteStore, AuditStore],
) -> None:
    _, audits = stores
    with audits.transaction():
        epoch = begin_epoch(audits, AUDIT, CLAIM, 0.0, why="test")
        state = AUDIT.feed(epoch.state, [True] * 30)
        audits.save(replace(epoch, state=state, status=AUDIT.status(state)), 1.0)
    open_gate(audits, AUDIT, CLAIM, "comparator was wrong", "ops", 2.0)
    again = audits.epoch(CLAIM)
    assert again is not None
    assert (again.state.number, again.state.labels, again.status) == (2, 0, AuditStatus.UNPROVEN)


def test_looks_use_their_indexes(stores: tuple[SqliteStore, AuditStore]) -> None:
    """Every second, whatever the store holds: none of them may read a table from end to end."""
    _, audits = stores
    with audits.transaction():
        epoch = begin_epoch(audits, AUDIT, CLAIM, 0.0, why="test")
    seen: list[str] = []
    database = audits.connection
    assert isinstance(database, SqliteDatabase)
    database._connection.set_trace_callback(seen.append)
    audits.labels(epoch, 10)
    audits.pace(CLAIM, 0.0, 1.0)
    audits.scores(epoch, 10)
    audits.gate("t", "v1-aa")
    audits.last_draw("t")
    database._connection.set_trace_callback(None)
    assert len(seen) == 6
    for sql in seen:
        plan = [row[3] for row in audits._db.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert not [step for step in plan if step.startswith("SCAN")], (sql, plan)
        assert not [step for step in plan if "TEMP B-TREE" in step and "draws" in sql], (sql, plan)


async def test_replicas_share_labels_and_each_counts_once(tmp_path: Path) -> None:
    """Many writers advance one epoch; the transaction makes it exact."""
    path = tmp_path / "x.db"
    main = SqliteStore.open(path)
    replicas = [Place(path).audits() for _ in range(4)]
    with replicas[0].transaction():
        begin_epoch(replicas[0], AUDIT, CLAIM, 0.0, why="test")
    main.put([served(str(n)) for n in range(200)])
    for n in range(200):
        finished(main, str(n), agrees=n % 40 != 0)
    applied: list[int] = []
    lock = threading.Lock()

    def advance(store: AuditStore) -> None:
        for _ in range(20):
            with store.transaction():
                epoch = store.epoch(CLAIM)
                assert epoch is not None
                rows = store.labels(epoch, 7)
                if not rows:
                    continue
                state = AUDIT.feed(epoch.state, [bool(row.disagrees) for row in rows])
                store.save(replace(epoch, state=state, cursor=rows[-1].seq), 1.0)
            with lock:
                applied.extend(row.seq for row in rows)

    await asyncio.gather(*(asyncio.to_thread(advance, store) for store in replicas))
    epoch = replicas[0].epoch(CLAIM)
    assert epoch is not None
    assert (epoch.state.labels, epoch.state.errors) == (200, 5)
    assert sorted(applied) == list(range(1, 201))
    for store in replicas:
        store.close()
    main.close()
