"""``POST /v1/feedback``: what a client says of an answer that it got.

Ratings are counted and reviewed. Corrections become labels at once where the key may correct, and
wait for a reviewer otherwise. Saying the same again changes nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from gateway.allowance import seconds_left_in_day, start_of_day
from gateway.api.fields import invalid, required
from gateway.api.request import parse_object
from gateway.auth import Principal
from gateway.errors import GatewayError, StoreError
from gateway.ids import made_at
from gateway.metrics import Metrics
from gateway.offload import Offload
from gateway.store.feedback import Feedback, FeedbackState, FeedbackStore
from gateway.tasks import Tasks

PATH = "/v1/feedback"
YOUNG_S = 30.0
LONGEST = 64 << 10
LONGEST_COMMENT = 2000
_PREFIXES = ("chatcmpl-", "cmpl-", "resp_")
_KNOWN = frozenset({"request_id", "rating", "correction", "comment"})


@dataclass(frozen=True, slots=True)
class Said:
    """A validated body."""

    exchange_id: str
    rating: str | None
    correction: str | None
    comment: str | None


def parse_feedback(raw: bytes) -> Said:
    """Validate a body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    body = parse_object(raw)
    for unknown in sorted(set(body) - _KNOWN):
        known = ", ".join(sorted(_KNOWN))
        raise invalid("invalid_value", unknown, f"is not a field of feedback; there are {known}")
    request_id: str = required(body, "request_id", str, "a string")
    rating, correction = body.get("rating"), body.get("correction")
    if rating not in (None, "up", "down"):
        raise invalid("invalid_value", "rating", "must be 'up' or 'down'")
    if rating is None and correction is None:
        raise invalid("missing_required_parameter", "rating", "or 'correction' is required")
    return Said(_bare(request_id), rating, _correction(correction), _comment(body.get("comment")))


def _bare(request_id: str) -> str:
    for prefix in _PREFIXES:
        request_id = request_id.removeprefix(prefix)
    if not 1 <= len(request_id) <= 64:
        raise invalid("invalid_value", "request_id", "must be an 'x-request-id' or an answer's id")
    return request_id


def _correction(value: Any) -> str | None:
    """The right answer as text; objects and lists are what a JSON task answers."""
    if value is None:
        return None
    text = orjson.dumps(value).decode() if isinstance(value, dict | list) else value
    if not isinstance(text, str):
        raise invalid("invalid_type", "correction", "must be a string, an object or a list")
    if not text.strip() or len(text.encode()) > LONGEST:
        raise invalid("invalid_value", "correction", f"must be 1 to {LONGEST} bytes long")
    return text


def _comment(value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise invalid("invalid_type", "comment", "must be a string")
    if value is not None and len(value) > LONGEST_COMMENT:
        raise invalid("invalid_value", "comment", f"must be {LONGEST_COMMENT} characters at most")
    return value or None


@dataclass(frozen=True, slots=True)
class FeedbackDesk:
    """Takes feedback in."""

    tasks: Tasks
    store: FeedbackStore
    metrics: Metrics
    offload: Offload
    patience_s: float = 0.0
    """Where exchanges are shipped, the latest may be on their way still."""

    async def take(self, raw: bytes, principal: Principal) -> dict[str, Any]:
        """Keep it; what the client is told.

        Raises:
            GatewayError: ``exchange_not_found``: there is none, or it is another key's;
                ``rate_limit_exceeded``; ``store_unavailable``; or what is wrong with the body.
        """
        said = parse_feedback(raw)
        try:
            feedback, fresh = await self._kept(said, principal)
        except StoreError as error:
            message = f"The store does not answer: {error}"
            raise GatewayError("store_unavailable", message) from error
        if fresh:
            kind = "correction" if feedback.correction is not None else feedback.rating or ""
            self.metrics.feedback.labels(feedback.task, kind, feedback.state.value).inc()
        return {
            "object": "feedback",
            "request_id": feedback.exchange_id,
            "rating": feedback.rating,
            "state": feedback.state.value,
        }

    async def _kept(self, said: Said, principal: Principal) -> tuple[Feedback, bool]:
        until = time.monotonic() + self.patience_s
        while True:
            now = time.time()
            try:
                return await self.offload.run(self._keep, said, principal, now)
            except GatewayError as error:
                young = 0 <= now - made_at(said.exchange_id) < YOUNG_S
                if error.code != "exchange_not_found" or not young or time.monotonic() > until:
                    raise
            await asyncio.sleep(0.2)

    def _keep(self, said: Said, principal: Principal, now: float) -> tuple[Feedback, bool]:
        with self.store.transaction():
            found = self.store.task_of(said.exchange_id, principal.name)
            if found is None:
                raise GatewayError(
                    "exchange_not_found",
                    f"No request '{said.exchange_id}' of this key is kept.",
                    param="request_id",
                )
            feedback = self._feedback(said, principal, found, now)
            before = self.store.given(said.exchange_id, principal.name)
            if before is not None and feedback.says_the_same(before):
                return before, False
            used = self.store.count_since(principal.name, start_of_day(now))
            if before is None and used >= principal.feedback_per_day:
                raise GatewayError(
                    "rate_limit_exceeded",
                    f"This key gave feedback on {used} requests today, as many as it may.",
                    headers={"retry-after": str(seconds_left_in_day(now))},
                )
            self.store.put(feedback)
        return feedback, True

    def _feedback(
        self, said: Said, principal: Principal, found: tuple[str, Mapping[str, Any]], now: float
    ) -> Feedback:
        name, request = found
        task = self.tasks.get(name)
        correction, comment = said.correction, said.comment
        if task is not None:
            spoken = [correction, comment]
            correction, comment = task.scrubber.feedback(request, spoken)
        state = FeedbackState.NOTED
        if correction is not None:
            may = principal.may_correct
            state = FeedbackState.ACCEPTED if may else FeedbackState.SUGGESTED
        return Feedback(
            said.exchange_id, principal.name, name, said.rating, correction, comment, state, now
        )
