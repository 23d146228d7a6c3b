"""A disk that keeps only what was synced: builds and drives ``powerless.c``."""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_name("powerless.c")
_RECORD = struct.Struct("=qqqq")


def build(folder: Path) -> Path:
    """Compile the shim; the compiler is the one that vLLM's CPU build needs too."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    assert compiler, "a C compiler is missing: apt-get install gcc"
    out = folder / "powerless.so"
    command = [
        compiler,
        "-O1",
        "-shared",
        "-fPIC",
        "-o",
        str(out),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True)
    return out


def environment(shim: Path, store: Path, faults: Path) -> dict[str, str]:
    """Variables for a process whose ``store`` is to be forgetful."""
    return {
        "LD_PRELOAD": str(shim),
        "POWERLESS_PREFIX": str(store),
        "POWERLESS_FAULTS": str(faults),
    }


def forget_unsynced(store: Path) -> int:
    """Take back every write that no sync covered, as a power failure does at its worst.

    Returns:
        How many writes were lost.
    """
    lost = 0
    for suffix in ("", "-wal"):
        path = store.with_name(store.name + suffix)
        undo = path.with_name(path.name + ".undo")
        if path.exists() and undo.exists():
            lost += _play_back(path, undo.read_bytes())
        undo.unlink(missing_ok=True)
    with contextlib.suppress(FileNotFoundError):
        store.with_name(store.name + "-shm").unlink()
    return lost


def _play_back(path: Path, journal: bytes) -> int:
    records: list[tuple[int, bytes, int]] = []
    place = 0
    while place + _RECORD.size <= len(journal):
        offset, _, old_length, old_size = _RECORD.unpack_from(journal, place)
        place += _RECORD.size
        records.append((offset, journal[place : place + old_length], old_size))
        place += old_length
    handle = os.open(path, os.O_RDWR)
    try:
        for offset, old, old_size in reversed(records):
            os.pwrite(handle, old, offset)
            os.ftruncate(handle, old_size)
    finally:
        os.close(handle)
    return len(records)
