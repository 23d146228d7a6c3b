"""Events that differ from the one before in their text alone, told by their bytes."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

_CONTENT = re.compile(rb'"content":\s*"((?:[^"\\]|\\.)*)"')
_PADDING = re.compile(rb'"obfuscation":\s*"([^"\\]*)"')
"""OpenAI's, against who reads the lengths of packets: another one in each chunk."""
_TEXT = "understudy: the text"
_PAD = "understudy: the padding"


@dataclass(frozen=True, slots=True)
class Mould:
    """What stands around the text, in an event as it comes and as it goes out; and around the
    padding, in a stream that has some.

    JSON that is the same but for what stands between the quotes of one string is the same value but
    for that string: neither has the rest of it to be parsed, nor written out anew.
    """

    before: bytes
    """To the text's first quote."""
    after: bytes
    """From its last quote on, to the first one of the padding."""
    tail: bytes
    """From the padding's last quote on; nothing where there is none."""
    out: tuple[bytes, bytes, bytes]
    """What goes out, without the text and its quotes and without the padding."""

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
        before, after, tail = raw[: found.start(1)], raw[found.end(1) :], b""
        marked = {**event, "choices": [{**event["choices"][0], "delta": {"content": _TEXT}}]}
        if "obfuscation" in event and (padding := _PADDING.search(after)):
            after, tail = after[: padding.start(1)], after[padding.end(1) :]
            marked["obfuscation"] = _PAD
        text, pad = _TEXT.encode(), _PAD.encode() if tail else b""
        # Another string may have been found, or the same key twice: then this is another event.
        if orjson.loads(b"%b%b%b%b%b" % (before[5:], text, after, pad, tail)) != marked:
            return None
        parts = out(marked).split(b'"%b"' % text)
        if tail and len(parts) == 2:
            parts[1:] = parts[1].split(pad)
        if len(parts) != (3 if tail else 2):
            return None
        first, middle, last = (*parts, b"")[:3]
        return cls(before, after, tail, (first, middle, last))

    def text(self, raw: bytes) -> tuple[str, bytes] | None:
        """The text of an event that has this form, and what goes out for it."""
        pad, end = b"", len(raw)
        if self.tail:
            stop = end - len(self.tail)
            end = raw.rfind(b'"', 0, stop) + 1
            pad = raw[end:stop]
            if not raw.endswith(self.tail) or not (pad.isalnum() or not pad):
                return None
        if not (raw.startswith(self.before) and raw.endswith(self.after, 0, end)):
            return None
        string = raw[len(self.before) - 1 : end - len(self.after) + 1]
        try:
            text = orjson.loads(string)
        except orjson.JSONDecodeError:
            return None  # what follows the text begins earlier, or it is broken
        first, middle, last = self.out
        return (text, b"".join((first, string, middle, pad, last))) if text else None
