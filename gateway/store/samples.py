"""Which exchange is for what: splits that stay, quarantine, labels asked again, consent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gateway.store.keeping import AT_ONCE
from gateway.store.repository import KEEP_JUDGEMENT
from gateway.store.shared import SharedTables


@dataclass(frozen=True, slots=True)
class Sample:
    """An exchange's place. ``group`` holds near-duplicates together. ``quarantined`` rows are used
    for nothing; ``used_by`` names the version that was certified on it; ``failed`` the first
    version that disagreed on it, where it belongs to the regression set."""

    exchange_id: str
    group: str
    split: str
    quarantined: bool = False
    used_by: str | None = None
    failed: str | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """What the teacher said when it was asked again."""

    exchange_id: str
    completion: str
    teacher: str
    at: float


_PUT = """
INSERT INTO samples (task, exchange_id, grp, split, quarantined, used_by, failed)
VALUES (?, ?, ?, ?, ?, ?, ?)
ON CONFLICT (task, exchange_id) DO UPDATE SET grp = excluded.grp, split = excluded.split,
    quarantined = excluded.quarantined
"""


class Samples(SharedTables):
    """The tables, over a connection of their own."""

    def of_task(self, task: str) -> dict[str, Sample]:
        """Every sample of a task, by exchange id."""
        sql = (
            "SELECT exchange_id, grp, split, quarantined, used_by, failed FROM samples "
            "WHERE task = ?"
        )
        return {
            id_: Sample(id_, group, split, bool(quarantined), used_by, failed)
            for id_, group, split, quarantined, used_by, failed in self._db.execute(sql, (task,))
        }

    def put(self, task: str, samples: Iterable[Sample]) -> None:
        """Write places; who used a sample, and who failed on it, is left as it is.

        Raises:
            StoreError: nothing is written.
        """
        with self.transaction():
            self._db.executemany(
                _PUT,
                [(task, s.exchange_id, s.group, s.split, int(s.quarantined), s.used_by, s.failed)
                 for s in samples],
            )  # fmt: skip

    def use(self, task: str, ids: Sequence[str], version: str) -> None:
        """Calibration rows take part in one decision, and never in another.

        Raises:
            StoreError: none is marked.
        """
        with self.transaction():
            self._db.executemany(
                "UPDATE samples SET used_by = ? WHERE task = ? AND exchange_id = ? "
                "AND used_by IS NULL",
                [(version, task, id_) for id_ in ids],
            )

    def fail(self, task: str, ids: Sequence[str], version: str) -> None:
        """Put test rows into the regression set, frozen from now on.

        Raises:
            StoreError: none is.
        """
        with self.transaction():
            self._db.executemany(
                "UPDATE samples SET failed = ? WHERE task = ? AND exchange_id = ? "
                "AND failed IS NULL",
                [(version, task, id_) for id_ in ids],
            )

    def labels(self, task: str) -> dict[str, Label]:
        """Labels that were asked again, by exchange id."""
        sql = "SELECT exchange_id, completion, teacher, at FROM labels WHERE task = ?"
        return {row[0]: Label(*row) for row in self._db.execute(sql, (task,))}

    def relabel(self, task: str, labels: Iterable[Label]) -> None:
        """Keep what the teacher said again.

        Raises:
            StoreError: nothing is kept; it was paid all the same.
        """
        with self.transaction():
            self._db.executemany(
                "INSERT INTO labels (exchange_id, task, completion, teacher, at) "
                "VALUES (?, ?, ?, ?, ?) ON CONFLICT (exchange_id) DO UPDATE SET "
                "completion = excluded.completion, teacher = excluded.teacher, at = excluded.at",
                [(label.exchange_id, task, label.completion, label.teacher, label.at)
                 for label in labels],
            )  # fmt: skip

    def withhold(self, task: str, ids: Sequence[str]) -> int:
        """Mark exchanges as not for training.

        Returns:
            How many were not so before.

        Raises:
            StoreError: those that are not marked yet are not.
        """
        count = 0
        for start in range(0, len(ids), AT_ONCE):
            part = ids[start : start + AT_ONCE]
            marks = ", ".join("?" * len(part))
            with self.transaction():
                count += self._db.execute(
                    f"UPDATE exchanges SET no_train = 1 WHERE task = ? AND no_train = 0 "
                    f"AND id IN ({marks})",
                    (task, *part),
                ).rowcount
        return count

    def judgement(self, key: str) -> bool | None:
        """What the judge comparator said of a pair of answers before."""
        return self._store.judgement(key)

    def keep_judgements(self, task: str, words: Mapping[str, bool], now: float) -> None:
        """Keep what it says, by key.

        Raises:
            StoreError: nothing is kept.
        """
        with self.transaction():
            self._db.executemany(
                KEEP_JUDGEMENT, [(key, task, int(agrees), now) for key, agrees in words.items()]
            )
