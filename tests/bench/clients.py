"""Clients that leave, and clients that are slow: what they cost everybody else.

``make bench-clients``: how long after a client's disconnect its upstream call is closed, phase by
phase; and the p99 of ordinary requests with and without 500 slow clients, in turns.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from deploy.demo.processes import Child, Children, wait_ready
from tests.bench.load import Side, paced
from tests.fakes.answers import hangs, teacher_chunk, teacher_says, vllm_events
from tests.fakes.process import free_port
from tests.fakes.rig import FAR, IN_DOMAIN, KEY, SECRETS, config_data
from tests.fakes.upstream import FakeUpstream, Received, Wire

TIMES = 40
SLOW = 500
ROUNDS = 11
"""Each way round in turns: p99 of 2,000 requests moves by a quarter from window to window."""
RATE = 200
SECONDS = 10
CHAT = "/v1/chat/completions"


async def begins(received: Received, wire: Wire) -> None:
    """A teacher's stream that begins and says no more."""
    await wire.stream()
    await wire.event(teacher_chunk({"role": "assistant", "content": "first"}))
    await asyncio.sleep(3600)


async def decodes(received: Received, wire: Wire) -> None:
    """A student in the middle of its answer, before the gate has seen enough."""
    await wire.stream()
    for event in vllm_events(["ap", "r"])[:2]:
        await wire.event(event)
    await asyncio.sleep(3600)


async def endless(received: Received, wire: Wire) -> None:
    """A stream that goes on for as long as it is read."""
    if "SLOW" not in received.text:
        await teacher_says("teacher says")(received, wire)
        return
    await wire.stream()
    await wire.event(teacher_chunk({"role": "assistant", "content": ""}))
    while True:
        await wire.event(teacher_chunk({"content": "word " * 200}))
        await asyncio.sleep(0.5)


@dataclass(slots=True)
class Watched(FakeUpstream):
    """Notes when a call begins and when it is over."""

    begun: asyncio.Event = field(default_factory=asyncio.Event)
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def watch(self, handler: Callable[[Received, Wire], Awaitable[None]]) -> None:
        """Play ``handler``; events are set around it."""

        async def watched(received: Received, wire: Wire) -> None:
            self.begun.set()
            try:
                await handler(received, wire)
            finally:
                self.over.set()

        self.begun.clear()
        self.over.clear()
        self.handler = watched


def gateway(children: Children, folder: Path, student: str, teacher: str) -> tuple[Child, int]:
    """A gateway with patience for everything."""
    port = free_port()
    data = config_data(
        student, teacher, folder / "x.db", student={"timeout_s": 60}, router={"hold": 32},
        teacher={"idle_timeout_s": 60, "first_byte_timeout_s": 60},
    )  # fmt: skip
    data["listen"], data["limits"] = {"port": port}, {"max_in_flight": 4000}
    (folder / "c.yaml").write_text(yaml.safe_dump(data))
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(folder / "c.yaml")]
    child = children.start("gateway", command, SECRETS)
    wait_ready(child, f"http://127.0.0.1:{port}/readyz", 60)
    return child, port


def request(text: str, stream: bool, hold: str = "32", length: int | None = None) -> bytes:
    """A request as bytes."""
    body = json.dumps({"model": "banking-intents", "stream": stream,
                       "messages": [{"role": "user", "content": text}]}).encode()  # fmt: skip
    head = (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        f"x-understudy-hold: {hold}\r\ncontent-type: application/json\r\n"
        f"content-length: {length or len(body)}\r\n\r\n"
    )
    return head.encode() + body


PHASES: dict[str, tuple[str, Callable[[Received, Wire], Awaitable[None]], str, bool, str]] = {
    "teacher: waiting for its head": ("teacher", hangs, FAR, False, "32"),
    "teacher: stream held, not yet whole": ("teacher", begins, FAR, True, "all"),
    "teacher: stream under way": ("teacher", begins, FAR, True, "32"),
    "student: waiting for its head": ("student", hangs, IN_DOMAIN, True, "32"),
    "student: decoding, before the gate": ("student", decodes, IN_DOMAIN, True, "32"),
}


async def leave(port: int, upstream: Watched, raw: bytes) -> float:
    """Milliseconds from a client's disconnect to the end of the upstream call."""
    upstream.begun.clear()
    upstream.over.clear()
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(raw)
    await upstream.begun.wait()
    await asyncio.sleep(0.02)
    started = time.perf_counter()
    writer.transport.abort()
    async with asyncio.timeout(10):
        await upstream.over.wait()
    return (time.perf_counter() - started) * 1000


async def disconnects(children: Children, folder: Path) -> None:
    """Phase by phase."""
    student, teacher = Watched(hangs), Watched(hangs)
    async with student.running(), teacher.running():
        _, port = await asyncio.to_thread(gateway, children, folder, student.url, teacher.url)
        print(f"{'client leaves while':38} {'p50 ms':>8} {'max ms':>8}   ({TIMES} times)")
        for name, (side, handler, text, stream, hold) in PHASES.items():
            upstream = student if side == "student" else teacher
            upstream.watch(handler)
            raw = request(text, stream, hold)
            times = [await leave(port, upstream, raw) for _ in range(TIMES)]
            print(f"{name:38} {statistics.median(times):8.1f} {max(times):8.1f}")


async def crawl(port: int, count: int) -> None:
    """Until killed: half of so many clients send a body byte by byte, half read a stream in
    sips."""

    async def sends() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request("SLOW", True, length=5000))
        while True:
            await asyncio.sleep(0.5)
            writer.write(b" ")
            await writer.drain()

    async def reads() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1024)
        writer.write(request(f"SLOW {FAR}", True))
        while await reader.read(512):
            await asyncio.sleep(0.5)
        raise ConnectionResetError("the gateway closed")

    async with asyncio.TaskGroup() as group:
        for number in range(count):
            group.create_task(sends() if number % 2 else reads())
            await asyncio.sleep(0.002)


def slow(children: Children, folder: Path) -> None:
    """Ordinary requests beside slow ones. Slow clients and upstream are processes of their own, but
    share the machine's cores with the gateway: so the slow clients go to another gateway of the
    machine in every second measurement, and the difference is what they do to *this* gateway."""
    upstream_port = free_port()
    module = [sys.executable, "-m", "tests.bench.clients"]
    mock = children.start("endless", [*module, "upstream", str(upstream_port)], {})
    wait_ready(mock, f"http://127.0.0.1:{upstream_port}/", 20)
    url = f"http://127.0.0.1:{upstream_port}/v1"
    (folder / "other").mkdir()
    child, port = gateway(children, folder, url, url)
    _, other_port = gateway(children, folder / "other", url, url)
    auth = {"authorization": f"Bearer {KEY}"}
    side = Side("ordinary", child, f"http://127.0.0.1:{port}{CHAT}", [FAR], auth)
    asyncio.run(paced(side, RATE, SECONDS))
    pairs = []
    print(f"\np99 of {RATE} ordinary requests/s in ms, alone and beside {SLOW} slow clients")

    def beside(number: int, where: int) -> float:
        command = [*module, "crawl", str(where), str(SLOW)]
        crawling = children.start(f"slow{number}-{where}", command, {})
        time.sleep(4)
        _, measured = asyncio.run(paced(side, RATE, SECONDS))
        assert crawling.popen.poll() is None, crawling.tail()
        crawling.stop()
        time.sleep(1)
        return measured

    print("    alone  at another gateway  at this one")
    for number in range(ROUNDS):
        _, alone = asyncio.run(paced(side, RATE, SECONDS))
        if number % 2:
            here, elsewhere = beside(number, port), beside(number, other_port)
        else:
            elsewhere, here = beside(number, other_port), beside(number, port)
        pairs.append((elsewhere, here))
        print(f"  {alone:7.2f} {elsewhere:19.2f} {here:12.2f}  {here / elsewhere - 1:+.0%}")
    low, middle, high = statistics.quantiles((b / a for a, b in pairs), n=4)
    print(f"  median of the ratios: {middle - 1:+.0%} (quartiles {low - 1:+.0%}, {high - 1:+.0%})")


async def _upstream(port: int) -> None:
    upstream = FakeUpstream(endless, port)

    async def root(received: Received, wire: Wire) -> None:
        if received.path == "/":
            await wire.json(200, {})
        else:
            await endless(received, wire)

    upstream.handler = root
    async with upstream.running():
        await asyncio.Event().wait()


def main() -> None:
    """Both tables."""
    # Upstream, crawlers and this process are measured with: a walk over all that 250 streams hold
    # stops the upstream for 100 ms, and that was one window in five, always the same one.
    gc.disable()
    if sys.argv[1:2] == ["upstream"]:
        asyncio.run(_upstream(int(sys.argv[2])))
        return
    if sys.argv[1:2] == ["crawl"]:
        asyncio.run(crawl(int(sys.argv[2]), int(sys.argv[3])))
        return
    with tempfile.TemporaryDirectory() as name, Children(Path(name) / "logs") as children:
        for part in ("leave", "slow"):
            (Path(name) / part).mkdir()
        asyncio.run(disconnects(children, Path(name) / "leave"))
        slow(children, Path(name) / "slow")


if __name__ == "__main__":
    main()
