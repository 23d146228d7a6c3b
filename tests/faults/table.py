"""What a client gets, in what time, and what the store holds, fault by fault.

``make bench-faults`` prints the table: a fault proxy before the student (vLLM's stream as it was
recorded; a live vLLM in ``tests/ml``) and before the teacher (the reference teacher, over HTTP).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from deploy.reference_teacher.answers import Answers
from deploy.reference_teacher.app import Teacher, create_teacher
from deploy.reference_teacher.knobs import Knobs
from router.rows import Row
from router.template import Message
from tests.fakes.rig import FAR, IN_DOMAIN, Rig, rig, serving
from tests.fakes.upstream import FakeUpstream, Received, Wire
from tests.faults.proxy import FAULTS, RECORDED, FaultProxy, status

LIMIT_S = 0.4
"""Every timeout of the faulty side; a live vLLM gets more for its real work."""
SAID = "the teacher's own words"
Mode = Literal["held, second attempt left", "held, none left", "released"]
MODES: tuple[Mode, ...] = ("held, second attempt left", "held, none left", "released")
BURST = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row. ``got`` is ``whole: student``, ``whole: teacher``, ``filtered``,
    ``error STATUS: CODE`` or ``broken: CODE`` (an error event behind a part of the answer)."""

    side: Literal["student", "teacher"]
    fault: str
    mode: str
    stream: bool
    got: str
    ms: float
    stored: str
    attempts: str


async def records(received: Received, wire: Wire) -> None:
    """vLLM's stream as it was recorded."""
    await wire.raw((RECORDED / "vllm-stream.http").read_bytes())
    wire.writer.close()


@contextlib.asynccontextmanager
async def real_teacher() -> AsyncIterator[str]:
    """The reference teacher, as a server; its base URL."""
    rows = [Row((Message("user", text),), SAID) for text in (FAR, IN_DOMAIN)]
    teacher = Teacher(Answers(rows), Knobs(latency_ms=1, token_ms=0), None)
    async with serving(create_teacher(teacher)) as url:
        yield f"{url}/v1"


@dataclass(slots=True)
class Stage:
    """Two proxies before two real upstreams, and what every gateway of the table is like."""

    student: FaultProxy
    teacher: FaultProxy
    sound_teacher: str
    student_limit_s: float

    @contextlib.asynccontextmanager
    async def gateway(self, folder: Path, side: str, mode: Mode) -> AsyncIterator[Rig]:
        """A gateway that meets the faults of one side."""
        faulty = LIMIT_S if side == "teacher" else 20.0
        teacher: dict[str, Any] = {
            "base_url": self.teacher.url, "model": "one", "retries": 0,
            "first_byte_timeout_s": faulty, "idle_timeout_s": faulty, "connect_timeout_s": 1.0,
        }  # fmt: skip
        if mode == "held, second attempt left":
            teacher["fallbacks"] = [{"base_url": self.sound_teacher, "model": "two"}]
        student = {"base_urls": [self.student.url], "timeout_s": self.student_limit_s}
        hold: Any = 32 if mode == "released" else "all"
        settings: dict[str, Any] = {"router": {"hold": hold}, "student": student}
        async with rig(folder, teacher=teacher, **settings) as r:
            yield r


@contextlib.asynccontextmanager
async def stage(student_url: str | None = None) -> AsyncIterator[Stage]:
    """Everything up; ``student_url`` of a live vLLM, else its recorded stream answers."""
    async with contextlib.AsyncExitStack() as stack:
        fake = await stack.enter_async_context(FakeUpstream(records).running())
        teacher_url = await stack.enter_async_context(real_teacher())
        student = FaultProxy(student_url or fake.url)
        teacher = FaultProxy(teacher_url)
        await stack.enter_async_context(student.running())
        await stack.enter_async_context(teacher.running())
        yield Stage(student, teacher, teacher_url, 3.0 if student_url else LIMIT_S)


def cases(sides: Sequence[str]) -> Iterator[tuple[Any, Mode, str]]:
    """Every (side, mode, fault): a student's fault is rescued by the one teacher there is."""
    for side in sides:
        for mode in MODES if side == "teacher" else MODES[1:2]:
            for fault in (*FAULTS, "connection refused", f"burst of {BURST} failures"):
                yield side, mode, fault


async def play(
    on: Stage, folder: Path, side: Literal["student", "teacher"], mode: Mode, fault: str
) -> list[Outcome]:
    """One fault, whole and streamed, each by a fresh gateway."""
    proxy = on.student if side == "student" else on.teacher
    text = IN_DOMAIN if side == "student" else FAR
    outcomes = []
    for stream in (False, True):
        place = folder / f"{side}-{mode[:9]}-{fault}-{stream}".replace(" ", "_").replace("/", "_")
        place.mkdir()
        async with contextlib.AsyncExitStack() as stack:
            r = await stack.enter_async_context(on.gateway(place, side, mode))
            many = 1
            if fault in FAULTS:
                proxy.fault = FAULTS[fault]
            elif fault == "connection refused":
                stack.enter_context(_refused(r, side))
            else:
                proxy.fault, many = status(500), BURST
            times, got = [], list[str]()
            for _ in range(many):
                started = time.perf_counter()
                response = await r.ask(text, stream=stream)
                times.append((time.perf_counter() - started) * 1000)
                got.append(read(response.status_code, response.headers, response.text, stream))
            row = r.last()
            calls = ", ".join(f"{a.role} {a.outcome}" for a in row.attempts)
            outcomes.append(
                Outcome(side, fault, mode, stream, ", then ".join(dict.fromkeys(got)),
                        round(statistics.median(times)), row.status.value, calls)
            )  # fmt: skip
    return outcomes


@contextlib.contextmanager
def _refused(r: Rig, side: str) -> Iterator[None]:
    """A port that nobody listens on, for as long as it takes."""
    student, teacher = r.task.student, r.task.teacher.upstream
    assert student is not None
    upstream = student.upstreams[0] if side == "student" else teacher
    before, upstream.base_url = upstream.base_url, "http://127.0.0.1:9/v1"
    yield
    upstream.base_url = before


def read(code: int, headers: Any, text: str, stream: bool) -> str:
    """What a client makes of an answer."""
    if code != 200:
        return f"error {code}: {json.loads(text)['error']['code']}"
    by = headers["x-understudy-served-by"]
    if stream:
        done = text.endswith("data: [DONE]\n\n")
        events = [json.loads(line[6:]) for line in text.split("\n") if line.startswith("data: {")]
        if "error" in events[-1]:
            return f"broken: {events[-1]['error']['code']}" + (" and [DONE]" * done)
        pieces = [c for event in events for c in event["choices"]]
        said = "".join(piece["delta"].get("content") or "" for piece in pieces)
        finishes = [piece["finish_reason"] for piece in pieces if piece["finish_reason"]]
    else:
        done, choice = True, json.loads(text)["choices"][0]
        said, finishes = choice["message"]["content"], [choice["finish_reason"]]
    if finishes == ["content_filter"] and done:
        return "filtered"
    whole = done and finishes == ["stop"] and said in {SAID, "apr"}
    return f"whole: {by}" if whole else f"WRONG: {text!r}"


async def table(
    student_url: str | None = None, sides: Sequence[str] = ("student", "teacher")
) -> list[Outcome]:
    """Every case, one after another."""
    rows: list[Outcome] = []
    with tempfile.TemporaryDirectory() as folder:
        async with stage(student_url) as on:
            for side, mode, fault in cases(sides):
                rows += await play(on, Path(folder), side, mode, fault)
    return rows


def markdown(rows: list[Outcome]) -> str:
    """One line per side, mode and fault; whole and streamed beside each other."""
    lines = [
        "| side | fault | case | JSON: client got | ms | streamed | ms | stored | calls |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for whole, streamed in zip(rows[::2], rows[1::2], strict=True):
        stored = {whole.stored, streamed.stored}
        lines.append(
            f"| {whole.side} | {whole.fault} | {whole.mode} | {whole.got} | {whole.ms:.0f} "
            f"| {streamed.got} | {streamed.ms:.0f} | {'/'.join(sorted(stored))} "
            f"| {streamed.attempts} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Print it."""
    print(markdown(asyncio.run(table())))


if __name__ == "__main__":
    main()
