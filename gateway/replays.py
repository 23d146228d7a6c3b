"""``Idempotency-Key``: a request that comes again gets the same answer, and is one exchange.

The SDKs send the same key with each of their retries. Who retries because the answer was lost on
the way is told it once more, byte by byte, with its request id; who comes while the first is still
under way waits for it. Only whole answers are kept; after anything else the next one asks anew.

Draft: ietf-httpapi-idempotency-key-header. Kept in memory, per process.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gateway.errors import GatewayError
from gateway.upstream import monotonic

HEADER = "idempotency-key"
KEPT_S = 600.0
KEPT_BYTES = 64 << 20
LONGEST_KEY = 255


class Sender(Protocol):
    """Takes an answer, in parts or whole; see ``gateway.protocol.Client``."""

    async def begin(self, status: int, headers: Mapping[str, str], part: bytes) -> None:
        """Its head and the first part."""

    async def part(self, data: bytes) -> None:
        """Another part."""

    def takes(self) -> bool:
        """Whether a part can be ``put``."""
        ...

    def put(self, data: bytes) -> None:
        """Another part, without waiting."""

    async def end(self) -> None:
        """There are no more."""

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """All of it."""


@dataclass(frozen=True, slots=True)
class Said:
    """A whole answer as it went out; ``headers`` without its length."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    async def again(self, send: Sender) -> None:
        """Send it once more."""
        await send.whole(self.status, self.headers, self.body)


@dataclass(slots=True)
class Recorder:
    """Sends, and keeps what was sent."""

    send: Sender
    _status: int = 0
    _headers: Mapping[str, str] = field(default_factory=dict)
    _parts: list[bytes] = field(default_factory=list)
    _over: bool = False

    async def begin(self, status: int, headers: Mapping[str, str], part: bytes) -> None:
        """As ``Sender``."""
        await self.send.begin(status, headers, part)
        self._status, self._headers = status, headers
        self._parts.append(part)

    async def part(self, data: bytes) -> None:
        """As ``Sender``."""
        await self.send.part(data)
        self._parts.append(data)

    def takes(self) -> bool:
        """As ``Sender``."""
        return self.send.takes()

    def put(self, data: bytes) -> None:
        """As ``Sender``."""
        self.send.put(data)
        self._parts.append(data)

    async def end(self) -> None:
        """As ``Sender``."""
        await self.send.end()
        self._over = True

    async def whole(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        """As ``Sender``."""
        await self.send.whole(status, headers, body)
        self._status, self._headers = status, headers
        self._parts.append(body)
        self._over = True

    def said(self) -> Said | None:
        """The answer, if it went out to its end."""
        whole = self._over and self._status == 200
        return Said(self._status, self._headers, b"".join(self._parts)) if whole else None


@dataclass(slots=True)
class Claim:
    """Whoever holds it asks; others with the same key wait for its end."""

    name: tuple[str, str]
    digest: bytes
    at: float
    said: asyncio.Future[Said | None]


@dataclass(slots=True)
class Replays:
    """Answers by principal and key, oldest first."""

    limit_bytes: int = KEPT_BYTES
    _claims: OrderedDict[tuple[str, str], Claim] = field(default_factory=OrderedDict)
    _bytes: int = 0

    async def claim(self, principal: str, key: str, body: bytes) -> Claim | Said:
        """The answer that was given already, or the right to ask; then ``settle``.

        Raises:
            GatewayError: ``invalid_value``: the key is too long, or came with another body.
        """
        if not 0 < len(key) <= LONGEST_KEY:
            raise _wrong(f"must have 1 to {LONGEST_KEY} characters")
        name, digest = (principal, key), hashlib.sha256(body).digest()
        while (known := self._claims.get(name)) is not None:
            if known.digest != digest:
                raise _wrong("came before with another body; each request needs its own")
            said = await asyncio.shield(known.said)
            if said is not None:
                return said
        self._expire()
        claim = Claim(name, digest, monotonic(), asyncio.get_running_loop().create_future())
        self._claims[name] = claim
        return claim

    def settle(self, claim: Claim, said: Said | None) -> None:
        """The answer that went out whole, or None: then the next one asks."""
        if said is None or len(said.body) > self.limit_bytes:
            del self._claims[claim.name]
            claim.said.set_result(None)
            return
        self._bytes += len(said.body)
        claim.said.set_result(said)
        self._expire()

    def _expire(self) -> None:
        """Forget what is too old or too much; never what is still under way."""
        old = monotonic() - KEPT_S
        for name, claim in list(self._claims.items()):
            if claim.at > old and self._bytes <= self.limit_bytes:
                return
            if claim.said.done():
                said: Any = claim.said.result()
                self._bytes -= len(said.body)
                del self._claims[name]


def _wrong(why: str) -> GatewayError:
    return GatewayError("invalid_value", f"Header 'Idempotency-Key' {why}.", param=HEADER)
