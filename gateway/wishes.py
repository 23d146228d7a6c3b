"""What a request's headers ask for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Literal

from gateway.errors import GatewayError
from gateway.turn import Route, Wishes


def read_wishes(headers: Mapping[str, str], side: str | None) -> Wishes:
    """Route, hold, deadline, explanation, consent; ``side`` comes from the model name's suffix.

    Raises:
        GatewayError: ``invalid_value``, with the header's name as ``param``.
    """
    route = headers.get("x-understudy-route") or side
    if route not in (None, "teacher", "student"):
        raise _bad_header("x-understudy-route", "'teacher' or 'student'")
    return Wishes(
        Route(route) if route else Route.JUDGED,
        _hold(headers.get("x-understudy-hold")),
        _deadline_s(headers.get("x-understudy-deadline-ms")),
        headers.get("x-understudy-explain") == "1",
        headers.get("x-understudy-teacher-key"),
        _no_train(headers.get("x-understudy-training")),
    )


def _hold(value: str | None) -> int | Literal["all"] | None:
    if value is None:
        return None
    if value == "all":
        return "all"
    if not value.isascii() or not value.isdigit() or not 1 <= len(value) <= 6:
        raise _bad_header("x-understudy-hold", "a number of tokens or 'all'")
    return int(value)


def _deadline_s(value: str | None) -> float | None:
    if value is None:
        return None
    try:
        milliseconds = float(value)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise _bad_header("x-understudy-deadline-ms", "a positive number of milliseconds")
    return milliseconds / 1000


def _no_train(value: str | None) -> bool:
    if value not in (None, "yes", "no"):
        raise _bad_header("x-understudy-training", "'yes' or 'no'")
    return value == "no"


def _bad_header(name: str, wanted: str) -> GatewayError:
    return GatewayError("invalid_value", f"Header '{name}' must be {wanted}.", param=name)
