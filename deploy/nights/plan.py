"""The fortnight: who asks what on which day, and which mishap comes when.

Every text of CLINC150 is asked at most once, whatever its split there: nothing is fitted on any of
them but what the gateway captured.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from deploy.demo.task import INTENTS, SEED, SYSTEM, Utterance, load

NEW_INTENTS = ("exchange_rate", "international_visa", "taxes", "insurance", "income")
"""They appear on the fourth day."""
RENAMED = {"balance": "account_balance", "transfer": "transfer_money"}
"""From the eighth day on the teacher says these words."""
OUT_OF_SCOPE = 0.1
"""Share of requests that belong to no intent."""
PROBES_OF_INTENT = 10

Event = Literal["new_intents", "teacher_changes", "poison", "broken_training", "killed"]


@dataclass(frozen=True, slots=True)
class Day:
    """One day's traffic and the night after it."""

    number: int
    requests: int
    students: tuple[str, ...]
    event: Event | None = None
    promise: Literal["all_versions", "every_version"] = "all_versions"
    """How the operator's delta is spent (``distill.promise``)."""


def fortnight(lora: bool, first: int = 1100, launch: int = 660, each: int = 300) -> list[Day]:
    """Fourteen days; the new intents' own has twice the traffic, as a launch has.

    With ``lora`` the language model is trained on nights 1, 4, 8 and, wrongly, 12; on 4 and 8 the
    loop chooses between it and the classifier, as it does by default.
    """
    events: dict[int, Event] = {
        4: "new_intents", 8: "teacher_changes", 10: "poison", 12: "broken_training", 13: "killed",
    }  # fmt: skip
    requests = {1: first, 4: launch}
    students: dict[int, tuple[str, ...]] = {}
    if lora:
        both = ("classifier", "lora")
        students = {1: ("lora",), 4: both, 8: both, 12: ("lora",)}
    return [
        Day(
            number, requests.get(number, each), students.get(number, ("classifier",)),
            events.get(number),
        )
        for number in range(1, 15)
    ]  # fmt: skip


def short(first: int = 1000, each: int = 750) -> list[Day]:
    """Six days with the same mishaps, the classifier alone. Delta is each certificate's own: six
    days have too few draws for one that all of them share."""
    events: dict[int, Event] = {
        2: "new_intents", 3: "teacher_changes", 4: "poison", 5: "broken_training", 6: "killed",
    }  # fmt: skip
    return [
        Day(n, first if n == 1 else each, ("classifier",), events.get(n), "every_version")
        for n in range(1, 7)
    ]


class Crowd:
    """Users: each text once, intents evenly, shuffled by a fixed seed."""

    def __init__(self, folder: Path, seed: int = SEED) -> None:
        self._rng = random.Random(seed)
        wanted = INTENTS | set(NEW_INTENTS)
        pool: dict[str, dict[str, Utterance]] = defaultdict(dict)
        for utterance in load(folder, "train", "val", "test"):
            if utterance.label in wanted:
                pool[utterance.label].setdefault(utterance.text.lower().strip(), utterance)
        self._left: dict[str, list[Utterance]] = {}
        for label in sorted(pool):
            rows = list(pool[label].values())
            self._rng.shuffle(rows)
            self._left[label] = rows
        self._outside = load(folder, "oos_train", "oos_val", "oos_test")
        self._rng.shuffle(self._outside)
        self.probes = [
            self._left[label].pop() for label in sorted(INTENTS) for _ in range(PROBES_OF_INTENT)
        ]

    def day(self, count: int, intents: Sequence[str]) -> list[Utterance]:
        """The requests of a day; fewer where the texts run out."""
        outside = round(count * OUT_OF_SCOPE)
        chosen = [self._outside.pop() for _ in range(min(outside, len(self._outside)))]
        turn = 0
        while len(chosen) < count and any(self._left[label] for label in intents):
            queue = self._left[intents[turn % len(intents)]]
            if queue:
                chosen.append(queue.pop())
            turn += 1
        self._rng.shuffle(chosen)
        return chosen


def chat(utterance: Utterance) -> list[dict[str, str]]:
    """The request of an utterance."""
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": utterance.text}]
