"""Traces and logs as a collector gets them, from real exports over HTTP."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway import service
from gateway.errors import ConfigError
from gateway.settings import Config
from tests.fakes.answers import refuses
from tests.fakes.collector import Collector, Span, collecting
from tests.fakes.rig import FAR, IN_DOMAIN, SECRETS, Rig, config_data, rig

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
NOT_SAMPLED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@contextlib.asynccontextmanager
async def traced(folder: Path, **settings: Any) -> AsyncIterator[tuple[Rig, Collector]]:
    """A gateway that traces everything; what it sent is there once it has stopped."""
    with collecting() as collector:
        telemetry = {"endpoint": collector.url, "sample": 1.0, **settings}
        async with rig(folder, top={"telemetry": telemetry}) as r:
            yield r, collector


def root_of(collector: Collector, trace_id: str | None = None) -> Span:
    """The one span of a request itself."""
    (root,) = (s for s in collector.spans if s.kind == 2 and trace_id in (None, s.trace_id))
    return root


def parts_of(collector: Collector, root: Span) -> dict[str, Span]:
    """Its children by name."""
    return {span.name: span for span in collector.spans if span.parent == root.id}


async def test_a_student_s_answer_is_one_trace(tmp_path: Path) -> None:
    async with traced(tmp_path) as (r, collector):
        r.serve_anything()
        response = await r.ask(IN_DOMAIN, temperature=0.5, max_tokens=9)
        assert response.headers["x-understudy-served-by"] == "student"
    root = root_of(collector)
    assert root.name == "chat banking-intents"
    assert root.parent == ""
    told = root.attributes
    assert told["gen_ai.operation.name"] == "chat"
    assert told["gen_ai.request.model"] == "banking-intents"
    assert told["gen_ai.request.max_tokens"] == 9
    assert told["gen_ai.request.temperature"] == 0.5
    assert told["gen_ai.response.model"] == "banking-intents@v1"
    assert told["gen_ai.response.id"] == response.headers["x-request-id"]
    usage = response.json()["usage"]
    assert told["gen_ai.usage.input_tokens"] == usage["prompt_tokens"]
    assert told["gen_ai.usage.output_tokens"] == usage["completion_tokens"]
    assert told["understudy.served_by"] == "student"
    assert told["understudy.reason"] == "in_distribution"
    assert told["http.response.status_code"] == 200
    parts = parts_of(collector, root)
    assert {"prejudge", "score", "capture"} < set(parts)
    (call,) = (part for part in parts.values() if part.kind == 3)
    assert call.attributes["understudy.role"] == "student"
    for part in parts.values():
        assert root.start <= part.end <= root.end + 1_000_000
        assert part.trace_id == root.trace_id
        assert not part.failed


async def test_a_fallback_shows_both_calls_and_upstreams_can_join(tmp_path: Path) -> None:
    async with traced(tmp_path) as (r, collector):
        r.student.handler = refuses
        response = await r.ask(IN_DOMAIN, headers={"traceparent": PARENT})
        assert response.headers["x-understudy-reason"] == "student_error"
        sent = [u.requests[-1].headers["traceparent"] for u in (r.student, r.teacher)]
    root = root_of(collector)
    assert root.trace_id == PARENT.split("-")[1]
    assert root.parent == PARENT.split("-")[2]
    assert sent == [f"00-{root.trace_id}-{root.id}-01"] * 2
    calls = [part for part in collector.spans if part.kind == 3]
    assert [call.attributes["understudy.role"] for call in calls] == ["student", "teacher"]
    assert [call.failed for call in calls] == [True, False]
    assert calls[0].attributes["error.type"] == "http_500"
    (line,) = (line for line in collector.lines if line["body"] == "upstream_failed")
    assert line["trace_id"] == root.trace_id
    assert line["id"] == response.headers["x-request-id"]


async def test_streams_errors_and_clients_that_leave_end_their_traces(tmp_path: Path) -> None:
    async with traced(tmp_path) as (r, collector):
        assert (await r.ask(FAR, stream=True)).status_code == 200
        r.never_break()
        r.teacher.handler = refuses
        assert (await r.ask(FAR)).status_code == 502
    codes = [s.attributes["http.response.status_code"] for s in collector.spans if s.kind == 2]
    assert codes == [200, 502]
    assert [s.failed for s in collector.spans if s.kind == 2] == [False, True]


async def test_what_is_not_sampled_is_not_sent(tmp_path: Path) -> None:
    async with traced(tmp_path, sample=0.0, logs=False) as (r, collector):
        await r.ask(FAR)
        await r.ask(FAR, headers={"traceparent": NOT_SAMPLED})
        assert "traceparent" not in r.teacher.requests[-1].headers
        await r.ask(FAR, headers={"traceparent": PARENT})  # whoever asks has decided already
    assert root_of(collector).trace_id == PARENT.split("-")[1]
    assert collector.lines == []


async def test_neither_text_nor_keys_leave_the_house(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SECRETS, "COLLECTOR_HEADERS", "x-token=t0p-s3cret, x-tenant=a")
    async with traced(tmp_path, headers_env="COLLECTOR_HEADERS") as (r, collector):
        r.teacher.handler = refuses
        await r.ask(FAR, user="somebody@example.org")
    assert collector.headers[0]["x-token"] == "t0p-s3cret"
    assert collector.headers[0]["x-tenant"] == "a"
    sent = b"".join(collector.raw)
    assert sent
    for secret in (FAR, "somebody@example.org", *SECRETS.values()):
        assert secret.encode() not in sent


async def test_a_dead_collector_delays_no_answer_and_no_end(tmp_path: Path) -> None:
    telemetry = {"endpoint": "http://127.0.0.1:9", "sample": 1.0}
    async with rig(tmp_path, top={"telemetry": telemetry}) as r:
        for _ in range(5):
            assert (await r.ask(FAR)).status_code == 200
        began = time.monotonic()
    assert time.monotonic() - began < 20


def test_without_its_packages_the_start_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setitem(sys.modules, "gateway.tracing", None)
    data = config_data("http://127.0.0.1:9/v1", "http://127.0.0.1:9/v1", tmp_path / "x.db")
    config = Config(**data, telemetry={"endpoint": "http://127.0.0.1:9"})
    with pytest.raises(ConfigError, match=r"understudy\[otel\]"):
        service._tracing(config, SECRETS)
