"""A request is forgotten when it is over: what waits for the cycle collector is memory that the
next request cannot use, and a pause while it is looked for."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.http1 import Answer
from gateway.protocol import Client
from gateway.store.records import Exchange
from gateway.turn import Turn
from tests.fakes.rig import FAR, IN_DOMAIN, Rig, rig

OURS = (Client, Turn, Exchange, Answer)


@pytest.fixture
def kept_garbage() -> Iterator[None]:
    """What the collector finds is kept in ``gc.garbage``, and looked for only when asked."""
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.usefixtures("kept_garbage")
async def test_a_request_leaves_nothing_to_the_cycle_collector(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.serve_anything()
        for _ in range(3):
            await _every_kind(r)
        await r.settled()
        gc.collect()
        left = Counter(type(found).__name__ for found in gc.garbage if isinstance(found, OURS))
        assert left == {}


async def _every_kind(r: Rig) -> None:
    for text in (IN_DOMAIN, FAR):
        for stream in (False, True):
            assert (await r.ask(text, stream=stream)).status_code == 200
    assert (await r.ask(n="many")).status_code == 400
    assert (await r.ask(headers={"authorization": "Bearer us-nobody"})).status_code == 401
