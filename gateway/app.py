"""HTTP in, HTTP out: routes, errors, client disconnects. No decision is made here."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
)
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from gateway.api.request import Api
from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.ids import new_id
from gateway.logs import log
from gateway.service import EMBEDDINGS, Service
from gateway.settings import OWN_PATHS
from gateway.turn import Reply, Turn
from gateway.upstream import UpstreamError

_Serve = Callable[[Send], Coroutine[Any, Any, None]]
_JSON = (b"content-type", b"application/json")
_EVENTS = (b"content-type", b"text/event-stream; charset=utf-8")


def create_app(service: Service) -> FastAPI:
    """The ASGI application over one service, which it opens and closes."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with service:
            yield

    app = FastAPI(
        title="Understudy", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None
    )
    app.add_exception_handler(HTTPException, _http_exception)
    app.add_exception_handler(GatewayError, _gateway_error)
    app.add_exception_handler(Exception, _unexpected)

    for api in Api:
        # Starlette's plain route: there is nothing for FastAPI to inject or to validate here.
        app.add_route(f"/v1{api.path}", _judged(service, api), methods=["POST"])

    @app.get("/v1/models")
    async def models(request: Request) -> Response:
        return _json(200, service.models(request.headers.get("authorization")))

    @app.get("/v1/models/{name:path}")
    async def model(request: Request, name: str) -> Response:
        return _json(200, service.model(request.headers.get("authorization"), name))

    if service.config.admin is not None:
        _add_admin(app, service)

    @app.get("/healthz")
    async def healthz() -> Response:
        return _json(200, {"status": "ok"})

    @app.get("/readyz")
    async def readyz() -> Response:
        problems = await service.problems()
        return _json(503 if problems else 200, {"ready": not problems, "problems": problems})

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.exposition(), media_type="text/plain; version=0.0.4")

    # The last route: which paths are listed is looked up at each request, since reloads change it.
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app.add_route("/v1/{path:path}", _forwarded(service), methods=methods)
    return app


def _judged(service: Service, api: Api) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        async def begun(principal: Principal) -> _Serve:
            turn = await service.begin(request, api, principal)
            return functools.partial(_answer, service, turn)

        return await _counted(service, request, begun)

    return endpoint


def _forwarded(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        path = request.url.path
        listed = path in {EMBEDDINGS, *service.config.passthrough_paths}
        if not listed and path not in OWN_PATHS:
            raise HTTPException(404)
        if not listed or request.method != "POST":
            raise HTTPException(405)

        async def begun(principal: Principal) -> _Serve:
            answer = await service.begin_forward(request, principal)
            return functools.partial(_forward, service, answer)

        return await _counted(service, request, begun)

    return endpoint


async def _counted(
    service: Service, request: Request, begin: Callable[[Principal], Awaitable[_Serve]]
) -> Response:
    """A request that counts as in flight from its head on until its answer's end."""
    principal = service.enter(request)
    leave = functools.partial(service.leave, principal)
    try:
        serve = await begin(principal)
    except BaseException:
        leave()
        raise
    return _Watched(serve, leave)


def _add_admin(app: FastAPI, service: Service) -> None:
    @app.get("/admin/tasks")
    async def tasks(request: Request) -> Response:
        return _json(200, service.admin.list(request.headers.get("authorization")))

    @app.get("/admin/tasks/{name}")
    async def task(request: Request, name: str) -> Response:
        return _json(200, service.admin.show(request.headers.get("authorization"), name))

    @app.get("/admin/tasks/{name}/events")
    async def events(request: Request, name: str) -> Response:
        return _json(200, await service.admin.events(request.headers.get("authorization"), name))

    @app.post("/admin/tasks/{name}/gate")
    async def gate(request: Request, name: str) -> Response:
        authorization = request.headers.get("authorization")
        body = await service.receive(request)
        return _json(200, await service.admin.gate(authorization, name, body))


class _Watched(Response):
    """Serves while watching the client: a disconnect cancels the upstream call at once."""

    def __init__(self, serve: _Serve, leave: Callable[[], None]) -> None:
        super().__init__()
        self._serve = serve
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        work = asyncio.create_task(self._serve(send))
        gone = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                work.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await work
        finally:
            for task in (work, gone):
                task.cancel()
            self._leave()
            await asyncio.gather(work, gone, return_exceptions=True)


async def _answer(service: Service, turn: Turn, send: Send) -> None:
    try:
        reply = await service.flow.answer(turn)
    except GatewayError as error:
        reply = _error_reply(error, turn.headers("yes"))
    except Exception as error:
        log("internal_error", id=turn.id, error=repr(error))
        await service.flow.books.failed(turn, _internal())
        reply = _error_reply(_internal(), turn.headers("yes"))
    await _send(send, reply, service.config.limits.send_timeout_s)


async def _forward(service: Service, answer: Callable[[], Awaitable[Reply]], send: Send) -> None:
    try:
        reply = await answer()
    except GatewayError as error:
        reply = _error_reply(error, {"x-request-id": new_id()})
    try:
        await _send(send, reply, service.config.limits.send_timeout_s)
    except UpstreamError as error:
        # Returning without the body's end makes the server cut the connection, as it must be.
        log("passthrough_cut", error=str(error))


def _patient(send: Send, limit_s: float) -> Send:
    """Sends within ``limits.send_timeout_s`` for each part: a client that reads no further must
    not hold an upstream. Ending without the body's end makes the server cut the connection."""

    async def within(message: Message) -> None:
        try:
            async with asyncio.timeout(limit_s):
                await send(message)
        except TimeoutError:
            log("client_too_slow", seconds=limit_s)
            raise asyncio.CancelledError from None

    return within


async def _send(send: Send, reply: Reply, limit_s: float) -> None:
    if isinstance(reply.body, bytes):
        await _send_whole(send, reply, reply.body)
    else:
        await _send_stream(_patient(send, limit_s), reply, reply.body)


async def _send_whole(send: Send, reply: Reply, body: bytes) -> None:
    headers = [_JSON, (b"content-length", str(len(body)).encode()), *_encoded(reply.headers)]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _send_stream(send: Send, reply: Reply, body: AsyncGenerator[bytes]) -> None:
    """The first part is pulled before the head is sent: a stream that was never begun could not
    clean up behind itself."""
    try:
        part = await anext(body, b"")
        headers = _encoded(reply.headers)
        if "content-type" not in reply.headers:
            headers.append(_EVENTS)
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": part, "more_body": True})
        async for part in body:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    finally:
        await body.aclose()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _encoded(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value.encode("latin-1", "replace")) for name, value in headers.items()]


def _error_reply(error: GatewayError, headers: Mapping[str, str]) -> Reply:
    return Reply(error.status, {**headers, **error.headers}, orjson.dumps(error.body()))


def _internal() -> GatewayError:
    return GatewayError("internal_error", "The gateway failed; its log has this request's id.")


def _json(status: int, body: Any, headers: Mapping[str, str] | None = None) -> Response:
    return Response(
        orjson.dumps(body),
        status,
        {"x-request-id": new_id(), **(headers or {})},
        media_type="application/json",
    )


async def _gateway_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    return _json(error.status, error.body(), error.headers)


async def _http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        wrong = GatewayError(
            "method_not_allowed", f"{request.method} is not possible here; see the HTTP reference."
        )
    else:
        wrong = GatewayError(
            "unknown_path", "There is no such path; the API starts at /v1/chat/completions."
        )
    return _json(wrong.status, wrong.body(), error.headers)


async def _unexpected(_: Request, error: Exception) -> Response:
    log("internal_error", error=repr(error))
    return _json(500, _internal().body())
