"""Several worker processes behind one listening socket.

uvicorn's own supervisor answers SIGHUP by restarting workers, which cuts streams; this one hands
signals on, and each worker takes a changed configuration over in place. A worker that dies is
replaced; one that cannot start ends the whole, as a mistake in the configuration should. One starts
first and the others once it serves: all at once would share the cores, and nobody would serve until
all of them do. Workers notice the supervisor's death by the end of a pipe, and drain.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client import multiprocess

from gateway.logs import log
from gateway.metrics import METRICS_DIR
from gateway.settings import Listen
from gateway.totals import leave_seeds

RESPAWN_S = 1.0
GRACE_S = 5.0
"""Beyond what draining may take, until a worker is killed."""


@dataclass(frozen=True, slots=True)
class WorkerPlace:
    """What a worker is given: its number, the listening socket, and its end of the pipe."""

    slot: int
    listener: int
    pipe: int

    def argument(self) -> str:
        """For the command line."""
        return f"{self.slot}:{self.listener}:{self.pipe}"

    @classmethod
    def parse(cls, text: str) -> WorkerPlace:
        """From the command line.

        Raises:
            ValueError: it is something else.
        """
        slot, listener, pipe = map(int, text.split(":"))
        return cls(slot, listener, pipe)


def bind(listen: Listen) -> socket.socket:
    """The listening socket.

    Raises:
        OSError: the address cannot be bound.
    """
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((listen.host, listen.port))
        listener.listen(4096)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


@dataclass(slots=True)
class Supervisor:
    """Starts and replaces workers until a signal; ``environment`` is what they inherit."""

    config: Path
    listen: Listen
    store: Path
    environment: Mapping[str, str]
    _running: dict[int, asyncio.subprocess.Process] = field(default_factory=dict)
    _stopping: asyncio.Event = field(default_factory=asyncio.Event)
    _serving: set[int] = field(default_factory=set)
    _first_tried: asyncio.Event = field(default_factory=asyncio.Event)
    _reloads: int = 0
    _failed: int = 0

    async def run(self) -> int:
        """Until every worker is gone; returns the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        listener = bind(self.listen)
        host, port = listener.getsockname()[:2]
        with listener, tempfile.TemporaryDirectory(prefix="understudy-metrics-") as metrics:
            log("starting", host=host, port=port, workers=self.listen.workers)
            leave_seeds(self.store, Path(metrics))
            keepers = [
                asyncio.create_task(self._keep(slot, listener, metrics))
                for slot in range(self.listen.workers)
            ]
            await self._stopping.wait()
            self._first_tried.set()
            listener.close()
            await self._drained(keepers)
        return self._failed

    async def _keep(self, slot: int, listener: socket.socket, metrics: str) -> None:
        """Keep one slot filled. The first worker of a slot has to start; one that was killed before
        it could says nothing about the next."""
        first = True
        if slot > 0:
            await self._first_tried.wait()
        while not self._stopping.is_set():
            began, code = await self._one(slot, listener, metrics)
            if self._stopping.is_set():
                self._failed = self._failed or max(code, 0)
                return
            log("worker_died", slot=slot, code=code)
            if first and not began and code >= 0:
                self._failed = code or 1
                self._stop(signal.SIGTERM)
                return
            self._first_tried.set()
            first = False
            await asyncio.sleep(RESPAWN_S)

    async def _one(self, slot: int, listener: socket.socket, metrics: str) -> tuple[bool, int]:
        """One worker's life: whether it came to serve, and its exit code."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours:
            with theirs:
                place = WorkerPlace(slot, listener.fileno(), theirs.fileno())
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "gateway.cli", "serve", "--config", str(self.config),
                    "--worker", place.argument(),
                    pass_fds=(place.listener, place.pipe),
                    env={**self.environment, METRICS_DIR: metrics},
                    start_new_session=True,  # Ctrl-C is for the supervisor, which hands it on
                )  # fmt: skip
            self._running[slot] = process
            if self._stopping.is_set():
                _tell(process, signal.SIGTERM)
            reloads = self._reloads
            began = bool(await asyncio.get_running_loop().sock_recv(ours, 1))
            if began:
                self._serving.add(slot)
                self._first_tried.set()
                if self._reloads != reloads:  # it may have read the former configuration
                    _tell(process, signal.SIGHUP)
            code = await process.wait()
        del self._running[slot]
        self._serving.discard(slot)
        multiprocess.mark_process_dead(process.pid, metrics)  # type: ignore[no-untyped-call]
        return began, code

    async def _drained(self, keepers: list[asyncio.Task[None]]) -> None:
        limit = self.listen.drain_delay_s + self.listen.drain_s + GRACE_S
        _, late = await asyncio.wait(keepers, timeout=limit)
        if late:
            self._hand_on(signal.SIGKILL)
            log("workers_killed", seconds=limit)
            self._failed = self._failed or 1
        await asyncio.gather(*keepers)

    def _stop(self, number: int) -> None:
        log("draining", signal=signal.Signals(number).name)
        self._stopping.set()
        self._hand_on(number)

    def _reload(self) -> None:
        """To those that serve: a worker that is starting has no handler yet, and would die."""
        self._reloads += 1
        for slot in self._serving:
            _tell(self._running[slot], signal.SIGHUP)

    def _hand_on(self, number: int) -> None:
        for process in self._running.values():
            _tell(process, number)


def _tell(process: asyncio.subprocess.Process, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it ended, and nobody has noticed yet
        process.send_signal(number)


def supervise(config: Path, listen: Listen, store: Path) -> int:
    """Run workers until a signal; returns the exit code."""
    supervisor = Supervisor(config, listen, store, dict(os.environ))
    try:
        return asyncio.run(supervisor.run())
    except OSError as error:
        print(f"error: {listen.host}:{listen.port} cannot be bound: {error}", file=sys.stderr)
        return 1
