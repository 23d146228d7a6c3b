"""Streams whose head goes out before there is anything to say: for proxies that cut silence.

With ``limits.keepalive_after_s`` a stream whose verdict takes longer gets status 200 and a comment
every so many seconds. The verdict headers say ``pending`` then, and what would have been an error
status is an error event.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from typing import Any

import orjson

from gateway.api.request import Api
from gateway.replays import Sender
from gateway.sse import CONTENT_TYPE
from gateway.streams.responses import typed
from gateway.turn import Reply, Turn, send_parts

COMMENT = b": keep-alive\n\n"
"""Ignored by every parser of event streams (WHATWG HTML, section 9.2)."""


async def kept_alive(
    turn: Turn,
    answer: Coroutine[Any, Any, Reply],
    send: Sender,
    after_s: float,
    send_reply: Callable[[Reply], Awaitable[None]],
) -> None:
    """Send the reply of ``answer``; as usual if it comes within ``after_s``, else as said above."""
    work = asyncio.create_task(answer)
    begun = False
    try:
        done, _ = await asyncio.wait({work}, timeout=after_s)
        if done:
            begun = True
            await send_reply(work.result())
            return
        await send.begin(200, _early(turn), COMMENT)
        while True:
            done, _ = await asyncio.wait({work}, timeout=after_s)
            if done:
                break
            await send.part(COMMENT)
        begun = True
        await _rest(turn, send, work.result())
    finally:
        if not begun:
            await _given_up(work)


async def _rest(turn: Turn, send: Sender, reply: Reply) -> None:
    if isinstance(reply.body, bytes):
        await send.part(_event(turn, reply.body))
        await send.end()
    else:
        async with contextlib.aclosing(reply.body) as body:
            await send_parts(send, reply, body)


def _event(turn: Turn, body: bytes) -> bytes:
    """An error body as the endpoint's event; no ``[DONE]`` follows."""
    if turn.request.api is not Api.RESPONSES:
        return b"data: " + body + b"\n\n"
    error = orjson.loads(body)["error"]
    told = {name: error[name] for name in ("code", "message", "param")}
    return typed({"type": "error", "sequence_number": 0, **told})


def _early(turn: Turn) -> dict[str, str]:
    pending = {f"x-understudy-{name}": "pending" for name in ("served-by", "reason", "captured")}
    return {**CONTENT_TYPE, "cache-control": "no-cache", "x-request-id": turn.id, **pending}


async def _given_up(work: asyncio.Task[Reply]) -> None:
    """The client left. A stream that was never begun could not clean up behind itself."""
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    if work.cancelled() or work.exception() is not None:
        return
    body = work.result().body
    if isinstance(body, AsyncGenerator):
        with contextlib.suppress(StopAsyncIteration):
            await anext(body)
        await body.aclose()
