"""The demo task *banking-intents*: 30 CLINC150 intents, and the traffic around them.

Every split is derived from ``tests/data/clinc150`` by a fixed seed. Test rows are only ever
played as traffic; nothing is fitted or chosen on them.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.rows import Row, read_rows

TASK = "banking-intents"
SYSTEM = "Name the banking intent."
SEED = 20261124
BANKING = (
    "account_blocked", "balance", "bill_balance", "bill_due", "freeze_account", "interest_rate",
    "min_payment", "order_checks", "pay_bill", "pin_change", "report_fraud", "routing",
    "spending_history", "transactions", "transfer",
)  # fmt: skip
CREDIT_CARDS = (
    "application_status", "apr", "card_declined", "credit_limit", "credit_limit_change",
    "credit_score", "damaged_card", "expiration_date", "improve_credit_score",
    "international_fees", "new_card", "redeem_rewards", "replacement_card_duration",
    "report_lost_card", "rewards_balance",
)  # fmt: skip
INTENTS = frozenset(BANKING + CREDIT_CARDS)
WITH_SYSTEM = 0.5
"""Share of rows with the system message; the rest are the user's text alone. Both are prompt
templates that the student is trained on and certified for."""
OUT_OF_SCOPE = "oos"
HELD_FROM_TRAIN = 10
"""Training utterances per intent that the student never sees: they fit the judge instead."""

MIX = {"in_domain": 0.5, "near": 0.4, "oos": 0.1}
"""The traffic that the certificate is for, and that the demo plays: shares by slice."""
_NOT_WORD = re.compile(r"[^a-z0-9 ]+")


@dataclass(frozen=True, slots=True)
class Utterance:
    """One labelled CLINC150 text and the slice of traffic it belongs to."""

    text: str
    label: str

    @property
    def slice(self) -> str:
        """``in_domain``, ``near`` (the other 120 intents) or ``oos``."""
        if self.label in INTENTS:
            return "in_domain"
        return "oos" if self.label == OUT_OF_SCOPE else "near"


def messages(utterance: Utterance, rng: random.Random) -> list[dict[str, str]]:
    """The chat request of an utterance, in one of the two templates."""
    user = {"role": "user", "content": utterance.text}
    with_system = rng.random() < WITH_SYSTEM
    return [{"role": "system", "content": SYSTEM}, user] if with_system else [user]


@dataclass(frozen=True, slots=True)
class Splits:
    """Disjoint rows: ``train`` for the student, ``combine`` and ``calibrate`` for the judge."""

    train: tuple[Utterance, ...]
    combine: tuple[Utterance, ...]
    calibrate: tuple[Utterance, ...]


def load(folder: Path, *names: str) -> list[Utterance]:
    """The named CLINC150 splits, one after another."""
    rows: list[Row] = []
    for name in names:
        rows += read_rows(folder / f"{name}.jsonl.gz")
    return [Utterance(row.text, row.completion or "") for row in rows]


def make_splits(folder: Path) -> Splits:
    """Train, combine and calibrate rows; test splits are not opened."""
    rng = random.Random(SEED)
    train, held = _hold_out(load(folder, "train"), rng)
    taught = {normalised(u.text) for u in train}
    held = [u for u in held if normalised(u.text) not in taught]
    outside = load(folder, "oos_train", "oos_val")
    rng.shuffle(outside)
    near = [u for u in load(folder, "train") if u.slice == "near"]
    rng.shuffle(near)
    combine = _mixed(held, near, outside[:60], rng)
    val = load(folder, "val")
    val_in = [u for u in val if u.slice == "in_domain"]
    val_near = [u for u in val if u.slice == "near"]
    rng.shuffle(val_near)
    seen = {normalised(u.text) for u in (*train, *combine)}
    fresh = [[u for u in part if normalised(u.text) not in seen] for part in (val_in, val_near)]
    calibrate = _mixed(fresh[0], fresh[1], outside[60:180], rng)
    return Splits(tuple(train), tuple(combine), tuple(calibrate))


def traffic(folder: Path, count: int, seed: int = SEED) -> list[Utterance]:
    """Held-out test utterances in the stated mix, shuffled; none occurs in a training split."""
    rng = random.Random(seed)
    seen = {normalised(u.text) for u in load(folder, "train", "val", "oos_train", "oos_val")}
    pool: dict[str, list[Utterance]] = defaultdict(list)
    for utterance in load(folder, "test", "oos_test"):
        if normalised(utterance.text) not in seen:
            pool[utterance.slice].append(utterance)
    chosen: list[Utterance] = []
    for name, share in MIX.items():
        chosen += rng.sample(pool[name], min(round(count * share), len(pool[name])))
    rng.shuffle(chosen)
    return chosen


def normalised(text: str) -> str:
    """Lower case without punctuation: how duplicates across CLINC150 splits are found."""
    return " ".join(_NOT_WORD.sub("", text.lower()).split())


def _hold_out(
    rows: Iterable[Utterance], rng: random.Random
) -> tuple[list[Utterance], list[Utterance]]:
    by_label: dict[str, list[Utterance]] = defaultdict(list)
    for row in rows:
        if row.slice == "in_domain":
            by_label[row.label].append(row)
    train: list[Utterance] = []
    held: list[Utterance] = []
    for label in sorted(by_label):
        items = by_label[label]
        rng.shuffle(items)
        held += items[:HELD_FROM_TRAIN]
        train += items[HELD_FROM_TRAIN:]
    rng.shuffle(train)
    return train, held


def _mixed(
    inside: Sequence[Utterance],
    near: Sequence[Utterance],
    outside: Sequence[Utterance],
    rng: random.Random,
) -> list[Utterance]:
    """As many rows as the scarcest slice allows in the stated mix."""
    total = min(len(inside) / MIX["in_domain"], len(near) / MIX["near"], len(outside) / MIX["oos"])
    rows = [
        *inside[: round(total * MIX["in_domain"])],
        *near[: round(total * MIX["near"])],
        *outside[: round(total * MIX["oos"])],
    ]
    rng.shuffle(rows)
    return rows
