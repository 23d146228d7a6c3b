"""The judge comparator in the loop: the teacher's word on each pair of answers, asked for once."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from distill.night import Night
from distill.paying import in_parts
from router import equivalence
from router.comparator import JUDGE, parse, text
from router.rows import Row


class MoneySpent(Exception):
    """The day's money is spent: the run fails, and goes on another day where it stopped."""


def judged(night: Night, rows: Sequence[Row]) -> list[Row]:
    """The rows as they are, but under the judge comparator each with its word (``Row.agrees``).

    The gateway keeps what it asks about live draws in the same place. No clear word is a
    disagreement, and is asked for again in another run.

    Raises:
        MoneySpent: before every pair was asked about.
        StoreError: a word cannot be kept.
    """
    name = night.job.task.risk.comparator
    if parse(name).kind != JUDGE:
        return list(rows)
    model = night.job.task.teacher.model
    words: dict[str, bool] = {}
    asked = [None if _same(row) else _question(row) for row in rows]
    keys = {q: equivalence.key(name, model, q) for q in asked if q is not None}
    for question, key in keys.items():
        known = night.samples.judgement(key)
        if known is not None:
            words[question] = known
    missing = [question for question in keys if question not in words]
    if missing:
        night.job.say(f"asking the teacher whether {len(missing)} pairs of answers agree")
    done = 0
    for answers in in_parts(night, [equivalence.conversation(q) for q in missing]):
        part = missing[done : done + len(answers)]
        done += len(part)
        found = {
            question: said
            for question, answer in zip(part, answers, strict=True)
            if (said := equivalence.word(answer.text)) is not None
        }
        night.samples.keep_judgements(
            night.job.task.name, {keys[q]: said for q, said in found.items()}, time.time()
        )
        words |= found
    if done < len(missing):
        raise MoneySpent(
            f"distill.usd_per_day is spent: {len(missing) - done} pairs are not compared"
        )
    return [
        replace(row, agrees=True if question is None else words.get(question, False))
        for row, question in zip(rows, asked, strict=True)
    ]


def _same(row: Row) -> bool:
    return row.student is not None and text(row.student.text, row.completion or "")


def _question(row: Row) -> str:
    messages = [{"role": m.role, "content": m.content} for m in row.messages]
    said = row.student.text if row.student is not None else ""
    return equivalence.question(messages, said, row.completion or "")
