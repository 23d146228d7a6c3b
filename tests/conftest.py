"""Shared test settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from xdist.scheduler import LoadScopeScheduling

from deploy.demo.classifiers import classifiers_ready, start_classifiers
from deploy.demo.processes import Children
from gateway.store.migrating import upgrade
from gateway.store.place import Place
from tests.fakes.postgres import Postgres, postgres
from tests.fakes.process import free_port
from tests.fakes.rig import CACHE

# Machines are noisy: speed belongs in benchmarks, never in a timed test.
settings.register_profile(
    "understudy", deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=150
)
settings.load_profile("understudy")


HEAVY = [
    f"tests/ml/test_{name}.py" for name in ("nights", "ray", "real_vllm", "shipped", "training")
]
"""What fills a machine by itself: vLLM, Ray, trainings."""


def _share(nodeid: str) -> str:
    file = nodeid.split("::", 1)[0]
    return "heavy" if file in HEAVY else file


class _Shares(LoadScopeScheduling):  # type: ignore[misc]
    """Where several processes share the tests (``make test``), one has all heavy files, and begins
    with them at once; the others take the rest, file by file, since files share fixtures.

    Source: pytest-xdist, "Custom scheduling"; its ``loadgroup`` finds no groups under pytest 9.2.
    """

    def _split_scope(self, nodeid: str) -> str:
        return _share(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Shares:
    return _Shares(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _share(item.nodeid) != "heavy")


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


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of classifier students; its base URL."""
    port = free_port()
    with Children(tmp_path_factory.mktemp("student")) as children:
        yield classifiers_ready(start_classifiers(children, port, CACHE), port)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty store of either kind."""
    if request.param == "sqlite":
        return Place(tmp_path / "x.db")
    server: Postgres = request.getfixturevalue("database")
    upgrade(server.url)
    return Place(tmp_path / "x.db", server.url)
