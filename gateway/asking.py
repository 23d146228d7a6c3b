"""One whole teacher answer off the request path: for draws, comparisons and probes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.books import Books
from gateway.http1 import Pool
from gateway.question import Question
from gateway.slots import Priority
from gateway.tasks import TaskRuntime
from gateway.teacher import TeacherCall


async def ask_teacher(
    task: TaskRuntime, pool: Pool, books: Books, question: Question
) -> Mapping[str, Any] | None:
    """The whole answer, its spend booked; after live traffic in the teacher's quota.

    Raises:
        TeacherDown: the teacher gives none.
        GatewayError: it refuses the request.
    """
    call = TeacherCall(
        task.teacher,
        pool,
        lambda attempt: books.book_spend(task.name, attempt),
        priority=Priority.DRAW,
    )
    return (await call.open(question)).body
