"""Limits in time for the hot path, where there are several per request."""

from __future__ import annotations

import asyncio
from types import TracebackType


class within:
    """``with within(seconds):`` raises TimeoutError when the block takes longer.

    The protocol of ``asyncio.timeout`` (cancel the task, tell one's own cancellation from another's
    by ``uncancel``; PEP 789 and the module's source), without its states and its rescheduling.
    None is no limit. For blocks whose awaits the task itself makes.
    """

    __slots__ = ("_before", "_expired", "_handle", "_seconds", "_task")

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._expired = False
        self._handle: asyncio.TimerHandle | None = None

    def __enter__(self) -> None:
        if self._seconds is None:
            return
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._before = task.cancelling()
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later(max(0.0, self._seconds), self._expire)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._handle is None:
            return
        self._handle.cancel()
        if (
            self._expired
            and self._task.uncancel() <= self._before
            and kind is not None
            and issubclass(kind, asyncio.CancelledError)
        ):
            raise TimeoutError from error

    def _expire(self) -> None:
        self._expired = True
        self._task.cancel()
