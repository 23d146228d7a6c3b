"""The rows that an artefact is fitted on, and what they must look like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from router.errors import FitError
from router.redact import Names, Redactor
from router.rows import Row


@dataclass(frozen=True, slots=True)
class Data:
    """The three disjoint sets of rows."""

    train: Sequence[Row]
    combine: Sequence[Row]
    calibrate: Sequence[Row]


def closed_labels(rows: Sequence[Row]) -> list[str] | None:
    """The completions, if they look like a closed set of answers: at least two, each seen three
    times on average, none longer than 64 characters."""
    labels = [row.completion or "" for row in rows]
    distinct = set(labels)
    closed = len(distinct) >= 2 and len(labels) >= 3 * len(distinct)
    return labels if closed and all(len(name) <= 64 for name in distinct) else None


def thinned(rows: Sequence[Row], seed: int) -> list[Row]:
    """Rows at one equal probability: a row drawn with p = 1/weight is kept with p_min / p.

    The exact binomial holds for equal-probability rows only.
    """
    keep = kept_at_one_rate(np.array([row.weight for row in rows]), seed)
    return [row for row, kept in zip(rows, keep, strict=True) if kept]


def kept_at_one_rate(weights: npt.NDArray[np.float64], seed: int) -> npt.NDArray[np.bool_]:
    """Which rows of inverse draw probabilities ``weights``, shape (n,), to keep so that all that
    stay were drawn at the lowest probability."""
    chance = np.random.default_rng(seed).random(len(weights))
    kept: npt.NDArray[np.bool_] = chance < weights / weights.max()
    return kept


def answered(data: Data) -> bool:
    """Whether combine and calibrate rows carry student answers.

    Raises:
        FitError: some do and some do not.
    """
    rows = [*data.combine, *data.calibrate]
    without = sum(row.student is None for row in rows)
    if without == len(rows):
        return False
    if without:
        raise FitError(
            f"{without} of {len(rows)} combine and calibrate rows have no student answer; "
            "pass --student URL --student-model NAME to ask for them"
        )
    if any(not row.student.tokens for row in rows if row.student and row.student.text):
        raise FitError("student answers need 'tokens' with log-probabilities")
    return True


def redacted(data: Data, redactor: Redactor) -> Data:
    """Every row as serving sees it and the store keeps it; what was redacted already stays."""
    return Data(
        *(
            [_redacted(row, redactor) for row in rows]
            for rows in (data.train, data.combine, data.calibrate)
        )
    )


def _redacted(row: Row, redactor: Redactor) -> Row:
    names = Names()
    messages = redactor.messages(row.messages, names)
    student = row.student
    return replace(
        row,
        messages=messages,
        completion=None if row.completion is None else redactor.text(row.completion, names),
        student=student and replace(student, text=redactor.text(student.text, names)),
    )


def check(data: Data) -> None:
    """Refuse rows that cannot give a sound artefact.

    Raises:
        FitError: a split is empty, a row lacks its answer or text, or splits overlap.
    """
    for name in ("train", "combine", "calibrate"):
        rows: Sequence[Row] = getattr(data, name)
        if not rows:
            raise FitError(f"{name}: no rows")
        if any(row.completion is None for row in rows):
            raise FitError(f"{name}: every row needs a 'label' or 'completion'")
        if any(not row.text.strip() for row in rows):
            raise FitError(f"{name}: a row has no user text")
    seen = {row.messages for row in data.train}
    shared = sum(row.messages in seen for row in (*data.combine, *data.calibrate))
    if shared > 0.02 * (len(data.combine) + len(data.calibrate)):
        raise FitError(
            f"{shared} combine or calibrate rows are also training rows; the certificate would "
            "be too optimistic"
        )
