"""A student server that loads versions while it runs, and forgets them when it restarts."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from tests.fakes.answers import student_says
from tests.fakes.upstream import FakeUpstream, Handler, Received, Wire


@dataclass(slots=True)
class FakeReplica:
    """``loaded`` maps version names to folders; each answers with its own words."""

    loaded: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Handler] = field(default_factory=dict)
    refuses: set[str] = field(default_factory=set)
    base: str | None = None
    upstream: FakeUpstream = field(init=False)

    def __post_init__(self) -> None:
        self.upstream = FakeUpstream(self.handle)

    async def handle(self, received: Received, wire: Wire) -> None:
        """vLLM's paths."""
        if received.path == "/v1/models":
            base = [{"id": self.base, "parent": None}] if self.base else []
            adapters = [{"id": name, "parent": self.base or "base"} for name in self.loaded]
            await wire.json(200, {"object": "list", "data": [*adapters, *base]})
        elif received.path == "/v1/load_lora_adapter":
            await self._load(received, wire)
        elif received.path == "/v1/unload_lora_adapter":
            self.loaded.pop(received.body["lora_name"])
            await wire.json(200, "Success")
        elif received.body["model"] not in self.loaded:
            await wire.json(404, {"object": "error", "message": "no such model", "code": 404})
        elif not received.body.get("stream"):
            message = {"role": "assistant", "content": "ok"}
            choice = {"index": 0, "message": message, "finish_reason": "length"}
            await wire.json(200, {"id": "x", "object": "chat.completion", "choices": [choice]})
        else:
            name = received.body["model"]
            await self.answers.get(name, student_says([name]))(received, wire)

    async def _load(self, received: Received, wire: Wire) -> None:
        name = received.body["lora_name"]
        if name in self.refuses:
            await wire.json(400, {"object": "error", "message": "no room"})
            return
        await asyncio.sleep(0.01)
        self.loaded[name] = received.body["lora_path"]
        await wire.json(200, "Success")

    def restart(self) -> None:
        """What was loaded at run time is gone."""
        self.loaded.clear()

    def asked(self, name: str) -> int:
        """How often a version was asked for an answer."""
        return sum(
            r.path.endswith("/chat/completions") and r.body["model"] == name
            and bool(r.body.get("stream"))
            for r in self.upstream.requests
        )  # fmt: skip
