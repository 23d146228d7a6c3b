"""Leases of draws: several gateways must not ask for the same second answer."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """An added column with a default: gateways that do not know it go on."""
    op.execute(
        "ALTER TABLE draws ADD COLUMN IF NOT EXISTS leased_until "
        "DOUBLE PRECISION NOT NULL DEFAULT 0"
    )


def downgrade() -> None:
    """Nothing is ever taken away."""
