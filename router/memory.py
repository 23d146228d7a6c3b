"""What is kept of prompts: their looks and prejudgements are pure functions of them, so the same
prompt needs one."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

REMEMBERED = 4096
"""Prompts by default; a look takes about 2 KB."""
V = TypeVar("V")


class Memory(Generic[V]):
    """The latest values by key; least recently used ones go first. Thread-safe."""

    def __init__(self, size: int = REMEMBERED) -> None:
        """``size`` values at most; 0 keeps none."""
        self._size = size
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def recall(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value, kept or made now."""
        with self._lock:
            value = self._values.get(key)
            if value is not None:
                self._values.move_to_end(key)
                return value
        value = make()
        with self._lock:
            self._values[key] = value
            while len(self._values) > self._size:
                self._values.popitem(last=False)
        return value

    def knows(self, key: Hashable) -> bool:
        """Whether ``recall`` costs nothing now."""
        return key in self._values
