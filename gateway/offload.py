"""Blocking work off the event loop, in threads that are waited for.

``asyncio.to_thread`` leaves its thread running when the task that waits for it is cancelled; a
connection that is closed meanwhile takes the process with it. The pool behind this is shut down,
and so waited for, after the tasks that use it are gone and before what they use is closed.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Offload:
    """Runs functions in a pool of threads."""

    pool: Executor

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """The function's result, or what it raises."""
        call = functools.partial(work, *args, **kwargs)
        return await asyncio.get_running_loop().run_in_executor(self.pool, call)
