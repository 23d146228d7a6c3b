"""Shared test settings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

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


HEAVY = {
    "test_nights.py",
    "test_ray.py",
    "test_real_vllm.py",
    "test_shipped.py",
    "test_training.py",
}
"""What fills a machine by itself: vLLM, Ray, trainings."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes share the tests (``make test``), one has all heavy files, and begins
    with them at once; the others take the rest, file by file, since files share fixtures.

    Source: pytest-xdist's ``--dist loadgroup``.
    """
    names = {item: f"{item.path.parent.name}/{item.path.name}" for item in items}
    items.sort(key=lambda item: names[item] not in HEAVY)
    for item, name in names.items():
        item.add_marker(pytest.mark.xdist_group("heavy" if name in HEAVY else name))


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
