"""Ask a changed teacher again, as far as the budget reaches: what measures comes first."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletionMessageParam

from distill.examples import Example
from distill.job import Job
from gateway.store.samples import Label, Samples

AT_ONCE = 32
RETRIES = 4


@dataclass(frozen=True, slots=True)
class _Answer:
    text: str | None
    usd: float


def relabel(
    job: Job, stale: Sequence[Example], samples: Samples, now: float, beat: Callable[[], None]
) -> tuple[int, float]:
    """Ask about prompts until the budget of the run is spent; each batch is kept as it comes, so
    that a killed run pays for nothing twice.

    Returns:
        How many have a label of today, and USD.
    """
    budget = job.task.distill.relabel_usd
    order = sorted(stale, key=lambda e: (e.p is None, -e.created_at, e.id))
    spent, count = 0.0, 0
    for start in range(0, len(order), AT_ONCE):
        if spent >= budget:
            job.say(f"the budget is spent: {len(order) - start} prompts stay stale")
            break
        part = order[start : start + AT_ONCE]
        answers = asyncio.run(_asked(job, part))
        spent += sum(answer.usd for answer in answers)
        labels = [
            Label(example.id, answer.text, job.task.teacher.model, now)
            for example, answer in zip(part, answers, strict=True)
            if answer.text
        ]
        samples.relabel(job.task.name, labels)
        count += len(labels)
        beat()
    return count, spent


async def _asked(job: Job, examples: Sequence[Example]) -> list[_Answer]:
    teacher = job.task.teacher
    client = AsyncOpenAI(
        base_url=teacher.base_url,
        api_key=job.teacher_key or "unused",
        timeout=teacher.total_timeout_s,
        max_retries=RETRIES,
    )

    async def one(example: Example) -> _Answer:
        try:
            completion = await client.chat.completions.create(
                model=teacher.model,
                messages=cast(
                    list[ChatCompletionMessageParam],
                    [{"role": m.role, "content": m.content} for m in example.messages],
                ),
                temperature=0.0,
            )
        except APIError:  # it stays stale, and is used for nothing
            return _Answer(None, 0.0)
        usage = completion.usage
        usd = teacher.price.cost_usd(usage.prompt_tokens, usage.completion_tokens) if usage else 0.0
        choice = completion.choices[0]
        whole = choice.finish_reason == "stop"
        return _Answer(choice.message.content if whole else None, usd)

    try:
        return list(await asyncio.gather(*(one(example) for example in examples)))
    finally:
        await client.close()
