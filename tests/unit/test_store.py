"""The SQLite repository: what goes in comes out, once, and a newer file is refused."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.errors import StoreError
from gateway.store import schema
from gateway.store.records import Attempt, Draw, DrawState, Exchange, Filter, Status
from gateway.store.repository import Repository
from gateway.store.rows import COLUMNS, draw_values, dump, exchange_values
from gateway.store.sqlite import SqliteStore

EXCHANGE = Exchange(
    id="a",
    created_at=100.0,
    task="t",
    principal="app",
    model="m",
    stream=True,
    status=Status.COMPLETE,
    served_by="teacher",
    reason="ood",
    would_be_reason="ood",
    request={"messages": [{"role": "user", "content": "héllo \u2028 \x00"}], "n": 1.5},
    answer={"choices": []},
    score=0.25,
    threshold=0.5,
    ood_score=1.0,
    prefix={"tokens": [["a", -0.5, []]]},
    draw_p=0.02,
    draw=Draw(0.02, "student"),
    attempts=(Attempt("t/teacher", "teacher", "ok", 200, 3, 4, 0.001, 12.5),),
    overhead_ms=1.5,
    total_ms=20.0,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore.open(tmp_path / "deep/x.db")
    yield opened
    opened.close()


def test_a_round_trip_keeps_everything(store: SqliteStore) -> None:
    store.put([EXCHANGE])
    assert list(store.read(Filter())) == [EXCHANGE]


def test_an_id_is_stored_once(store: SqliteStore) -> None:
    store.put([EXCHANGE, EXCHANGE])
    store.put([replace(EXCHANGE, reason="changed")])
    assert list(store.read(Filter())) == [EXCHANGE]


def test_a_failed_batch_stores_nothing_and_the_next_one_works(store: SqliteStore) -> None:
    with pytest.raises(StoreError, match="not JSON serializable"):
        store.put([EXCHANGE, replace(EXCHANGE, id="b", request={"x": {1}})])
    store.put([replace(EXCHANGE, id="c", draw=None)])
    assert store.ids() == {"c"}


def test_durability_settings(store: SqliteStore) -> None:
    db = store._db
    assert db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert db.execute("PRAGMA synchronous").fetchone()[0] == 2


def test_draws_are_worked_off_oldest_first(store: SqliteStore) -> None:
    store.put([replace(EXCHANGE, id=str(n), created_at=float(10 - n)) for n in range(3)])
    assert [job.exchange_id for job in store.pending_draws(2)] == ["2", "1"]
    done = Draw(0.02, "student", DrawState.DONE, 1, {"choices": [1]}, True)
    store.finish_draw("2", done, 200.0)
    assert [job.exchange_id for job in store.pending_draws(9)] == ["1", "0"]
    assert next(store.read(Filter(ids=("2",)))).draw == done


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (Filter(task="t"), ["a", "b", "c"]),
        (Filter(task="none"), []),
        (Filter(served_by="student"), ["b"]),
        (Filter(reason="override"), ["c"]),
        (Filter(fallbacks=True), ["a"]),
        (Filter(drawn=True), ["a"]),
        (Filter(since=101.5), ["c"]),
        (Filter(newest_first=True, limit=2), ["c", "b"]),
        (Filter(principal="other"), []),
        (Filter(status="error"), []),
        (Filter(task="' OR 1=1 --"), []),
    ],
)
def test_filters(store: SqliteStore, which: Filter, expected: list[str]) -> None:
    store.put(
        [
            EXCHANGE,
            replace(EXCHANGE, id="b", created_at=101.0, served_by="student", draw=None),
            replace(EXCHANGE, id="c", created_at=102.0, reason="override", draw=None),
        ]
    )
    assert [e.id for e in store.read(which)] == expected
    if which.limit is None:
        assert store.count(which) == len(expected)


def test_a_newer_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    SqliteStore.open(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(StoreError, match="newer version"):
        SqliteStore.open(path)


def test_what_is_no_store_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_text("this is not a database, but long enough to be taken for one" * 20)
    with pytest.raises(StoreError, match=r"x\.db: cannot be opened"):
        SqliteStore.open(path)
    with pytest.raises(StoreError, match="no such store"):
        SqliteStore.read_only(tmp_path / "none.db")
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be opened"):
        SqliteStore.open(tmp_path / "file/x.db")


def test_an_older_gateway_goes_on_over_a_file_that_a_newer_one_upgraded(tmp_path: Path) -> None:
    """What schema 4 wrote, word for word, in a file that becomes the present one meanwhile."""
    path = tmp_path / "x.db"
    old = sqlite3.connect(path, isolation_level=None)
    old.execute("PRAGMA journal_mode=WAL")
    for step in range(4):
        for statement in schema._STEPS[step].split(";"):
            old.execute(statement)
    old.execute("PRAGMA user_version=4")
    columns = [name for name in COLUMNS if name not in {"end_user", "bodies", "no_train"}]
    marks = ", ".join("?" * 25)
    insert = f"INSERT OR IGNORE INTO exchanges ({', '.join(columns)}) VALUES ({marks})"
    draw = (
        "INSERT OR IGNORE INTO draws (exchange_id, task, p, wants, state, tries, updated_at) "
        "VALUES (?, ?, ?, ?, ?, ?, ?)"
    )

    def write(name: str) -> None:
        row = replace(EXCHANGE, id=name)
        assert row.draw is not None
        old.execute("BEGIN IMMEDIATE")
        old.execute(insert, exchange_values(row)[:25])
        old.execute(draw, draw_values(row, row.draw))
        old.execute("COMMIT")

    write("before")
    with contextlib.closing(SqliteStore.open(path)) as new:
        write("after")
        new.put([replace(EXCHANGE, id="new")])
        rows = list(new.read(Filter()))
        assert {row.id for row in rows} == {"before", "after", "new"}
        assert all(row.bodies and row.end_user is None and row.draw for row in rows)
        assert len(new.claim_draws(5, 1.0, 60.0, ["t"])) == 3
        # The old one finishes draws as it always did.
        old.execute("UPDATE draws SET state='done', agrees=1 WHERE exchange_id='before'")
        assert old.execute("SELECT count(*) FROM exchanges").fetchone() == (3,)
    old.close()


def test_a_new_file_may_be_opened_by_many_at_once(tmp_path: Path) -> None:
    """A gateway and a nightly process that start together. Without its retry one of eight failed
    in 6 of 150 such rounds."""
    with ThreadPoolExecutor(8) as pool:
        for n in range(40):
            path = tmp_path / f"{n}.db"
            together = threading.Barrier(8)

            def opened(path: Path = path, together: threading.Barrier = together) -> None:
                together.wait()
                SqliteStore.open(path).close()

            for done in [pool.submit(opened) for _ in range(8)]:
                done.result()


def test_a_file_that_another_holds_is_given_up_in_time(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StoreError, match="cannot be opened: database is locked"):
            SqliteStore.open(path, busy_s=0.1)


def test_a_reader_beside_a_waiting_writer_stops_nobody(tmp_path: Path) -> None:
    """Three threads: one is about to commit, one waits for that on a shared connection, one reads
    on the same connection. Seen as a gateway that stood still for its whole busy timeout."""
    path = tmp_path / "understudy.db"
    with (
        contextlib.closing(SqliteStore.open(path)) as other,
        contextlib.closing(SqliteStore.open(path, busy_s=30.0)) as shared,
    ):
        shared.judgement("known")  # from now on only the statement's parameters are bound
        other.begin()
        writer = threading.Thread(target=shared.claim_draws, args=(1, 0.0, 1.0, ["t"]))
        writer.start()
        time.sleep(0.3)  # by now it waits for the lock
        began = time.monotonic()
        reader = threading.Thread(target=shared.judgement, args=("known",))
        reader.start()
        time.sleep(0.1)
        other.roll_back()
        for thread in (writer, reader):
            thread.join()
        assert time.monotonic() - began < 15, "every thread waited for the busy timeout"


def test_a_write_beside_another_thread_s_transaction_is_not_undone_with_it(
    store: SqliteStore,
) -> None:
    written_beside_a_failing_transaction(store)


def written_beside_a_failing_transaction(shared: Repository) -> None:
    """One thread's transaction fails; what another wrote on the same connection meanwhile stays."""
    begun, written = threading.Event(), threading.Event()

    def fails() -> None:
        with pytest.raises(StoreError, match="not JSON serializable"), shared.transaction():
            begun.set()
            assert not written.wait(0.3)
            dump({"x": {1}})

    def writes() -> None:
        begun.wait()
        shared.keep_judgement("pair", "t", True, 1.0)
        written.set()

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(fails), pool.submit(writes)]:
            done.result()
    assert shared.judgement("pair") is True
