"""The thread that commits: groups what waits, and decides what goes when there is no room.

Order of giving way: bodies of what a student served undrawn go first, then new exchanges are held
in memory and their answers marked; nothing that was committed as training data or draw is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from queue import Empty, SimpleQueue

import orjson

from gateway.errors import StoreError
from gateway.logs import log
from gateway.metrics import Metrics
from gateway.settings import Outbox
from gateway.store.faults import Fault, WriteError
from gateway.store.records import Captured, Exchange
from gateway.store.sqlite import SqliteStore
from gateway.totals import Counts, Series

MAX_BATCH = 256
RETRY_S = 1.0
AGAIN_S = 30.0
"""Pause after counts could not be committed by themselves; an exchange takes them along before."""
BUSY_S = 1.0
"""Short, so that the thread can take what waits into its own hands while the file is locked."""
PARTIAL_FROM = 0.9
"""Share of ``outbox.max_bytes`` from which bodies go."""
DROPPED_AT_ONCE = 200


class Level(IntEnum):
    """How much of an exchange there is room for."""

    WHOLE = 0
    PARTIAL = 1
    REFUSING = 2


@dataclass(slots=True)
class Job:
    """An exchange to store, or another write. ``waiting`` belongs to whoever waits, on ``loop``."""

    exchange: Exchange | None = None
    write: Callable[[SqliteStore], None] | None = None
    waiting: asyncio.Future[Captured] | None = None
    size: int = 0
    counts: Counts = ()
    """What is counted with it, or when it is given up."""

    @property
    def told(self) -> bool:
        """Whether whoever asked has heard already, or does not care."""
        return self.waiting is None or self.waiting.done()


class Writer:
    """Owns the store's writing connection. ``run`` is the thread's function; ``ready`` is called
    on ``loop`` when a batch that was put into ``queue`` has been dealt with."""

    def __init__(
        self,
        store: SqliteStore,
        outbox: Outbox,
        metrics: Metrics,
        loop: asyncio.AbstractEventLoop,
        ready: Callable[[], None],
    ) -> None:
        self.queue: SimpleQueue[Sequence[Job] | None] = SimpleQueue()
        self.level = Level.WHOLE
        self._store = store
        self._outbox = outbox
        self._metrics = metrics
        self._loop = loop
        self._ready = ready
        self._late: deque[Job] = deque()
        self._late_bytes = 0
        self._fault: Fault | None = None
        self._faulty_since = 0.0
        self._pressure = Level.WHOLE
        self._looked_at = 0.0
        self._flush_from = 0.0

    def run(self) -> None:
        """Until None comes out of the queue; then once more what is late, and the end."""
        try:
            while (batch := self._batch()) is not None:
                self._guarded(batch)
            self._last()
        finally:
            self._store.close()

    def _batch(self) -> Sequence[Job] | None:
        """What waits; nothing after a while, since there may be something to try again, or
        something that was counted after its exchange."""
        try:
            return self.queue.get(timeout=RETRY_S)
        except Empty:
            return ()

    def _guarded(self, jobs: Sequence[Job]) -> None:
        """A fault of our own must not end the thread: everybody after would wait for nothing."""
        try:
            self._round(jobs)
        except Exception as error:
            log("capture_round_failed", error=repr(error), jobs=len(jobs))
            self._lost([job for job in jobs if not job.told])
            self._tell([(job, Captured.NO) for job in jobs], ready=True)

    def _round(self, jobs: Sequence[Job]) -> None:
        started = time.perf_counter()
        self._prepare()
        ended: list[tuple[Job, Captured]] = []
        exchanges = [job for job in jobs if job.exchange is not None]
        if exchanges:
            ended += self._commit(exchanges)
        for job in jobs:
            if job.write is not None:
                ended.append((job, Captured.YES if self._other(job.write) else Captured.NO))
        self._settle()  # before anybody hears: whoever heard "no" must find a strict task closed
        self._tell(ended, ready=bool(jobs))
        if jobs:
            self._metrics.commit_seconds.observe(time.perf_counter() - started)
        if self._late and (not exchanges or self._fault is None):
            self._try_late()
        elif self._fault is not None and not exchanges and self._store.writable():
            self._fault = None
        if not exchanges and self._fault is None:
            self._flush()
        self._settle()

    def _flush(self) -> None:
        """Commit what was counted and goes with no exchange."""
        now = time.monotonic()
        if self._metrics.totals and now >= self._flush_from and self._put([], []) is not None:
            self._flush_from = now + AGAIN_S  # on a full disk there is no use in every second

    def _try_late(self) -> None:
        jobs = [self._late.popleft() for _ in range(min(MAX_BATCH, len(self._late)))]
        self._late_bytes -= sum(job.size for job in jobs)
        self._tell(self._commit(jobs))

    def _commit(self, jobs: list[Job]) -> list[tuple[Job, Captured]]:
        """Store exchanges; those that cannot be stored now are kept for later."""
        if self._pressure is Level.REFUSING:
            return self._postpone(jobs, Fault.FULL)
        rows = [_reduced(job, self._pressure is Level.PARTIAL) for job in jobs]
        fault = self._attempt(jobs, rows)
        if fault is Fault.UNFIT and len(jobs) > 1:  # one bad row must not cost its neighbours
            return [pair for job in jobs for pair in self._commit([job])]
        if fault is Fault.FULL and any(row.droppable and row.bodies for row in rows):
            rows = [_reduced(job, True) for job in jobs]
            fault = self._attempt(jobs, rows)
            self._pressure = Level.PARTIAL  # until the next look
        if fault is None:
            self._fault = None
            return [
                (job, Captured.YES if row.bodies else Captured.PARTIAL)
                for job, row in zip(jobs, rows, strict=True)
            ]
        if fault is Fault.UNFIT:
            self._lost(jobs)
            return [(job, Captured.NO) for job in jobs]
        return self._postpone(jobs, fault)

    def _postpone(self, jobs: list[Job], fault: Fault) -> list[tuple[Job, Captured]]:
        """Keep in memory what cannot be stored now. Whoever waits hears so at once, except under
        another's lock, which may be gone in a moment."""
        if self._fault is None:
            self._faulty_since = time.monotonic()
        self._fault = fault
        for job in jobs:
            job.size = job.size or _size(job)
            self._late.append(job)
            self._late_bytes += job.size
        told = [] if fault is Fault.BUSY else [(job, Captured.NO) for job in jobs]
        while self._late_bytes > self._outbox.memory_bytes:
            oldest = self._late.popleft()
            self._late_bytes -= oldest.size
            self._lost([oldest])
            told.append((oldest, Captured.NO))
        return told

    def _attempt(self, jobs: list[Job], rows: list[Exchange]) -> Fault | None:
        """Commit rows and what they count for, in one transaction."""
        records, totals = self._metrics.records, self._metrics.totals
        before = Counter(map(_state, jobs, rows))
        counts = [pair for job in jobs for pair in job.counts]
        counts += [(records.labels(state).series, count) for state, count in before.items()]
        fault = self._put(rows, counts)
        if fault is None:
            after = Counter(map(_state, jobs, rows))
            for state, count in after.items():
                records.labels(state).show(count)
            if after != before:  # whoever waited was let go while the commit did
                for state in {*before, *after}:
                    totals.add(records.labels(state).series, after[state] - before[state])
        return fault

    def _put(self, rows: list[Exchange], counts: Iterable[tuple[Series, float]]) -> Fault | None:
        """With them goes what was counted meanwhile; where that fails it waits on."""
        totals = self._metrics.totals
        taken = totals.take()
        added = dict(taken)
        for series, amount in counts:
            added[series] = added.get(series, 0.0) + amount
        try:
            self._store.put(rows, [(*series, amount) for series, amount in added.items()])
        except WriteError as error:
            totals.put_back(taken)
            if error.fault is not self._fault:
                log("capture_failed", error=str(error), fault=error.fault.value)
            return error.fault
        return None

    def _other(self, write: Callable[[SqliteStore], None]) -> bool:
        try:
            write(self._store)
        except StoreError as error:
            log("capture_failed", error=str(error))
            return False
        return True

    def _prepare(self) -> None:
        """A connection that failed, or whose file is gone from its place, is not used again."""
        if self._fault is Fault.UNAVAILABLE or self._store.moved():
            try:
                fresh = SqliteStore.open(self._store.path, BUSY_S)
            except StoreError as error:
                if self._fault is not Fault.UNAVAILABLE:
                    log("store_gone", error=str(error))
                    self._faulty_since = time.monotonic()
                self._fault = Fault.UNAVAILABLE
                return
            self._store.close()
            self._store = fresh
        if time.monotonic() - self._looked_at >= RETRY_S:
            self._look()

    def _look(self) -> None:
        """How full the store is; make room where that is allowed."""
        self._looked_at = time.monotonic()
        cap = self._outbox.max_bytes
        try:
            used = self._store.used_bytes()
            self._metrics.store_bytes.set(used)
            if cap is None:
                self._pressure = Level.WHOLE
                return
            dropped = DROPPED_AT_ONCE
            while used >= PARTIAL_FROM * cap and dropped == DROPPED_AT_ONCE:
                dropped = self._store.drop_bodies(DROPPED_AT_ONCE)
                self._metrics.dropped_bodies.inc(dropped)
                used = self._store.used_bytes()
        except (StoreError, OSError) as error:
            log("store_not_measured", error=str(error))
            return
        self._pressure = (
            Level.REFUSING
            if used >= cap
            else Level.PARTIAL
            if used >= PARTIAL_FROM * cap
            else Level.WHOLE
        )

    def _settle(self) -> None:
        """Say how things stand after a round. Another's lock is only a fault once it lasts."""
        lasting = time.monotonic() - self._faulty_since > self._outbox.commit_timeout_s
        failing = self._fault is not None and (self._fault is not Fault.BUSY or lasting)
        level = Level.REFUSING if failing else self._pressure
        if level is not self.level:
            log("capture_level", level=level.name.lower(), fault=self._fault, late=len(self._late))
            self.level = level
        self._metrics.capture_level.set(int(level))
        self._metrics.late.set(len(self._late))

    def _last(self) -> None:
        while self._late:
            before = len(self._late)
            self._try_late()
            if len(self._late) >= before:
                break
        if self._late:
            log("captures_lost", count=len(self._late), fault=self._fault)
            self._lost(list(self._late))
            self._tell([(job, Captured.NO) for job in self._late])
        self._flush_from = 0.0
        self._flush()

    def _lost(self, jobs: Sequence[Job]) -> None:
        count_lost(self._metrics, jobs)

    def _tell(self, ended: list[tuple[Job, Captured]], *, ready: bool = False) -> None:
        """Wake the loop once for a whole batch."""
        answers = [(job.waiting, word) for job, word in ended if job.waiting is not None]
        if answers or ready:
            # The loop may be gone when the process is being torn down: nobody waits then.
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._resolve, answers, ready)

    def _resolve(
        self, answers: list[tuple[asyncio.Future[Captured], Captured]], ready: bool
    ) -> None:
        for future, word in answers:
            if not future.done():
                future.set_result(word)
        if ready:
            self._ready()


def _reduced(job: Job, short: bool) -> Exchange:
    """The row to store, without its bodies where room is short and they may go."""
    assert job.exchange is not None
    droppable = short and job.exchange.droppable
    return job.exchange.without_bodies() if droppable else job.exchange


def count_lost(metrics: Metrics, jobs: Sequence[Job]) -> None:
    """Exchanges that are not stored are requests, and calls, all the same."""
    metrics.records.labels("lost").inc(len(jobs))
    for job in jobs:
        for series, amount in job.counts:
            metrics.totals.add(series, amount)


def _state(job: Job, row: Exchange) -> str:
    """The label of ``understudy_fallback_records_total`` for a row that is stored now."""
    late = job.told if job.waiting is not None else job.size > 0
    return "late" if late else "stored" if row.bodies else "partial"


def _size(job: Job) -> int:
    """Bytes that a job holds in memory, about; at least 1."""
    assert job.exchange is not None
    answer = job.exchange.answer
    return 1024 + sum(len(orjson.dumps(part)) for part in (job.exchange.request, answer) if part)
