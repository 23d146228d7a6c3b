"""Ask the teacher about many prompts: paced, retried, within a budget."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

from openai import APIError, AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionMessageParam

from distill.job import Job

RETRIES = 4
"""By the SDK, with jittered back-off, honouring ``Retry-After``."""

Chat = Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: the whole completion, or why there is none. ``usd`` by the task's price."""

    completion: Mapping[str, Any] | None
    text: str
    usd: float
    problem: str | None = None


class Teacher:
    """The first upstream of a task's teacher. ``async with`` opens its connections."""

    def __init__(self, job: Job, at_once: int = 8, per_minute: int | None = None) -> None:
        """At most ``at_once`` calls in flight, begun at most ``per_minute`` a minute."""
        self._settings = job.task.teacher
        self._slots = asyncio.Semaphore(at_once)
        self._pause_s = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0
        self._client = AsyncOpenAI(
            base_url=self._settings.base_url,
            api_key=job.teacher_key or "unused",
            timeout=self._settings.total_timeout_s,
            max_retries=RETRIES,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._client.close()

    async def ask(self, messages: Chat, temperature: float = 0.0) -> Answer:
        """One answer; an error of the API is told, not raised."""
        async with self._slots:
            await self._turn()
            try:
                completion = await self._client.chat.completions.create(
                    model=self._settings.model,
                    messages=cast(list[ChatCompletionMessageParam], list(messages)),
                    temperature=temperature,
                )
            except APIError as error:
                return Answer(None, "", 0.0, f"{type(error).__name__}: {error}")
        return self._answer(completion)

    async def ask_all(self, chats: Sequence[Chat]) -> list[Answer]:
        """One answer each, in order."""
        return list(await asyncio.gather(*(self.ask(chat) for chat in chats)))

    async def _turn(self) -> None:
        if self._pause_s:
            now = time.monotonic()
            self._next = max(now, self._next) + self._pause_s
            await asyncio.sleep(self._next - self._pause_s - now)

    def _answer(self, completion: ChatCompletion) -> Answer:
        usage, usd = completion.usage, 0.0
        if usage is not None:
            usd = self._settings.price.cost_usd(usage.prompt_tokens, usage.completion_tokens)
        if not completion.choices:
            return Answer(None, "", usd, "no choices")
        choice = completion.choices[0]
        text = choice.message.content or ""
        if choice.finish_reason != "stop" or not text.strip():
            return Answer(
                None, text, usd, f"finish_reason {choice.finish_reason}, {len(text)} characters"
            )
        return Answer(completion.model_dump(mode="json", exclude_none=True), text, usd)
