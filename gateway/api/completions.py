"""``POST /v1/completions``: the older API of plain prompts.

A student was distilled behind a chat template; a bare prompt lies outside of it. So these are
always the teacher's (``unsupported_feature``), and captured like any other exchange.
Reference: platform.openai.com/docs/api-reference/completions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.chat import RANGES
from gateway.api.fields import (
    INT64,
    IntegerRange,
    check_integer,
    check_kinds,
    check_model,
    check_number,
    check_stop,
    check_stream,
    invalid,
)
from gateway.api.request import Api, ApiRequest, parse_object
from router.template import Message

_INTEGERS: Mapping[str, IntegerRange] = {
    "n": (1, 128),
    "best_of": (1, 128),
    "max_tokens": (0, INT64 - 1),
    "logprobs": (0, 20),
    "seed": (-INT64, INT64 - 1),
}


def parse_completions(raw: bytes) -> ApiRequest:
    """Validate a request body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    return completions_request(parse_object(raw), raw)


def completions_request(body: Mapping[str, Any], raw: bytes = b"") -> ApiRequest:
    """The same for a body that is an object already.

    Raises:
        GatewayError: as ``parse_completions``.
    """
    model = check_model(body)
    prompts = _prompts(body.get("prompt"))
    for name, (low, high) in RANGES.items():
        check_number(body.get(name), name, low, high)
    for name, bounds in _INTEGERS.items():
        check_integer(body.get(name), name, *bounds)
    check_kinds(body, ("echo",), bool, "a boolean")
    check_kinds(body, ("suffix", "user"), str, "a string")
    check_kinds(body, ("logit_bias",), dict, "an object")
    check_stop(body.get("stop"))
    stream, include_usage = check_stream(body)
    messages = tuple(Message("user", prompt) for prompt in prompts)
    return ApiRequest(
        Api.COMPLETIONS, raw, body, None, model, messages, True, stream, include_usage,
        foreign="completions",
    )  # fmt: skip


def _prompts(prompt: Any) -> list[str]:
    """The texts of a prompt; token ids have none."""
    if prompt is None:
        raise invalid("missing_required_parameter", "prompt", "is required; add it to the body")
    items = prompt if isinstance(prompt, list) else [prompt]
    if not items:
        raise invalid("invalid_value", "prompt", "must not be empty")
    if all(isinstance(item, str) for item in items):
        return items
    lists = all(isinstance(item, list) for item in items)
    if isinstance(prompt, list) and all(_is_token(t) for i in items for t in (i if lists else [i])):
        return []
    raise invalid(
        "invalid_type", "prompt", "must be a string, or a list of strings, tokens or token lists"
    )


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32
