"""Find the variable places of prompt templates by comparing logged prompts.

Fixed texts that mostly agree word by word are one template; where they differ is a slot. What is
suggested is a regular expression between the fixed words around it, for ``router fit --slot``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

from router.template import fixed_text

ALIKE = 0.5
"""Share of words in common from which two texts are one template."""
MAX_TEMPLATES = 50
NEIGHBOURS = 3
"""Fixed words on each side that a suggested expression looks for."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """One template: its text with ``{{slotN}}`` in variable places, expressions by slot name, how
    many of the texts it stands for, and one of each slot's contents."""

    template: str
    slots: dict[str, str]
    examples: dict[str, str]
    count: int


def suggest(texts: Sequence[str]) -> list[Suggestion]:
    """Templates with at least one slot, the commonest first."""
    groups: list[tuple[list[str], list[list[str]]]] = []
    for text in texts:
        words = fixed_text(text).split()
        for index, (common, members) in enumerate(groups):
            shared = _common(common, words)
            if len(shared) >= ALIKE * max(len(common), 1):
                groups[index] = (shared, [*members, words])
                break
        else:
            if len(groups) < MAX_TEMPLATES:
                groups.append((words, [words]))
    found = [_suggestion(common, members) for common, members in groups if len(members) > 1]
    return sorted((s for s in found if s.slots), key=lambda s: -s.count)


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    matcher = SequenceMatcher(None, one, other, autojunk=False)
    return [
        word for block in matcher.get_matching_blocks() for word in one[block.a :][: block.size]
    ]


def _suggestion(common: list[str], members: Sequence[list[str]]) -> Suggestion:
    """Slots lie between neighbouring common words wherever some member has more words."""
    gaps: dict[int, str] = {}
    for words in members:
        for position, content in _gaps(common, words).items():
            gaps.setdefault(position, content)
    template: list[str] = []
    slots: dict[str, str] = {}
    examples: dict[str, str] = {}
    for position in range(len(common) + 1):
        if position in gaps:
            name = f"slot{len(slots) + 1}"
            slots[name] = _expression(common, position)
            examples[name] = gaps[position]
            template.append(f"{{{{{name}}}}}")
        template += common[position : position + 1]
    return Suggestion(" ".join(template), slots, examples, len(members))


def _gaps(common: Sequence[str], words: Sequence[str]) -> dict[int, str]:
    """What a member has before the n-th common word."""
    found: dict[int, list[str]] = {}
    position = 0
    for word in words:
        if position < len(common) and word == common[position]:
            position += 1
        else:
            found.setdefault(position, []).append(word)
    return {at: " ".join(content) for at, content in found.items()}


def _expression(common: Sequence[str], position: int) -> str:
    before = " ".join(common[max(0, position - NEIGHBOURS) : position])
    after = " ".join(common[position : position + NEIGHBOURS])
    start = f"(?<={re.escape(before)} )" if before else "^"
    end = f"(?= {re.escape(after)})" if after else "$"
    return f"{start}.+?{end}"
