"""Student versions, who serves, nightly runs, splits, labels asked again, and consent."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"

_TABLES = """
ALTER TABLE exchanges ADD COLUMN IF NOT EXISTS no_train INTEGER NOT NULL DEFAULT 0;
CREATE TABLE students (
    name TEXT PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, kind TEXT NOT NULL,
    parent TEXT, run TEXT NOT NULL, folder TEXT NOT NULL, sha256 TEXT, data_sha256 TEXT NOT NULL,
    router TEXT, state TEXT NOT NULL, created_at DOUBLE PRECISION NOT NULL, facts JSON NOT NULL,
    UNIQUE (task, number)
);
CREATE TABLE deployments (
    task TEXT PRIMARY KEY, revision BIGINT NOT NULL, live TEXT, canary TEXT,
    canary_share DOUBLE PRECISION NOT NULL, previous TEXT, at DOUBLE PRECISION NOT NULL,
    by TEXT NOT NULL, note TEXT NOT NULL
);
CREATE TABLE runs (
    id TEXT PRIMARY KEY, task TEXT NOT NULL, number INTEGER NOT NULL, trigger TEXT NOT NULL,
    state TEXT NOT NULL, reason TEXT NOT NULL, started_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION, config JSON NOT NULL, code TEXT NOT NULL,
    cancel INTEGER NOT NULL DEFAULT 0, UNIQUE (task, number)
);
CREATE TABLE stages (
    run TEXT NOT NULL REFERENCES runs (id), name TEXT NOT NULL, state TEXT NOT NULL,
    tries INTEGER NOT NULL, inputs JSON, outputs JSON, cost_usd DOUBLE PRECISION NOT NULL,
    started_at DOUBLE PRECISION NOT NULL, ended_at DOUBLE PRECISION, error TEXT,
    PRIMARY KEY (run, name)
);
CREATE TABLE run_leases (
    task TEXT PRIMARY KEY, owner TEXT NOT NULL, until DOUBLE PRECISION NOT NULL
);
CREATE TABLE samples (
    task TEXT NOT NULL, exchange_id TEXT NOT NULL, grp TEXT NOT NULL, split TEXT NOT NULL,
    quarantined INTEGER NOT NULL, used_by TEXT, failed TEXT, PRIMARY KEY (task, exchange_id)
);
CREATE INDEX samples_by_group ON samples (task, grp);
CREATE TABLE labels (
    exchange_id TEXT PRIMARY KEY, task TEXT NOT NULL, completion TEXT NOT NULL,
    teacher TEXT NOT NULL, at DOUBLE PRECISION NOT NULL
)
"""


def upgrade() -> None:
    """New tables, and an added column with a default: gateways that do not know it go on."""
    for statement in _TABLES.split(";"):
        op.execute(statement)


def downgrade() -> None:
    """Nothing is ever taken away."""
