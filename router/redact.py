"""Personal data out of a text, and something of the same shape in: at fitting, serving and storing.

Surrogates are numbered by first appearance within one exchange, so that the same value reads the
same throughout it and nothing links two exchanges. They look like what they stand for: a student
that was trained on ``[EMAIL]`` has never seen an address. Redacting twice changes nothing.
"""

from __future__ import annotations

import hashlib
import json
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from router.errors import FitError
from router.template import Message

KINDS: Mapping[str, tuple[str, str]] = {
    "key": (
        r"\b(?:sk|pk|rk|us)-[A-Za-z0-9_-]{16,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{20,}"
        r"|\bxox[abprs]-[A-Za-z0-9-]{10,}|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}"
        r"|\b(?:[Bb]earer|BEARER)\s+[A-Za-z0-9._~+/-]{16,}=*",
        "API keys and bearer tokens of common forms.",
    ),
    "email": (
        r"(?<![\w.+-])[\w.+-]{1,64}@[\w-]{1,63}(?:\.[\w-]{1,63}){1,4}\b",
        "E-mail addresses.",
    ),
    "iban": (r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?\b", "IBANs."),
    "card": (
        r"(?<![\w.])(?:\d[ -]?){12,18}\d(?!\w|\.\d)",
        "Numbers of 13 to 19 digits, as on payment cards.",
    ),
    "ssn": (r"\b\d{3}-\d{2}-\d{4}\b", "US social security numbers."),
    "ip": (r"\b(?:\d{1,3}\.){3}\d{1,3}\b", "IPv4 addresses."),
    "phone": (
        r"(?<![\w.+-])(?!\d{4}-\d\d-\d\d\b)(?!\d\d?\.\d\d?\.\d{4}\b)(?=(?:\W{0,2}\d){7,15}(?!\w))"
        r"(?:\+\d{1,3}[ .-]?)?(?:\(\d{1,4}\)[ .-]?)?\d{2,4}(?:[ .-]\d{2,4}){1,4}(?!\w)"
        r"|(?<![\w.+-])\+\d{8,15}\b",
        "Telephone numbers in groups of at least seven digits, or with a leading +.",
    ),
}
"""Built-in rules: regular expression and meaning."""
DEFAULT: tuple[str, ...] = ("key",)
_HINTS: Mapping[str, tuple[str, ...]] = {
    "key": (
        "k-", "us-", "AKIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "xox", "yJ",
        "bearer", "Bearer", "BEARER",
    ),
    "email": ("@",),
    **dict.fromkeys(("iban", "card", "ssn", "ip", "phone"), tuple(string.digits)),
}  # fmt: skip
"""Without one of these in it, a text holds nothing of the kind. Looking for them takes five
nanoseconds per character, the expressions a hundred; they begin with letters that are rare."""
_SHORT, _REMEMBERED = 32, 1024
"""Short texts without a hint are mostly names of fields; so many are remembered."""
_NAMES = (
    "ada", "ben", "cleo", "dan", "eve", "finn", "gia", "hugo", "ines", "jon", "kira", "leo",
    "mia", "noah", "olga", "paul", "quinn", "rosa", "sam", "tara",
)  # fmt: skip
_RULE_NAME = re.compile(r"[a-z][a-z0-9_]*")
_ESCAPED = re.compile(r'["\\/\x00-\x1f]')
"""What a writer of JSON escapes, or may."""


@dataclass(frozen=True, slots=True)
class Pattern:
    """A rule of one's own: ``name`` and a regular expression."""

    name: str
    pattern: str


Redaction = str | Pattern
"""A built-in kind, or a pattern."""


@dataclass
class Names:
    """The surrogates of one exchange: kind and value to surrogate, in order of appearance."""

    known: dict[tuple[str, str], str] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def surrogate(self, kind: str, value: str, pattern: re.Pattern[str] | None) -> str:
        """What stands for a value in this exchange."""
        found = self.known.get((kind, value))
        if found is None:
            number = self.counts.get(kind, 0)
            self.counts[kind] = number + 1
            found = self.known[kind, value] = _surrogate(kind, value, number, pattern)
        return found


class LaterNames(Names):
    """For what is said later of an exchange whose own values are not known any more.

    Its surrogates stay what they are; the first unknown value of a kind is taken for the first that
    the exchange had of it, and so on, which is right wherever there was one.
    """

    def __init__(self, of_exchange: Names) -> None:
        super().__init__(dict(of_exchange.known), dict(of_exchange.counts))
        self._left = {
            kind: [value for (k, value) in of_exchange.known if k == kind]
            for kind in of_exchange.counts
        }

    def surrogate(self, kind: str, value: str, pattern: re.Pattern[str] | None) -> str:
        """What stands for a value."""
        if (kind, value) not in self.known and self._left.get(kind):
            self.known[kind, value] = self.known[kind, self._left[kind].pop(0)]
        return super().surrogate(kind, value, pattern)


class Redactor:
    """Rules, compiled into one expression, so that no rule sees another's surrogate."""

    def __init__(self, rules: Sequence[Redaction] = DEFAULT, secrets: Sequence[str] = ()) -> None:
        """``secrets`` are replaced wherever they occur, whatever the rules say.

        Raises:
            FitError: a rule is not known, or its expression is not valid.
        """
        named = dict(map(_named, rules))
        parts = [f"(?P<secret>{'|'.join(map(re.escape, secrets))})"] if secrets else []
        parts += [f"(?P<{name}>{pattern})" for name, pattern in named.items()]
        self._by_name = {name: _compiled(pattern) for name, pattern in named.items()}
        hints = [_HINTS.get(name, ("",)) for name in named] + [tuple(secrets)]
        known = dict.fromkeys(hint for kind in hints for hint in kind)
        raw = dict.fromkeys(map(_as_written, known))
        self._hinted = re.compile("|".join(map(re.escape, known))).search
        self._hinted_raw = re.compile(b"|".join(map(re.escape, (b"\\u", *raw)))).search
        self._harmless = {""}
        self.rules = tuple(rules)
        self._pattern = _compiled("|".join(parts)) if parts else None

    @property
    def digest(self) -> str:
        """Sixteen hex digits over rules and built-in expressions: what fit and serving compare."""
        written = json.dumps([_named(rule) for rule in self.rules])
        return hashlib.sha256(written.encode()).hexdigest()[:16]

    def text(self, text: str, names: Names) -> str:
        """A text with surrogates."""
        if self._pattern is None or text in self._harmless:
            return text
        if text.isascii() and not self._hinted(text):  # other digits than 0 to 9 are digits too
            if len(text) <= _SHORT and len(self._harmless) < _REMEMBERED:
                self._harmless.add(text)
            return text

        def replaced(match: re.Match[str]) -> str:
            name = match.lastgroup or ""
            return names.surrogate(name, match[0], self._by_name.get(name))

        return self._pattern.sub(replaced, text)

    def clean(self, raw: bytes) -> bool:
        """Whether nothing in a JSON text can match: no hint in it, and no escape to hide one."""
        return raw.isascii() and not self._hinted_raw(raw)

    def messages(
        self, messages: Sequence[Message], names: Names | None = None
    ) -> tuple[Message, ...]:
        """Messages with surrogates, numbered from the first message on."""
        if self._pattern is None:
            return tuple(messages)
        names = names or Names()
        return tuple(Message(m.role, self.text(m.content, names)) for m in messages)

    def value(self, value: Any, names: Names) -> Any:
        """Plain JSON values with surrogates in every string, keys of objects too.

        Strings that hold JSON themselves (tool arguments) are redacted as what they hold.
        """
        kind = type(value)
        if kind is str:
            return self._string(value, names)
        if kind is dict:
            return {self.text(k, names): self.value(v, names) for k, v in value.items()}
        if kind is list:
            return [self.value(item, names) for item in value]
        if isinstance(value, Mapping):
            return self.value(dict(value), names)
        return self.value(list(value), names) if kind is tuple else value

    def _string(self, text: str, names: Names) -> str:
        if text[:1] in ("{", "[") and "\\" in text:  # escapes could hide what a pattern looks for
            try:
                held = json.loads(text)
            except ValueError:
                return self.text(text, names)
            return json.dumps(self.value(held, names), ensure_ascii=False)
        return self.text(text, names)


def parse_rules(raw: Sequence[Any]) -> tuple[Redaction, ...]:
    """Rules from plain values: names of kinds, or objects with ``name`` and ``pattern``.

    Raises:
        FitError: one is neither.
    """
    rules: list[Redaction] = []
    for item in raw:
        if isinstance(item, str):
            rules.append(item)
        elif isinstance(item, Mapping) and set(item) == {"name", "pattern"}:
            rules.append(Pattern(str(item["name"]), str(item["pattern"])))
        else:
            raise FitError(f"redaction rule {item!r}: a kind, or name and pattern")
    Redactor(rules)
    return tuple(rules)


def rules_json(rules: Sequence[Redaction]) -> list[Any]:
    """What ``parse_rules`` reads."""
    return [r if isinstance(r, str) else {"name": r.name, "pattern": r.pattern} for r in rules]


def _named(rule: Redaction) -> tuple[str, str]:
    if isinstance(rule, Pattern):
        if not _RULE_NAME.fullmatch(rule.name) or rule.name in {*KINDS, "secret"}:
            raise FitError(
                f"redaction rule {rule.name!r}: a name of lower-case letters, digits and '_' that "
                "is no built-in kind"
            )
        compiled = _compiled(rule.pattern)
        if compiled.groupindex or compiled.search(""):
            raise FitError(
                f"redaction rule {rule.name!r}: no named groups, and nothing that matches the "
                "empty text"
            )
        return rule.name, rule.pattern
    if rule not in KINDS:
        raise FitError(f"redaction rule {rule!r} is not known; there are {', '.join(KINDS)}")
    return rule, KINDS[rule][0]


def _as_written(hint: str) -> bytes:
    """The longest part of a hint that reads the same however JSON is written, and however deep
    inside strings that hold JSON themselves."""
    return max(_ESCAPED.split(hint), key=len).encode()


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise FitError(f"redaction rule {pattern!r}: not a regular expression: {error}") from error


def _surrogate(kind: str, value: str, number: int, pattern: re.Pattern[str] | None) -> str:
    if kind == "email":
        serial = "" if number < len(_NAMES) else str(number // len(_NAMES))
        return f"{_NAMES[number % len(_NAMES)]}{serial}@example.com"
    if kind == "ip":  # RFC 5737: addresses for documentation
        return f"192.0.2.{number % 254 + 1}"
    if kind not in {"key", "secret"} and pattern is not None:
        for letters in (True, False):
            found = _same_shape(kind, value, number, letters)
            # What a rule does not know again would be redacted otherwise the second time.
            if pattern.fullmatch(found):
                return found
    return f"[{kind} {number + 1} removed]"


def _same_shape(kind: str, value: str, number: int, letters: bool) -> str:
    """Digits for digits, letters (if wanted) for letters, everything else as it is."""
    stream = hashlib.shake_128(f"{kind} {number}".encode()).digest(len(value))
    return "".join(_like(char, byte, letters) for char, byte in zip(value, stream, strict=True))


def _like(char: str, byte: int, letters: bool) -> str:
    if char.isdigit():
        return string.digits[byte % 10]
    if letters and char.isalpha():
        letter = string.ascii_lowercase[byte % 26]
        return letter.upper() if char.isupper() else letter
    return char
