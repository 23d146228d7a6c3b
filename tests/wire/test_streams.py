"""One clean stream, whoever serves it, and never a false [DONE]."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.store.records import Status
from gateway.verdict import Reason
from tests.fakes.answers import (
    USAGE,
    hangs,
    student_says,
    teacher_chunk,
    teacher_events,
    vllm_chunk,
    vllm_events,
)
from tests.fakes.rig import ANSWER, FAR, KEY, rig
from tests.fakes.upstream import Received, Wire

SIDES = pytest.mark.parametrize("text", ["what is my apr", FAR], ids=["student", "teacher"])


def events(raw: str) -> list[Any]:
    """The parsed events of a client stream; comments are left out."""
    blocks = [block for block in raw.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), raw
    return [b[6:] if b == "data: [DONE]" else json.loads(b[6:]) for b in blocks]


def joined(chunks: list[Any]) -> str:
    """Content of the first choice."""
    return "".join(c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"])


def scripted(raw: bytes, *, end: bool = True) -> Any:
    """An upstream that sends exactly these bytes as one event stream."""

    async def handler(received: Received, wire: Wire) -> None:
        await wire.stream()
        if raw:
            await wire.send(raw)
        if end:
            await wire.end()
        else:
            wire.reset()

    return handler


def encoded(items: list[dict[str, Any]], *, done: bool = True) -> bytes:
    """Events as bytes."""
    raw = b"".join(b"data: " + json.dumps(item).encode() + b"\n\n" for item in items)
    return raw + (b"data: [DONE]\n\n" if done else b"")


async def _asked(
    base: str, text: str, header: str, version: str = "1.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A streamed chat asked for over a bare socket, whose framing shows."""
    url = httpx.URL(base)
    reader, writer = await asyncio.open_connection(url.host, url.port)
    chat = {"model": "banking-intents", "messages": [{"role": "user", "content": text}]}
    body = json.dumps({**chat, "stream": True}).encode()
    writer.write(
        f"POST /v1/chat/completions HTTP/{version}\r\nhost: x\r\n{header}\r\n"
        f"authorization: Bearer {KEY}\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        + body
    )
    return reader, writer


@SIDES
async def test_a_stream_is_whole_and_clean(tmp_path: Path, text: str) -> None:
    async with rig(tmp_path) as r:
        response = await r.ask(text, stream=True)
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.headers["x-understudy-captured"] == "pending"
        assert response.text.endswith("data: [DONE]\n\n")
        *chunks, done = events(response.text)
        assert done == "[DONE]"
        assert len({(c["id"], c["created"], c["model"], c["object"]) for c in chunks}) == 1
        assert chunks[0]["model"] == "banking-intents"
        assert chunks[0]["id"] == f"chatcmpl-{response.headers['x-request-id']}"
        assert [c["choices"][0]["delta"].get("role") for c in chunks].count("assistant") == 1
        finishes = [c["choices"][0]["finish_reason"] for c in chunks]
        assert finishes[-1] == "stop"
        assert finishes.count("stop") == 1
        assert not any("usage" in c for c in chunks)
        whole = (await r.ask(text)).json()
        assert joined(chunks) == whole["choices"][0]["message"]["content"]
        assert whole["usage"] == USAGE


@SIDES
@pytest.mark.parametrize("version", ["1.0", "1.1"])
async def test_a_stream_is_framed_as_the_client_s_http_knows_it(
    tmp_path: Path, text: str, version: str
) -> None:
    """Chunks, or a body that ends with the connection: HTTP/1.0 has no other way."""
    async with rig(tmp_path) as r:
        reader, writer = await _asked(r.url, text, "connection: close", version)
        async with asyncio.timeout(10):
            head, _, raw = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert head.count(b"connection: close") == 1
        assert (b"transfer-encoding: chunked" in head) == (version == "1.1")
        if version == "1.1":
            assert raw.endswith(b"\r\n0\r\n\r\n")
        else:
            *chunks, done = events(raw.decode())
            said = "teacher says" if text == FAR else "".join(ANSWER)
            assert (joined(chunks), done) == (said, "[DONE]")


async def test_events_that_came_together_go_out_together(tmp_path: Path) -> None:
    """And one that came alone waits for no other."""
    go_on = asyncio.Event()

    def said(*words: str) -> bytes:
        return encoded([teacher_chunk({"content": word}) for word in words], done=False)

    async def handler(received: Received, wire: Wire) -> None:
        await wire.stream()
        await wire.send(said("one ", "two ", "three "))
        await go_on.wait()
        go_on.clear()
        await wire.send(said("four "))
        await go_on.wait()
        await wire.send(encoded(teacher_events(["five"], False)))
        await wire.end()

    async with rig(tmp_path) as r:
        r.teacher.handler = handler
        reader, writer = await _asked(r.url, FAR, "x-understudy-hold: 1")
        async with asyncio.timeout(10):
            await reader.readuntil(b"\r\n\r\n")
            first = await _http_chunk(reader)
            go_on.set()
            second = await _http_chunk(reader)
            go_on.set()
            rest = (await reader.readuntil(b"\r\n0\r\n\r\n")).decode()
        writer.close()
    assert joined(events(first)) == "one two three "
    assert joined(events(second)) == "four "
    assert '"five"' in rest
    assert "[DONE]" in rest


@pytest.mark.parametrize("header", ["x-a: 1", "idempotency-key: k"], ids=["", "recorded"])
@pytest.mark.parametrize("keepalive", [None, 0.05], ids=["", "keepalive"])
async def test_a_paced_stream_arrives_word_by_word(
    tmp_path: Path, header: str, keepalive: float | None
) -> None:
    """Each event alone, when it is there; then some in one packet, one in two, and a broken one."""
    go_on = asyncio.Event()
    words = [f"w{number} " for number in range(9)]
    limits = {} if keepalive is None else {"keepalive_after_s": keepalive}

    def said(word: str, **more: str) -> bytes:
        return encoded([teacher_chunk({"content": word, **more})], done=False)

    async def handler(received: Received, wire: Wire) -> None:
        if keepalive is not None:
            await asyncio.sleep(4 * keepalive)
        await wire.stream()
        await wire.send(said(words[0], role="assistant"))
        for word in words[1:5]:
            await go_on.wait()
            go_on.clear()
            await wire.send(said(word))
        await go_on.wait()
        go_on.clear()
        await wire.send(said(words[5]) + said(words[6])[:30])
        await go_on.wait()
        go_on.clear()
        await wire.send(said(words[6])[30:] + said(words[7]))
        await wire.send(said(words[8]))
        await go_on.wait()
        await wire.send(b"data: {\n\n")
        await wire.end()

    async with rig(tmp_path, top={"limits": limits}) as r:
        r.teacher.handler = handler
        reader, writer = await _asked(r.url, FAR, f"x-understudy-hold: 1\r\n{header}")
        async with asyncio.timeout(20):
            await reader.readuntil(b"\r\n\r\n")
            for word in words[:6]:
                part = ": keep-alive\n\n"
                while part.startswith(":"):
                    part = await _http_chunk(reader)
                assert joined(events(part)) == word
                go_on.set()
            came = ""
            while came != "".join(words[6:]):
                came += joined(events(await _http_chunk(reader)))
            go_on.set()
            rest = (await reader.readuntil(b"\r\n0\r\n\r\n")).decode()
        writer.close()
        assert "teacher_malformed" in rest
        assert "[DONE]" not in rest
        [kept] = await r.stored_soon(1)
        assert kept.status is Status.INCOMPLETE
        assert kept.answer is not None
        assert kept.answer["choices"][0]["message"]["content"] == "".join(words)


async def _http_chunk(reader: asyncio.StreamReader) -> str:
    size = int(await reader.readuntil(b"\r\n"), 16)
    return (await reader.readexactly(size + 2)).decode().removesuffix("\r\n")


@SIDES
async def test_usage_comes_once_and_last_when_asked_for(tmp_path: Path, text: str) -> None:
    async with rig(tmp_path) as r:
        response = await r.ask(text, stream=True, stream_options={"include_usage": True})
        *chunks, usage, done = events(response.text)
        assert done == "[DONE]"
        assert (usage["choices"], usage["usage"]) == ([], USAGE)
        assert all(c["usage"] is None for c in chunks)


@SIDES
async def test_the_verdict_is_in_an_explained_answer(tmp_path: Path, text: str) -> None:
    async with rig(tmp_path) as r:
        asked = {"x-understudy-explain": "1"}
        streamed = events((await r.ask(text, stream=True, headers=asked)).text)[-2]["understudy"]
        whole = (await r.ask(text, headers=asked)).json()["understudy"]
        for verdict in (streamed, whole):
            assert verdict["captured"] == "yes"
            assert verdict["reason"] in {"in_distribution", "ood"}
            assert verdict["ood_score"] is not None
        assert "understudy" not in (await r.ask(text)).json()


async def test_logprobs_are_ours_unless_asked_for(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        assert (await r.ask()).json()["choices"][0]["logprobs"] is None
        whole = (await r.ask(logprobs=True, top_logprobs=1)).json()["choices"][0]["logprobs"]
        assert [len(t["top_logprobs"]) for t in whole["content"]] == [1, 1, 1]
        streamed = events((await r.ask(logprobs=True, stream=True)).text)[:-1]
        tokens = [
            t["token"]
            for c in streamed
            for t in (c["choices"][0]["logprobs"] or {}).get("content", [])
        ]
        assert tokens == ["ap", "r", "<|im_end|>"]


async def test_every_byte_split_of_the_student_s_stream_gives_the_same_answer(
    tmp_path: Path,
) -> None:
    raw = encoded(vllm_events(ANSWER))
    async with rig(tmp_path) as r:
        expected = joined(events((await r.ask(stream=True)).text)[:-1])
        for cut in range(1, len(raw), 7):

            async def split(received: Received, wire: Wire, cut: int = cut) -> None:
                await wire.stream()
                await wire.send(raw[:cut])
                await wire.send(raw[cut:])
                await wire.end()

            r.student.handler = split
            response = await r.ask(stream=True)
            assert response.headers["x-understudy-served-by"] == "student"
            assert joined(events(response.text)[:-1]) == expected


async def test_a_student_stream_cut_at_any_byte_is_rescued_whole(tmp_path: Path) -> None:
    """With hold=all the client gets one whole answer, the student's or the teacher's."""
    raw = encoded(vllm_events(ANSWER))
    finish = raw.index(b'"finish_reason": "stop"')
    async with rig(tmp_path) as r:
        r.never_break()
        for number, cut in enumerate(range(0, len(raw), 11)):
            r.student.handler = scripted(raw[:cut], end=number % 2 == 0)
            response = await r.ask(stream=bool(number % 3))
            assert response.status_code == 200
            by = response.headers["x-understudy-served-by"]
            if by == "student":
                assert cut > finish
                assert '"r"' in response.text or "apr" in response.text
            else:
                assert response.headers["x-understudy-reason"] == Reason.STUDENT_ERROR
                assert "sa" in response.text
            if number % 3:
                assert response.text.endswith("data: [DONE]\n\n")


async def test_a_teacher_stream_cut_at_any_byte_never_ends_in_done(tmp_path: Path) -> None:
    raw = encoded(teacher_events(["tea", "cher"], usage=True))
    finished = raw.index(b"\n\n", raw.index(b'"finish_reason": "stop"')) + 2
    async with rig(tmp_path, teacher={"retries": 0}) as r:
        r.never_break()
        for number, cut in enumerate(range(0, len(raw), 13)):
            r.teacher.handler = scripted(raw[:cut], end=number % 2 == 0)
            response = await r.ask(FAR, stream=True)
            complete = response.status_code == 200 and "[DONE]" in response.text
            # The finish reason makes an answer whole; only what follows it may be missing.
            assert complete == (cut >= finished and number % 2 == 0) or (
                complete and cut >= finished
            )
            exchange = r.stored()[-1]
            if complete:
                assert exchange.status is Status.COMPLETE
                assert joined(events(response.text)[:-1]) == "teacher"
            elif response.status_code == 200:
                assert events(response.text)[-1]["error"]["code"] == "stream_broken"
                assert exchange.status is Status.INCOMPLETE
            else:
                assert response.status_code in {502, 503}
                assert exchange.status is Status.ERROR


async def test_an_in_band_error_of_the_student_is_rescued_despite_its_done(tmp_path: Path) -> None:
    error = {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}
    async with rig(tmp_path) as r:
        r.student.handler = scripted(encoded([*vllm_events(ANSWER)[:2], error]))
        response = await r.ask(stream=True)
        assert response.headers["x-understudy-reason"] == Reason.STUDENT_ERROR
        assert "EngineCore" not in response.text
        assert joined(events(response.text)[:-1]) == "teacher says"


async def test_an_in_band_error_of_the_teacher_voids_its_done(tmp_path: Path) -> None:
    error = {"error": {"message": "boom", "type": "server_error", "code": None}}
    async with rig(tmp_path, router={"hold": 32}) as r:
        r.teacher.handler = scripted(
            encoded([teacher_chunk({"role": "assistant", "content": "te"}), error])
        )
        response = await r.ask(FAR, stream=True)
        assert "[DONE]" not in response.text
        assert events(response.text)[-1]["error"]["code"] == "stream_broken"


async def test_a_teacher_that_forgets_done_is_finished_promptly(tmp_path: Path) -> None:
    async def forgets(received: Received, wire: Wire) -> None:
        await wire.stream()
        for event in teacher_events(["teacher", " says"], usage=True):
            await wire.event(event)
        await hangs(received, wire)

    async with rig(tmp_path) as r:
        r.teacher.handler = forgets
        response = await r.ask(FAR, stream=True, stream_options={"include_usage": True})
        assert response.text.endswith("data: [DONE]\n\n")
        assert events(response.text)[-2]["usage"] == USAGE


async def test_a_truncated_student_answer_is_never_served_as_complete(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.student.handler = student_says(ANSWER, finish="length")
        for stream in (False, True):
            response = await r.ask(stream=stream, max_tokens=2)
            assert response.headers["x-understudy-served-by"] == "teacher"
            assert response.headers["x-understudy-reason"] == Reason.STUDENT_ERROR


async def test_after_release_a_broken_student_ends_in_an_error_event(tmp_path: Path) -> None:
    long = vllm_events(["apr"] + [" ."] * 60)
    async with rig(tmp_path, router={"hold": 40}) as r:
        r.serve_anything()
        r.student.handler = scripted(encoded(long[:50], done=False))
        response = await r.ask(stream=True)
        assert response.headers["x-understudy-served-by"] == "student"
        assert "[DONE]" not in response.text
        assert events(response.text)[-1]["error"]["code"] == "stream_broken"
        exchange = r.stored()[-1]
        assert (exchange.status, exchange.error) == (Status.INCOMPLETE, "student_cut")


async def test_hold_delays_release_and_never_changes_the_score(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.serve_anything()
        r.student.handler = student_says(["apr"] + [" ."] * 60)
        scores = {
            (await r.ask(stream=stream, headers={"x-understudy-hold": hold})).headers[
                "x-understudy-score"
            ]
            for hold in ("1", "32", "50", "all")
            for stream in (False, True)
        }
        assert len(scores) == 1


async def test_empty_student_chunks_do_not_disturb(tmp_path: Path) -> None:
    chunks = vllm_events(ANSWER)
    padded = [item for chunk in chunks for item in (vllm_chunk({}), chunk)]
    async with rig(tmp_path) as r:
        r.student.handler = scripted(encoded(padded))
        assert joined(events((await r.ask(stream=True)).text)[:-1]) == "apr"
