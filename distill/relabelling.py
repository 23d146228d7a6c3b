"""Ask a changed teacher again, as far as the budget reaches: what measures comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict

from distill.examples import Example
from distill.job import Job
from distill.night import Night
from distill.teacher import Answer, Teacher
from gateway.store.samples import Label

AT_ONCE = 32


def relabel(night: Night, stale: Sequence[Example]) -> int:
    """Ask about prompts until the run's share or the day's money is spent; each batch is kept as it
    comes, so that a killed run pays for nothing twice. What the teacher does not answer stays
    stale.

    Returns:
        How many have a label of today.
    """
    job, spent, count = night.job, 0.0, 0
    order = sorted(stale, key=lambda e: (e.p is None, -e.created_at, e.id))
    for start in range(0, len(order), AT_ONCE):
        if spent >= job.task.distill.relabel_usd or night.money_left() <= 0:
            job.say(f"the budget is spent: {len(order) - start} prompts stay stale")
            break
        part = order[start : start + AT_ONCE]
        answers = asyncio.run(_asked(job, part))
        usd = sum(answer.usd for answer in answers)
        night.spend(usd)
        spent += usd
        labels = [
            Label(example.id, answer.text, job.task.teacher.model, night.clock())
            for example, answer in zip(part, answers, strict=True)
            if answer.completion is not None
        ]
        night.samples.relabel(job.task.name, labels)
        count += len(labels)
        night.beat()
    return count


async def _asked(job: Job, examples: Sequence[Example]) -> list[Answer]:
    async with Teacher(job, AT_ONCE) as teacher:
        return await teacher.ask_all([[asdict(m) for m in e.messages] for e in examples])
