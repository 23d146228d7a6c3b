"""The capture promise: an answer's end goes out only after its exchange is committed.

One writer thread per process takes whatever waits and commits it together (group commit), so
that the cost of one fsync is shared by every answer that ends meanwhile. It is handed one batch at
a time: waking a thread costs both threads more than the work that it is woken for. An answer waits
for its commit no longer than ``outbox.commit_timeout_s``; then it goes out marked.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable

from gateway.logs import log
from gateway.metrics import Metrics
from gateway.settings import Outbox
from gateway.store.records import Captured, Draw, Exchange
from gateway.store.sqlite import SqliteStore
from gateway.totals import Counts
from gateway.writer import MAX_BATCH, Job, Level, Writer, count_lost

QUEUE_RECORDS = 10_000
"""More only wait where the writer is stuck in the kernel; they are not stored."""
EXPIRE_EVERY_S = 0.25


class Capture:
    """What the event loop knows of the writer."""

    def __init__(self, store: SqliteStore, outbox: Outbox, metrics: Metrics) -> None:
        self._loop = asyncio.get_running_loop()
        self._outbox = outbox
        self._metrics = metrics
        self._writer = Writer(store, outbox, metrics, self._loop, self._dealt_with)
        self._thread = threading.Thread(target=self._writer.run, name="capture", daemon=True)
        self._waiting: deque[tuple[float, asyncio.Future[Captured]]] = deque()
        self._expiry: asyncio.TimerHandle | None = None
        self._closed = False
        self._next: list[Job] = []
        self._unmade: deque[tuple[Callable[[], Exchange], Counts]] = deque()
        self._in_hand = 0
        """Jobs that the writer has and has not dealt with."""

    def start(self) -> None:
        """Start the writer."""
        self._thread.start()

    async def close(self) -> None:
        """Commit everything that waits, then stop."""
        self._closed = True
        while self._unmade:
            self._make()
        if self._next:
            self._writer.queue.put(self._next)
            self._next = []
        self._writer.queue.put(None)
        await asyncio.to_thread(self._thread.join)
        if self._expiry is not None:
            self._expiry.cancel()

    @property
    def refusing(self) -> bool:
        """Whether an exchange that ends now would not be stored."""
        return self._closed or self._writer.level is Level.REFUSING

    @property
    def queued(self) -> int:
        """Exchanges that wait for their commit."""
        return self._in_hand + len(self._next) + len(self._unmade)

    async def put(self, exchange: Exchange, counts: Counts = ()) -> Captured:
        """Commit one exchange: on disk when this returns, or marked as not. ``counts`` go to the
        store's totals with it, or by themselves if it is lost."""
        return await self._submit(Job(exchange, counts=counts))

    def put_soon(self, make: Callable[[], Exchange], counts: Counts = ()) -> None:
        """Commit without waiting: for answers whose end nobody received. An exchange is made in a
        round of the loop of its own, since hundreds of clients may leave at once."""
        if not self._closed:
            self._unmade.append((make, counts))
            if len(self._unmade) == 1:
                self._loop.call_soon(self._make_one)

    def _make_one(self) -> None:
        if self._unmade:
            self._make()
        if self._unmade:
            self._loop.call_soon(self._make_one)

    def _make(self) -> None:
        make, counts = self._unmade.popleft()
        try:
            job = Job(make(), counts=counts)
        except Exception as error:  # of our own: it costs this one, not those behind it
            log("exchange_not_made", error=repr(error))
            count_lost(self._metrics, [Job(counts=counts)])
        else:
            self._hand(job)

    async def finish_draw(self, exchange_id: str, draw: Draw, now: float) -> bool:
        """Commit the second half of a draw."""
        return await self._write(lambda s: s.finish_draw(exchange_id, draw, now))

    async def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> bool:
        """Commit what the judge comparator said."""
        return await self._write(lambda s: s.keep_judgement(key, task, agrees, now))

    async def _write(self, write: Callable[[SqliteStore], None]) -> bool:
        return await self._submit(Job(write=write)) is Captured.YES

    async def _submit(self, job: Job) -> Captured:
        if self._closed or self.queued >= QUEUE_RECORDS:
            count_lost(self._metrics, [job])
            return Captured.NO
        job.waiting = self._loop.create_future()
        deadline = self._loop.time() + self._outbox.commit_timeout_s
        self._waiting.append((deadline, job.waiting))
        if self._expiry is None:
            self._expiry = self._loop.call_later(EXPIRE_EVERY_S, self._expire)
        self._hand(job)
        return await job.waiting

    def _hand(self, job: Job) -> None:
        """With whatever else ends in this round of the loop, or while the writer is busy."""
        self._next.append(job)
        if len(self._next) == 1 and not self._in_hand:
            self._loop.call_soon(self._give)

    def _give(self) -> None:
        if self._in_hand or not self._next:
            return
        batch, self._next = self._next[:MAX_BATCH], self._next[MAX_BATCH:]
        self._in_hand = len(batch)
        self._writer.queue.put(batch)

    def _dealt_with(self) -> None:
        self._in_hand = 0
        self._give()

    def _expire(self) -> None:
        """Let answers go that have waited long enough; what they wait for may still be stored."""
        waiting, now = self._waiting, self._loop.time()
        while waiting and (waiting[0][1].done() or waiting[0][0] <= now):
            _, future = waiting.popleft()
            if not future.done():
                future.set_result(Captured.NO)
        self._expiry = self._loop.call_later(EXPIRE_EVERY_S, self._expire) if waiting else None
