"""``understudy backup`` and ``understudy restore``: one file with the store, as it was at one
moment, and the folders of every version that the registry knows.

A gateway may serve meanwhile: SQLite copies one snapshot (sqlite.org/backup.html). With Postgres
the file holds the outbox and the folders; the database is ``pg_dump``'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.config_file import environment, load_config, place_of
from gateway.errors import ConfigError, StoreError
from gateway.settings import Config
from gateway.store.opening import moved_aside
from gateway.store.place import Place
from gateway.terminal import ConfigFile, fail

app = typer.Typer(no_args_is_help=True, add_completion=False)
FORMAT = 1
STORE = "store.db"
MANIFEST = "manifest.json"


class BackupError(Exception):
    """It cannot be written, or not be used."""


@dataclass(frozen=True, slots=True)
class Contents:
    """What a backup holds. ``folders`` maps names in the file to where they were; ``files`` maps
    members to their SHA-256."""

    at: float
    folders: Mapping[str, str]
    files: Mapping[str, str]

    @classmethod
    def parse(cls, raw: bytes) -> Contents:
        """From ``manifest.json``.

        Raises:
            BackupError: another version wrote it.
        """
        data: dict[str, Any] = json.loads(raw)
        if data.get("format") != FORMAT:
            raise BackupError(f"format {data.get('format')!r} is not this version's ({FORMAT})")
        return cls(data["at"], data["folders"], data["files"])


@app.command()
def backup(
    config: ConfigFile,
    to: Annotated[Path, typer.Option("--to", help="The file to write; a tar archive.")],
) -> None:
    """Write store and students to one file, while the gateway serves."""
    settings, place = _site(config)
    if to.exists():
        fail(f"{to} is there already")
    try:
        found = write_backup(settings, place, to, time.time())
    except (OSError, sqlite3.Error, StoreError, BackupError) as error:
        fail(f"{to}: {error}")
    size = to.stat().st_size / 1e6
    typer.echo(f"{to}: the store and {len(found.folders)} folders, {size:.1f} MB")
    if place.shared:
        typer.echo(
            "Postgres is not in it; right after this: pg_dump --format=custom --file FILE URL"
        )


@app.command()
def restore(
    config: ConfigFile,
    file: Annotated[Path, typer.Argument(help="What `understudy backup` wrote.")],
    replace: Annotated[
        bool, typer.Option("--replace", help="Move a store that is there aside.")
    ] = False,
) -> None:
    """Put a backup back. The gateway must not run; every file is checked before any is placed."""
    settings, place = _site(config)
    homes = [task.distill.folder for task in settings.tasks]
    try:
        found, aside = read_backup(place, file, homes, replace=replace, now=time.time())
    except (OSError, tarfile.TarError, BackupError, KeyError, ValueError) as error:
        fail(f"{file}: {error}")
    written = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime(found.at))
    typer.echo(f"{place.path}: as of {written}, with {len(found.folders)} folders")
    if aside is not None:
        typer.echo(f"the store that was there: {aside}")
    if place.shared:
        typer.echo("Postgres: pg_restore --clean --if-exists --dbname URL FILE")
    typer.echo("Whoever was forgotten since then is in it again: understudy captures forget")


def write_backup(config: Config, place: Place, to: Path, now: float) -> Contents:
    """Write it beside its place first: a file of that name is whole.

    Raises:
        BackupError: there is no store.
        StoreError: the registry cannot be read.
    """
    if not place.path.is_file():
        raise BackupError(f"{place.path}: no such store; has the gateway run?")
    with tempfile.TemporaryDirectory(dir=to.parent, prefix=".backup-") as work:
        snapshot, half = Path(work) / STORE, Path(work) / "half.tar"
        _copy_store(place.path, snapshot)
        folders = {f"folders/{n}": str(p) for n, p in enumerate(_folders(config, place))}
        files: dict[str, str] = {}
        descriptor = os.open(half, os.O_WRONLY | os.O_CREAT, 0o600)  # it holds people's text
        with os.fdopen(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w") as tar:
            _add(tar, snapshot, STORE, files)
            for name, folder in folders.items():
                for path in sorted(p for p in Path(folder).rglob("*") if p.is_file()):
                    _add(tar, path, f"{name}/{path.relative_to(folder)}", files)
            found = Contents(now, folders, files)
            told = {"format": FORMAT, "at": now, "folders": folders, "files": files}
            raw = json.dumps(told).encode()
            info = tarfile.TarInfo(MANIFEST)
            info.size, info.mtime = len(raw), int(now)
            tar.addfile(info, io.BytesIO(raw))
            out.flush()
            os.fsync(out.fileno())
        half.rename(to)
    return found


def read_backup(
    place: Place, file: Path, homes: Sequence[Path], *, replace: bool, now: float
) -> tuple[Contents, Path | None]:
    """Check every file, then place them: folders first, the store last. Folders go below ``homes``
    alone, whatever the file says.

    Returns:
        What was in it, and where a store that was there is now.

    Raises:
        BackupError: it is damaged, or something is in the way.
    """
    if place.path.exists() and not replace:
        raise BackupError(f"{place.path} is there; --replace moves it aside")
    place.path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place.path.parent, prefix=".restore-") as work:
        found = _unpacked(file, Path(work))
        for name, folder in found.folders.items():
            _check_way(Path(work) / name, Path(folder), homes)
        for name, folder in found.folders.items():
            if not Path(folder).exists():
                Path(folder).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(work) / name, folder)
        aside = moved_aside(place.path, "before-restore", now) if place.path.exists() else None
        (Path(work) / STORE).rename(place.path)
    return found, aside


def _site(path: Path) -> tuple[Config, Place]:
    try:
        config = load_config(path)
        return config, place_of(config, environment())
    except ConfigError as error:
        fail(*(f"{path}: {problem}" for problem in error.problems))


def _folders(config: Config, place: Place) -> list[Path]:
    """Of versions and their judges; what the configuration itself names is its owner's to keep."""
    found: dict[Path, None] = {}
    with contextlib.closing(place.registry()) as registry:
        for task in config.tasks:
            for version in registry.versions(task.name):
                for folder in (version.folder, version.router):
                    # One that is planned, or whose weights were cleared away, has none.
                    if folder is not None and folder.is_dir():
                        found[folder.resolve()] = None
    return list(found)


def _copy_store(path: Path, to: Path) -> None:
    with (
        contextlib.closing(sqlite3.connect(path, timeout=10)) as source,
        contextlib.closing(sqlite3.connect(to)) as target,
    ):
        source.backup(target)


def _add(tar: tarfile.TarFile, path: Path, name: str, files: dict[str, str]) -> None:
    """A regular file, read once: its digest is of the bytes that went in."""
    raw = path.read_bytes()
    info = tarfile.TarInfo(name)
    info.size, info.mtime, info.mode = len(raw), int(path.stat().st_mtime), 0o600
    files[name] = hashlib.sha256(raw).hexdigest()
    tar.addfile(info, io.BytesIO(raw))


def _unpacked(file: Path, work: Path) -> Contents:
    with tarfile.open(file, "r:") as tar:
        members = {member.name: member for member in tar}
        if MANIFEST not in members:
            raise BackupError("no backup of ours, or it was cut")
        found = Contents.parse(_read(tar, members[MANIFEST]))
        for name, digest in found.files.items():
            if name not in members:
                raise BackupError(f"{name} is missing")
            raw = _read(tar, members[name])
            if hashlib.sha256(raw).hexdigest() != digest:
                raise BackupError(f"{name} is damaged")
            path = (work / name).resolve()
            if not path.is_relative_to(work.resolve()):
                raise BackupError(f"{name} leads out of its place")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(raw)
            path.chmod(0o600 if name == STORE else 0o644)
    return found


def _read(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member) if member.isfile() else None
    if opened is None:
        raise BackupError(f"{member.name} is no file")
    return opened.read()


def _check_way(ours: Path, theirs: Path, homes: Sequence[Path]) -> None:
    """A folder that is there already must be the same: weights are never changed under a name."""
    if not any(theirs.resolve().is_relative_to(home.resolve()) for home in homes):
        raise BackupError(f"{theirs} is not below any task's distill.folder")
    if theirs.exists() and dict(_digests(ours)) != dict(_digests(theirs)):
        raise BackupError(f"{theirs} is there, and differs; move it away")


def _digests(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*"):
        if path.is_file():
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            yield str(path.relative_to(folder)), digest
