"""Play held-out traffic through the gateway with the official SDK, and watch what happens."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from openai import AsyncOpenAI

from deploy.demo.task import SEED, TASK, Utterance, messages
from deploy.reference_teacher.app import tokens


@dataclass(frozen=True, slots=True)
class Seen:
    """One answered request, as its client saw it."""

    utterance: Utterance
    answer: str
    served_by: str
    reason: str
    ms: float
    teacher_tokens: tuple[int, int]

    @property
    def agrees(self) -> bool:
        """Whether the answer is the teacher's label."""
        return self.answer.strip() == self.utterance.label


@dataclass(slots=True)
class Tally:
    """Everything seen so far."""

    seen: list[Seen] = field(default_factory=list)
    failed: int = 0
    first_at: float | None = None

    def by(self, server: str) -> list[Seen]:
        """What one side served."""
        return [s for s in self.seen if s.served_by == server]

    def reasons(self) -> dict[str, int]:
        """Count by reason."""
        return dict(sorted(Counter(s.reason for s in self.seen).items()))

    def median_ms(self, server: str) -> float | None:
        """Median latency at the client."""
        times = [s.ms for s in self.by(server)]
        return round(statistics.median(times), 1) if times else None

    def coverage(self, part: str) -> float:
        """Share of a slice that the student served."""
        rows = [s for s in self.seen if s.utterance.slice == part]
        return sum(s.served_by == "student" for s in rows) / len(rows) if rows else 0.0

    def agreement(self) -> float | None:
        """Share of student-served answers that equal the teacher's, over every slice."""
        served = self.by("student")
        return sum(s.agrees for s in served) / len(served) if served else None


async def play(
    client: AsyncOpenAI,
    traffic: Sequence[Utterance],
    tally: Tally,
    concurrency: int,
    tick: Callable[[], None],
) -> None:
    """Send every utterance once, every second one streamed."""
    slots = asyncio.Semaphore(concurrency)
    rng = random.Random(SEED)
    requests = [(u, messages(u, rng), number % 2 == 1) for number, u in enumerate(traffic)]

    async def one(utterance: Utterance, chat: list[dict[str, str]], stream: bool) -> None:
        async with slots:
            try:
                tally.seen.append(await _ask(client, utterance, chat, stream))
            except Exception as error:  # any failure of a client counts against us
                tally.failed += 1
                print(f"request failed: {error!r}")
        tally.first_at = tally.first_at or time.monotonic()
        tick()

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(*request))


async def _ask(
    client: AsyncOpenAI, utterance: Utterance, chat: list[dict[str, str]], stream: bool
) -> Seen:
    started = time.perf_counter()
    arguments: Any = {"model": TASK, "messages": chat}
    if stream:
        raw: Any = await client.chat.completions.with_raw_response.create(**arguments, stream=True)
        parts = [
            chunk.choices[0].delta.content or "" async for chunk in raw.parse() if chunk.choices
        ]
        answer = "".join(parts)
    else:
        raw = await client.chat.completions.with_raw_response.create(**arguments)
        answer = raw.parse().choices[0].message.content or ""
    prompt = sum(tokens(m["content"]) + 4 for m in chat)
    return Seen(
        utterance,
        answer,
        raw.headers["x-understudy-served-by"],
        raw.headers["x-understudy-reason"],
        (time.perf_counter() - started) * 1000,
        (prompt, tokens(utterance.label)),
    )
