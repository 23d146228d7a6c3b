"""Exchanges as rows of training data: the shape that ``router fit`` and ``student train`` read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gateway.api.request import Api
from gateway.store.records import Exchange
from gateway.streams.whole import answer_text, is_whole, request_of


def training_row(exchange: Exchange, correction: str | None = None) -> dict[str, Any] | None:
    """One row; None where no side gave a whole answer.

    A correction takes the place of the completion. Outside a draw such a row says ``"use":
    "train"``: what people chose to correct is no sample of the traffic.
    """
    if not exchange.bodies:
        return None
    answers = _answers(exchange)
    completed_by = "teacher" if "teacher" in answers else exchange.served_by
    if completed_by not in answers and correction is None:
        return None
    row: dict[str, Any] = {
        "id": exchange.id,
        "messages": messages_of(exchange),
        "completion": answer_text(answers[completed_by]) if correction is None else correction,
        "completed_by": completed_by if correction is None else "human",
        "served_by": exchange.served_by,
        "reason": exchange.reason,
    }
    if exchange.draw is not None and exchange.draw_p:
        row["weight"] = 1.0 / exchange.draw_p
    elif correction is not None:
        row["use"] = "train"
    if "student" in answers:
        row["student"] = student_json_of(answers["student"], exchange)
    return row


def fine_tuning_row(exchange: Exchange, correction: str | None = None) -> dict[str, Any] | None:
    """One row of OpenAI's supervised fine-tuning format: a chat that ends with the assistant.

    Source: platform.openai.com/docs/guides/supervised-fine-tuning.
    """
    if not exchange.bodies:
        return None
    answers = _answers(exchange)
    answer = answers.get("teacher") or answers.get(exchange.served_by)
    if correction is not None:
        said: dict[str, Any] = {"role": "assistant", "content": correction}
    elif answer is None:
        return None
    else:
        said = _assistant(answer)
    row: dict[str, Any] = {"messages": [*messages_of(exchange), said]}
    for name in ("tools", "parallel_tool_calls"):
        if exchange.api is Api.CHAT and exchange.request.get(name) is not None:
            row[name] = exchange.request[name]
    return row


def messages_of(exchange: Exchange) -> list[dict[str, Any]]:
    """What was asked, as chat messages; none where bodies were dropped."""
    return chat_of(exchange.api, exchange.request) if exchange.bodies else []


def chat_of(api: Api, request: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A stored request as chat messages: its own, or those of its text.

    Raises:
        GatewayError: it is not a request of that endpoint.
    """
    if api is Api.CHAT:
        messages: list[dict[str, Any]] = request["messages"]
        return messages
    return [{"role": m.role, "content": m.content} for m in request_of(api, request).messages]


def answers_of(exchange: Exchange) -> dict[str, Any]:
    """What each side answered, by side, cut or not."""
    both = {exchange.served_by: exchange.answer}
    if exchange.draw is not None:
        both[exchange.draw.wants] = exchange.draw.answer
    return {side: answer for side, answer in both.items() if answer}


def prefix_tokens(prefix: Mapping[str, Any]) -> dict[str, Any]:
    """A stored prefix's tokens as rows hold them."""
    return {
        "tokens": [{"token": token, "logprob": logprob} for token, logprob, _ in prefix["tokens"]],
        "top_logprobs": [top for _, _, top in prefix["tokens"]],
    }


def student_json_of(answer: Any, exchange: Exchange) -> dict[str, Any]:
    """A student's answer as rows hold it. The gated prefix of an answer that the student served
    has all its alternatives; the answer itself only those that the client asked for."""
    choice = (answer.get("choices") or [{}])[0]
    content = (choice.get("logprobs") or {}).get("content") or []
    prefix = exchange.prefix if exchange.served_by == "student" else None
    row: dict[str, Any] = {
        "text": answer_text(answer),
        "finish_reason": choice.get("finish_reason") or "stop",
    }
    if prefix is not None and prefix["finished"]:
        row |= prefix_tokens(prefix)
    elif content:
        row["tokens"] = [{"token": t["token"], "logprob": t["logprob"]} for t in content]
        row["top_logprobs"] = [[a["logprob"] for a in t["top_logprobs"]] for t in content]
    return row


def _answers(exchange: Exchange) -> dict[str, Any]:
    """Whole answers by side; a cut one is no training data."""
    return {side: answer for side, answer in answers_of(exchange).items() if is_whole(answer)}


def _assistant(answer: Mapping[str, Any]) -> dict[str, Any]:
    message = ((answer.get("choices") or [{}])[0]).get("message") or {}
    if message.get("tool_calls"):
        return {"role": "assistant", "tool_calls": message["tool_calls"]}
    return {"role": "assistant", "content": answer_text(answer)}
