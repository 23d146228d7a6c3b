"""One whole teacher answer off the request path: for draws, comparisons and probes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import aiohttp

from gateway.books import Books
from gateway.tasks import TaskRuntime
from gateway.teacher import TeacherCall
from gateway.teacher_side import completion


async def ask_teacher(
    task: TaskRuntime, session: aiohttp.ClientSession, books: Books, body: dict[str, Any]
) -> Mapping[str, Any] | None:
    """The completion, its spend booked; None when it is not one.

    Raises:
        TeacherDown: the teacher cannot be reached.
        GatewayError: it refuses the request.
        TimeoutError: it takes longer than ``total_timeout_s``.
    """
    call = TeacherCall(task.teacher, session, lambda attempt: books.book_spend(task.name, attempt))
    opened = await call.open(body, False)
    try:
        async with asyncio.timeout(task.teacher.settings.total_timeout_s):
            answer = completion(await opened.response.read())
    finally:
        opened.response.close()
    usage = (answer or {}).get("usage")
    record = call.record("ok" if answer else "malformed", 200, opened.started, usage)
    books.book_spend(task.name, record)
    return answer
