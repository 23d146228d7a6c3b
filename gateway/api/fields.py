"""Checks that the endpoints share: strict about types, with a sentence that says what to do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from gateway.errors import Code, GatewayError

INT64 = 2**63
Range = tuple[float, float]
IntegerRange = tuple[int, int]


def invalid(code: Code, param: str, what: str) -> GatewayError:
    """An error about one parameter."""
    return GatewayError(code, f"'{param}' {what}.", param=param)


def required(body: Mapping[str, Any], name: str, kind: type, article: str) -> Any:
    """A parameter that must be there.

    Raises:
        GatewayError: ``missing_required_parameter`` or ``invalid_type``.
    """
    if body.get(name) is None:
        raise invalid("missing_required_parameter", name, "is required; add it to the body")
    if not isinstance(body[name], kind):
        raise invalid("invalid_type", name, f"must be {article}")
    return body[name]


def check_model(body: Mapping[str, Any]) -> str:
    """The model's name.

    Raises:
        GatewayError: it is absent, no string, empty or far too long.
    """
    model: str = required(body, "model", str, "a string")
    if not model or len(model) > 256:
        raise invalid("invalid_value", "model", "must be 1 to 256 characters long")
    return model


def check_number(value: Any, name: str, low: float, high: float) -> None:
    """A finite number within bounds, or nothing."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid("invalid_type", name, "must be a number")
    if not math.isfinite(value) or not low <= value <= high:
        raise invalid("invalid_value", name, f"must be between {low:g} and {high:g}")


def check_integer(value: Any, name: str, low: int, high: int) -> None:
    """A whole number within bounds, or nothing; 5.0 counts as 5."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid("invalid_type", name, "must be an integer")
    if isinstance(value, float) and not value.is_integer():
        raise invalid("invalid_value", name, "must be an integer")
    if not low <= value <= high:
        raise invalid("invalid_value", name, f"must be between {low} and {high}")


def check_kind(value: Any, name: str, kind: type, article: str) -> None:
    """A value of one JSON type, or nothing."""
    if value is not None and not isinstance(value, kind):
        raise invalid("invalid_type", name, f"must be {article}")


def check_kinds(body: Mapping[str, Any], names: tuple[str, ...], kind: type, article: str) -> None:
    """Optional parameters of one JSON type."""
    for name in names:
        check_kind(body.get(name), name, kind, article)


def check_stop(stop: Any, name: str = "stop") -> None:
    """A stop sequence, or several."""
    if stop is None or isinstance(stop, str):
        return
    if not isinstance(stop, list) or not all(isinstance(item, str) for item in stop):
        raise invalid("invalid_type", name, "must be a string or a list of strings")


def check_stream(body: Mapping[str, Any]) -> tuple[bool, bool]:
    """Whether to stream, and whether with usage.

    Raises:
        GatewayError: ``stream_options`` without ``stream``, or of the wrong type.
    """
    check_kinds(body, ("stream",), bool, "a boolean")
    check_kinds(body, ("stream_options",), dict, "an object")
    stream = body.get("stream") is True
    options = body.get("stream_options") or {}
    if options and not stream:
        raise invalid("invalid_value", "stream_options", "is only allowed with 'stream': true")
    if options.get("include_usage") not in (None, True, False):
        raise invalid("invalid_type", "stream_options.include_usage", "must be a boolean")
    return stream, options.get("include_usage") is True


def check_tools(tools: Any) -> None:
    """A list of objects, or nothing."""
    if tools is not None and (
        not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools)
    ):
        raise invalid("invalid_type", "tools", "must be a list of objects")
