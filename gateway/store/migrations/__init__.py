"""The Postgres schema's history (Alembic). Every step only adds, so that gateways of neighbouring
versions work side by side on either schema."""
