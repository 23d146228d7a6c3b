"""What is recorded of a turn, and the ends of answers that depend on it: nothing ends before its
exchange is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.allowance import Allowances
from gateway.auth import Principal
from gateway.capture import Capture
from gateway.errors import GatewayError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.replays import Sender
from gateway.store.records import Attempt, Captured, Exchange, Status
from gateway.streams.shape import AnswerStream, Parse
from gateway.tallies import LastingChild
from gateway.totals import Counts
from gateway.turn import Reply, Turn
from gateway.upstream import monotonic
from gateway.verdict import Reason, ServedBy

_MARKS = {
    Captured.YES: b"",
    Captured.PARTIAL: b": understudy-captured partial\n\n",
    Captured.NO: b": understudy-captured no\n\n",
}


def not_stored(task: str) -> GatewayError:
    """The refusal of a task that serves nothing that it cannot store."""
    return GatewayError(
        "capture_unavailable",
        f"Task '{task}' serves only what it can store, and the store does not take it now.",
        headers={"retry-after": "5"},
    )


def _traced(turn: Turn) -> dict[str, str]:
    """For a log line: where the trace is, if there is one."""
    return {} if turn.trace is None else {"trace_id": turn.trace.id}


@dataclass(slots=True)
class ClientStream:
    """One streamed answer on its way out: what the pure stream lets go is sent, its end is held
    back until the exchange is committed."""

    turn: Turn
    stream: AnswerStream
    books: Books
    _sent: bool = False
    _sender: Sender | None = None
    _parts: list[bytes] = field(default_factory=list)

    def take(self, event: Mapping[str, Any], raw: bytes = b"") -> None:
        """Take an upstream event."""
        if part := self.stream.take(event, raw):
            self._parts.append(part)

    def taken(self) -> bytes:
        """What may go out for the events taken since the last call: events that came together are
        sent together, in one system call."""
        if not self._parts:
            return b""
        self._mark_first()
        whole = b"".join(self._parts)
        self._parts.clear()
        return whole

    def begun(self, sender: Sender) -> None:
        """Whom ``passed`` may send to. It has nothing to send before the first part, which says
        the role, has gone the other way."""
        self._sender = sender

    def passed(self, events: list[bytes], parsed: Parse) -> int:
        """Send what events that came together let go, as long as they only add text, if the client
        takes it at once; how many those were."""
        sender = self._sender
        if sender is None or self._parts or not sender.takes():
            return 0
        whole, taken = b"", 0
        for event in events:
            if not (part := self.stream.at_once(event, parsed)):
                break
            whole, taken = whole + part if whole else part, taken + 1
        if taken:
            sender.put(whole)
        return taken

    async def close(self) -> bytes:
        """Commit, then the end of the stream."""
        turn, books = self.turn, self.books
        captured = await books.commit(turn, self.stream.answer())
        if captured is Captured.NO and turn.strict:
            books.count(turn, 503)
            return _MARKS[captured] + self.stream.fail(not_stored(turn.task.name))
        note = turn.explanation(captured) if turn.wishes.explain else None
        end = self.stream.close(note)
        self._mark_first()
        books.count(turn, 200)
        return _MARKS[captured] + end

    async def fail(self, error: str) -> bytes:
        """An honest end for an answer that cannot be completed: an error event, never [DONE]."""
        turn, books = self.turn, self.books
        partial = self.stream.answer()
        captured = await books.keep(turn, 502, Status.INCOMPLETE, partial, error)
        books.count(turn, 502)
        event = GatewayError(
            "stream_broken", f"The answer was cut before its end ({error}). Discard it, try again."
        )
        return _MARKS[captured] + self.stream.fail(event)

    def leave(self, close: Callable[[], None]) -> None:
        """Free the upstream; if the stream was abandoned, keep what there was."""
        close()
        self.books.left(self.turn, self.stream.answer)

    def _mark_first(self) -> None:
        if not self._sent:
            self._sent = True
            turn = self.turn
            self.books.metrics.first_token.labels(
                turn.task.name, turn.verdict.served_by.value
            ).observe(monotonic() - turn.started)


@dataclass(slots=True)
class Books:
    """Store and metrics, as the request path uses them."""

    capture: Capture
    metrics: Metrics
    wake_draws: asyncio.Event
    wake_audit: asyncio.Event
    allowances: Allowances

    async def whole(self, turn: Turn, body: dict[str, Any]) -> Reply:
        """Commit a whole answer, then hand it out."""
        raw = orjson.dumps(body)
        captured = await self.commit(turn, body, raw)
        if captured is Captured.NO and turn.strict:
            raise not_stored(turn.task.name)
        if turn.wishes.explain:
            raw = orjson.dumps({**body, "understudy": turn.explanation(captured)})
        self.count(turn, 200)
        return Reply(200, turn.headers(captured), raw)

    def streamed(self, out: ClientStream, body: AsyncGenerator[bytes]) -> Reply:
        """A reply whose end is still to be committed."""
        headers = {"cache-control": "no-cache", **out.turn.headers("pending")}
        return Reply(200, headers, body, out.begun)

    async def commit(self, turn: Turn, body: Mapping[str, Any], raw: bytes = b"") -> Captured:
        """Put a complete exchange on disk, or say that it is not there. ``raw`` is the body as
        JSON, where it is known."""
        started = time.perf_counter()
        stored = await self.keep(turn, 200, Status.COMPLETE, body, raw=raw)
        self.spent(turn, "capture", started)
        turn.complete = True
        if turn.drawn:
            self.wake_draws.set()
        return stored

    async def failed(self, turn: Turn, error: GatewayError) -> Captured:
        """Keep a request that nobody could answer."""
        captured = Captured.NO
        if not turn.finished:  # else what the error is about is that it cannot be stored
            captured = await self.keep(turn, error.status, Status.ERROR, None, error.code)
        self.count(turn, error.status)
        return captured

    def gone(self, turn: Turn) -> None:
        """Keep a request whose client left before anything was decided."""
        self.left(turn, lambda: None)

    def left(self, turn: Turn, answer: Callable[[], Mapping[str, Any] | None]) -> None:
        """Keep what there was of an answer whose client left, unless it is kept already."""
        if turn.finished:
            return
        turn.finished = True
        now = monotonic()

        def make() -> Exchange:
            return turn.exchange(Status.INCOMPLETE, answer(), now, error="client_gone")

        self.capture.put_soon(make, self._counts(turn, 499))
        self.count(turn, 499)

    async def keep(
        self,
        turn: Turn,
        status: int,
        how: Status,
        answer: Mapping[str, Any] | None,
        error: str | None = None,
        raw: bytes = b"",
    ) -> Captured:
        """Hand the turn's exchange to the store, and with it what it counts for if the answer
        goes out with this status."""
        turn.finished = True
        exchange = turn.exchange(how, answer, monotonic(), error, raw)
        try:
            return await self.capture.put(exchange, self._counts(turn, status))
        except asyncio.CancelledError:  # it is stored all the same, and so it is counted
            self.count(turn, 499)
            raise

    def spent(self, turn: Turn, stage: str, started: float) -> None:
        """Book the gateway's own time; ``started`` from ``time.perf_counter``."""
        seconds = time.perf_counter() - started
        turn.overhead_s += seconds
        if turn.trace is not None:
            turn.trace.stage(stage, seconds)
        self.metrics.overhead.labels(stage).observe(seconds)

    def book(self, turn: Turn, attempt: Attempt) -> None:
        """Book one upstream call."""
        turn.attempts.append(attempt)
        if turn.trace is not None:
            turn.trace.call(attempt)
        self.book_spend(turn.task.name, attempt)
        self._charge(turn.principal, attempt, attempt.cost_usd)
        if attempt.fault:
            log("upstream_failed", id=turn.id, upstream=attempt.upstream, outcome=attempt.outcome,
                **_traced(turn))  # fmt: skip

    def _charge(self, principal: Principal, attempt: Attempt, usd: float) -> None:
        if principal.limited:
            tokens = attempt.prompt_tokens + attempt.completion_tokens
            self.allowances.spent(principal.name, tokens, usd, time.time())

    def book_call(self, principal: Principal, attempt: Attempt) -> None:
        """Count a call that is passed through: its price is not known."""
        self._charge(principal, attempt, 0.0)
        self.metrics.attempts.labels(attempt.upstream, attempt.outcome).inc()
        self.metrics.tokens.labels(attempt.role, "prompt").inc(attempt.prompt_tokens)

    def count_plain(self, task: str, status: int) -> None:
        """Count a request that is passed through, neither judged nor kept."""
        labels = task, ServedBy.TEACHER.value, Reason.NO_STUDENT.value, f"{status // 100}xx"
        self.metrics.requests.labels(*labels).inc()

    def book_spend(self, task: str, attempt: Attempt) -> None:
        """Count a call's tokens and money, whoever it was for."""
        self.metrics.attempts.labels(attempt.upstream, attempt.outcome).inc()
        self.metrics.tokens.labels(attempt.role, "prompt").inc(attempt.prompt_tokens)
        self.metrics.tokens.labels(attempt.role, "completion").inc(attempt.completion_tokens)
        if attempt.role == "teacher":
            self.metrics.cost.labels(task, "teacher").inc(attempt.cost_usd)

    def count(self, turn: Turn, status: int) -> None:
        """Count one request; 499 is a client that left. What went along with its exchange is in
        the store's totals, or will be, and is set right there if it ended otherwise."""
        if turn.counted_as == status:
            for child, amount in turn.counted:
                child.show(amount)
        else:
            for child, amount in self._counted(turn, status):
                child.inc(amount)
            for child, amount in turn.counted:
                self.metrics.totals.add(child.series, -amount)
        self.metrics.duration.labels(turn.task.name, turn.verdict.served_by.value).observe(
            monotonic() - turn.started
        )
        if turn.trace is not None:
            turn.trace.end(turn, status)
            turn.trace = None

    def _counts(self, turn: Turn, status: int) -> Counts:
        turn.counted_as, turn.counted = status, self._counted(turn, status)
        return tuple([(child.series, amount) for child, amount in turn.counted])

    def _counted(self, turn: Turn, status: int) -> list[tuple[LastingChild, float]]:
        """What a request that ends with this status adds to which counter."""
        verdict, task, metrics = turn.verdict, turn.task.name, self.metrics
        request = metrics.requests.labels(
            task, verdict.served_by.value, verdict.reason.value, f"{status // 100}xx"
        )
        if verdict.served_by is not ServedBy.STUDENT or status != 200 or not turn.attempts:
            return [(request, 1.0)]
        last, price = turn.attempts[-1], turn.task.teacher.settings.price
        saved = price.cost_usd(last.prompt_tokens, last.completion_tokens)
        return [(request, 1.0), (metrics.cost_avoided.labels(task), saved)]
