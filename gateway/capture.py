"""The capture promise: an answer's end goes out only after its exchange is committed.

One writer thread per process takes whatever waits and commits it together (group commit), so
that the cost of one fsync is shared by every answer that ends meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import Empty, SimpleQueue

from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.store.records import Draw, Exchange
from gateway.store.sqlite import SqliteStore

MAX_BATCH = 256


@dataclass(frozen=True, slots=True)
class _Job:
    """``waiting`` is the future of whoever waits for the commit, and its loop."""

    exchange: Exchange | None
    write: Callable[[SqliteStore], None] | None
    waiting: tuple[asyncio.AbstractEventLoop, asyncio.Future[bool]] | None = None


class Capture:
    """Owns the store's writing connection and the thread that uses it."""

    def __init__(self, store: SqliteStore, metrics: Metrics) -> None:
        self._store = store
        self._metrics = metrics
        self._queue: SimpleQueue[_Job | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._closed = False

    def start(self) -> None:
        """Start the writer."""
        self._thread.start()

    async def close(self) -> None:
        """Commit everything that waits, then stop."""
        self._closed = True
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._store.close()

    async def put(self, exchange: Exchange) -> bool:
        """Commit one exchange; True once it is on disk, False when it cannot be."""
        return await self._submit(exchange, None)

    def put_soon(self, exchange: Exchange) -> None:
        """Commit without waiting: for answers whose end nobody received."""
        if not self._closed:
            self._queue.put(_Job(exchange, None))

    async def finish_draw(self, exchange_id: str, draw: Draw, now: float) -> bool:
        """Commit the second half of a draw."""
        return await self._submit(None, lambda s: s.finish_draw(exchange_id, draw, now))

    async def keep_judgement(self, key: str, task: str, agrees: bool, now: float) -> bool:
        """Commit what the judge comparator said."""
        return await self._submit(None, lambda s: s.keep_judgement(key, task, agrees, now))

    async def _submit(
        self, exchange: Exchange | None, write: Callable[[SqliteStore], None] | None
    ) -> bool:
        if self._closed:
            return False
        loop = asyncio.get_running_loop()
        future: asyncio.Future[bool] = loop.create_future()

        self._queue.put(_Job(exchange, write, (loop, future)))
        self._metrics.queue.set(self._queue.qsize())
        return await future

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = self._batch()
            if None in batch:
                open_ = False
            jobs = [job for job in batch if job is not None]
            if jobs:
                self._commit(jobs)

    def _batch(self) -> list[_Job | None]:
        batch = [self._queue.get()]
        while len(batch) < MAX_BATCH:
            try:
                batch.append(self._queue.get_nowait())
            except Empty:
                break
        return batch

    def _commit(self, jobs: list[_Job]) -> None:
        started = time.perf_counter()
        exchanges = [job for job in jobs if job.exchange is not None]
        stored = self._store_all(exchanges)
        ended: list[tuple[_Job, bool]] = []
        for job in exchanges:
            # One bad row must not cost its neighbours their place on disk.
            alone = stored or (len(exchanges) > 1 and self._store_all([job]))
            self._metrics.records.labels("stored" if alone else "lost").inc()
            ended.append((job, alone))
        for job in jobs:
            if job.write is not None:
                ended.append((job, self._attempt(job.write)))
        _tell(ended)
        self._metrics.commit_seconds.observe(time.perf_counter() - started)

    def _store_all(self, jobs: list[_Job]) -> bool:
        rows = [job.exchange for job in jobs if job.exchange is not None]
        return self._attempt(lambda store: store.put(rows)) if rows else True

    def _attempt(self, write: Callable[[SqliteStore], None]) -> bool:
        try:
            write(self._store)
        except StoreError as error:
            log("capture_failed", error=str(error))
            return False
        return True


def _tell(ended: list[tuple[_Job, bool]]) -> None:
    """Wake the loop once for a whole batch."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[bool], bool]]] = {}
    for job, stored in ended:
        if job.waiting is not None:
            loop, future = job.waiting
            by_loop.setdefault(loop, []).append((future, stored))
    for loop, futures in by_loop.items():
        # The loop may be gone when the process is being torn down: nobody waits then.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(_resolve, futures)


def _resolve(futures: list[tuple[asyncio.Future[bool], bool]]) -> None:
    for future, stored in futures:
        if not future.done():
            future.set_result(stored)
