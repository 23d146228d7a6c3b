"""What has to be true of a machine before the demo starts; each problem is one line."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterable
from pathlib import Path

NEEDED_MIB = 3500
"""vLLM with this model takes about 2.4 GiB, gateway and teacher 0.3 GiB each."""


def problems(ports: Iterable[tuple[str, int]], student_python: Path) -> list[str]:
    """Every reason why the demo cannot run here."""
    found = [f"port {port} ({what}) is in use; stop what listens there or set {what.upper()}_PORT"
             for what, port in ports if not _free(port)]  # fmt: skip
    available = _available_mib()
    if available is not None and available < NEEDED_MIB:
        found.append(f"{available} MiB of memory are free, the demo needs {NEEDED_MIB} MiB")
    if not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        found.append(
            "no C++ compiler is installed and vLLM needs one; on Debian: apt-get install g++"
        )
    if not student_python.exists():
        found.append(f"{student_python} does not exist; run 'make student-env'")
    return found


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _available_mib() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    values = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(values["MemAvailable"].split()[0]) // 1024
