"""The real Prometheus over a real gateway: every panel and rule has data, or a stated zero."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import Any

from gateway.store.ledger import RunState
from gateway.store.place import Place
from tests.fakes.prometheus import Prometheus, prometheus
from tests.fakes.rig import FAR, IN_DOMAIN, rig
from tests.fakes.versions import add_version
from tests.unit.test_alerts import FILES
from tests.unit.test_dashboards import BOARDS, panels, plain

TASK = "banking-intents"


async def test_every_panel_shows_something_and_every_rule_is_evaluated(tmp_path: Path) -> None:
    probe = tmp_path / "probe.jsonl"
    rows = [{"messages": [{"role": "user", "content": f"question {n}"}]} for n in range(100)]
    probe.write_text("".join(json.dumps(row) + "\n" for row in rows))
    place = Place(tmp_path / "understudy.db")
    name = add_version(place, tmp_path)
    with contextlib.closing(place.registry()) as registry:
        registry.promote(name, "test", "n", time.time())
    with contextlib.closing(place.ledger()) as ledger:
        run = ledger.start(TASK, "cron", {}, "code", time.time() - 60)
        ledger.begin_stage(run, "split", {}, time.time() - 50)
        ledger.end_stage(run, "split", {"train": 40}, time.time() - 40)
        ledger.begin_stage(run, "evaluate", {}, time.time() - 40)
        ledger.end_stage(run, "evaluate", {"slices": {name: {"apr": 0.9}}}, time.time() - 35)
        ledger.end(run, RunState.REFUSED, "worse", time.time() - 30)
    settings: dict[str, Any] = {
        "risk": {"draw_rate": 1.0},
        "probe": {"file": str(probe), "every_s": 60.0},
    }
    async with rig(tmp_path, says="apr", **settings) as r:
        target = r.url.removeprefix("http://")
        rules = [tmp_path / path.name for path in FILES]
        for path, copy in zip(FILES, rules, strict=True):
            copy.write_text(path.read_text().replace("interval: 30s", "interval: 1s"))
        async with prometheus(tmp_path, target, rules) as server:
            began = time.monotonic()
            number = 0
            while time.monotonic() - began < 25:  # several scrapes, with counters that rise
                number += 1
                await r.ask(f"{IN_DOMAIN} {number}")
                await r.ask(f"{FAR} {number}", stream=True)
                await asyncio.sleep(0.2)
            assert await empty(server) == {}
            found = await server.rules()
            assert {rule["health"] for rule in found} == {"ok"}, found
            firing = {
                r["name"] for r in found if r["type"] == "alerting" and r["state"] == "firing"
            }
            assert firing == set()
            recorded = [r["name"] for r in found if r["type"] == "recording"]
            for name in recorded:
                assert await server.query(name), name
            await asyncio.sleep(12)
            assert await empty(server) == {}, "of nothing in the last seconds, a stated zero"


async def empty(server: Prometheus) -> dict[str, str]:
    """Panels of which an expression has no data over ten seconds."""
    found = {}
    for board in BOARDS.values():
        for panel in panels(board):
            for target in panel["targets"]:
                expr = plain(target["expr"]).replace("[1m]", "[10s]")
                if not await server.query(expr):
                    found[panel["title"]] = expr
    return found
