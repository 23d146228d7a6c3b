"""Every stream of every endpoint, cut at every byte: no false end, no token lost or doubled."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gateway.store.records import Status
from tests.fakes.answers import USAGE, teacher_events, vllm_events
from tests.fakes.rig import FAR, IN_DOMAIN, SYSTEM, Rig, rig
from tests.fakes.upstream import Handler, Received, Wire
from tests.wire.test_endpoints import piece, response_object

WORDS = [f"w{n} " for n in range(6)]
TEXT = "".join(WORDS)


@dataclass(frozen=True, slots=True)
class Seen:
    """A client stream's sum. ``ends`` holds what closed it, one entry per end."""

    text: str
    ends: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """How one endpoint asks, how its teacher's stream looks, and how a client reads ours."""

    path: str
    body: Callable[[str], dict[str, Any]]
    script: bytes
    read: Callable[[str], Seen]
    other: bytes
    """What a second attempt says."""


def sse(events: list[dict[str, Any]], end: bytes = b"data: [DONE]\n\n") -> bytes:
    """Events as short as they get: every byte of them is a cut."""
    return b"".join(
        b"data: " + json.dumps(event, separators=(",", ":")).encode() + b"\n\n" for event in events
    ) + end  # fmt: skip


def blocks(raw: str) -> list[Any]:
    """The data of each event; comments are left out."""
    lines = [line for line in raw.split("\n") if line.startswith("data: ")]
    assert raw.endswith("\n\n") or not raw
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def read_choices(raw: str) -> Seen:
    """Chat and text completions."""
    text, ends, finishes = "", list[str](), 0
    for block in blocks(raw):
        if block == "[DONE]":
            ends.append("done")
        elif "error" in block:
            ends.append("error")
        else:
            assert not ends
            for choice in block["choices"]:
                text += choice.get("text") or (choice.get("delta") or {}).get("content") or ""
                finishes += choice["finish_reason"] is not None
    assert finishes == ends.count("done")
    return Seen(text, tuple(ends))


def read_responses(raw: str) -> Seen:
    """Typed events; numbered without a gap."""
    events = blocks(raw)
    numbers = [event["sequence_number"] for event in events]
    assert numbers == list(range(len(numbers)))
    deltas = [e["delta"] for e in events if e["type"] == "response.output_text.delta"]
    ends = {"response.completed": "done", "response.failed": "error"}
    return Seen("".join(deltas), tuple(ends[e["type"]] for e in events if e["type"] in ends))


def chat(words: list[str]) -> bytes:
    """A teacher's chat stream."""
    return sse(teacher_events(words, usage=True))


def completions(words: list[str]) -> bytes:
    """A teacher's text completion."""
    closing = {**piece(""), "choices": [], "usage": USAGE}
    return sse([*map(piece, words), piece("", "stop"), closing])


def responses(words: list[str]) -> bytes:
    """A teacher's response."""
    place = {"item_id": "m", "output_index": 0, "content_index": 0}
    text = "".join(words)
    kinds: list[dict[str, Any]] = [
        {"type": "response.created", "response": {"id": "resp_t", "object": "response"}},
        *({"type": "response.output_text.delta", **place, "delta": word} for word in words),
        {"type": "response.output_text.done", **place, "text": text},
        {"type": "response.completed", "response": response_object(text)},
    ]
    return sse([{**event, "sequence_number": n} for n, event in enumerate(kinds)], b"")


def chat_body(text: str) -> dict[str, Any]:
    """One system and one user message."""
    turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": text}]
    return {"messages": turns}


ENDPOINTS = {
    "chat": Endpoint("/v1/chat/completions", chat_body, chat(WORDS), read_choices, chat(["other"])),
    "completions": Endpoint(
        "/v1/completions", lambda text: {"prompt": text}, completions(WORDS), read_choices,
        completions(["other"]),
    ),
    "responses": Endpoint(
        "/v1/responses", lambda text: {"instructions": SYSTEM, "input": text}, responses(WORDS),
        read_responses, responses(["other"]),
    ),
}  # fmt: skip
OF_THE_STUDENT = ("chat", "responses")


def plays(scripts: list[tuple[bytes, bool]]) -> Handler:
    """Play one script after the other, a call each; True ends the body properly."""
    left = iter(scripts)

    async def handler(received: Received, wire: Wire) -> None:
        raw, end = next(left)
        await wire.stream()
        if raw:
            await wire.send(raw)
        if end:
            await wire.end()
        else:
            wire.reset()

    return handler


async def ask(r: Rig, endpoint: Endpoint, text: str) -> tuple[int, str, str]:
    """Status, who served, and the raw stream."""
    body = {"model": "banking-intents", "stream": True, **endpoint.body(text)}
    response = await r.client.post(endpoint.path, json=body)
    return response.status_code, response.headers["x-understudy-served-by"], response.text


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_a_held_teacher_cut_at_each_byte_is_a_whole_answer(tmp_path: Path, name: str) -> None:
    endpoint = ENDPOINTS[name]
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        runtime = r.task.teacher
        runtime.upstreams = [*runtime.upstreams, *runtime.upstreams]  # a round needs no pause
        r.never_break()
        for cut in range(len(endpoint.script)):
            r.teacher.handler = plays(
                [(endpoint.script[:cut], cut % 2 == 0), (endpoint.other, True)]
            )
            status, _, raw = await ask(r, endpoint, FAR)
            assert status == 200, cut
            seen = endpoint.read(raw)
            assert seen in {Seen(TEXT, ("done",)), Seen("other", ("done",))}, cut
        rows = r.stored()
        assert len(rows) == len(endpoint.script)
        assert {row.status for row in rows} == {Status.COMPLETE}
        await r.settled()


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_a_live_teacher_cut_at_each_byte_is_a_prefix_and_says_so(
    tmp_path: Path, name: str
) -> None:
    endpoint = ENDPOINTS[name]
    async with rig(tmp_path, router={"hold": 32}, teacher={"retries": 0}) as r:
        r.never_break()
        partial = 0
        for cut in range(len(endpoint.script) + 1):
            r.teacher.handler = plays([(endpoint.script[:cut], cut % 2 == 0)])
            status, _, raw = await ask(r, endpoint, FAR)
            row = r.last()
            if status != 200:
                assert (status in {502, 503}, row.status) == (True, Status.ERROR), cut
                continue
            seen = endpoint.read(raw)
            if seen.ends == ("done",):
                assert seen.text == TEXT, cut
                assert row.status is Status.COMPLETE, cut
            else:
                assert seen.ends == ("error",), cut
                assert TEXT.startswith(seen.text), cut
                assert row.status is Status.INCOMPLETE, cut
                partial += 1
        assert partial > len(endpoint.script) // 2
        await r.settled()


@pytest.mark.parametrize("hold", ["all", "gate"])
@pytest.mark.parametrize("name", OF_THE_STUDENT)
async def test_a_student_cut_at_each_byte(tmp_path: Path, name: str, hold: str) -> None:
    """Held: a whole answer of one side. Released after the gate's tokens: whole, or a prefix that
    says so."""
    endpoint = ENDPOINTS[name]
    async with rig(tmp_path) as r:
        r.never_break()
        r.serve_anything()
        judge = r.task.judge
        assert judge is not None
        judge.gate_tokens = 2  # a short script, or each byte of it would be thousands of requests
        if hold == "gate":
            r.client.headers["x-understudy-hold"] = "2"
        words = WORDS[:4]
        script, text = sse(vllm_events(words)), "".join(words)
        ends = set()
        for cut in range(len(script) + 1):
            r.student.handler = plays([(script[:cut], cut % 2 == 0)])
            r.teacher.handler = plays([(endpoint.other, True)])
            status, by, raw = await ask(r, endpoint, IN_DOMAIN)
            assert status == 200, cut
            seen = endpoint.read(raw)
            ends.add((by, seen.ends))
            if by == "teacher":
                assert seen == Seen("other", ("done",)), cut
            elif seen.ends == ("done",):
                assert seen.text == text, cut
            else:
                assert seen.ends == ("error",), cut
                assert text.startswith(seen.text), cut
                assert seen.text != text or hold == "gate", cut
        whole = {("teacher", ("done",)), ("student", ("done",))}
        assert ends == (whole if hold == "all" else {*whole, ("student", ("error",))})
        assert len(r.stored()) == len(script) + 1
        await r.settled()


@pytest.mark.parametrize("name", ENDPOINTS)
async def test_each_split_of_a_stream_gives_the_same_answer(tmp_path: Path, name: str) -> None:
    """Two network packets, and the border between them at each byte."""
    endpoint = ENDPOINTS[name]
    script = endpoint.script
    cuts = itertools.count(1)

    async def split(received: Received, wire: Wire) -> None:
        cut = next(cuts)
        await wire.stream()
        await wire.send(script[:cut])
        await wire.send(script[cut:])
        await wire.end()

    async with rig(tmp_path, router={"hold": 32}) as r:
        r.teacher.handler = split
        for _ in range(len(script) - 1):
            _, _, raw = await ask(r, endpoint, FAR)
            assert endpoint.read(raw) == Seen(TEXT, ("done",))
