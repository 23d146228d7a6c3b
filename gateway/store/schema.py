"""The SQLite schema, and how an older file becomes the present one."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from pathlib import Path

from gateway.errors import StoreError

_EXCHANGES = """
CREATE TABLE exchanges (
    id TEXT PRIMARY KEY, created_at REAL NOT NULL, task TEXT NOT NULL, principal TEXT NOT NULL,
    model TEXT NOT NULL, stream INTEGER NOT NULL, status TEXT NOT NULL, served_by TEXT NOT NULL,
    reason TEXT NOT NULL, would_be_reason TEXT NOT NULL, score REAL, threshold REAL,
    ood_score REAL, template TEXT, student TEXT, router TEXT, arm TEXT NOT NULL, error TEXT,
    request BLOB NOT NULL, answer BLOB, prefix BLOB, draw_p REAL, overhead_ms REAL NOT NULL,
    total_ms REAL NOT NULL
) STRICT;
CREATE INDEX exchanges_by_time ON exchanges (task, created_at);
CREATE TABLE attempts (
    exchange_id TEXT NOT NULL REFERENCES exchanges (id), seq INTEGER NOT NULL,
    upstream TEXT NOT NULL, role TEXT NOT NULL, outcome TEXT NOT NULL, status_code INTEGER,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, cost_usd REAL NOT NULL,
    duration_ms REAL NOT NULL, PRIMARY KEY (exchange_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE draws (
    exchange_id TEXT PRIMARY KEY REFERENCES exchanges (id), task TEXT NOT NULL, p REAL NOT NULL,
    wants TEXT NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL, answer BLOB,
    agrees INTEGER, updated_at REAL NOT NULL
) STRICT;
CREATE INDEX draws_pending ON draws (updated_at) WHERE state = 'pending'
"""

_AUDIT = """
CREATE TABLE numbered_draws (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    exchange_id TEXT NOT NULL UNIQUE REFERENCES exchanges (id), task TEXT NOT NULL,
    p REAL NOT NULL, wants TEXT NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL,
    answer BLOB, agrees INTEGER, score REAL, updated_at REAL NOT NULL
) STRICT;
INSERT INTO numbered_draws
    (exchange_id, task, p, wants, state, tries, answer, agrees, updated_at)
    SELECT exchange_id, task, p, wants, state, tries, answer, agrees, updated_at
    FROM draws ORDER BY rowid;
DROP TABLE draws;
ALTER TABLE numbered_draws RENAME TO draws;
CREATE INDEX draws_pending ON draws (updated_at) WHERE state = 'pending';
CREATE INDEX draws_in_order ON draws (task, seq);
CREATE INDEX exchanges_judged ON exchanges (task, router, created_at) WHERE ood_score IS NOT NULL;
CREATE TABLE audits (
    task TEXT NOT NULL, number INTEGER NOT NULL, router TEXT NOT NULL, alpha REAL NOT NULL,
    delta REAL NOT NULL, opened_at REAL NOT NULL, cursor INTEGER NOT NULL, labels INTEGER NOT NULL,
    errors INTEGER NOT NULL, detector BLOB NOT NULL, refuted TEXT, status TEXT NOT NULL,
    drift_from REAL NOT NULL, drift REAL, drifting INTEGER NOT NULL, updated_at REAL NOT NULL,
    PRIMARY KEY (task, number)
) STRICT;
CREATE TABLE gates (
    task TEXT NOT NULL, router TEXT NOT NULL, closed INTEGER NOT NULL, reason TEXT NOT NULL,
    by TEXT NOT NULL, at REAL NOT NULL, PRIMARY KEY (task, router)
) STRICT;
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, task TEXT NOT NULL,
    kind TEXT NOT NULL, detail BLOB NOT NULL
) STRICT;
CREATE INDEX events_by_task ON events (task, seq);
CREATE TABLE judgements (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, agrees INTEGER NOT NULL, at REAL NOT NULL
) STRICT;
CREATE TABLE probes (
    task TEXT NOT NULL, probe TEXT NOT NULL, at REAL NOT NULL, teacher TEXT NOT NULL,
    answers BLOB NOT NULL, PRIMARY KEY (task, probe, at)
) STRICT;
CREATE TABLE probe_leases (task TEXT PRIMARY KEY, until REAL NOT NULL) STRICT
"""

_API = "ALTER TABLE exchanges ADD COLUMN api TEXT NOT NULL DEFAULT 'chat'"

_ACCESS = """
CREATE TABLE key_usage (
    principal TEXT NOT NULL, window TEXT NOT NULL, requests INTEGER NOT NULL,
    tokens INTEGER NOT NULL, usd REAL NOT NULL, PRIMARY KEY (principal, window)
) STRICT, WITHOUT ROWID;
CREATE INDEX key_usage_by_window ON key_usage (window);
CREATE TABLE revoked_keys (
    principal TEXT PRIMARY KEY, note TEXT NOT NULL, by TEXT NOT NULL, at REAL NOT NULL
) STRICT, WITHOUT ROWID
"""

_KEEPING = """
ALTER TABLE exchanges ADD COLUMN end_user TEXT;
ALTER TABLE exchanges ADD COLUMN bodies INTEGER NOT NULL DEFAULT 1;
ALTER TABLE draws ADD COLUMN leased_until REAL NOT NULL DEFAULT 0;
CREATE INDEX exchanges_by_created ON exchanges (created_at, id);
CREATE INDEX exchanges_by_end_user ON exchanges (end_user) WHERE end_user IS NOT NULL;
CREATE INDEX exchanges_droppable ON exchanges (created_at)
    WHERE served_by = 'student' AND bodies = 1;
CREATE TABLE feedback (
    exchange_id TEXT NOT NULL REFERENCES exchanges (id), principal TEXT NOT NULL,
    task TEXT NOT NULL, rating TEXT, correction BLOB, comment TEXT, state TEXT NOT NULL,
    at REAL NOT NULL, PRIMARY KEY (exchange_id, principal)
) STRICT, WITHOUT ROWID;
CREATE INDEX feedback_by_state ON feedback (task, state, at);
CREATE INDEX feedback_by_principal ON feedback (principal, at);
CREATE TABLE forgotten_users (
    end_user TEXT PRIMARY KEY, at REAL NOT NULL, by TEXT NOT NULL, exchanges INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE forgotten_exchanges (
    exchange_id TEXT PRIMARY KEY, task TEXT NOT NULL, at REAL NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE exports (
    path TEXT PRIMARY KEY, format TEXT NOT NULL, at REAL NOT NULL, rows INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE reads (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL, who TEXT NOT NULL,
    what TEXT NOT NULL, detail BLOB NOT NULL
) STRICT
"""

_DISTILLING = """
ALTER TABLE exchanges ADD COLUMN no_train INTEGER NOT NULL DEFAULT 0;
CREATE TABLE students (
    name TEXT PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL,
    parent TEXT, run TEXT NOT NULL, folder TEXT NOT NULL, sha256 TEXT, data_sha256 TEXT NOT NULL,
    router TEXT, state TEXT NOT NULL, created_at REAL NOT NULL, facts BLOB NOT NULL,
    UNIQUE (task, number)
) STRICT;
CREATE TABLE deployments (
    task TEXT PRIMARY KEY, revision INTEGER NOT NULL, live TEXT, canary TEXT,
    canary_share REAL NOT NULL, previous TEXT, at REAL NOT NULL, by TEXT NOT NULL,
    note TEXT NOT NULL
) STRICT;
CREATE TABLE runs (
    id TEXT PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, trigger TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, started_at REAL NOT NULL, ended_at REAL,
    config BLOB NOT NULL, code TEXT NOT NULL, cancel INTEGER NOT NULL DEFAULT 0,
    UNIQUE (task, number)
) STRICT;
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs (id), name TEXT NOT NULL, state TEXT NOT NULL,
    tries INTEGER NOT NULL, inputs BLOB, outputs BLOB, cost_usd REAL NOT NULL,
    started_at REAL NOT NULL, ended_at REAL, error TEXT, PRIMARY KEY (run, name)
) STRICT;
CREATE TABLE run_leases (
    task TEXT PRIMARY KEY, owner TEXT NOT NULL, until REAL NOT NULL
) STRICT;
CREATE TABLE samples (
    task TEXT NOT NULL, exchange_id TEXT NOT NULL, grp TEXT NOT NULL, split TEXT NOT NULL,
    quarantined INTEGER NOT NULL, used_by TEXT, failed TEXT, PRIMARY KEY (task, exchange_id)
) STRICT, WITHOUT ROWID;
CREATE INDEX samples_by_group ON samples (task, grp);
CREATE TABLE labels (
    exchange_id TEXT PRIMARY KEY, task TEXT NOT NULL, completion TEXT NOT NULL,
    teacher TEXT NOT NULL, at REAL NOT NULL
) STRICT
"""

_TOTALS = """
CREATE TABLE totals (
    metric TEXT NOT NULL, labels TEXT NOT NULL, value REAL NOT NULL, PRIMARY KEY (metric, labels)
) STRICT, WITHOUT ROWID
"""

_STEPS: Mapping[int, str] = {
    0: _EXCHANGES, 1: _AUDIT, 2: _API, 3: _ACCESS, 4: _KEEPING, 5: _DISTILLING, 6: _TOTALS,
}  # fmt: skip
"""What takes a file of that version to the next one."""

SCHEMA_VERSION = len(_STEPS)


def migrate(db: sqlite3.Connection, path: Path) -> None:
    """Bring a file to the present schema, in one transaction.

    Raises:
        StoreError: a newer version wrote it.
    """
    if db.execute("PRAGMA user_version").fetchone()[0] == SCHEMA_VERSION:
        return  # without the write lock, which a busy neighbour may hold
    db.execute("BEGIN IMMEDIATE")
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version > SCHEMA_VERSION:
        raise StoreError(f"{path}: written by a newer version (schema {version}); upgrade first")
    for step in range(version, SCHEMA_VERSION):
        for statement in _STEPS[step].split(";"):
            db.execute(statement)
    db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    db.execute("COMMIT")
