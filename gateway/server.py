"""Run the application under uvicorn, with signals of our own: SIGTERM drains and exits with 0."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import socket
import sys
from collections.abc import Iterator

import uvicorn

from gateway.app import create_app
from gateway.logs import log
from gateway.protocol import GatewayProtocol
from gateway.service import Service
from gateway.settings import Limits
from gateway.supervisor import WorkerPlace
from router.threads import stay_on_one_thread

COLLECTIONS = 10_000, 1, 25
"""New objects between two looks for cycles: more than a few hundred requests in flight hold, so
that it is cycles that are looked for, not requests; two such looks between those that take the
survivors of the last ones along, so that the longest walks 30,000 objects (5 to 18 ms beside
500 slow clients; ten, the default, stood still for 31 ms); and 26 of those between two walks of
everything that lives."""


class _Server(uvicorn.Server):
    def __init__(
        self, config: uvicorn.Config, service: Service, pipe: socket.socket | None
    ) -> None:
        super().__init__(config)
        self._service = service
        self._pipe = pipe

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Say to the supervisor that this worker serves, and notice when there is none any more."""
        await super().startup(sockets)
        _settle()
        if self._pipe is not None and self.started:
            with contextlib.suppress(BrokenPipeError):  # it died meanwhile: the reader sees it
                self._pipe.send(b"r")
            asyncio.get_running_loop().add_reader(self._pipe, self._orphaned)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn re-raises a signal after its shutdown; a drained gateway has exited well."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._service.reload_wanted.set)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                loop.remove_signal_handler(number)

    def _stop(self, number: int) -> None:
        log("draining", signal=signal.Signals(number).name)
        self.force_exit = self.should_exit and number == signal.SIGINT
        delay = 0.0 if self._service.draining else self._service.config.listen.drain_delay_s
        self._service.draining = True
        if delay:  # a load balancer needs time to see /readyz; a second signal cuts it short
            asyncio.get_running_loop().call_later(delay, self._close)
        else:
            self._close()

    def _orphaned(self) -> None:
        assert self._pipe is not None
        asyncio.get_running_loop().remove_reader(self._pipe)
        self._stop(signal.SIGTERM)

    def _close(self) -> None:
        self._service.closing = True
        self.should_exit = True


def _settle() -> None:
    """What the start has loaded stays, 100,000 objects of it: a full collection walks them all, and
    nobody is served for those 40 ms.

    Source: docs.python.org/3/library/gc.html#gc.freeze.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*COLLECTIONS)


def _protocol(limits: Limits) -> type[GatewayProtocol]:
    class Protocol(GatewayProtocol):
        head_timeout_s = limits.head_timeout_s

    return Protocol


def serve(service: Service, place: WorkerPlace | None = None) -> int:
    """Serve until a signal, as one of several workers where a supervisor gave this one a
    ``place``; returns the process's exit code."""
    stay_on_one_thread()
    listen = service.config.listen
    config = uvicorn.Config(
        create_app(service),
        host=listen.host,
        port=listen.port,
        loop="uvloop",
        http=_protocol(service.config.limits),
        ws="none",
        lifespan="on",
        access_log=False,
        log_level="warning",
        server_header=False,
        proxy_headers=False,  # nothing here depends on an address that a header claims
        date_header=True,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(listen.drain_s) or 1,
        backlog=4096,
    )
    pipe, sockets = None, None
    if place is not None:
        pipe = socket.socket(fileno=place.pipe)
        sockets = [socket.socket(fileno=place.listener)]
    server = _Server(config, service, pipe)
    log("starting", host=listen.host, port=listen.port, tasks=[t.name for t in service.tasks])
    with contextlib.suppress(SystemExit):  # uvicorn's way to say that it did not start
        server.run(sockets)
    if not server.started:
        print(f"error: {listen.host}:{listen.port} cannot be bound", file=sys.stderr)
        return 1
    return 0
