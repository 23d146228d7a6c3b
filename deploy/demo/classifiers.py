"""Start a server of classifier students."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.demo.processes import Child, Children, wait_ready


def start_classifiers(children: Children, port: int, cache: Path) -> Child:
    """Start it, with no version loaded; ``classifiers_ready`` waits for it."""
    command = [
        sys.executable, "-m", "gateway.cli", "student", "serve", "--port", str(port),
        "--cache", str(cache),
    ]  # fmt: skip
    return children.start("classifier", command, {"OMP_NUM_THREADS": "1"})


def classifiers_ready(child: Child, port: int) -> str:
    """Wait until it answers; its base URL.

    Raises:
        ProcessDied: it ended or took too long.
    """
    wait_ready(child, f"http://127.0.0.1:{port}/health", 60)
    return f"http://127.0.0.1:{port}/v1"
