"""Ask a student for its whole answers with log-probabilities, as calibration needs them.

Through the same server, sampling and token accounting that the gateway uses, so that the
features at fit time are those at serving.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import cast

from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from router.confidence import TOP_LOGPROBS
from router.errors import FitError
from router.rows import Row, StudentAnswer, TokenLogprob


@dataclass(frozen=True, slots=True)
class StudentEndpoint:
    """Where and how a student is asked."""

    base_url: str
    model: str
    max_tokens: int = 64
    concurrency: int = 8
    timeout_s: float = 120.0
    retries: int = 2


async def with_student_answers(
    rows: Sequence[Row], endpoint: StudentEndpoint, done: Callable[[], None]
) -> list[Row]:
    """The rows, those without a student answer completed; order kept.

    Raises:
        FitError: the server refuses or cannot be reached after its retries.
    """
    client = AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key="unused",
        timeout=endpoint.timeout_s,
        max_retries=endpoint.retries,
    )
    slots = asyncio.Semaphore(endpoint.concurrency)

    async def answered(row: Row) -> Row:
        if row.student is not None:
            return row
        async with slots:
            answer = await _ask(client, row, endpoint)
        done()
        return replace(row, student=answer)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answered(row)) for row in rows]
    except* APIError as errors:
        raise FitError(f"{endpoint.base_url}: {errors.exceptions[0]}") from errors
    finally:
        await client.close()
    return [task.result() for task in tasks]


async def _ask(client: AsyncOpenAI, row: Row, endpoint: StudentEndpoint) -> StudentAnswer:
    completion = await client.chat.completions.create(
        model=endpoint.model,
        messages=cast(
            list[ChatCompletionMessageParam],
            [{"role": m.role, "content": m.content} for m in row.messages],
        ),
        temperature=0.0,
        max_tokens=endpoint.max_tokens,
        logprobs=True,
        top_logprobs=TOP_LOGPROBS,
    )
    return _answer(completion)


def _answer(completion: ChatCompletion) -> StudentAnswer:
    choice = completion.choices[0]
    content = choice.logprobs.content if choice.logprobs and choice.logprobs.content else []
    tokens = tuple(
        TokenLogprob(t.token, t.logprob, tuple(a.logprob for a in t.top_logprobs)) for t in content
    )
    return StudentAnswer(choice.message.content or "", tokens, choice.finish_reason)
