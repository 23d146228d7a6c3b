"""Comparators: are two answers equivalent?

A comparator is named by one string, such as ``label`` or ``json:tolerance=0.01,ignore=id+ts``; a
certificate holds the string, so that another tolerance is another promise. All are pure functions
of two answers' texts but ``embedding``, which needs the sentence encoder, and ``judge``, which asks
the teacher and is therefore applied by whoever may do so (``Row.agrees`` carries its word).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

from router.errors import FitError

Name = str
"""The whole string, canonical as ``parse`` gives it back."""
Comparator = Callable[[str, str], bool]
JUDGE = "judge"

KINDS: Mapping[str, str] = {
    "label": "Equal after trimming: closed sets of answers, where case carries meaning.",
    "text": "Equal after folding case and white space and dropping a final full stop.",
    "json": "Equal as JSON, key order aside. Options: `tolerance` (relative, of numbers), "
    "`ignore` and `only` (top-level fields, joined by `+`), `unordered=1` (lists as bags).",
    "tool_calls": "The same calls with equal arguments, in any order. Option: `tolerance`.",
    "number": "The same final number, behind `####` where there is one. Option: `tolerance`.",
    "embedding": "Cosine similarity of the sentence vectors. Option: `threshold` (0.9).",
    JUDGE: "The teacher is asked whether the two say the same; its word is kept.",
}
_OPTIONS: Mapping[str, frozenset[str]] = {
    "label": frozenset(),
    "text": frozenset(),
    "json": frozenset({"tolerance", "ignore", "only", "unordered"}),
    "tool_calls": frozenset({"tolerance"}),
    "number": frozenset({"tolerance"}),
    "embedding": frozenset({"threshold"}),
    JUDGE: frozenset(),
}
_NUMBER = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?(?:[eE][-+]?\d+)?")


class Embedder(Protocol):
    """What the embedding comparator needs: unit vectors of two texts."""

    def similarity(self, one: str, other: str) -> float:
        """Cosine similarity."""
        ...


@dataclass(frozen=True, slots=True)
class Spec:
    """A comparator's kind and options."""

    kind: str
    tolerance: float = 0.0
    ignore: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    unordered: bool = False
    threshold: float = 0.9

    @property
    def name(self) -> Name:
        """The canonical string: options in order, defaults left out."""
        default = Spec(self.kind)
        parts = [
            f"{f.name}={_written(getattr(self, f.name))}"
            for f in fields(self)
            if f.name != "kind" and getattr(self, f.name) != getattr(default, f.name)
        ]
        return self.kind + (":" + ",".join(parts) if parts else "")


def parse(name: str) -> Spec:
    """The comparator that a string names.

    Raises:
        FitError: no such kind or option, or a value out of range.
    """
    kind, _, rest = name.strip().partition(":")
    if kind not in KINDS:
        raise FitError(f"comparator {name!r}: the kinds are {', '.join(KINDS)}")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        key, equals, value = part.partition("=")
        if key not in _OPTIONS[kind] or not equals:
            known = ", ".join(sorted(_OPTIONS[kind])) or "none"
            raise FitError(f"comparator {name!r}: {key!r} is no option of {kind} ({known})")
        options[key] = _read(name, key, value)
    return Spec(kind, **options)


def plain_comparator(name: Name) -> Comparator:
    """The comparator where neither encoder nor teacher is at hand: its own, or plain text's where
    it needs one of them."""
    try:
        return comparator(name, None)
    except FitError:
        return text


def comparator(name: Name, embedder: Embedder | None = None) -> Comparator:
    """The function that a risk budget or certificate names.

    Raises:
        FitError: the string names none, or one that needs what is not here.
    """
    spec = parse(name)
    if spec.kind == "label":
        return label
    if spec.kind == "text":
        return text
    if spec.kind == "number":
        return lambda student, teacher: same_number(student, teacher, spec.tolerance)
    if spec.kind == "json":
        return lambda student, teacher: not json_differences(student, teacher, spec)
    if spec.kind == "tool_calls":
        return lambda student, teacher: same_calls(student, teacher, spec)
    if spec.kind == "embedding" and embedder is not None:
        return lambda student, teacher: embedder.similarity(student, teacher) >= spec.threshold
    raise FitError(
        f"comparator {name!r} cannot be applied here: "
        + ("rows need 'agrees'" if spec.kind == JUDGE else "it needs the sentence encoder")
    )


def label(student: str, teacher: str) -> bool:
    """Equal after trimming: closed-set answers, where case carries meaning."""
    return student.strip() == teacher.strip()


def text(student: str, teacher: str) -> bool:
    """Equal after folding case and white space and dropping a final full stop."""
    return _folded(student) == _folded(teacher)


def same_number(student: str, teacher: str, tolerance: float = 0.0) -> bool:
    """The same final number; without a number on both sides, the same text."""
    one, other = _final_number(student), _final_number(teacher)
    if one is None or other is None:
        return one is other and text(student, teacher)
    return _close(one, other, tolerance)


def json_differences(student: str, teacher: str, spec: Spec) -> list[str]:
    """Paths at which two JSON texts differ, ``$`` being the whole; empty when equal. A text that
    is not JSON equals only the same text."""
    one, other = _loaded(student), _loaded(teacher)
    if one is _INVALID or other is _INVALID:
        return [] if one is other and text(student, teacher) else ["$"]
    if isinstance(one, dict) and isinstance(other, dict):
        one, other = (_selected(value, spec) for value in (one, other))
    return list(dict.fromkeys(_differences(one, other, "$", spec)))


def same_calls(student: str, teacher: str, spec: Spec) -> bool:
    """The same tool calls, as ``calls_text`` writes them, in any order."""
    one, other = _loaded(student), _loaded(teacher)
    if not _is_calls(one) or not _is_calls(other):
        return text(student, teacher)
    return _same_bag(one, other, spec)


def calls_text(calls: Sequence[Mapping[str, Any]]) -> str:
    """An answer's ``tool_calls`` as comparators see them: names and parsed arguments."""
    found = []
    for call in calls:
        function = call.get("function") or {}
        raw = function.get("arguments") or ""
        arguments = _loaded(raw) if isinstance(raw, str) else raw
        found.append(
            {"name": function.get("name"), "arguments": raw if arguments is _INVALID else arguments}
        )
    return json.dumps(found, ensure_ascii=False, sort_keys=True)


_INVALID = object()


def _loaded(value: str) -> Any:
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return _INVALID


def _is_calls(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, dict) and "name" in v for v in value)


def _selected(value: Mapping[str, Any], spec: Spec) -> dict[str, Any]:
    return {
        key: item
        for key, item in value.items()
        if key not in spec.ignore and (not spec.only or key in spec.only)
    }


def _differences(one: Any, other: Any, path: str, spec: Spec) -> list[str]:
    if isinstance(one, dict) and isinstance(other, dict):
        found = []
        for key in sorted({*one, *other}):
            if key not in one or key not in other:
                found.append(f"{path}.{key}")
            else:
                found += _differences(one[key], other[key], f"{path}.{key}", spec)
        return found
    if isinstance(one, list) and isinstance(other, list):
        if spec.unordered:
            return [] if _same_bag(one, other, spec) else [path]
        if len(one) != len(other):
            return [path]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (a, b) in pairs for d in _differences(a, b, f"{path}[{i}]", spec)]
    return [] if _same_leaf(one, other, spec) else [path]


def _same_leaf(one: Any, other: Any, spec: Spec) -> bool:
    numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in (one, other))
    if numbers:
        return _close(one, other, spec.tolerance)
    return type(one) is type(other) and bool(one == other)


def _same_bag(one: Sequence[Any], other: Sequence[Any], spec: Spec) -> bool:
    """Whether each item of one finds an equal of its own in the other. A tolerance is no
    equivalence relation, so partners are sought by augmenting paths (Kuhn)."""
    if len(one) != len(other):
        return False
    partner: dict[int, int] = {}

    def placed(i: int, seen: set[int]) -> bool:
        for j, item in enumerate(other):
            if j in seen or _differences(one[i], item, "$", spec):
                continue
            seen.add(j)
            if j not in partner or placed(partner[j], seen):
                partner[j] = i
                return True
        return False

    return all(placed(i, set()) for i in range(len(one)))


def _close(one: float, other: float, tolerance: float) -> bool:
    return one == other or math.isclose(one, other, rel_tol=tolerance, abs_tol=0.0)


def _final_number(value: str) -> float | None:
    _, marked, tail = value.rpartition("####")
    found = _NUMBER.findall(tail if marked else value)
    if not found:
        return None
    return float((found[0] if marked else found[-1]).replace(",", ""))


def _read(name: str, key: str, value: str) -> Any:
    if key in {"ignore", "only"}:
        return tuple(sorted(filter(None, value.split("+"))))
    if key == "unordered":
        return value in {"1", "true"}
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not 0.0 <= number < (1.0 if key == "tolerance" else 1.0 + 1e-9):
        raise FitError(f"comparator {name!r}: {key} must be a number from 0 to 1")
    return number


def _written(value: Any) -> str:
    if isinstance(value, tuple):
        return "+".join(value)
    return "1" if value is True else f"{value:g}"


def _folded(value: str) -> str:
    return " ".join(value.casefold().split()).removesuffix(".")
