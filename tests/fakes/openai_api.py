"""An upstream with the API's features, deterministic: what is asked for decides the answer, whole
and streamed alike. It stands in for a frontier model where clients are compared."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.fakes.upstream import Received, Wire

HEAD = {"id": "chatcmpl-up", "created": 7, "model": "big-1", "system_fingerprint": "fp_9"}
TOKENS = ("The ", "answer ", "is ", "42", ".")
USAGE = {
    "prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16,
    "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
}  # fmt: skip


async def openai_api(received: Received, wire: Wire) -> None:
    """``/v1/chat/completions``."""
    body = received.body
    if body["messages"][-1].get("content") == "refuse me":
        error = {"message": "too long", "type": "invalid_request_error", "param": "messages",
                 "code": "context_length_exceeded"}  # fmt: skip
        await wire.json(400, {"error": error})
        return
    choices = [_choice(body, index) for index in range(body.get("n") or 1)]
    if not body.get("stream"):
        whole = {**HEAD, "object": "chat.completion", "choices": choices, "usage": USAGE,
                 "service_tier": "default"}  # fmt: skip
        await wire.json(200, whole)
        return
    await wire.stream()
    usage = bool((body.get("stream_options") or {}).get("include_usage"))
    for chunk in _chunks(choices, usage):
        await wire.event(chunk)
    await wire.done()


def _choice(body: dict[str, Any], index: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": _text(body, index), "refusal": None}
    finish, logprobs = "stop", None
    called = [t["function"]["name"] for t in body.get("tools") or ()]
    choice: Any = body.get("tool_choice") or "auto"
    answered = body["messages"][-1].get("role") == "tool"
    if called and choice != "none" and not answered:
        named = isinstance(choice, dict)
        names = [choice["function"]["name"]] if named else called
        message = {"role": "assistant", "content": None, "refusal": None, "tool_calls": [
            {"id": f"call_{n}", "type": "function",
             "function": {"name": name, "arguments": '{"city": "Paris"}'}}
            for n, name in enumerate(names)]}  # fmt: skip
        finish = "stop" if named else "tool_calls"
    elif body.get("functions"):
        call = {"name": body["functions"][0]["name"], "arguments": "{}"}
        message = {"role": "assistant", "content": None, "refusal": None, "function_call": call}
        finish = "function_call"
    limit = body.get("max_completion_tokens") or body.get("max_tokens")
    if limit is not None and limit < len(TOKENS) and message["content"] is not None:
        message["content"], finish = "".join(TOKENS[:limit]), "length"
    if body.get("logprobs"):
        logprobs = {"content": [_logprob(t, body.get("top_logprobs") or 0) for t in TOKENS],
                    "refusal": None}  # fmt: skip
    return {"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish}


def _text(body: dict[str, Any], index: int) -> str:
    if (body.get("response_format") or {}).get("type", "text") != "text":
        return '{"answer": 42}'
    text = "".join(TOKENS) if not index else f"Choice {index} says 43."
    stops = body.get("stop") or []
    for stop in [stops] if isinstance(stops, str) else stops:
        text = text.split(stop)[0]
    return text


def _logprob(token: str, top: int) -> dict[str, Any]:
    one = {"token": token, "logprob": -0.1, "bytes": list(token.encode())}
    return {**one, "top_logprobs": [one] * top}


def _chunks(choices: list[dict[str, Any]], usage: bool) -> Iterator[dict[str, Any]]:
    head = {**HEAD, "object": "chat.completion.chunk", **({"usage": None} if usage else {})}

    def chunk(index: int, delta: Any, finish: str | None = None, logprobs: Any = None) -> Any:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        return {**head, "choices": [choice]}

    for choice in choices:
        index, message = choice["index"], choice["message"]
        yield chunk(index, {"role": "assistant", "content": message["content"] and "",
                            "refusal": None})  # fmt: skip
        for piece in _pieces(message):
            yield chunk(index, piece)
        if choice["logprobs"]:
            for token in choice["logprobs"]["content"]:
                yield chunk(index, {"content": ""}, None, {"content": [token], "refusal": None})
    for choice in choices:
        yield chunk(choice["index"], {}, choice["finish_reason"])
    if usage:
        yield {**head, "choices": [], "usage": USAGE}


def _pieces(message: dict[str, Any]) -> Iterator[dict[str, Any]]:
    text = message["content"] or ""
    for start in range(0, len(text), 5):
        yield {"content": text[start : start + 5]}
    for number, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        named = {"name": function["name"], "arguments": ""}
        yield {"tool_calls": [{**call, "index": number, "function": named}]}
        for start in range(0, len(function["arguments"]), 4):
            part = {"arguments": function["arguments"][start : start + 4]}
            yield {"tool_calls": [{"index": number, "function": part}]}
    if "function_call" in message:
        yield {"function_call": message["function_call"]}
