"""Child processes of the demo and of tests: started in groups of their own, ended for sure."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from distill.children import end_with_parent

GRACE_S = 15.0


class ProcessDied(Exception):
    """A child ended before it was ready; the message ends with its last lines."""


@dataclass(slots=True)
class Child:
    """One running process, its name and log."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path

    def tail(self, lines: int = 15) -> str:
        """The end of its log."""
        text = self.log.read_text(errors="replace") if self.log.exists() else ""
        return "\n".join(text.splitlines()[-lines:])

    def signal(self, number: int) -> None:
        """Signal the whole group."""
        try:
            os.killpg(self.popen.pid, number)
        except ProcessLookupError:
            return

    def stop(self, grace_s: float = GRACE_S) -> None:
        """Ask, wait, then kill; whatever of the group is left goes too."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.popen.wait(grace_s)
            except subprocess.TimeoutExpired:
                self.signal(signal.SIGKILL)
                self.popen.wait()
        self.signal(signal.SIGKILL)


class Children:
    """Starts children and stops them, last first, however the block is left."""

    def __init__(self, logs: Path) -> None:
        self._logs = logs
        self._running: list[Child] = []

    def __enter__(self) -> Self:
        self._logs.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for child in reversed(self._running):
            child.stop()

    def start(
        self, name: str, command: Sequence[str], env: Mapping[str, str], nice: int = 0
    ) -> Child:
        """Start a process whose output goes to a log file. It dies with its parent."""
        path = self._logs / f"{name}.log"
        with path.open("wb") as log:
            popen = subprocess.Popen(
                list(command),
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: _prepare(nice),
            )
        child = Child(name, popen, path)
        self._running.append(child)
        return child


def wait_ready(child: Child, url: str, timeout_s: float) -> float:
    """Poll until ``url`` answers 200; returns the seconds it took.

    Raises:
        ProcessDied: the process ended, or the time is over.
    """
    started = time.monotonic()
    while time.monotonic() - started < timeout_s:
        if child.popen.poll() is not None:
            raise ProcessDied(f"{child.name} ended with {child.popen.returncode}:\n{child.tail()}")
        try:
            if httpx.get(url, timeout=2.0).status_code == 200:
                return time.monotonic() - started
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    raise ProcessDied(f"{child.name} was not ready after {timeout_s:g} s:\n{child.tail()}")


def _prepare(nice: int) -> None:
    """In the child: lower its priority; on Linux, end it with its parent (prctl(2))."""
    os.nice(nice)
    end_with_parent(signal.SIGTERM)
