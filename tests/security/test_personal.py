"""Planted secrets and personal data never reach the bytes of store, log, metrics or exports."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from gateway.streams.whole import answer_text
from tests.fakes.answers import completion, student_says, teacher_chunk
from tests.fakes.process import GatewayProcess, gateway_process
from tests.fakes.rig import ARTEFACTS, IN_DOMAIN, SYSTEM, TEACHER_KEY, config_data, rig
from tests.fakes.upstream import FakeUpstream, Received, Wire

RULES: list[Any] = [
    "key", "email", "iban", "card", "ssn", "phone", "ip",
    {"name": "customer", "pattern": r"\bC-\d{6}\b"},
]  # fmt: skip
PLANTED = (
    "jane.doe@acme-corp.example", "DE89 3704 0044 0532 0130 00", "4111 1111 1111 1111",
    "078-05-1120", "+49 170 555 0199", "10.20.30.40", "C-483920", "sk-live-abcdef0123456789abcd",
    "dropped-session-77", "dropped-note-88", "name-of-the-end-user", TEACHER_KEY,
)  # fmt: skip
SPEECH = " and ".join(PLANTED[:8])
BODY: dict[str, Any] = {
    "model": "banking-intents",
    "user": "name-of-the-end-user",
    "metadata": {"session": "dropped-session-77", "mail": PLANTED[0]},
    "messages": [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": f"{IN_DOMAIN} {SPEECH} {TEACHER_KEY}"},
    ],
}
CALL = {
    "id": "call_1", "type": "function",
    "function": {"name": "mail", "arguments": '{"to": "jane.doe\\u0040acme-corp.example"}'},
}  # fmt: skip


def found(data: bytes) -> list[str]:
    """What of the planted occurs in some bytes, escaped or not."""
    return [p for p in PLANTED if p.encode() in data or json.dumps(p).encode() in data]


def artefact(folder: Path) -> Path:
    """The tests' artefact, as if it had been fitted under these rules."""
    copy = folder / "router"
    shutil.copytree(ARTEFACTS / "router/v1", copy)
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps({**manifest, "redact": RULES}))
    return copy


async def echoes(received: Received, wire: Wire) -> None:
    """A teacher that repeats everything: in text, in tool calls, in streams cut anywhere, in the
    logprobs of tokens, and in refusals."""
    if "refuse" in received.text:
        error = {"message": f"cannot read {SPEECH}", "type": "invalid_request_error"}
        await wire.json(400, {"error": {**error, "param": SPEECH, "code": None}})
    elif received.body.get("stream"):
        await wire.stream()
        for start in range(0, len(SPEECH), 5):
            await wire.event(teacher_chunk({"content": SPEECH[start : start + 5]}))
        await wire.event(teacher_chunk({}, "stop"))
        await wire.done()
    else:
        body = completion(SPEECH, tool_calls=[CALL] if received.body.get("tools") else None)
        pieces = [SPEECH[start : start + 30] for start in range(0, len(SPEECH), 30)]
        tokens = [
            {"token": piece, "logprob": -0.1, "bytes": list(piece.encode()), "top_logprobs": []}
            for piece in pieces
        ]
        body["choices"][0]["logprobs"] = {"content": tokens}
        await wire.json(200, body)


async def traffic(gateway: GatewayProcess) -> None:
    """Every way in and out that an exchange is made of."""
    async with gateway.client() as client:
        url = "/v1/chat/completions"
        student, teacher = ({"x-understudy-route": side} for side in ("student", "teacher"))
        for stream in (False, True):
            for headers in (student, teacher, {}):
                sent = {**BODY, "stream": stream, "logprobs": True}
                response = await client.post(url, json=sent, headers=headers)
                assert response.status_code == 200
                assert PLANTED[0].encode() in response.content or headers == student or stream
        tools = [{"type": "function", "function": {"name": "mail", "description": SPEECH}}]
        assert (await client.post(url, json={**BODY, "tools": tools})).status_code == 200
        refused = {**BODY, "messages": [{"role": "user", "content": f"refuse {SPEECH}"}]}
        assert (await client.post(url, json=refused)).status_code == 400
        text = {"model": "banking-intents", "prompt": SPEECH}
        await client.post("/v1/completions", json=text)
        await client.post("/v1/responses", json={"model": "banking-intents", "input": SPEECH})
        await client.post(url, json={**BODY, "model": SPEECH})
        await client.post(url, json={**BODY, "temperature": SPEECH})
        await client.post(url, json=BODY, headers={"x-understudy-hold": PLANTED[0]})
        metrics = (await client.get("/metrics")).content
        assert not found(metrics)


async def test_planted_data_reaches_no_byte_of_disk(tmp_path: Path) -> None:
    places = tmp_path / "places"
    places.mkdir()
    speech = [SPEECH[i : i + 6] for i in range(0, len(SPEECH), 6)]
    student, teacher = FakeUpstream(student_says(speech)), FakeUpstream(echoes)
    async with student.running(), teacher.running():
        data = config_data(
            student.url, teacher.url, places / "store.db", risk={"draw_rate": 1.0},
            redact=RULES, drop_fields=["$.user", "$.metadata.session"],
            router={"artefact": str(artefact(tmp_path))},
        )  # fmt: skip
        async with gateway_process(places, data) as gateway:
            await traffic(gateway)
            await asyncio.sleep(1.5)  # the draws' second answers
            for path in places.iterdir():
                assert not found(path.read_bytes()), (path, found(path.read_bytes()))
            await exported(gateway, places)
            gateway.terminate()
            await gateway.process.wait()
    for path in places.iterdir():
        assert not found(path.read_bytes()), (path, found(path.read_bytes()))


async def exported(gateway: GatewayProcess, folder: Path) -> None:
    """Everything that the command line writes or prints."""
    for arguments in (
        ["export", "--out", str(folder / "rows.jsonl")],
        ["list", "--json", "--limit", "100"],
    ):
        process = await asyncio.create_subprocess_exec(
            ".venv/bin/understudy", "captures", *arguments, "--config", str(gateway.config),
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, error = await process.communicate()
        assert process.returncode == 0, error
        assert not found(out + error)
    assert (folder / "rows.jsonl").read_text().count("@example.com") > 3


async def test_judge_and_store_see_the_same_text_and_upstreams_the_real_one(tmp_path: Path) -> None:
    text = f"{IN_DOMAIN} jane.doe@acme-corp.example"
    where = {"artefact": str(artefact(tmp_path))}
    async with rig(tmp_path, redact=RULES, router=where) as r:
        assert r.task.judge is not None
        response = await r.ask(text)
        stored = r.last()
        asked = r.student.requests or r.teacher.requests
        assert asked[-1].text == text
        kept = stored.request["messages"][-1]["content"]
        assert kept == f"{IN_DOMAIN} ada@example.com"
        assert float(response.headers["x-understudy-threshold"]) > 0
        for spoken in (text, kept):
            await r.ask(spoken)
        first, second = r.stored()[-2:]
        assert (first.ood_score, first.template) == (second.ood_score, second.template)
        assert first.ood_score == stored.ood_score


async def test_an_artefact_of_other_rules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="fitted on text redacted by"):
        async with rig(tmp_path, redact=["key", "email"]):
            pass


async def test_both_answers_of_a_draw_are_compared_as_they_are_stored(tmp_path: Path) -> None:
    """Who answered first saw the real address, who is asked later its surrogate; both say one of
    their own besides: that is no disagreement."""

    def said(received: Received) -> str:
        return f"mail {received.text.split()[-1]} or help@bank.example"

    async def teacher(received: Received, wire: Wire) -> None:
        await wire.json(200, completion(said(received)))

    async def student(received: Received, wire: Wire) -> None:
        text = said(received)
        await student_says([text[i : i + 6] for i in range(0, len(text), 6)])(received, wire)

    risk = {"draw_rate": 1.0, "comparator": "text"}
    where = {"artefact": str(artefact(tmp_path))}
    async with rig(tmp_path, redact=RULES, router=where, risk=risk) as r:
        r.student.handler, r.teacher.handler = student, teacher
        response = await r.ask(f"{IN_DOMAIN} jane.doe@acme-corp.example")
        (draw,) = await r.draws_done(1)
        told = response.json()["choices"][0]["message"]["content"]
        assert told == "mail jane.doe@acme-corp.example or help@bank.example"
        assert draw.answer is not None
        assert answer_text(draw.answer) == "mail ada@example.com or ben@example.com"
        assert draw.agrees is True
