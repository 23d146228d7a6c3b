"""The gateway as its users start it: a process of its own, that can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.fakes.rig import KEY, ROOT, SECRETS


@dataclass(slots=True)
class GatewayProcess:
    """A running ``understudy serve``."""

    process: asyncio.subprocess.Process
    url: str
    log: Path
    config: Path

    def kill(self) -> None:
        """As the kernel does it: no warning, no cleaning up; the supervisor and its workers, which
        are sessions of their own."""
        for pid in (*self.workers, self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    @property
    def workers(self) -> list[int]:
        """Process ids of the supervisor's children."""
        pid = self.process.pid
        try:
            text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        except OSError:  # the supervisor is gone
            return []
        return [int(child) for child in text.split()]

    def terminate(self) -> None:
        """As an orchestrator does it."""
        self.process.send_signal(signal.SIGTERM)

    async def until_ready(self) -> None:
        """Wait until it can serve."""
        async with self.client() as client:
            for _ in range(600):
                if self.process.returncode is not None:
                    break
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get("/readyz")).status_code == 200:
                        return
                await asyncio.sleep(0.05)
        raise AssertionError(f"the gateway did not start:\n{self.log.read_text()}")

    def client(self) -> httpx.AsyncClient:
        """A client with the test key. It speaks plain HTTP: reading the system's certificates would
        take 40 ms of each of them, and the dozen of a load half a second before the first answer.
        """
        return httpx.AsyncClient(
            base_url=self.url,
            verify=False,
            headers={"authorization": f"Bearer {KEY}"},
            timeout=20,
            limits=httpx.Limits(max_connections=64),
        )


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def gateway_process(
    folder: Path,
    data: dict[str, Any],
    listen: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    *,
    ready: bool = True,
) -> AsyncIterator[GatewayProcess]:
    """Start it, wait until it can serve, and make sure that it is gone at the end."""
    port = free_port()
    config = folder / "understudy.yaml"
    config.write_text(
        yaml.safe_dump({**data, "listen": {"port": port, "drain_s": 5, **(listen or {})}})
    )
    log = folder / "gateway.log"
    with log.open("ab") as handle:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", "from gateway.cli import main; main()",
            "serve", "--config", str(config),
            cwd=ROOT, env={**SECRETS, "PATH": "/usr/bin:/bin", **(env or {})},
            stdout=handle, stderr=handle, start_new_session=True,
        )  # fmt: skip
    gateway = GatewayProcess(process, f"http://127.0.0.1:{port}", log, config)
    try:
        if ready:
            await gateway.until_ready()
        yield gateway
    finally:
        if process.returncode is None:
            gateway.kill()
        await process.wait()
