"""The student's own confidence, from the log-probabilities of its first tokens.

Everything is computed over the gated prefix (the first ``gate_tokens`` tokens, or the whole
answer if shorter), streamed or not, so that one certificate covers both.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import mul

import numpy as np
import numpy.typing as npt

from router.rows import StudentAnswer, TokenLogprob

NAMES = (
    "first_margin",
    "mean_logprob",
    "min_logprob",
    "low_logprob",
    "entropy",
    "length_surprise",
    "known_answer",
    "head_logprob",
)
SIGNS = (-1, -1, -1, -1, 1, 1, -1, -1)
"""Which way each feature may push P(disagree)."""

TOP_LOGPROBS = 5
"""Alternatives per token that the features are computed from, at fit and at serving."""

FLOOR = -20.0
"""Log-probabilities below this are cut: vLLM may report -9999 or minus infinity."""


@dataclass(frozen=True)
class Prefix:
    """What the judge sees of a student answer."""

    tokens: tuple[TokenLogprob, ...]
    text: str
    finished: bool

    @classmethod
    def of(cls, answer: StudentAnswer, gate_tokens: int) -> Prefix:
        """The gated prefix of a whole answer."""
        tokens = answer.tokens[:gate_tokens]
        whole = len(answer.tokens) <= gate_tokens
        text = answer.text if whole else "".join(t.token for t in tokens)
        return cls(tokens, text, whole)

    @cached_property
    def surety(self) -> tuple[float, float, float, float, float]:
        """The first five of ``NAMES``: what the tokens say, whichever tier asks. In plain Python: a
        few tokens are summed sooner than numpy is called."""
        values = sorted(_clamped(t.logprob) for t in self.tokens) or [FLOOR]
        entropies = [_entropy(t) for t in self.tokens] or [0.0]
        return (
            _margin(self.tokens[0]) if self.tokens else 0.0,
            sum(values) / len(values),
            values[0],
            _low(values),
            sum(entropies) / len(entropies),
        )


@dataclass(frozen=True, slots=True)
class LengthScale:
    """Mean and deviation of the prefix length in tokens over the combine split."""

    mean: float
    deviation: float

    @classmethod
    def fitted(cls, prefixes: Sequence[Prefix]) -> LengthScale:
        """Learn from the prefixes of the combine split."""
        lengths = np.array([len(p.tokens) for p in prefixes], dtype=np.float64)
        return cls(float(lengths.mean()), float(max(lengths.std(), 1.0)))


def confidence_features(
    prefix: Prefix,
    scale: LengthScale,
    classes: Sequence[str],
    head_logprobs: npt.NDArray[np.float32],
) -> tuple[float, ...]:
    """The features named in ``NAMES``.

    ``known_answer`` is 1 when the text is (the beginning of) one of the task's closed answers;
    ``head_logprob`` is what the linear head thinks of that answer. Both are 0 for open tasks.
    """
    known, head = _second_opinion(prefix, classes, head_logprobs)
    return (
        *prefix.surety,
        abs(len(prefix.tokens) - scale.mean) / scale.deviation,
        known,
        head,
    )


def _low(values: Sequence[float]) -> float:
    """The 10 % quantile of sorted values, between neighbours in proportion (numpy's default)."""
    place = 0.1 * (len(values) - 1)
    below = int(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (values[above] - values[below]) * (place - below)


def _clamped(value: float) -> float:
    return value if value >= FLOOR else FLOOR  # not a number comes to that, too


def _margin(token: TokenLogprob) -> float:
    """Chosen token's log-probability minus the best other alternative's, in nats."""
    own = _clamped(token.logprob)
    others = [_clamped(value) for value in token.top]
    if others:  # the chosen token is among them, once
        others.remove(min(others, key=lambda value: abs(value - own)))
    return own - max(others, default=FLOOR)


def _entropy(token: TokenLogprob) -> float:
    """Entropy in nats over the reported alternatives, the unreported mass as one more outcome."""
    known = list(map(_clamped, token.top or (token.logprob,)))
    shares = [math.exp(v) for v in known]
    rest = 1.0 - sum(shares)
    weighed: float = sum(map(mul, shares, known))
    return -(weighed + rest * math.log(rest) if rest > 1e-9 else weighed)


def _second_opinion(
    prefix: Prefix, classes: Sequence[str], head_logprobs: npt.NDArray[np.float32]
) -> tuple[float, float]:
    if not classes:
        return 0.0, 0.0
    text = prefix.text.strip()
    matches = [
        index
        for index, name in enumerate(classes)
        if (name == text if prefix.finished else name.startswith(text) or text.startswith(name))
    ]
    if not matches:
        return 0.0, FLOOR
    return 1.0, max(float(head_logprobs[index]) for index in matches)
