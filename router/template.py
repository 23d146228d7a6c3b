"""The fixed part of a prompt, fingerprinted, and the variable part, embedded.

Boilerplate on one side of a similarity ruins it (a 77-token prefix took AUROC from 97 to 50), so
the two parts never mix: the fixed part is compared exactly, the variable part by distance.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from router.errors import FitError
from router.values import value

FIXED_ROLES = frozenset({"system", "developer"})
CONTEXT_CHARS = 512
"""Of the turns before the last user message, so many characters are embedded, newest first."""
KEPT_CHARS = 4096
"""Fingerprints of longer fixed parts are not kept."""
_SLOT_NAME = re.compile(r"[a-z][a-z0-9_]*")

Slots = Mapping[str, re.Pattern[str]]
NO_SLOTS: Slots = {}


@value(frozen=True, slots=True)
class Message:
    """One chat message, text only."""

    role: str
    content: str


def variable_text(messages: Sequence[Message]) -> str:
    """The part that varies between requests: what is embedded.

    The last user message comes first, since encoders cut at the end; the turns before it follow,
    newest first, up to ``CONTEXT_CHARS``: in a long chat 'and for the other one?' says nothing
    without them. Messages behind the last user message do not count.
    """
    turns = [m for m in messages if m.role not in FIXED_ROLES]
    last = next((i for i in reversed(range(len(turns))) if turns[i].role == "user"), None)
    if last is None:
        return ""
    parts, room = [turns[last].content], CONTEXT_CHARS
    for turn in reversed(turns[:last]):
        if room <= 0:
            break
        parts.append(turn.content[:room])
        room -= len(parts[-1])
    return "\n".join(parts)


def fingerprint(
    messages: Sequence[Message],
    tools: Any = None,
    response_format: Any = None,
    slots: Slots = NO_SLOTS,
) -> str:
    """Hex digest (16 characters) of the fixed part of a prompt.

    The fixed part is the system and developer messages (white space folded, variable slots cut
    out, the two roles equal, since a student whose chat template lacks ``developer`` sees
    ``system``), the shape of the conversation (one turn or several), the tool schemas and the
    response format.
    """
    fixed = tuple([fixed_text(m.content, slots) for m in messages if m.role in FIXED_ROLES])
    turns = "single" if sum(m.role not in FIXED_ROLES for m in messages) <= 1 else "multi"
    if tools or response_format or sum(map(len, fixed)) > KEPT_CHARS:
        return _hashed(fixed, turns, tools or None, response_format or None)
    return _kept(fixed, turns)


def _hashed(fixed: tuple[str, ...], turns: str, tools: Any, response_format: Any) -> str:
    shape = {"fixed": fixed, "turns": turns, "tools": tools, "response_format": response_format}
    canonical = json.dumps(shape, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode("utf-8", "surrogatepass")).hexdigest()[:16]


@functools.lru_cache(maxsize=256)
def _kept(fixed: tuple[str, ...], turns: str) -> str:
    """Of prompts that are nothing but text: one template serves a whole task."""
    return _hashed(fixed, turns, None, None)


def fixed_text(text: str, slots: Slots = NO_SLOTS) -> str:
    """White space folded, and what fills a slot replaced by ``{{name}}``."""
    folded = " ".join(text.split())
    for name, pattern in slots.items():
        folded = pattern.sub(f"{{{{{name}}}}}", folded)
    return folded


def compiled_slots(patterns: Mapping[str, str]) -> dict[str, re.Pattern[str]]:
    """Slots from their regular expressions, applied in the given order to the folded text.

    Raises:
        FitError: a name or an expression is not valid, or an expression matches nothing at all.
    """
    slots = {}
    for name, expression in patterns.items():
        if not _SLOT_NAME.fullmatch(name):
            raise FitError(f"slot {name!r}: a name is lower-case letters, digits and '_'")
        try:
            slots[name] = re.compile(expression)
        except re.error as error:
            raise FitError(f"slot {name!r}: not a regular expression: {error}") from error
        if slots[name].search(""):
            raise FitError(f"slot {name!r}: the expression matches the empty text")
    return slots
