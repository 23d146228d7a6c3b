"""Traces and logs for an OpenTelemetry collector, by the conventions for generative AI.

Spans are made from what the gateway measures anyway, when a part has ended. Prompts and answers are
never in them: the conventions make content an opt-in, and the store has it.
Source: opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans (attributes ``gen_ai.*``),
opentelemetry.io/docs/specs/otlp (wire format).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from opentelemetry import trace as api
from opentelemetry._logs import SeverityNumber
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import BatchLogRecordProcessor
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from gateway import logs
from gateway.api.request import Api
from gateway.settings import Telemetry
from gateway.store.records import Attempt
from gateway.turn import Turn

SEND_S = 3.0
"""How long the collector may take; a dead one must not hold up a drain."""
_OPERATIONS = {Api.CHAT: "chat", Api.COMPLETIONS: "text_completion", Api.RESPONSES: "chat"}
_ASKED = {
    "max_tokens": "gen_ai.request.max_tokens",
    "temperature": "gen_ai.request.temperature",
    "top_p": "gen_ai.request.top_p",
    "seed": "gen_ai.request.seed",
    "n": "gen_ai.request.choice.count",
}
_CARRIER = TraceContextTextMapPropagator()


@dataclass(slots=True)
class SpanTrace:
    """A request's root span; the parts become its children as they end."""

    tracer: api.Tracer
    span: Span
    operation: str
    parent: str
    id: str

    def stage(self, name: str, seconds: float) -> None:
        """The gateway's own work, just done."""
        self._child(name, SpanKind.INTERNAL, seconds, {"understudy.stage": name}, None)

    def call(self, attempt: Attempt) -> None:
        """An upstream call, just ended."""
        told: dict[str, Any] = {
            "gen_ai.operation.name": self.operation,
            "gen_ai.provider.name": "openai",
            "gen_ai.usage.input_tokens": attempt.prompt_tokens,
            "gen_ai.usage.output_tokens": attempt.completion_tokens,
            "understudy.upstream": attempt.upstream,
            "understudy.role": attempt.role,
            "understudy.outcome": attempt.outcome,
            "understudy.cost_usd": attempt.cost_usd,
        }
        if attempt.status_code is not None:
            told["http.response.status_code"] = attempt.status_code
        wrong = attempt.outcome if attempt.fault else None
        name = f"{self.operation} {attempt.upstream}"
        self._child(name, SpanKind.CLIENT, attempt.duration_ms / 1000, told, wrong)

    def _child(
        self, name: str, kind: SpanKind, seconds: float, told: dict[str, Any], wrong: str | None
    ) -> None:
        now = time.time_ns()
        child = self.tracer.start_span(
            name, api.set_span_in_context(self.span), kind, told,
            start_time=now - round(seconds * 1e9),
        )  # fmt: skip
        if wrong is not None:
            child.set_attribute("error.type", wrong)
            child.set_status(Status(StatusCode.ERROR, wrong))
        child.end(now)

    def end(self, turn: Turn, status: int) -> None:
        """The request has its answer, or 499 is its client gone."""
        verdict, served = turn.verdict, turn.attempts[-1] if turn.attempts else None
        told: dict[str, Any] = {
            "http.response.status_code": status,
            "gen_ai.response.id": turn.id,
            "gen_ai.response.model": verdict.student if served and served.role == "student" else (
                turn.task.settings.teacher.model if served else None
            ),
            "gen_ai.usage.input_tokens": served.prompt_tokens if served else None,
            "gen_ai.usage.output_tokens": served.completion_tokens if served else None,
            "understudy.served_by": verdict.served_by.value,
            "understudy.reason": verdict.reason.value,
            "understudy.would_be_reason": verdict.would_be_reason.value,
            "understudy.unsupported": turn.feature,
            "understudy.score": verdict.score,
            "understudy.threshold": verdict.threshold,
            "understudy.ood_score": verdict.ood_score,
            "understudy.template": verdict.template,
            "understudy.student": verdict.student,
            "understudy.router": verdict.router,
            "understudy.arm": verdict.arm,
            "understudy.drawn": turn.drawn,
            "understudy.overhead_ms": round(turn.overhead_s * 1000, 3),
        }  # fmt: skip
        self.span.set_attributes({k: v for k, v in told.items() if v is not None})
        if status >= 500:
            self.span.set_attribute("error.type", str(status))
            self.span.set_status(Status(StatusCode.ERROR))
        self.span.end()


class OtlpTracer:
    """Sends spans and, if asked for, log lines in the background."""

    def __init__(self, settings: Telemetry, headers: str | None) -> None:
        """``headers`` is the value of ``telemetry.headers_env``."""
        _quiet()
        sent = _headers(headers)
        resource = Resource.create({"service.name": "understudy"})
        self._spans = TracerProvider(
            ParentBased(TraceIdRatioBased(settings.sample)), resource, shutdown_on_exit=False
        )
        spans = OTLPSpanExporter(f"{settings.endpoint}/v1/traces", headers=sent, timeout=SEND_S)
        self._spans.add_span_processor(BatchSpanProcessor(spans))
        self._tracer = self._spans.get_tracer("understudy")
        self._lines: LoggerProvider | None = None
        if settings.logs:
            self._lines = LoggerProvider(resource, shutdown_on_exit=False)
            lines = OTLPLogExporter(f"{settings.endpoint}/v1/logs", headers=sent, timeout=SEND_S)
            self._lines.add_log_record_processor(BatchLogRecordProcessor(lines))
            self._logger = self._lines.get_logger("understudy")
            logs.also(self._log)

    def begin(self, turn: Turn, headers: Mapping[str, str]) -> SpanTrace | None:
        """The trace of a request; None where it is not sampled."""
        asked = turn.request
        operation = _OPERATIONS[asked.api]
        told: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "understudy",
            "gen_ai.request.model": asked.model,
            "gen_ai.request.stream": asked.stream,
            "understudy.task": turn.task.name,
        }
        for name, attribute in _ASKED.items():
            if isinstance(value := asked.body.get(name), int | float):
                told[attribute] = value
        span = self._tracer.start_span(
            f"{operation} {turn.task.name}",
            _CARRIER.extract(headers),
            SpanKind.SERVER,
            told,
            start_time=round(turn.created_at * 1e9),
        )
        if not span.is_recording():
            return None
        carried: dict[str, str] = {}
        _CARRIER.inject(carried, api.set_span_in_context(span))
        trace_id = api.format_trace_id(span.get_span_context().trace_id)
        return SpanTrace(self._tracer, span, operation, carried["traceparent"], trace_id)

    async def close(self) -> None:
        """Send what waits, for a few seconds at most."""
        logs.also(None)
        await asyncio.to_thread(self._spans.shutdown)
        if self._lines is not None:
            await asyncio.to_thread(self._lines.shutdown)

    def _log(self, event: str, fields: Mapping[str, Any]) -> None:
        told = {k: v if isinstance(v, str | int | float) else str(v) for k, v in fields.items()}
        self._logger.emit(
            timestamp=time.time_ns(),
            severity_number=SeverityNumber.INFO,
            severity_text="INFO",
            body=event,
            attributes=told,
            event_name=f"understudy.{event}",
        )


def _headers(text: str | None) -> dict[str, str]:
    pairs = (part.partition("=") for part in (text or "").split(",") if part.strip())
    return {name.strip(): value.strip() for name, _, value in pairs}


class _Lines(logging.Handler):
    """What the exporter says, as a log line of ours; never to the collector itself."""

    def emit(self, record: logging.LogRecord) -> None:
        logs.write("telemetry", {"message": record.getMessage()})


def _quiet() -> None:
    for name in ("opentelemetry", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers = [_Lines()]
        logger.propagate = False
        logger.setLevel(logging.WARNING)
