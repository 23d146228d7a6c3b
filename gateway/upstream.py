"""One upstream: a base URL that takes a request and gives status, headers and bytes.

Everything above sees only this; teacher, student, fakes and fault injectors share it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from gateway.breaker import Breaker
from gateway.clock import within
from gateway.http1 import Answer, BrokenHttp, Pool, Taker

_JSON = "application/json"


MALFORMED = (TypeError, ValueError, KeyError, AttributeError, OverflowError)
"""What reading JSON of another shape than the API's raises."""


class UpstreamError(Exception):
    """A call failed. ``kind`` is ``connect``, ``timeout``, ``cut``, ``too_large`` or
    ``malformed``."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds for each phase of a call."""

    connect_s: float
    first_byte_s: float
    idle_s: float


MAX_ANSWER_BYTES = 64 << 20
LONGEST_COOLING_S = 60.0


class UpstreamResponse:
    """An open answer; leaving its context closes the connection at once."""

    def __init__(
        self,
        raw: Answer,
        timeouts: Timeouts,
        owner: Upstream,
        until: float = math.inf,
    ) -> None:
        self._raw = raw
        self._timeouts = timeouts
        self._owner = owner
        self._until = until
        self._open = True
        self.status = raw.status
        self.headers: Mapping[str, str] = raw.headers

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the connection back if the answer was read to its end, else cut it: that is what
        frees the upstream's slot."""
        if self._open:
            self._open = False
            self._owner.in_flight -= 1
            self._raw.close()

    async def some(self, taker: Taker | None = None) -> bytes:
        """What has come of the body and was not read, at least a byte; nothing at its end. What
        ``taker`` keeps is not given.

        Raises:
            UpstreamError: ``cut`` or ``timeout``.
        """
        idle_s = self._timeouts.idle_s
        try:
            return await self._raw.some(idle_s, self._until, taker)
        except TimeoutError:
            late = monotonic() >= self._until
            why = "took too long" if late else f"silent for {idle_s:g} s"
            raise UpstreamError("timeout", why) from None
        except (BrokenHttp, OSError) as error:
            raise UpstreamError("cut", f"answer was cut: {error}") from error

    async def read(self) -> bytes:
        """The whole body.

        Raises:
            UpstreamError: ``cut``, ``timeout`` or ``too_large``.
        """
        parts: list[bytes] = []
        size = 0
        while chunk := await self.some():
            parts.append(chunk)
            size += len(chunk)
            if size > MAX_ANSWER_BYTES:
                raise UpstreamError("too_large", f"answer exceeds {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)


@dataclass(slots=True)
class Upstream:
    """A named base URL with its breaker and count of calls in flight."""

    name: str
    base_url: str
    api_key: str | None
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    _cool_until: float = 0.0

    def cool(self, seconds: float | None, now: float) -> None:
        """Leave it alone for as long as it asked (``Retry-After``), a minute at most."""
        if seconds is not None:
            self._cool_until = max(self._cool_until, now + min(seconds, LONGEST_COOLING_S))

    def cooling(self, now: float) -> bool:
        """Whether it asked to be left alone."""
        return now < self._cool_until

    def ready(self, now: float) -> bool:
        """Whether it may be called; a half-open breaker counts this as its one probe."""
        return not self.cooling(now) and self.breaker.allow(now)

    def rests_s(self, now: float) -> float:
        """Seconds until it may be called."""
        return max(0.0, self._cool_until - now, self.breaker.rests_s(now))

    async def post(
        self,
        pool: Pool,
        path: str,
        body: bytes,
        timeouts: Timeouts,
        content_type: str = _JSON,
        key: str | None = None,
        until: float = math.inf,
        trace: str | None = None,
    ) -> UpstreamResponse:
        """Send a request and wait for the answer's head; ``key`` replaces the upstream's own. The
        whole answer has to be here by ``until``, in monotonic seconds. ``trace`` is the call's
        ``traceparent``.

        Raises:
            UpstreamError: ``connect`` or ``timeout``.
        """
        headers = {"content-type": content_type}
        if trace is not None:
            headers["traceparent"] = trace
        return await self._asked(pool, "POST", path, headers, body, timeouts, key, until)

    async def get(self, pool: Pool, path: str, timeouts: Timeouts) -> UpstreamResponse:
        """Ask for what a path names.

        Raises:
            UpstreamError: ``connect`` or ``timeout``.
        """
        return await self._asked(pool, "GET", path, {}, b"", timeouts)

    async def _asked(
        self, pool: Pool, method: str, path: str, headers: dict[str, str], body: bytes,
        timeouts: Timeouts, key: str | None = None, until: float = math.inf,
    ) -> UpstreamResponse:  # fmt: skip
        if key or self.api_key:
            headers["authorization"] = f"Bearer {key or self.api_key}"
        self.in_flight += 1
        try:
            with within(min(timeouts.connect_s + timeouts.first_byte_s, until - monotonic())):
                raw = await pool.request(
                    method, self.base_url + path, headers, body, timeouts.connect_s
                )
        except TimeoutError:
            self.in_flight -= 1
            raise UpstreamError("timeout", f"{self.name} did not answer in time") from None
        except (BrokenHttp, OSError) as error:
            self.in_flight -= 1
            why = str(error) if isinstance(error, BrokenHttp) else type(error).__name__
            raise UpstreamError("connect", f"{self.name} cannot be reached: {why}") from error
        except BaseException:
            self.in_flight -= 1
            raise
        return UpstreamResponse(raw, timeouts, self, until)


def monotonic() -> float:
    """Seconds for breakers and durations."""
    return time.monotonic()
