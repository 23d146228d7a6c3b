"""The floor that a Python gateway is measured against: FastAPI and aiohttp, bytes through.

``python -m tests.bench.bare PORT UPSTREAM_URL``. No key, no limits, no log, no store, no routing.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import AsyncIterator

import aiohttp
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse


def create_bare(upstream: str) -> FastAPI:
    """A pass-through of one path; streams are relayed as they arrive."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as session:
            app.state.session = session
            yield

    app = FastAPI(lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)

    @app.post("/v1/chat/completions")
    async def forward(request: Request) -> Response:
        body = await request.body()
        session: aiohttp.ClientSession = app.state.session
        answer = await session.post(
            f"{upstream}/v1/chat/completions",
            data=body,
            headers={"content-type": "application/json"},
        )
        kind = answer.headers.get("content-type", "application/json")
        if not kind.startswith("text/event-stream"):
            async with answer:
                return Response(await answer.read(), answer.status, media_type=kind)

        async def relayed() -> AsyncIterator[bytes]:
            async with answer:
                async for chunk in answer.content.iter_any():
                    yield chunk

        return StreamingResponse(relayed(), answer.status, media_type=kind)

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(
        create_bare(sys.argv[2]), port=int(sys.argv[1]), loop="uvloop", http="httptools",
        access_log=False, log_level="warning",
    )  # fmt: skip
