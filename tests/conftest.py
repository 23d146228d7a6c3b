"""Shared test settings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, settings

from tests.fakes.postgres import Postgres, postgres

# Machines are noisy: speed belongs in benchmarks, never in a timed test.
settings.register_profile(
    "understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)
settings.load_profile("understudy")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One real Postgres for the whole session; tests take it with an empty database."""
    with postgres() as server:
        yield server


@pytest.fixture
def database(postgres_server: Postgres) -> Postgres:
    """The server, started, with an empty database."""
    if postgres_server.process is None:
        postgres_server.start()
    postgres_server.fresh()
    return postgres_server
