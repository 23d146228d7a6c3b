"""Brings the Postgres schema to what this version of the gateway wants."""

from __future__ import annotations

from pathlib import Path

from gateway.errors import StoreError
from gateway.logs import log

_LOCK = 7_310_002
_FOLDER = Path(__file__).parent / "migrations"


def upgrade(url: str, revision: str = "head") -> str:
    """Run the steps that are missing, alone among gateways; what is newer stays.

    Returns:
        The revision that the schema is at.

    Raises:
        StoreError: Postgres is away, or refuses a step; what was done stays.
    """
    from alembic import command
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from sqlalchemy import create_engine, text
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.pool import NullPool

    config = Config()
    config.set_main_option("script_location", str(_FOLDER))
    known = {step.revision for step in ScriptDirectory.from_config(config).walk_revisions()}
    engine = create_engine(_address(url), poolclass=NullPool, connect_args={"connect_timeout": 5})
    try:
        with engine.connect() as connection:
            connection.execute(text(f"SELECT pg_advisory_lock({_LOCK})"))
            connection.commit()
            try:
                before = _current(connection)
                if before is not None and before not in known:
                    return before  # a newer gateway was here; it only added
                config.attributes["connection"] = connection
                command.upgrade(config, revision)
                connection.commit()
                after = _current(connection)
            finally:
                connection.rollback()
                connection.execute(text(f"SELECT pg_advisory_unlock({_LOCK})"))
                connection.commit()
    except SQLAlchemyError as error:
        cause = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        raise StoreError(f"postgres: {cause}") from None
    if after != before:
        log("schema_upgraded", before=before, after=after)
    return after or ""


def _current(connection: object) -> str | None:
    from alembic.migration import MigrationContext

    found: str | None = MigrationContext.configure(connection).get_current_revision()  # type: ignore[arg-type]
    return found


def _address(url: str) -> str:
    """The same address for SQLAlchemy, by psycopg 3."""
    _, _, rest = url.partition("://")
    return f"postgresql+psycopg://{rest}"
