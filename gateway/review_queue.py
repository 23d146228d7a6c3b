"""Which exchanges a person should look at first: those whose label would help most.

A suggestion waits for a decision; a thumb down and a disagreement name an error; a score close to
the threshold is where a label moves the rule (uncertainty sampling: Lewis & Gale, SIGIR 1994); what
looked like nothing the student knows shows a new slice. Kinds take turns, so that no kind starves.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from gateway.store.feedback import Candidate

NEAR = 1.0
"""Log-odds around the threshold that count as uncertain."""


class Kind(StrEnum):
    """Why an exchange is in the queue; the first that fits."""

    SUGGESTED = "suggested"
    RATED_DOWN = "rated_down"
    DISAGREES = "disagrees"
    UNCERTAIN = "uncertain"
    NEW_SLICE = "new_slice"


@dataclass(frozen=True, slots=True)
class Item:
    """One place in the queue; ``urgency`` orders within a kind, most urgent first."""

    exchange_id: str
    kind: Kind
    urgency: float


def queue(candidates: Iterable[Candidate], limit: int) -> list[Item]:
    """The first ``limit`` exchanges to look at."""
    items = [item for candidate in candidates if (item := _item(candidate)) is not None]
    by_kind = [
        sorted((i for i in items if i.kind is kind), key=lambda i: (-i.urgency, i.exchange_id))
        for kind in Kind
    ]
    turns: Iterable[Sequence[Item | None]] = itertools.zip_longest(*by_kind)
    return [item for turn in turns for item in turn if item is not None][:limit]


def _item(c: Candidate) -> Item | None:
    if c.suggested:
        return Item(c.exchange_id, Kind.SUGGESTED, -c.created_at)
    if c.rated_down:
        return Item(c.exchange_id, Kind.RATED_DOWN, c.created_at)
    if c.disagrees:
        # Most telling where the judge was surest that they agree.
        return Item(c.exchange_id, Kind.DISAGREES, -_log_odds(c.score or 0.5))
    if c.score is not None and c.threshold:
        gap = abs(_log_odds(c.score) - _log_odds(c.threshold))
        if gap <= NEAR:
            return Item(c.exchange_id, Kind.UNCERTAIN, -gap)
    if c.reason in {"new_template", "ood"}:
        return Item(c.exchange_id, Kind.NEW_SLICE, c.created_at)
    return None


def _log_odds(p: float) -> float:
    bounded = min(max(p, 1e-9), 1 - 1e-9)
    return math.log(bounded / (1 - bounded))
