"""The real Prometheus and promtool of Debian's package, unpacked by ``make prometheus``."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.fakes.process import free_port
from tests.fakes.rig import ROOT

BIN = ROOT / ".cache/prometheus/usr/bin"


def promtool() -> str:
    """Its path. It is never skipped: without it the tests fail and say why."""
    return _found("promtool")


@dataclass(slots=True)
class Prometheus:
    """A server that scrapes once a second."""

    client: httpx.AsyncClient

    async def query(self, expr: str) -> list[Any]:
        """The series that an expression gives now."""
        answer = await self.client.get("/api/v1/query", params={"query": expr})
        body = answer.json()
        assert body["status"] == "success", (expr, body)
        found: list[Any] = body["data"]["result"]
        return found

    async def rules(self) -> list[dict[str, Any]]:
        """Every rule as it was evaluated last."""
        groups = (await self.client.get("/api/v1/rules")).json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]


@contextlib.asynccontextmanager
async def prometheus(
    folder: Path, target: str, rules: Sequence[Path] = ()
) -> AsyncIterator[Prometheus]:
    """Start it, over the metrics of a gateway at ``target`` (host and port)."""
    port, config = free_port(), folder / "prometheus.yaml"
    jobs = [{"job_name": "understudy", "static_configs": [{"targets": [target]}]}]
    config.write_text(yaml.safe_dump({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(path) for path in rules],
        "scrape_configs": jobs,
    }))  # fmt: skip
    with (folder / "prometheus.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            _found("prometheus"), f"--config.file={config}", f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{port}", stdout=log, stderr=log,
        )  # fmt: skip
    try:
        url = f"http://127.0.0.1:{port}"
        async with httpx.AsyncClient(base_url=url, timeout=20) as client:
            for _ in range(300):
                assert process.returncode is None, (folder / "prometheus.log").read_text()
                with contextlib.suppress(httpx.HTTPError):
                    if (await client.get("/-/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.1)
            yield Prometheus(client)
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _found(name: str) -> str:
    path = BIN / name
    if not path.exists():
        pytest.fail(f"{name} is missing; run 'make prometheus'")
    return str(path)
