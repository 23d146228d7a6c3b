"""Whether two answers of a task say the same, by the task's comparator.

The judge comparator asks the teacher, once for each pair: its word is kept in the store.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gateway.asking import ask_teacher
from gateway.books import Books
from gateway.halves import Halves
from gateway.http1 import Pool
from gateway.offload import Offload
from gateway.question import Plain
from gateway.streams.whole import answer_text
from gateway.tasks import TaskRuntime
from router import equivalence
from router.comparator import JUDGE, comparator, parse, text


@dataclass(frozen=True, slots=True)
class Equivalence:
    """Compares answers; what the teacher has to be asked for is booked as its spend."""

    pool: Pool
    halves: Halves
    books: Books
    offload: Offload

    async def agrees(
        self, task: TaskRuntime, request: Mapping[str, Any], student: str, teacher: str
    ) -> bool | None:
        """Whether the answers agree; None when the teacher gave no clear word.

        Raises:
            TeacherDown: the teacher cannot be asked.
            GatewayError: the teacher refuses the question.
        """
        name = task.settings.risk.comparator
        if parse(name).kind != JUDGE:
            encoders = task.judge.encoders if task.judge is not None else None
            compare = comparator(name, encoders)
            return await self.offload.run(compare, student, teacher)
        if text(student, teacher):
            return True
        asked_about = request.get("messages") or request.get("input")
        question = equivalence.question(asked_about, student, teacher)
        key = equivalence.key(name, task.teacher.settings.model, question)
        known = await self.halves.judgement(key)
        if known is not None:
            return known
        word = await self._asked(task, question)
        if word is not None:
            await self.halves.keep_judgement(key, task.name, word, time.time())
        return word

    async def _asked(self, task: TaskRuntime, question: str) -> bool | None:
        body = {"temperature": 0, "messages": equivalence.conversation(question)}
        asked = Plain("/chat/completions", body)
        answer = await ask_teacher(task, self.pool, self.books, asked)
        return equivalence.word(answer_text(answer or {}))
