"""Looks that are kept: a tier is a pure function of the text, so the same text needs one look."""

from __future__ import annotations

import threading
from collections import OrderedDict

from router.tier import Look, Tier

REMEMBERED = 4096
"""Prompts by default; a look takes about 2 KB."""


class Memory:
    """The latest looks of one tier, by text; least recently used ones go first. Thread-safe."""

    def __init__(self, tier: Tier, size: int = REMEMBERED) -> None:
        """``size`` looks at most; 0 keeps none."""
        self._tier = tier
        self._size = size
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._lock = threading.Lock()

    def look(self, text: str) -> Look:
        """The tier's look, kept or fresh."""
        with self._lock:
            look = self._looks.get(text)
            if look is not None:
                self._looks.move_to_end(text)
                return look
        look = self._tier.look(text)
        with self._lock:
            self._looks[text] = look
            while len(self._looks) > self._size:
                self._looks.popitem(last=False)
        return look

    def knows(self, text: str) -> bool:
        """Whether ``look`` costs nothing now."""
        return text in self._looks
