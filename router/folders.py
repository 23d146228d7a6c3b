"""Folders and files that appear whole or not at all, and packages' files without an import."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A staging folder that becomes ``out`` by one rename when the block ends well.

    Raises:
        OSError: it cannot be written, or ``out`` exists and is not empty.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=out.name + ".", dir=out.parent))
    try:
        yield staging
        staging.chmod(0o755)
        os.replace(staging, out)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file beside ``path`` that takes its place by one rename when the block ends well. What a
    kill leaves of it is written over the next time.

    Raises:
        OSError: it cannot be written; ``path`` is as it was.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def package_file(package: str, name: str) -> Path | None:
    """Path of a file that an installed package carries; None if there is no such package or file.

    Read from the package's file list: importing it could load far more than a file.
    """
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return None
    found = (file for file in files if file.name == name)
    return next((Path(str(file.locate())) for file in found), None)
