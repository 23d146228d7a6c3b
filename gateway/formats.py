"""Whether a student's answer is in the format that the client asked for.

A student is small: it may be told to write JSON and still break off a bracket. What does not parse,
or does not fit the asked schema, is a fault, and the teacher's to answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import orjson
from jsonschema import Draft202012Validator, SchemaError
from referencing import Registry
from referencing.exceptions import Unresolvable

Fits = Callable[[str], bool]
_COSTLY = (b'"pattern"', b'"patternProperties"')
"""Regular expressions of a client's making can take for ever: such schemas are the teacher's."""


def anything(text: str) -> bool:
    """Plain text is never in the wrong format."""
    return True


def checkable(response_format: Mapping[str, Any]) -> bool:
    """Whether answers can be checked against the format in bounded time."""
    raw = orjson.dumps(response_format)
    return not any(word in raw for word in _COSTLY)


def fitting(response_format: Mapping[str, Any] | None) -> Fits:
    """The check for a ``response_format``. References lead nowhere outside the schema: a registry
    of nothing never fetches one."""
    if response_format is None:
        return anything
    schema = (response_format.get("json_schema") or {}).get("schema", {"type": "object"})
    validator = Draft202012Validator(schema, registry=Registry())
    return lambda text: _fits(text, validator)


def _fits(text: str, validator: Draft202012Validator) -> bool:
    try:
        validator.check_schema(validator.schema)
        return bool(validator.is_valid(orjson.loads(text)))
    except (orjson.JSONDecodeError, SchemaError, Unresolvable, RecursionError):
        return False
