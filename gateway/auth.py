"""Who is asking: bearer keys, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.settings import Key


@dataclass(frozen=True, slots=True)
class Principal:
    """A client key's owner; the key itself is gone."""

    name: str
    tasks: frozenset[str]
    may_override: bool
    max_in_flight: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    usd_per_day: float | None = None
    may_correct: bool = False
    may_train: bool = True
    feedback_per_day: int = 1000

    @property
    def limited(self) -> bool:
        """Whether anything has to be counted before it is let in."""
        limits = self.requests_per_minute, self.tokens_per_minute, self.usd_per_day
        return limits != (None, None, None)

    def may_use(self, task: str) -> bool:
        """Whether the task is open to this principal."""
        return "*" in self.tasks or task in self.tasks


ANONYMOUS = Principal("anonymous", frozenset({"*"}), True, may_correct=True)
"""Whoever asks a gateway without keys; only a loopback address may be bound then."""


class Keyring:
    """Digests of the configured keys."""

    def __init__(self, keys: Sequence[Key], secrets: Mapping[str, str]) -> None:
        self._digests = [
            (digest, _principal(key)) for key in keys for digest in _digests(key, secrets)
        ]

    def principal(self, authorization: str | None) -> Principal:
        """The owner of a bearer key.

        Every digest is compared, so that the time tells nothing about which one came close.

        Raises:
            GatewayError: ``invalid_api_key``.
        """
        if not self._digests:
            return ANONYMOUS
        scheme, _, key = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or not key.strip():
            raise _refused("No API key was sent; use the header 'Authorization: Bearer KEY'.")
        wanted = _digest(key.strip())
        matches = [p for digest, p in self._digests if hmac.compare_digest(digest, wanted)]
        if not matches:
            raise _refused("The API key is not known; check the key and the gateway it is for.")
        return matches[0]


class AdminKey:
    """The digest of the admin key."""

    def __init__(self, key: str) -> None:
        self._wanted = _digest(key)

    def check(self, authorization: str | None) -> None:
        """Let the admin in, in constant time.

        Raises:
            GatewayError: ``invalid_admin_key``.
        """
        scheme, _, key = (authorization or "").partition(" ")
        given = _digest(key.strip()) if scheme.lower() == "bearer" else b""
        if not hmac.compare_digest(given, self._wanted):
            raise GatewayError(
                "invalid_admin_key",
                "This path needs the admin key: 'Authorization: Bearer KEY'.",
                headers={"www-authenticate": "Bearer"},
            )


def digest_hex(key: str) -> str:
    """What the configuration holds of a key."""
    return _digest(key).hex()


def _principal(key: Key) -> Principal:
    return Principal(
        key.name,
        frozenset(key.tasks),
        key.may_override,
        key.max_in_flight,
        key.requests_per_minute,
        key.tokens_per_minute,
        key.usd_per_day,
        key.may_correct,
        key.may_train,
        key.feedback_per_day,
    )


def _digests(key: Key, secrets: Mapping[str, str]) -> list[bytes]:
    """Of every value that the key has now: several while it is being rotated."""
    plain = [_digest(secrets[key.key_env])] if key.key_env else []
    return plain + [bytes.fromhex(value) for value in key.sha256]


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _refused(message: str) -> GatewayError:
    return GatewayError("invalid_api_key", message, headers={"www-authenticate": "Bearer"})
