"""Events that differ from the one before in their text alone, told by their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_CONTENT = re.compile(rb'"content":\s*"((?:[^"\\]|\\.)*)"')
_MARK = "understudy: the text"


@dataclass(frozen=True, slots=True)
class Mould:
    """What stands before and after the text, in an event as it comes and as it goes out.

    JSON that is the same but for what stands between the quotes of one string is the same value but
    for that string: neither has the rest of it to be parsed, nor written out anew.
    """

    before: bytes
    """To the string's first quote."""
    after: bytes
    """From its last one on."""
    out_before: bytes
    out_after: bytes
    start: int
    stop: int

    @classmethod
    def of(
        cls, raw: bytes, event: Mapping[str, Any], out: Callable[[Mapping[str, Any]], bytes]
    ) -> Mould | None:
        """The mould of a chunk whose only choice has its content as its only delta; ``raw`` is the
        event as it came, one ``data`` line, and ``out`` gives what goes out for an event. None
        where it cannot be told by bytes which string the text is."""
        found = _CONTENT.search(raw)
        if found is None:
            return None
        marked = {**event, "choices": [{**event["choices"][0], "delta": {"content": _MARK}}]}
        before, after = raw[: found.start(1)], raw[found.end(1) :]
        # Another string may have been found, or the same key twice: then this is another event.
        if orjson.loads(before.removeprefix(b"data:") + _MARK.encode() + after) != marked:
            return None
        out_before, *out_after = out(marked).split(b'"%b"' % _MARK.encode())
        if len(out_after) != 1:
            return None
        return cls(before, after, out_before, out_after[0], len(before) - 1, 1 - len(after))

    def text(self, raw: bytes) -> tuple[str, bytes] | None:
        """The text of an event that has this form, and what goes out for it."""
        if not (raw.startswith(self.before) and raw.endswith(self.after)):
            return None
        string = raw[self.start : self.stop]
        try:
            text = orjson.loads(string)
        except orjson.JSONDecodeError:
            return None  # what follows the text begins earlier, or it is broken
        return (text, b"".join((self.out_before, string, self.out_after))) if text else None
