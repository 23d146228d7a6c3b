"""HTTP in, HTTP out: routes, errors, client disconnects. No decision is made here.

Judged and passed-through requests are served by a plain ASGI function; FastAPI has the rest, where
its routing and its middleware (70 µs per request) do not matter.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.api.request import Api
from gateway.auth import Principal
from gateway.errors import GatewayError
from gateway.feedback import PATH as FEEDBACK
from gateway.ids import new_id
from gateway.incoming import Incoming
from gateway.keepalive import kept_alive
from gateway.logs import log
from gateway.protocol import Client, TooSlow
from gateway.replays import HEADER, Recorder, Said, Sender
from gateway.service import Service
from gateway.settings import OWN_PATHS
from gateway.sse import CONTENT_TYPE
from gateway.turn import Reply, Turn, send_parts
from gateway.upstream import UpstreamError

EMBEDDINGS = "/v1/embeddings"
_JUDGED: Mapping[str, Api] = {f"/v1{api.path}": api for api in Api}


def create_app(service: Service) -> ASGIApp:
    """The ASGI application over one service, which it opens and closes. It wants to be served by
    ``GatewayProtocol``."""
    rest = _rest(service)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await rest(scope, receive, send)
            return
        path, post = scope["path"], scope["method"] == "POST"
        if post and (api := _JUDGED.get(path)) is not None:
            await _judged(service, api, Incoming.of(scope, receive))
        elif post and (path == EMBEDDINGS or path in service.config.passthrough_paths):
            await _forwarded(service, Incoming.of(scope, receive))
        else:
            await rest(scope, receive, send)

    return app


def _rest(service: Service) -> FastAPI:
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

    @app.post(FEEDBACK)
    async def feedback(request: Request) -> Response:
        incoming = Incoming.of(request.scope, request.receive)
        return _json(200, await service.take_feedback(incoming))

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
        problems, warnings = service.standing()
        body = {"ready": not problems, "problems": problems, "warnings": warnings}
        return _json(503 if problems else 200, body)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(await service.exposition(), media_type="text/plain; version=0.0.4")

    # Which paths are listed is looked up at each request, since reloads change it.
    methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    app.add_route("/v1/{path:path}", _no_other(service), methods=methods)
    return app


def _no_other(service: Service) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        known = {*OWN_PATHS, *service.config.passthrough_paths}
        raise HTTPException(405 if request.url.path in known else 404)

    return endpoint


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

    @app.get("/admin/exchanges/{name}")
    async def exchange(request: Request, name: str) -> Response:
        return _json(200, await service.admin.exchange(request.headers.get("authorization"), name))

    @app.post("/admin/tasks/{name}/gate")
    async def gate(request: Request, name: str) -> Response:
        authorization = request.headers.get("authorization")
        body = await Incoming.of(request.scope, request.receive).body(service.config.limits)
        return _json(200, await service.admin.gate(authorization, name, body))

    @app.post("/admin/tasks/{name}/promote")
    async def promote(request: Request, name: str) -> Response:
        authorization = request.headers.get("authorization")
        body = await Incoming.of(request.scope, request.receive).body(service.config.limits)
        return _json(200, await service.admin.promote(authorization, name, body))

    @app.post("/admin/tasks/{name}/rollback")
    async def roll_back(request: Request, name: str) -> Response:
        authorization = request.headers.get("authorization")
        body = await Incoming.of(request.scope, request.receive).body(service.config.limits)
        return _json(200, await service.admin.roll_back(authorization, name, body))


async def _while_there(client: Client, work: Coroutine[Any, Any, None]) -> None:
    """Serve until the client leaves: a disconnect cancels the upstream call at once."""
    gone = client.gone
    task = asyncio.current_task()
    assert task is not None
    left = False

    def leave() -> None:
        nonlocal left
        left = True
        task.cancel()

    gone.add(leave)
    try:
        await work
    except asyncio.CancelledError:
        if not left:
            raise
    except TooSlow:
        pass  # returning without the body's end makes the server cut the connection
    finally:
        gone.discard(leave)


async def _judged(service: Service, api: Api, incoming: Incoming) -> None:
    send = incoming.client

    async def serve(principal: Principal) -> None:
        turn = await service.begin(incoming, api, principal)
        key = incoming.headers.get(HEADER)
        await (_answer(service, turn, send) if key is None else _once(service, turn, key, send))

    await _while_there(incoming.client, _counted(service, incoming, serve))


async def _forwarded(service: Service, incoming: Incoming) -> None:
    async def serve(principal: Principal) -> None:
        reply = await service.forward(incoming, principal)
        try:
            await _send(incoming.client, reply)
        except UpstreamError as error:
            # Returning without the body's end makes the server cut the connection, as it must be.
            log("passthrough_cut", error=str(error))

    await _while_there(incoming.client, _counted(service, incoming, serve))


async def _counted(
    service: Service, incoming: Incoming, serve: Callable[[Principal], Awaitable[None]]
) -> None:
    """A request counts as in flight from its head on until its answer's end."""
    incoming.client.patience_s = service.config.limits.send_timeout_s
    try:
        principal = service.enter(incoming)
        try:
            await serve(principal)
        finally:
            service.leave(principal)
    except GatewayError as error:
        await _refuse(incoming.client, error)
    except TooSlow:
        raise
    except Exception as error:
        log("internal_error", error=repr(error))
        with contextlib.suppress(RuntimeError):  # an answer that has begun can only be cut
            await _refuse(incoming.client, _internal())


async def _refuse(send: Sender, error: GatewayError) -> None:
    await _send(send, _error_reply(error, {"x-request-id": new_id()}))


async def _once(service: Service, turn: Turn, key: str, send: Sender) -> None:
    """Answer, unless this request was answered already."""
    body = turn.request.raw or orjson.dumps(turn.request.body)
    claim = await service.replays.claim(turn.principal.name, key, body)
    if isinstance(claim, Said):
        service.metrics.replays.inc()
        await claim.again(send)
        return
    recorder = Recorder(send)
    try:
        await _answer(service, turn, recorder)
    finally:
        service.replays.settle(claim, recorder.said() if turn.complete else None)


async def _answer(service: Service, turn: Turn, send: Sender) -> None:
    after_s = service.config.limits.keepalive_after_s
    if turn.request.stream and after_s is not None:
        work = _reply(service, turn)
        await kept_alive(turn, work, send, after_s, lambda reply: _send(send, reply))
    else:
        await _send(send, await _reply(service, turn))


async def _reply(service: Service, turn: Turn) -> Reply:
    """The turn's reply, or the error that takes its place."""
    try:
        return await service.flow.answer(turn)
    except GatewayError as error:
        return _error_reply(error, turn.headers("yes"))
    except Exception as error:
        log("internal_error", id=turn.id, error=repr(error))
        await service.flow.books.failed(turn, _internal())
        return _error_reply(_internal(), turn.headers("yes"))


async def _send(send: Sender, reply: Reply) -> None:
    if isinstance(reply.body, bytes):
        headers = {"content-type": "application/json", **reply.headers}
        await send.whole(reply.status, headers, reply.body)
    else:
        await _send_stream(send, reply, reply.body)


async def _send_stream(send: Sender, reply: Reply, body: AsyncGenerator[bytes]) -> None:
    """The first part is pulled before the head is sent: a stream that was never begun could not
    clean up behind itself."""
    async with contextlib.aclosing(body):
        part = await anext(body, b"")
        await send.begin(reply.status, {**CONTENT_TYPE, **reply.headers}, part)
        await send_parts(send, reply, body)


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
