"""Ten thousand generated requests, most of them nearly right: none is a failure of ours, none
hangs, none leaves a task behind, and each that was answered is stored."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fakes.answers import student_says, teacher_says
from tests.fakes.rig import ANSWER, FAR, IN_DOMAIN, SYSTEM, Rig, rig
from tests.fakes.upstream import Received, Wire
from tests.wire.test_endpoints import completes, responds

EXAMPLES = 2600
"""Per endpoint: 4 endpoints, 10,400 requests."""

SCALARS = (
    st.none() | st.booleans() | st.integers(-3, 3) | st.sampled_from([2**63, -(2**70), 1e308, 0.5])
    | st.sampled_from(["", "auto", "none", "all", "text", "json_schema", "user", "\x00", "é🙂"])
)  # fmt: skip
ANY = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(["type", "name", "content", "text", "role", "function", "url", "x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=5,
)


def mostly(plausible: st.SearchStrategy[Any], odd: st.SearchStrategy[Any] = ANY) -> Any:
    """Something plausible; one time in ten something odd."""
    return st.integers(0, 9).flatmap(lambda n: odd if n == 9 else plausible)


TEXT = st.sampled_from([IN_DOMAIN, FAR, SYSTEM, "", " ", "\ud7ff", "a\x00b", "w " * 900])
PART = st.fixed_dictionaries(
    {"type": st.sampled_from(["text", "input_text", "image_url", "input_audio", "file", "odd"])},
    optional={"text": mostly(TEXT), "image_url": ANY, "input_audio": ANY},
)
MESSAGE = st.fixed_dictionaries(
    {
        "role": mostly(st.sampled_from(["system", "user", "user", "assistant", "developer"])),
        "content": mostly(TEXT | TEXT | st.lists(PART, max_size=2)),
    },
    optional={"name": mostly(st.just("n")), "tool_calls": ANY, "tool_call_id": ANY, "x": ANY},
)
TOOL = st.fixed_dictionaries(
    {"type": st.sampled_from(["function", "function", "custom"])},
    optional={"function": st.fixed_dictionaries({}, optional={"name": ANY, "parameters": ANY})},
)
FORMAT = mostly(st.sampled_from(
    [{"type": "text"}, {"type": "json_object"}, {"type": "json_schema"}, {"type": "odd"},
     {"type": "json_schema", "json_schema": {"name": "a", "schema": {"$ref": "http://x.test/"}}},
     {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "nonsense"}}}]
))  # fmt: skip
COMMON: Mapping[str, Any] = {
    "stream": mostly(st.booleans()),
    "stream_options": mostly(st.sampled_from([{"include_usage": True}, {"include_usage": False}])),
    "temperature": mostly(st.sampled_from([0, 1, 0.5])),
    "top_p": ANY,
    "n": mostly(st.integers(0, 3)),
    "seed": ANY,
    "stop": ANY,
    "logprobs": mostly(st.booleans()),
    "top_logprobs": mostly(st.integers(-1, 21)),
    "max_tokens": mostly(st.integers(0, 99)),
    "user": ANY,
    "metadata": ANY,
    "tools": mostly(st.lists(TOOL, max_size=2)),
    "tool_choice": mostly(st.sampled_from(["auto", "none", "required", {}])),
    "response_format": FORMAT,
    "max_completion_tokens": ANY,
    "logit_bias": ANY,
    "functions": ANY,
    "modalities": ANY,
    "web_search_options": ANY,
    "echo": ANY,
    "suffix": ANY,
    "instructions": mostly(TEXT),
    "previous_response_id": mostly(st.sampled_from(["resp_x", "resp_us1"])),
    "text": mostly(st.fixed_dictionaries({}, optional={"format": FORMAT})),
    "dimensions": ANY,
    "encoding_format": mostly(st.sampled_from(["float", "base64"])),
    "é🙂": ANY,
}
OWN: Mapping[str, Mapping[str, Any]] = {
    "/v1/chat/completions": {"messages": mostly(st.lists(MESSAGE, min_size=1, max_size=3))},
    "/v1/completions": {"prompt": mostly(TEXT | st.lists(TEXT, max_size=2))},
    "/v1/responses": {"input": mostly(TEXT | st.lists(MESSAGE, min_size=1, max_size=2))},
    "/v1/embeddings": {"input": mostly(TEXT | st.lists(TEXT, max_size=2))},
}
MODEL = st.sampled_from(["banking-intents"] * 6 + ["banking-intents:teacher", "gpt-9", "x" * 300])


def bodies(path: str) -> st.SearchStrategy[bytes]:
    """Encoded bodies: mostly plausible objects with a few odd fields, sometimes no JSON at all."""
    optional = {**COMMON}
    plausible = st.fixed_dictionaries(
        {"model": MODEL, **OWN[path]}, optional=dict.fromkeys(optional, st.nothing())
    )
    fields = st.lists(st.sampled_from(sorted(optional)), max_size=4, unique=True).flatmap(
        lambda names: st.fixed_dictionaries({name: optional[name] for name in names})
    )
    whole = st.tuples(plausible, fields).map(lambda parts: {**parts[0], **parts[1]})
    # Python's encoder writes what orjson refuses: integers beyond 64 bits, lone surrogates.
    encoded = whole.map(_dump)
    any_body: st.SearchStrategy[bytes] = mostly(
        mostly(encoded, ANY.map(_dump)), st.binary(max_size=40)
    )
    return any_body


def _dump(value: Any) -> bytes:
    return json.dumps(value).encode()


async def teacher(received: Received, wire: Wire) -> None:
    """Answers whatever path it is asked at; the request may be anything but JSON's absence."""
    if received.path.endswith("/embeddings"):
        await wire.json(200, {"object": "list", "data": [], "usage": {"prompt_tokens": 1}})
    elif received.path.endswith("/chat/completions"):
        await teacher_says("teacher says")(received, wire)
    else:
        await {"completions": completes, "responses": responds}[received.path.rsplit("/", 1)[1]](
            received, wire
        )


async def send(r: Rig, path: str, body: bytes) -> None:
    """Send it, and see what holds of every answer."""
    before = set(asyncio.all_tasks())
    async with asyncio.timeout(20):
        response = await r.client.post(path, content=body)
    told = (body, response.status_code, response.text)
    assert response.status_code in {200, 400, 404}, told
    if response.status_code != 200:
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}, told
    elif response.headers["content-type"].startswith("text/event-stream"):
        last = response.text.rsplit("event: ", 1)[-1]
        done = response.text.endswith("data: [DONE]\n\n")
        assert done or last.startswith("response.completed"), told
    else:
        assert isinstance(response.json(), dict), told
    if path != "/v1/embeddings" and response.status_code == 200:
        assert r.last().id == response.headers["x-request-id"], told
    for _ in range(300):
        if not (set(asyncio.all_tasks()) - before - _of_the_server()):
            break
        await asyncio.sleep(0.002)
    else:
        raise AssertionError((told, set(asyncio.all_tasks()) - before))
    assert (r.service.load.total, r.student.open, r.teacher.open) == (0, 0, 0), told


def _of_the_server() -> set[asyncio.Task[Any]]:
    """Tasks that live as long as a connection: of the fakes, not of the gateway."""
    return {task for task in asyncio.all_tasks() if "FakeUpstream._connected" in repr(task)}


@pytest.mark.parametrize("path", OWN)
def test_generated_requests(tmp_path: Path, path: str) -> None:
    with asyncio.Runner() as runner:
        setting = rig(
            tmp_path, top={"default": {"passthrough": "teacher"}},
            student={"features": ["json_object", "json_schema", "responses"]},
        )  # fmt: skip
        r = runner.run(setting.__aenter__())
        r.teacher.handler = teacher
        r.student.handler = student_says(ANSWER)
        sent = 0

        @settings(
            max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck),
            database=None,
        )  # fmt: skip
        @given(bodies(path))
        def run(body: bytes) -> None:
            nonlocal sent
            sent += 1
            runner.run(send(r, path, body))

        try:
            run()
        finally:
            runner.run(setting.__aexit__(None, None, None))
        assert sent >= EXAMPLES
