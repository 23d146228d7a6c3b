"""The HTTP API as an OpenAPI 3.1 document, from the tables that the reference page is made of.

Bodies of ``/v1/chat/completions`` and its like are OpenAI's: they are named, and left open, since
the gateway passes fields on that it does not know.
Source: spec.openapis.org/oas/v3.1.0.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from deploy.docs.tables import REQUEST_HEADERS, RESPONSE_HEADERS
from gateway.errors import CODES, Code

_OPEN = {"type": "object", "additionalProperties": True}
_JUDGED: Mapping[str, tuple[str, list[str]]] = {
    "/v1/chat/completions": ("A chat completion, whole or streamed.", ["model", "messages"]),
    "/v1/completions": ("A text completion; the teacher answers.", ["model", "prompt"]),
    "/v1/responses": ("A response, whole or streamed.", ["model", "input"]),
}
_ADMIN: Mapping[str, Mapping[str, tuple[str, dict[str, Any] | None]]] = {
    "/admin/tasks": {"get": ("Every task as it stands.", None)},
    "/admin/tasks/{name}": {
        "get": ("Versions, budget, certificate, gate, draw rate and audit of a task.", None)
    },
    "/admin/tasks/{name}/events": {"get": ("What happened, newest first.", None)},
    "/admin/tasks/{name}/gate": {
        "post": ("Open or close a gate.", {
            "type": "object", "properties": {"open": {"type": "boolean"}, "note": {"type": "string"}},
            "required": ["open", "note"],
        })
    },
    "/admin/tasks/{name}/promote": {
        "post": ("Let a version serve.", {
            "type": "object", "properties": {"student": {"type": "string"}, "note": {"type": "string"},
                           "share": {"type": "number", "exclusiveMinimum": 0, "maximum": 1}},
            "required": ["student", "note"],
        })
    },
    "/admin/tasks/{name}/rollback": {
        "post": ("Let the version before serve again.", {
            "type": "object", "properties": {"note": {"type": "string"}, "to": {"type": "string"}},
            "required": ["note"],
        })
    },
    "/admin/exchanges/{name}": {"get": ("One exchange in full; the look is recorded.", None)},
}  # fmt: skip


def document() -> dict[str, Any]:
    """All of it."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Understudy",
            "version": version("understudy"),
            "description": "OpenAI's API, answered by a student where it may and by the teacher "
            "where it may not. `passthrough_paths` adds paths of the upstream's.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "http://127.0.0.1:8080"}],
        "security": [{"key": []}],
        "paths": {**_judged(), **_plain(), **_admin(), **_open()},
        "components": {
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "A client key."},
                "admin": {"type": "http", "scheme": "bearer", "description": "The admin key."},
            },
            "headers": {
                name: {"description": text, "schema": {"type": "string"}}
                for name, text in RESPONSE_HEADERS.items()
            },
            "parameters": {
                name: {"name": name, "in": "header", "description": text,
                       "schema": {"type": "string"}}
                for name, text in REQUEST_HEADERS.items() if name != "authorization"
            },
            "schemas": {
                "Error": {
                    "type": "object", "required": ["error"],
                    "properties": {"error": {
                        "type": "object", "required": ["message", "type", "param", "code"],
                        "properties": {
                            "message": {"type": "string"}, "type": {"type": "string"},
                            "param": {"type": ["string", "null"]},
                            "code": {"type": ["string", "null"],
                                     "description": f"Ours: {', '.join(CODES)}; or an upstream's."},
                        },
                    }},
                },
            },
            "responses": {f"E{status}": _error(names) for status, names in _by_status().items()},
        },
    }  # fmt: skip


def _by_status() -> dict[int, list[Code]]:
    found: dict[int, list[Code]] = defaultdict(list)
    for code, info in CODES.items():
        found[info.status].append(code)
    return dict(sorted(found.items()))


def _error(names: list[Code]) -> dict[str, Any]:
    told = "; ".join(f"`{name}`: {CODES[name].meaning}" for name in names)
    schema = {"$ref": "#/components/schemas/Error"}
    return {"description": told, "content": {"application/json": {"schema": schema}}}


def _responses(*statuses: int) -> dict[str, Any]:
    return {str(s): {"$ref": f"#/components/responses/E{s}"} for s in statuses}


def _body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"required": True, "content": {"application/json": {"schema": schema}}}


def _answer(text: str, *, streamed: bool = False, told: bool = False) -> dict[str, Any]:
    content: dict[str, Any] = {"application/json": {"schema": _OPEN}}
    if streamed:
        content["text/event-stream"] = {"schema": {"type": "string"}}
    found: dict[str, Any] = {"description": text, "content": content}
    if told:
        found["headers"] = {
            name: {"$ref": f"#/components/headers/{name}"}
            for name in RESPONSE_HEADERS
            if name.startswith("x-understudy") or name == "x-request-id"
        }
    return found


def _judged() -> dict[str, Any]:
    wishes = [
        {"$ref": f"#/components/parameters/{n}"} for n in REQUEST_HEADERS if n != "authorization"
    ]
    return {
        path: {"post": {
            "summary": text,
            "operationId": path.removeprefix("/v1/").replace("/", "_"),
            "parameters": wishes,
            "requestBody": _body({**_OPEN, "required": wanted,
                                  "properties": {"model": {"type": "string"},
                                                 "stream": {"type": "boolean"}}}),
            "responses": {
                "200": _answer("The answer, OpenAI's object or events.", streamed=True, told=True),
                **_responses(400, 401, 403, 404, 408, 413, 429, 500, 502, 503, 504),
            },
        }}
        for path, (text, wanted) in _JUDGED.items()
    }  # fmt: skip


def _plain() -> dict[str, Any]:
    feedback = {
        "type": "object", "required": ["request_id"], "additionalProperties": False,
        "properties": {
            "request_id": {"type": "string"}, "rating": {"enum": ["up", "down"]},
            "correction": {"type": ["string", "object", "array"]}, "comment": {"type": "string"},
        },
    }  # fmt: skip
    return {
        "/v1/embeddings": {"post": {
            "summary": "Embeddings of the default upstream.", "operationId": "embeddings",
            "requestBody": _body({**_OPEN, "required": ["model", "input"]}),
            "responses": {"200": _answer("OpenAI's list."),
                          **_responses(400, 401, 403, 404, 429, 502, 503)},
        }},
        "/v1/feedback": {"post": {
            "summary": "A rating or a correction of an answer, by the key that asked.",
            "operationId": "feedback", "requestBody": _body(feedback),
            "responses": {"200": _answer("Taken in."), **_responses(400, 401, 404, 429, 503)},
        }},
        "/v1/models": {"get": {
            "summary": "What the key may ask for.", "operationId": "models",
            "responses": {"200": _answer("OpenAI's list."), **_responses(401)},
        }},
        "/v1/models/{name}": {"get": {
            "summary": "One of them.", "operationId": "model", "parameters": [_name("A model.")],
            "responses": {"200": _answer("OpenAI's object."), **_responses(401, 404)},
        }},
    }  # fmt: skip


def _admin() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, methods in _ADMIN.items():
        found[path] = {
            method: {
                "summary": text,
                "operationId": f"{method}_{path.strip('/').replace('/', '_').replace('{name}', 'x')}",
                "security": [{"admin": []}],
                **({"parameters": [_name("A task, or an exchange.")]} if "{name}" in path else {}),
                **({"requestBody": _body(schema)} if schema else {}),
                "responses": {"200": _answer("Done."),
                              **_responses(400, 401, 404, 409, 503)},
            }
            for method, (text, schema) in methods.items()
        }  # fmt: skip
    return found


def _open() -> dict[str, Any]:
    text = {"description": "Prometheus's text format.",
            "content": {"text/plain": {"schema": {"type": "string"}}}}  # fmt: skip
    ready = {"200": _answer("It can serve."), "503": _answer("It cannot, and why.")}
    found = {
        "/healthz": ("The process is up.", {"200": _answer("It is.")}),
        "/readyz": ("It can serve.", ready),
        "/metrics": ("Every metric, of all workers.", {"200": text}),
    }
    return {
        path: {"get": {"summary": says, "operationId": path.strip("/"), "security": [],
                       "responses": responses}}
        for path, (says, responses) in found.items()
    }  # fmt: skip


def _name(text: str) -> dict[str, Any]:
    return {
        "name": "name", "in": "path", "required": True, "description": text,
        "schema": {"type": "string"},
    }  # fmt: skip
