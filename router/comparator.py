"""Comparators: are two answers equivalent? Each is a pure function of two texts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

Name = Literal["label", "text"]
Comparator = Callable[[str, str], bool]


def label(student: str, teacher: str) -> bool:
    """Equal after trimming: closed-set answers, where case carries meaning."""
    return student.strip() == teacher.strip()


def text(student: str, teacher: str) -> bool:
    """Equal after folding case and white space and dropping a final full stop."""
    return _folded(student) == _folded(teacher)


def comparator(name: Name) -> Comparator:
    """The comparator that a risk budget or certificate names."""
    return {"label": label, "text": text}[name]


def _folded(value: str) -> str:
    return " ".join(value.casefold().split()).removesuffix(".")
