"""A request as it comes in: its head, and its body within limits."""

from __future__ import annotations

from collections.abc import Mapping

from starlette.types import Message, Receive, Scope

from gateway.clock import within
from gateway.errors import GatewayError
from gateway.protocol import Client
from gateway.settings import Limits
from router.values import value


@value(frozen=True, slots=True)
class Incoming:
    """``headers`` by lower-case name; of a header that comes twice the first counts."""

    path: str
    method: str
    headers: Mapping[str, str]
    receive: Receive
    client: Client

    @classmethod
    def of(cls, scope: Scope, receive: Receive) -> Incoming:
        """From an ASGI request."""
        headers = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }
        return cls(scope["path"], scope["method"], headers, receive, Client.of(scope))

    @property
    def authorization(self) -> str | None:
        """The header that carries the key."""
        return self.headers.get("authorization")

    async def body(self, limits: Limits) -> bytes:
        """The whole body.

        Raises:
            GatewayError: ``request_too_large`` or ``request_timeout``.
        """
        if self.client.said_all:  # the usual case
            part = _part(await self.receive())
            _check_size(len(part), limits)
            return part
        try:
            with within(limits.receive_timeout_s):
                return await self._parts(limits)
        except TimeoutError:
            raise GatewayError(
                "request_timeout", "The body did not arrive in time; send it again."
            ) from None

    async def _parts(self, limits: Limits) -> bytes:
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await self.receive()
            more = bool(message.get("more_body"))
            parts.append(_part(message))
            size += len(parts[-1])
            _check_size(size, limits)
        return b"".join(parts)


def _part(message: Message) -> bytes:
    if message["type"] == "http.disconnect":
        raise GatewayError("request_timeout", "The client left.")
    part: bytes = message.get("body", b"")
    return part


def _check_size(size: int, limits: Limits) -> None:
    if size > limits.body_bytes:
        raise GatewayError(
            "request_too_large", f"The body exceeds {limits.body_bytes} bytes; send less."
        )
