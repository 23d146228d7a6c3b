"""What ``/metrics`` counts, and what the store knows, side by side."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.store.sqlite import SqliteStore
from tests.fakes.process import GatewayProcess, gateway_process
from tests.faults.kills import CLIENTS, WORKERS, Witness, agreeing_upstreams, one_answer

PRICE = (2.5, 10.0)
"""Of the fake teacher, USD per million tokens in and out."""

_REQUESTS = "SELECT task, served_by, reason, count(*) FROM exchanges GROUP BY 1, 2, 3"
_CALLS = """
SELECT sum(prompt_tokens), sum(completion_tokens), sum(cost_usd)
FROM attempts WHERE role = 'teacher'
"""
_SECOND_ANSWERS = """
SELECT coalesce(sum(json_extract(answer, '$.usage.prompt_tokens')), 0),
    coalesce(sum(json_extract(answer, '$.usage.completion_tokens')), 0)
FROM draws WHERE wants = 'teacher' AND answer IS NOT NULL
"""


@dataclass(slots=True)
class Figures:
    """Requests by (task, served_by, reason); exchanges stored; the teacher's tokens and bill."""

    requests: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    stored: float = 0.0
    prompt_tokens: float = 0.0
    completion_tokens: float = 0.0
    cost_usd: float = 0.0

    @property
    def asked(self) -> float:
        """All requests."""
        return sum(self.requests.values())


async def told(gateway: GatewayProcess) -> Figures:
    """By the metrics of whichever worker answers."""
    async with gateway.client() as client:
        text = (await client.get("/metrics")).text
    figures = Figures()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels, value = sample.labels, sample.value
            if sample.name == "understudy_requests_total":
                key = labels["task"], labels["served_by"], labels["reason"]
                figures.requests[key] += int(value)
            elif sample.name == "understudy_fallback_records_total":
                figures.stored += value
            elif labels.get("served_by") != "teacher":
                continue
            elif sample.name == "understudy_tokens_total" and labels["kind"] == "prompt":
                figures.prompt_tokens += value
            elif sample.name == "understudy_tokens_total":
                figures.completion_tokens += value
            elif sample.name == "understudy_cost_usd_total":
                figures.cost_usd += value
    figures.requests = +figures.requests
    return figures


def known(path: Path, price: tuple[float, float]) -> Figures:
    """By the rows of the store; ``price`` in USD per million tokens, in and out."""
    with contextlib.closing(SqliteStore.read_only(path)) as store:
        db = store.connection
        requests = {(task, by, why): count for task, by, why, count in db.execute(_REQUESTS)}
        prompt, completion, cost = db.execute(_CALLS).fetchone()
        more = db.execute(_SECOND_ANSWERS).fetchone()
    return Figures(
        Counter(requests),
        sum(requests.values()),
        prompt + more[0],
        completion + more[1],
        cost + (more[0] * price[0] + more[1] * price[1]) / 1e6,
    )


async def settled(path: Path) -> None:
    """Every draw has its second answer: no call is under way any more."""
    with contextlib.closing(SqliteStore.read_only(path)) as store:
        async with asyncio.timeout(60):
            while store.pending_draws(1):
                await asyncio.sleep(0.1)


async def ask(gateway: GatewayProcess, count: int) -> None:
    """So many answers, by several clients; none may fail."""
    witness = Witness()

    async def some(first: int) -> None:
        for number in range(first, count, CLIENTS):
            async with gateway.client() as client:  # another worker each time
                await one_answer(client, number, witness)

    async with asyncio.TaskGroup() as group:
        for first in range(CLIENTS):
            group.create_task(some(first))
    assert len(witness.ended) == count


def assert_same(by_metrics: Figures, by_store: Figures) -> None:
    """To the last one.

    Raises:
        AssertionError: they differ.
    """
    assert by_metrics.requests == by_store.requests
    assert by_metrics.stored == by_store.stored
    assert by_metrics.prompt_tokens == by_store.prompt_tokens
    assert by_metrics.completion_tokens == by_store.completion_tokens
    assert math.isclose(by_metrics.cost_usd, by_store.cost_usd, rel_tol=1e-9)


async def lives(folder: Path, count: int, requests: int) -> Figures:
    """So many lives of four workers over one store, each answering so many requests and ended by
    SIGTERM; the last one's figures.

    Raises:
        AssertionError: metrics and store differ at the end of one.
    """
    store = folder / "understudy.db"
    async with agreeing_upstreams(store) as data:
        for life in range(1, count + 1):
            async with gateway_process(folder, data, {"workers": WORKERS}) as gateway:
                await ask(gateway, requests)
                await settled(store)
                figures = await told(gateway)
                assert figures.asked == life * requests
                assert_same(figures, known(store, PRICE))
                gateway.terminate()
                assert await gateway.process.wait() == 0
    return figures
