"""A TCP proxy that delays, hangs and cuts: between the gateway and its database."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

PIECE = 64 << 10


@dataclass(slots=True)
class TcpProxy:
    """Passes bytes on; ``delay_s`` per piece in each direction, not at all while ``hanging``."""

    target: int
    delay_s: float = 0.0
    hanging: bool = False
    port: int = 0
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[TcpProxy]:
        """Listen on a port of its own."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.cut()

    def cut(self) -> None:
        """Break every connection."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            back, there = await asyncio.open_connection("127.0.0.1", self.target)
            self._writers |= {writer, there}
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pass(reader, there))
                    group.create_task(self._pass(back, writer))
            except* OSError:
                pass
            finally:
                self._writers -= {writer, there}
                there.close()
                writer.close()

    async def _pass(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(PIECE):
            await asyncio.sleep(self.delay_s)
            while self.hanging:
                await asyncio.sleep(0.05)
            sink.write(data)
            await sink.drain()
        sink.close()
