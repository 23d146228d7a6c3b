"""Completions, responses and embeddings, by the official SDK and on the wire."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError

from gateway.store.records import Status
from gateway.streams.whole import answer_text
from tests.fakes.answers import USAGE, refuses
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, SYSTEM, Rig, rig
from tests.fakes.upstream import Received, Wire

DEFAULT = {"default": {"passthrough": "teacher"}}
SPENT = {
    "input_tokens": 23,
    "input_tokens_details": {"cached_tokens": 0},
    "output_tokens": 3,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 26,
}


def sdk(r: Rig) -> AsyncOpenAI:
    """The official client; its own retries are off."""
    return AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY, max_retries=0)


def response_object(text: str, status: str = "completed") -> dict[str, Any]:
    """A teacher's response, as the API gives it."""
    part = {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": status, "role": "assistant",
            "content": [part]}  # fmt: skip
    return {
        "id": "resp_teacher", "object": "response", "created_at": 1, "status": status,
        "model": "big-1", "output": [item], "usage": SPENT, "parallel_tool_calls": True,
        "tool_choice": "auto", "tools": [], "error": None, "incomplete_details": None,
        "instructions": None, "metadata": {}, "temperature": 1.0, "top_p": 1.0,
    }  # fmt: skip


def response_events(text: str) -> list[dict[str, Any]]:
    """The same as events."""
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    begun = {**response_object("", "in_progress"), "output": [], "usage": None}
    part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    item = {"id": "msg_1", "type": "message", "status": "in_progress", "role": "assistant",
            "content": []}  # fmt: skip
    kinds: list[dict[str, Any]] = [
        {"type": "response.created", "response": begun},
        {"type": "response.output_item.added", "output_index": 0, "item": item},
        {"type": "response.content_part.added", **place, "part": part},
        {"type": "response.output_text.delta", **place, "delta": text[:3], "logprobs": []},
        {"type": "response.output_text.delta", **place, "delta": text[3:], "logprobs": []},
        {"type": "response.output_text.done", **place, "text": text, "logprobs": []},
        {"type": "response.completed", "response": response_object(text)},
    ]
    return [{**event, "sequence_number": number} for number, event in enumerate(kinds)]


async def responds(received: Received, wire: Wire) -> None:
    """A teacher that knows ``/responses``."""
    assert received.path == "/v1/responses"
    if not received.body.get("stream"):
        await wire.json(200, response_object("teacher says"))
        return
    await wire.stream()
    for event in response_events("teacher says"):
        await wire.event(event)
    await wire.end()


def piece(text: str, finish: str | None = None) -> dict[str, Any]:
    """A chunk of a text completion."""
    choice = {"index": 0, "text": text, "logprobs": None, "finish_reason": finish}
    return {"id": "cmpl-t", "object": "text_completion", "created": 1, "model": "big-1",
            "choices": [choice]}  # fmt: skip


async def completes(received: Received, wire: Wire) -> None:
    """A teacher that knows ``/completions``."""
    assert received.path == "/v1/completions"
    if not received.body.get("stream"):
        await wire.json(200, {**piece("teacher says", "stop"), "usage": USAGE})
        return
    await wire.stream()
    for event in (piece("teacher "), piece("says"), piece("", "stop")):
        await wire.event(event)
    await wire.event({**piece(""), "choices": [], "usage": USAGE})
    await wire.done()


@pytest.mark.parametrize("text", [IN_DOMAIN, FAR], ids=["student", "teacher"])
@pytest.mark.parametrize("stream", [False, True])
async def test_responses_are_served_and_kept(tmp_path: Path, text: str, stream: bool) -> None:
    async with rig(tmp_path) as r, sdk(r) as client:
        r.teacher.handler = responds
        asked: dict[str, Any] = {
            "model": "banking-intents", "instructions": SYSTEM, "input": text,
        }  # fmt: skip
        if stream:
            kinds, final = [], None
            async with client.responses.stream(**asked) as events:
                async for event in events:
                    kinds.append(event.type)
                final = await events.get_final_response()
            assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")
            assert kinds.count("response.output_text.done") == 1
        else:
            final = await client.responses.create(**asked)
        expected = "apr" if text == IN_DOMAIN else "teacher says"
        assert final.output_text == expected
        assert (final.model, final.status) == ("banking-intents", "completed")
        assert final.usage is not None
        assert final.usage.total_tokens == 26
        row = r.stored()[-1]
        assert (row.api, row.status) == ("responses", Status.COMPLETE)
        assert row.answer is not None
        assert answer_text(row.answer) == expected
        assert row.served_by == ("student" if text == IN_DOMAIN else "teacher")
        assert row.attempts[-1].completion_tokens == 3


async def test_a_stream_of_events_has_no_done_and_counts_from_zero(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        body = {"model": "banking-intents", "instructions": SYSTEM, "input": IN_DOMAIN,
                "stream": True}  # fmt: skip
        raw = (await r.client.post("/v1/responses", json=body)).text
        assert "[DONE]" not in raw
        events = [json.loads(b.split("data: ")[1]) for b in raw.split("\n\n") if b]
        assert [e["sequence_number"] for e in events] == list(range(len(events)))
        assert all(b.startswith(f"event: {e['type']}\n") for b, e in zip(
            raw.split("\n\n"), events, strict=False))  # fmt: skip


async def test_a_conversation_goes_on_from_a_response_that_the_student_gave(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r, sdk(r) as client:
        r.teacher.handler = responds
        task = "banking-intents"
        first = await client.responses.create(model=task, instructions=SYSTEM, input=IN_DOMAIN)
        await client.responses.create(model=task, input=FAR, previous_response_id=first.id)
        told = r.teacher.requests[-1].body
        assert "previous_response_id" not in told
        assert [item["content"] for item in told["input"]] == [IN_DOMAIN, "apr", FAR]
        # The teacher's own ids mean something to the teacher alone.
        await client.responses.create(model=task, input=FAR, previous_response_id="resp_teacher")
        assert r.teacher.requests[-1].body["previous_response_id"] == "resp_teacher"
        assert r.stored()[-1].reason == "unsupported_feature"


async def test_an_unknown_or_unkept_or_foreign_previous_response_is_refused(
    tmp_path: Path,
) -> None:
    async with rig(tmp_path) as r, sdk(r) as client:
        task = "banking-intents"
        unkept = await client.responses.create(
            model=task, instructions=SYSTEM, input=IN_DOMAIN, store=False
        )
        kept = await client.responses.create(model=task, instructions=SYSTEM, input=IN_DOMAIN)
        other = AsyncOpenAI(base_url=f"{r.url}/v1", api_key="us-plain-key", max_retries=0)
        asks = ((client, "resp_us0"), (client, unkept.id), (other, kept.id))
        for asker, previous in asks:
            with pytest.raises(BadRequestError, match="not found") as raised:
                await asker.responses.create(model=task, input="x", previous_response_id=previous)
            assert raised.value.code == "previous_response_not_found"
        await other.close()


@pytest.mark.parametrize("extra", [
    {"tools": [{"type": "web_search"}]}, {"reasoning": {"effort": "low"}}, {"background": True},
    {"conversation": "conv_1"}, {"include": ["message.output_text.logprobs"]},
    {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
])  # fmt: skip
async def test_what_a_chat_cannot_ask_is_the_teacher_s(
    tmp_path: Path, extra: dict[str, Any]
) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = responds
        body = {"model": "banking-intents", "instructions": SYSTEM, "input": IN_DOMAIN, **extra}
        response = await r.client.post("/v1/responses", json=body)
        assert response.headers["x-understudy-reason"] == "unsupported_feature"
        told = r.teacher.requests[-1].body
        assert told == {**body, "model": "big-1"}


async def test_a_student_that_does_not_declare_responses_is_not_asked(tmp_path: Path) -> None:
    async with rig(tmp_path, student={"features": []}) as r:
        r.teacher.handler = responds
        body = {"model": "banking-intents", "instructions": SYSTEM, "input": IN_DOMAIN}
        response = await r.client.post("/v1/responses", json=body)
        assert response.headers["x-understudy-reason"] == "unsupported_feature"
        assert not r.student.requests


@pytest.mark.parametrize("body", [
    {}, {"input": 3}, {"input": []}, {"input": [3]}, {"input": [{"role": "x", "content": "a"}]},
    {"input": "a", "temperature": 9}, {"input": "a", "tools": 3}, {"input": "a", "store": "yes"},
    {"input": [{"role": "user", "content": [{"type": "input_text"}]}]},
    {"input": [{"role": "user", "content": [{"type": []}]}]},
])  # fmt: skip
async def test_bad_responses_requests_are_400(tmp_path: Path, body: dict[str, Any]) -> None:
    async with rig(tmp_path) as r:
        response = await r.client.post("/v1/responses", json={"model": "banking-intents", **body})
        assert response.status_code == 400
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}


async def test_a_response_that_fails_mid_stream_says_so(tmp_path: Path) -> None:
    async def dies(received: Received, wire: Wire) -> None:
        await wire.stream()
        for event in response_events("teacher says")[:4]:
            await wire.event(event)
        wire.reset()

    async with rig(tmp_path, router={"hold": 32}) as r:
        r.teacher.handler = dies
        body = {"model": "banking-intents", "input": FAR, "stream": True}
        raw = (await r.client.post("/v1/responses", json=body)).text
        last = json.loads(raw.strip().split("data: ")[-1])
        assert last["type"] == "response.failed"
        assert last["response"]["status"] == "failed"
        assert "response.completed" not in raw
        assert r.stored()[-1].status is Status.INCOMPLETE


@pytest.mark.parametrize("stream", [False, True])
async def test_completions_are_the_teacher_s_and_kept(tmp_path: Path, stream: bool) -> None:
    async with rig(tmp_path) as r, sdk(r) as client:
        r.teacher.handler = completes
        if stream:
            chunks = [
                chunk
                async for chunk in await client.completions.create(
                    model="banking-intents", prompt=IN_DOMAIN, stream=True,
                    stream_options={"include_usage": True},
                )
            ]  # fmt: skip
            text = "".join(c.choices[0].text for c in chunks if c.choices)
            assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
            assert chunks[-1].usage is not None
            assert len({(c.id, c.model) for c in chunks}) == 1
        else:
            whole = await client.completions.create(model="banking-intents", prompt=IN_DOMAIN)
            text = whole.choices[0].text
            assert whole.model == "banking-intents"
            assert whole.id.startswith("cmpl-")
        assert text == "teacher says"
        row = r.stored()[-1]
        assert (row.api, row.reason) == ("completions", "unsupported_feature")
        assert row.answer is not None
        assert row.answer["choices"][0]["text"] == "teacher says"


async def test_embeddings_pass_through_with_their_own_model_name(tmp_path: Path) -> None:
    async def embeds(received: Received, wire: Wire) -> None:
        assert received.path == "/v1/embeddings"
        data = [{"object": "embedding", "index": 0, "embedding": [0.5, -1.0]}]
        usage = {"prompt_tokens": 2, "total_tokens": 2}
        model = received.body["model"]
        await wire.json(200, {"object": "list", "data": data, "model": model, "usage": usage})

    async with rig(tmp_path, top=DEFAULT) as r, sdk(r) as client:
        r.teacher.handler = embeds
        answer = await client.embeddings.create(model="emb-1", input=["a"], encoding_format="float")
        assert answer.data[0].embedding == [0.5, -1.0]
        assert r.teacher.requests[-1].body["model"] == "emb-1"
        assert not r.stored()
        with pytest.raises(BadRequestError):
            await client.embeddings.create(model="emb-1", input=[])
        r.teacher.handler = refuses
        failed = await r.client.post("/v1/embeddings", json={"model": "e", "input": "a"})
        assert failed.status_code == 502
        assert len(r.teacher.requests) == 3


async def test_embeddings_without_a_default_upstream_are_a_404(tmp_path: Path) -> None:
    async with rig(tmp_path) as r, sdk(r) as client:
        with pytest.raises(NotFoundError):
            await client.embeddings.create(model="emb-1", input="a")


async def test_a_client_s_own_teacher_key_is_used_where_allowed_and_kept_nowhere(
    tmp_path: Path,
) -> None:
    own = {"x-understudy-teacher-key": "sk-own-secret"}
    async with rig(tmp_path) as r:
        assert (await r.ask(FAR, headers=own)).status_code == 403
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    async with rig(allowed, teacher={"accept_client_key": True}) as r:
        assert (await r.ask(FAR, headers=own)).status_code == 200
        assert r.teacher.requests[-1].headers["authorization"] == "Bearer sk-own-secret"
        assert b"sk-own-secret" not in b"".join(p.read_bytes() for p in allowed.glob("*.db*"))
