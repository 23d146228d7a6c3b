"""What ``/metrics`` counts, and what the store knows, side by side."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from gateway.store.sqlite import SqliteStore
from tests.fakes.process import GatewayProcess

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
