"""``POST /v1/embeddings``: checked, then handed to the default upstream: unjudged, uncaptured.

Reference: platform.openai.com/docs/api-reference/embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.fields import check_integer, check_model, invalid
from gateway.api.request import parse_object

_FORMATS = ("float", "base64")


def parse_embeddings(raw: bytes) -> Mapping[str, Any]:
    """Validate a request body.

    Raises:
        GatewayError: ``invalid_json``, ``invalid_type``, ``invalid_value`` or
            ``missing_required_parameter``.
    """
    body = parse_object(raw)
    check_model(body)
    given = body.get("input")
    if given is None:
        raise invalid("missing_required_parameter", "input", "is required; add it to the body")
    if not isinstance(given, str | list):
        raise invalid("invalid_type", "input", "must be a string or a list")
    if not given:
        raise invalid("invalid_value", "input", "must not be empty")
    check_integer(body.get("dimensions"), "dimensions", 1, 1 << 20)
    if body.get("encoding_format") not in (None, *_FORMATS):
        raise invalid("invalid_value", "encoding_format", f"must be {' or '.join(_FORMATS)}")
    return body
