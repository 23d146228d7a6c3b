"""Ask a changed teacher again, as far as the budget reaches: what measures comes first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from distill.examples import Example
from distill.night import Night
from distill.paying import in_parts
from gateway.store.samples import Label


def relabel(night: Night, stale: Sequence[Example]) -> int:
    """Ask about prompts until the run's share or the day's money is spent; each batch is kept as it
    comes, so that a killed run pays for nothing twice. What the teacher does not answer stays
    stale.

    Returns:
        How many have a label of today.
    """
    job, done, count = night.job, 0, 0
    order = sorted(stale, key=lambda e: (e.p is None, -e.created_at, e.id))
    chats = [[asdict(m) for m in example.messages] for example in order]
    for answers in in_parts(night, chats, job.task.distill.relabel_usd):
        part = order[done : done + len(answers)]
        done += len(part)
        labels = [
            Label(example.id, answer.text, job.task.teacher.model, night.clock())
            for example, answer in zip(part, answers, strict=True)
            if answer.completion is not None
        ]
        night.samples.relabel(job.task.name, labels)
        count += len(labels)
    if done < len(order):
        job.say(f"the budget is spent: {len(order) - done} prompts stay stale")
    return count
