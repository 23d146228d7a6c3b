"""A task's first pairs: a smoke of sixteen, then a thousand to five thousand, within a budget.

Each pair is stored as an imported exchange whose id follows from the prompt: what was asked is
never asked again, however often the command is cut.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

from distill.job import Job
from distill.splitting import NEAR, PERMUTATIONS, jaccard, shingles, sketch
from distill.teacher import Answer, Chat, Teacher
from gateway.importing import Found, exchange_of, imported_id
from gateway.scrub import Scrubber
from gateway.store.repository import Repository
from router.comparator import plain_comparator
from router.noise import Comparison
from router.rows import Row

SMOKE = 16
SMOKE_FAILURES = 2
"""More failures than this among the first sixteen, and nothing else is asked."""
BATCH = 32
ROUND = 10
"""New prompts that the teacher is asked for at once."""
SEEDS = 8
DRY_ROUNDS = 5
"""Rounds in a row without a new prompt after which the teacher has no more to say."""


class BootstrapStopped(Exception):
    """It cannot go on; what was asked so far is stored."""


@dataclass(slots=True)
class Bootstrapped:
    """What a bootstrap came to."""

    known: int = 0
    asked: int = 0
    stored: int = 0
    failed: int = 0
    usd: float = 0.0
    out_of_budget: bool = False
    problems: list[str] = field(default_factory=list)


def bootstrap(
    job: Job,
    prompts: Sequence[Row],
    *,
    pairs: int,
    usd: float,
    sample: bool,
    at_once: int,
    per_minute: int | None,
    step: Callable[[int], None],
) -> Bootstrapped:
    """Ask the teacher about the first ``pairs`` prompts, smoke first, and store what it says.

    Args:
        job: whose teacher and store.
        prompts: distinct prompts.
        pairs: how many to ask about at most.
        usd: the most to spend; what is in flight can overshoot by a batch.
        sample: the prompts are a random sample of the task's traffic, and may calibrate.
        at_once: calls in flight.
        per_minute: calls begun in a minute; None does not pace.
        step: hears how many are done.

    Raises:
        BootstrapStopped: the smoke shows that the rest would fail.
        StoreError: the store does not take them.
    """
    with closing(job.place.repository()) as store:
        found = Bootstrapped()
        ids = [_id(job, row) for row in prompts[:pairs]]
        there = _known(store, ids)
        todo = [row for row, id_ in zip(prompts, ids, strict=False) if id_ not in there]
        found.known = len(there)
        step(found.known)
        asyncio.run(_ask(job, store, todo, found, usd, sample, at_once, per_minute, step))
    return found


def self_disagreement(job: Job, prompts: Sequence[Row]) -> tuple[Comparison, float]:
    """How often the teacher contradicts itself on prompts that it is asked twice, and USD: no
    student can agree with it more often.

    Raises:
        BootstrapStopped: it does not answer.
    """

    async def twice() -> tuple[list[Answer], list[Answer]]:
        async with Teacher(job) as teacher:
            chats = [_chat(row) for row in prompts]
            return await teacher.ask_all(chats), await teacher.ask_all(chats)

    first, second = asyncio.run(twice())
    both = {
        str(n): (a.text, b.text)
        for n, (a, b) in enumerate(zip(first, second, strict=True))
        if a.completion is not None and b.completion is not None
    }
    if not both:
        raise BootstrapStopped(f"the teacher answers nothing: {first[0].problem}")
    agree = plain_comparator(job.task.risk.comparator)
    runs = [{key: pair[n] for key, pair in both.items()} for n in (0, 1)]
    usd = sum(answer.usd for answer in (*first, *second))
    return Comparison.of(runs[0], runs[1], agree), usd


def expand(
    job: Job, seeds: Sequence[Row], count: int, usd: float, seed: int
) -> tuple[list[Row], float]:
    """New prompts by the teacher, after the example of ``seeds``, and USD; none is a
    near-duplicate of another. They are invented: they are no sample of any traffic.

    The method is that of Wang et al., Self-Instruct (arXiv 2212.10560): a few examples, drawn anew
    for each round, and a filter on similarity.
    """
    return asyncio.run(_expand(job, seeds, count, usd, random.Random(seed)))


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows without exact repetitions, in order."""
    return list({_source(row): row for row in rows}.values())


async def _ask(
    job: Job, store: Repository, todo: Sequence[Row], found: Bootstrapped, usd: float,
    sample: bool, at_once: int, per_minute: int | None, step: Callable[[int], None],
) -> None:  # fmt: skip
    scrubber = Scrubber(job.task)
    async with Teacher(job, at_once, per_minute) as teacher:
        start, size = 0, SMOKE
        while start < len(todo):
            if found.usd >= usd:
                found.out_of_budget = True
                return
            part = todo[start : start + size]
            answers = await teacher.ask_all([_chat(row) for row in part])
            _keep(job, store, scrubber, part, answers, found, sample)
            step(len(part))
            if start == 0:
                _check_smoke(job, found, len(part), len(todo), usd)
            start, size = start + size, BATCH


def _check_smoke(job: Job, found: Bootstrapped, smoke: int, total: int, usd: float) -> None:
    if found.failed > min(SMOKE_FAILURES, smoke - 1):
        raise BootstrapStopped(
            f"{found.failed} of the first {smoke} prompts have no whole answer, nothing more was "
            f"asked: {found.problems[0]}"
        )
    each = found.usd / smoke
    job.say(f"smoke: {smoke - found.failed} of {smoke} answered; all {total} will cost about "
            f"{each * total:.4f} USD")  # fmt: skip
    if each * total > usd:
        job.say(f"the budget of {usd:g} USD is enough for about {int(usd / each)} of them")


def _keep(
    job: Job, store: Repository, scrubber: Scrubber, rows: Sequence[Row],
    answers: Sequence[Answer], found: Bootstrapped, sample: bool,
) -> None:  # fmt: skip
    batch = []
    for row, answer in zip(rows, answers, strict=True):
        found.asked += 1
        found.usd += answer.usd
        if answer.completion is None:
            found.failed += 1
            found.problems.append(answer.problem or "no answer")
            continue
        usage: Any = answer.completion.get("usage") or {}
        tokens = usage.get("prompt_tokens", 0), usage.get("completion_tokens", 0)
        request = {"model": job.task.name, "messages": _chat(row)}
        pair = Found(request, answer.completion, _source(row), None, tokens, answer.usd)
        batch.append(exchange_of(pair, job.task, scrubber, time.time(), sample))
    found.stored += store.put(batch)


async def _expand(
    job: Job, seeds: Sequence[Row], count: int, usd: float, rng: random.Random
) -> tuple[list[Row], float]:
    from datasketch import MinHashLSH

    lsh, texts = MinHashLSH(threshold=NEAR, num_perm=PERMUTATIONS), list[str]()

    def is_new(text: str) -> bool:
        parts = shingles(" ".join(text.lower().split()))
        mark = sketch(parts)
        near = (shingles(" ".join(texts[n].lower().split())) for n in lsh.query(mark))
        if any(jaccard(parts, other) >= NEAR for other in near):
            return False
        lsh.insert(len(texts), mark)
        texts.append(text)
        return True

    for row in seeds:
        is_new(row.text)
    found: list[Row] = []
    spent, dry = 0.0, 0
    async with Teacher(job) as teacher:
        while len(found) < count and dry < DRY_ROUNDS and spent < usd:
            shown = rng.sample(list(seeds), min(SEEDS, len(seeds)))
            answer = await teacher.ask(_wish(shown), temperature=1.0)
            spent += answer.usd
            new = [text for text in _lines(answer.text) if is_new(text)]
            dry = 0 if new else dry + 1
            for text in new[: count - len(found)]:
                found.append(_like(rng.choice(list(seeds)), text))
    job.say(f"{len(found)} new prompts for {spent:.4f} USD")
    return found, spent


def _wish(shown: Sequence[Row]) -> Chat:
    examples = "\n".join(json.dumps(row.text, ensure_ascii=False) for row in shown)
    return [
        {
            "role": "user",
            "content": "These are messages that users sent to one application, each as a JSON "
            f"string:\n{examples}\n\nWrite {ROUND} more that other users might send to it: other "
            "wording, other wishes of the same kind, short and long ones. One JSON string per "
            "line, nothing else.",
        }
    ]


def _lines(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        try:
            value = json.loads(line.strip().rstrip(","))
        except ValueError:
            continue
        if isinstance(value, str) and value.strip():
            found.append(value.strip())
    return found


def _like(row: Row, text: str) -> Row:
    """A seed's chat with another last message."""
    *head, last = row.messages
    return Row((*head, type(last)(last.role, text)), None)


def _known(store: Repository, ids: Sequence[str]) -> set[str]:
    return {
        e.id for start in range(0, len(ids), 200) for e in store.of_ids(ids[start : start + 200])
    }


def _id(job: Job, row: Row) -> str:
    return imported_id(job.task.name, _source(row))


def _source(row: Row) -> str:
    return "bootstrap " + json.dumps([[m.role, m.content] for m in row.messages])


def _chat(row: Row) -> list[dict[str, str]]:
    return [asdict(message) for message in row.messages]
