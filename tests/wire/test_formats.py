"""A student that declares a JSON format serves what fits, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from openai import AsyncOpenAI

from gateway.formats import checkable, fitting
from router.template import Message, fingerprint
from tests.fakes.answers import student_says
from tests.fakes.rig import IN_DOMAIN, KEY, SYSTEM, Rig, rig

SCHEMA = {"type": "object", "properties": {"intent": {"type": "string"}}, "required": ["intent"]}
ASKED = {"type": "json_schema", "json_schema": {"name": "i", "schema": SCHEMA, "strict": True}}
DECLARED: Any = {"student": {"features": ["json_schema", "responses"]}}


def trained(r: Rig, response_format: Any = ASKED) -> None:
    """Let the judge know the template with this format, as training rows with it would."""
    messages = [Message("system", SYSTEM), Message("user", IN_DOMAIN)]
    judge: Any = r.task.judge
    judge._templates = {*judge._templates, fingerprint(messages, None, response_format)}
    r.serve_anything()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("says", "by"),
    [
        ('{"intent": "apr"}', "student"),
        ('{"intent": "apr"', "teacher"),
        ('{"intent": 3}', "teacher"),
        ('["intent"]', "teacher"),
        ("apr", "teacher"),
    ],
)
async def test_only_what_fits_the_schema_is_the_student_s(
    tmp_path: Path, says: str, by: str, stream: bool
) -> None:
    async with rig(tmp_path, router={"hold": 32}, **DECLARED) as r:
        trained(r)
        r.student.handler = student_says(list(says))
        response = await r.ask(response_format=ASKED, stream=stream)
        assert response.headers["x-understudy-served-by"] == by
        assert r.student.requests[-1].body["response_format"] == ASKED
        if by == "teacher":
            assert r.stored()[-1].attempts[0].outcome == "wrong_format"


async def test_the_sdk_parses_a_student_s_response_in_a_format(tmp_path: Path) -> None:
    async with rig(tmp_path, **DECLARED) as r:
        trained(r)
        r.student.handler = student_says(list('{"intent": "apr"}'))
        async with AsyncOpenAI(base_url=f"{r.url}/v1", api_key=KEY) as client:
            text: Any = {"format": {"type": "json_schema", "name": "i", "schema": SCHEMA,
                                    "strict": True}}  # fmt: skip
            answer = await client.responses.create(
                model="banking-intents", instructions=SYSTEM, input=IN_DOMAIN, text=text
            )
        assert json.loads(answer.output_text) == {"intent": "apr"}
        assert r.stored()[-1].served_by == "student"


async def test_an_undeclared_or_untrained_format_is_the_teacher_s(tmp_path: Path) -> None:
    async with rig(tmp_path) as r:
        answer = await r.ask(response_format=ASKED)
        assert answer.headers["x-understudy-reason"] == "unsupported_feature"
    other = tmp_path / "declared"
    other.mkdir()
    async with rig(other, **DECLARED) as r:
        assert (await r.ask(response_format=ASKED)).headers["x-understudy-reason"] == "new_template"
        assert not r.student.requests


@pytest.mark.parametrize("schema", [
    {"$ref": "http://127.0.0.1:9/secret"}, {"$ref": "file:///etc/passwd"}, {"$ref": "#"},
    {"type": "no such type"}, {"properties": 3},
])  # fmt: skip
def test_a_schema_fetches_nothing_and_harms_nothing(schema: dict[str, Any]) -> None:
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert fitting(wanted)('{"a": 1}') is False


def test_regular_expressions_of_a_client_are_not_run() -> None:
    evil = {"type": "object", "properties": {"a": {"type": "string", "pattern": "(a+)+$"}}}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": evil}}
    assert not checkable(wanted)
    assert checkable(ASKED)
