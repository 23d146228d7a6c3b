"""Exchanges, attempts, draws, audits, gates, events, keys, feedback, and who was forgotten."""

from __future__ import annotations

from alembic import op

revision = "0001"
down_revision = None

_TABLES = """
CREATE TABLE exchanges (
    seq BIGINT GENERATED ALWAYS AS IDENTITY, id TEXT PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL, task TEXT NOT NULL, principal TEXT NOT NULL,
    model TEXT NOT NULL, stream INTEGER NOT NULL, status TEXT NOT NULL, served_by TEXT NOT NULL,
    reason TEXT NOT NULL, would_be_reason TEXT NOT NULL, score DOUBLE PRECISION,
    threshold DOUBLE PRECISION, ood_score DOUBLE PRECISION, template TEXT, student TEXT,
    router TEXT, arm TEXT NOT NULL, error TEXT, request JSON NOT NULL, answer JSON, prefix JSON,
    draw_p DOUBLE PRECISION, overhead_ms DOUBLE PRECISION NOT NULL,
    total_ms DOUBLE PRECISION NOT NULL, api TEXT NOT NULL DEFAULT 'chat', end_user TEXT,
    bodies INTEGER NOT NULL DEFAULT 1
);
CREATE UNIQUE INDEX exchanges_by_seq ON exchanges (seq);
CREATE INDEX exchanges_by_time ON exchanges (task, created_at);
CREATE INDEX exchanges_by_created ON exchanges (created_at, id);
CREATE INDEX exchanges_by_end_user ON exchanges (end_user) WHERE end_user IS NOT NULL;
CREATE INDEX exchanges_judged ON exchanges (task, router, created_at) WHERE ood_score IS NOT NULL;
CREATE TABLE attempts (
    exchange_id TEXT NOT NULL REFERENCES exchanges (id), seq INTEGER NOT NULL,
    upstream TEXT NOT NULL, role TEXT NOT NULL, outcome TEXT NOT NULL, status_code INTEGER,
    prompt_tokens BIGINT NOT NULL, completion_tokens BIGINT NOT NULL,
    cost_usd DOUBLE PRECISION NOT NULL, duration_ms DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (exchange_id, seq)
);
CREATE TABLE draws (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    exchange_id TEXT NOT NULL UNIQUE REFERENCES exchanges (id), task TEXT NOT NULL,
    p DOUBLE PRECISION NOT NULL, wants TEXT NOT NULL, state TEXT NOT NULL, tries INTEGER NOT NULL,
    answer JSON, agrees INTEGER, score DOUBLE PRECISION, updated_at DOUBLE PRECISION NOT NULL
);
CREATE INDEX draws_pending ON draws (updated_at) WHERE state = 'pending';
CREATE INDEX draws_in_order ON draws (task, seq);
CREATE TABLE audits (
    task TEXT NOT NULL, number INTEGER NOT NULL, router TEXT NOT NULL,
    alpha DOUBLE PRECISION NOT NULL, delta DOUBLE PRECISION NOT NULL,
    opened_at DOUBLE PRECISION NOT NULL, cursor BIGINT NOT NULL, labels BIGINT NOT NULL,
    errors BIGINT NOT NULL, detector JSON NOT NULL, refuted TEXT, status TEXT NOT NULL,
    drift_from DOUBLE PRECISION NOT NULL, drift DOUBLE PRECISION, drifting INTEGER NOT NULL,
    updated_at DOUBLE PRECISION NOT NULL, PRIMARY KEY (task, number)
);
CREATE TABLE gates (
    task TEXT NOT NULL, router TEXT NOT NULL, closed INTEGER NOT NULL, reason TEXT NOT NULL,
    by TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, PRIMARY KEY (task, router)
);
CREATE TABLE events (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at DOUBLE PRECISION NOT NULL,
    task TEXT NOT NULL, kind TEXT NOT NULL, detail JSON NOT NULL
);
CREATE INDEX events_by_task ON events (task, seq);
CREATE TABLE judgements (
    key TEXT PRIMARY KEY, task TEXT NOT NULL, agrees INTEGER NOT NULL, at DOUBLE PRECISION NOT NULL
);
CREATE TABLE probes (
    task TEXT NOT NULL, probe TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, teacher TEXT NOT NULL,
    answers JSON NOT NULL, PRIMARY KEY (task, probe, at)
);
CREATE TABLE probe_leases (task TEXT PRIMARY KEY, until DOUBLE PRECISION NOT NULL);
CREATE TABLE key_usage (
    principal TEXT NOT NULL, "window" TEXT NOT NULL, requests BIGINT NOT NULL,
    tokens BIGINT NOT NULL, usd DOUBLE PRECISION NOT NULL, PRIMARY KEY (principal, "window")
);
CREATE INDEX key_usage_by_window ON key_usage ("window");
CREATE TABLE revoked_keys (
    principal TEXT PRIMARY KEY, note TEXT NOT NULL, by TEXT NOT NULL, at DOUBLE PRECISION NOT NULL
);
CREATE TABLE feedback (
    exchange_id TEXT NOT NULL REFERENCES exchanges (id), principal TEXT NOT NULL,
    task TEXT NOT NULL, rating TEXT, correction TEXT, comment TEXT, state TEXT NOT NULL,
    at DOUBLE PRECISION NOT NULL, PRIMARY KEY (exchange_id, principal)
);
CREATE INDEX feedback_by_state ON feedback (task, state, at);
CREATE INDEX feedback_by_principal ON feedback (principal, at);
CREATE TABLE forgotten_users (
    end_user TEXT PRIMARY KEY, at DOUBLE PRECISION NOT NULL, by TEXT NOT NULL,
    exchanges BIGINT NOT NULL
);
CREATE TABLE forgotten_exchanges (
    exchange_id TEXT PRIMARY KEY, task TEXT NOT NULL, at DOUBLE PRECISION NOT NULL
);
CREATE TABLE exports (
    path TEXT PRIMARY KEY, format TEXT NOT NULL, at DOUBLE PRECISION NOT NULL, rows BIGINT NOT NULL
);
CREATE TABLE reads (
    seq BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, at DOUBLE PRECISION NOT NULL,
    who TEXT NOT NULL, what TEXT NOT NULL, detail JSON NOT NULL
)
"""


def upgrade() -> None:
    """Create everything."""
    for statement in _TABLES.split(";"):
        op.execute(statement)


def downgrade() -> None:
    """Nothing is ever taken away: an older gateway works with the newer schema."""
