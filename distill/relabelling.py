"""Ask a changed teacher again, as far as the budget reaches: what measures comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict

from distill.examples import Example
from distill.job import Job
from distill.teacher import Answer, Teacher
from gateway.store.samples import Label, Samples

AT_ONCE = 32


def relabel(
    job: Job, stale: Sequence[Example], samples: Samples, now: float, usd: float,
    beat: Callable[[], None],
) -> tuple[int, float]:  # fmt: skip
    """Ask about prompts until ``usd`` are spent; each batch is kept as it comes, so
    that a killed run pays for nothing twice. What the teacher does not answer stays stale.

    Returns:
        How many have a label of today, and USD.
    """
    order = sorted(stale, key=lambda e: (e.p is None, -e.created_at, e.id))
    spent, count = 0.0, 0
    for start in range(0, len(order), AT_ONCE):
        if spent >= usd:
            job.say(f"the budget is spent: {len(order) - start} prompts stay stale")
            break
        part = order[start : start + AT_ONCE]
        answers = asyncio.run(_asked(job, part))
        spent += sum(answer.usd for answer in answers)
        labels = [
            Label(example.id, answer.text, job.task.teacher.model, now)
            for example, answer in zip(part, answers, strict=True)
            if answer.completion is not None
        ]
        samples.relabel(job.task.name, labels)
        count += len(labels)
        beat()
    return count, spent


async def _asked(job: Job, examples: Sequence[Example]) -> list[Answer]:
    async with Teacher(job, AT_ONCE) as teacher:
        return await teacher.ask_all([[asdict(m) for m in e.messages] for e in examples])
