"""Student servers as the nightly loop asks them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from distill.replicas import ReplicaError, base_of, load_everywhere, unload_everywhere
from tests.fakes.process import free_port
from tests.fakes.replica import FakeReplica
from tests.fakes.upstream import FakeUpstream, Received, Wire


async def test_the_base_is_the_model_without_a_parent() -> None:
    replica = FakeReplica({"t@v1": "/v1"}, base="smollm2")
    async with replica.upstream.running():
        assert await asyncio.to_thread(base_of, replica.upstream.url) == "smollm2"
        replica.base = None
        assert await asyncio.to_thread(base_of, replica.upstream.url) is None


async def test_a_replica_that_cannot_be_asked_says_so() -> None:
    with pytest.raises(ReplicaError, match="http://127"):
        await asyncio.to_thread(base_of, f"http://127.0.0.1:{free_port()}/v1")

    async def nonsense(received: Received, wire: Wire) -> None:
        await wire.json(200, {"data": "what?"})

    upstream = FakeUpstream(nonsense)
    async with upstream.running():
        with pytest.raises(ReplicaError, match="no list of models"):
            await asyncio.to_thread(base_of, upstream.url)


async def test_a_version_is_loaded_where_it_can_be_and_unloaded_where_it_is(
    tmp_path: Path,
) -> None:
    good, full = FakeReplica(), FakeReplica(refuses={"t@v1"})
    async with good.upstream.running(), full.upstream.running():
        urls = [good.upstream.url, full.upstream.url, f"http://127.0.0.1:{free_port()}/v1"]
        loaded = await asyncio.to_thread(load_everywhere, urls, "t@v1", tmp_path)
        assert loaded.ready == urls[:1]
        assert "no room" in loaded.failed[urls[1]]
        assert set(loaded.failed) == set(urls[1:])
        with pytest.raises(ReplicaError, match="could not be loaded into any"):
            await asyncio.to_thread(load_everywhere, urls[1:], "t@v1", tmp_path)
        assert await asyncio.to_thread(unload_everywhere, urls, "t@v1") == urls[2:]
