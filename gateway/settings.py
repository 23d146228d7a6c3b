"""The one configuration object: a YAML file plus environment, validated once at start.

Environment variables override single keys: ``UNDERSTUDY_LISTEN__PORT=9000``. Secrets are never in
the file: keys that end in ``_env`` name the environment variable that holds them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.section import BaseUrl, EnvName, NonNegative, Positive, Section
from gateway.store.feedback import OPERATOR
from gateway.task_settings import Task

OWN_PATHS = frozenset(
    f"/v1/{name}"
    for name in (
        "chat/completions",
        "completions",
        "responses",
        "embeddings",
        "models",
        "feedback",
    )
)
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class Listen(Section):
    """Where the gateway accepts requests."""

    host: str = Field("127.0.0.1", description="Address to bind.")
    port: int = Field(8080, ge=0, le=65535, description="Port to bind; 0 picks a free one.")
    workers: int = Field(
        1,
        ge=1,
        le=64,
        description="Processes behind the one port. Limits in flight and quotas of upstreams hold "
        "in each of them; rates and budgets of keys over all.",
    )
    drain_delay_s: NonNegative = Field(
        0.0, description="On SIGTERM, seconds to go on accepting while `/readyz` says 503."
    )
    drain_s: Positive = Field(30.0, description="On SIGTERM, seconds to let answers finish.")


class Limits(Section):
    """Bounds on what one client may cost."""

    body_bytes: int = Field(4 << 20, ge=1024, description="Largest request body, in bytes.")
    head_timeout_s: Positive = Field(
        10.0, description="Seconds to receive a request's head, from its first byte on."
    )
    receive_timeout_s: Positive = Field(30.0, description="Seconds to receive a request body.")
    keepalive_after_s: Positive | None = Field(
        None,
        description="Send a stream's head after so many seconds of silence, and a comment as "
        "often: for proxies that cut silent connections. Verdict headers say `pending` then, and "
        "errors come as events with status 200.",
    )
    send_timeout_s: Positive = Field(
        60.0, description="Seconds that a client may take to accept a part of its answer."
    )
    max_in_flight: int = Field(
        1000, ge=1, description="Requests at once in one process; more get 503 `overloaded`."
    )
    shed_lag_s: Positive = Field(
        1.0,
        description="When the event loop is later than this twice in a row, new requests get 503 "
        "`overloaded`, so that answers under way keep their pace.",
    )


class Outbox(Section):
    """What happens to exchanges while the store cannot take them."""

    commit_timeout_s: Positive = Field(
        5.0,
        description="Longest wait of an answer's end for its commit. Then it goes out marked "
        "`captured: no`, and the exchange is stored later if that becomes possible.",
    )
    memory_bytes: int = Field(
        64 << 20,
        ge=0,
        description="What one process holds in memory while the store cannot be written; beyond "
        "it the oldest are given up.",
    )
    max_bytes: int | None = Field(
        None,
        ge=1 << 20,
        description="Cap of the store's own file. From 90 % of it on, requests and answers of "
        "what a student served undrawn are dropped, oldest first; at the cap new exchanges are "
        "`captured: no`.",
    )


class Postgres(Section):
    """A database for several gateways; the file of ``store`` is each one's outbox then."""

    url_env: EnvName = Field(
        description="Environment variable with the URL, `postgresql://USER:PASSWORD@HOST/NAME`."
    )
    migrate: bool = Field(
        True,
        description="Bring the schema up to date at start; otherwise `understudy db upgrade` does.",
    )


class Key(Section):
    """One client key."""

    name: str = Field(description="Principal that exchanges and logs name.", min_length=1)
    key_env: EnvName | None = Field(None, description="Environment variable that holds the key.")
    sha256: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(
        [],
        description="SHA-256 of the key, in hex (`understudy keys new`); two of them while a key "
        "is rotated. Taken over on SIGHUP.",
    )
    tasks: list[str] = Field(["*"], description="Tasks it may use; `*` is all of them.")
    may_override: bool = Field(
        False, description="May choose who answers (header or `task:teacher` / `task:student`)."
    )
    may_correct: bool = Field(
        False,
        description="Corrections sent as feedback become labels at once; those of other keys are "
        "suggestions that wait for `understudy review`.",
    )
    may_train: bool = Field(
        True,
        description="Whether its exchanges may become training data; as they are stored, so it "
        "stays.",
    )
    feedback_per_day: int = Field(
        1000, ge=0, description="Requests that it may give feedback on in a day (UTC)."
    )
    max_in_flight: int | None = Field(
        None, ge=1, description="Requests at once; more get 429 `too_many_requests`."
    )
    requests_per_minute: int | None = Field(
        None,
        ge=1,
        description="Requests in a minute of the clock; more get 429 `rate_limit_exceeded`. "
        "Processes over one store share their counts once a second.",
    )
    tokens_per_minute: int | None = Field(
        None,
        ge=1,
        description="Tokens in a minute, all upstream calls for this key together; counted when "
        "an answer has ended, so that what is in flight can overshoot.",
    )
    usd_per_day: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Teacher money in a day (UTC); then 429 `insufficient_quota`. Overshoots by "
        "what is in flight, and by what other processes spent in the last two seconds.",
    )

    @model_validator(mode="after")
    def _has_a_key(self) -> Self:
        if not (self.key_env or self.sha256):
            raise ValueError("name key_env or sha256")
        return self


class Admin(Section):
    """Who may read how tasks stand, and open and close gates."""

    key_env: EnvName = Field(description="Environment variable with the admin key.")


class Telemetry(Section):
    """OpenTelemetry over OTLP/HTTP. Never bodies: versions, scores, tokens, timings."""

    endpoint: BaseUrl = Field(
        description="The collector, such as `http://127.0.0.1:4318`; `/v1/traces` and `/v1/logs` "
        "are added."
    )
    headers_env: EnvName | None = Field(
        None, description="Variable with headers for the collector, `name=value,name=value`."
    )
    sample: float = Field(
        0.05,
        ge=0,
        le=1,
        description="Share of requests that are traced. Where the client sends `traceparent`, its "
        "word counts.",
    )
    logs: bool = Field(True, description="Send log lines too; they go to standard error anyway.")


class Default(Section):
    """Model names that no task claims."""

    passthrough: str = Field(
        description="`teacher` (the first task's) or the name of the task whose teacher answers."
    )


class Config(BaseSettings):
    """The whole file."""

    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="UNDERSTUDY_", env_nested_delimiter="__"
    )

    listen: Listen = Field(Listen(), description="Where the gateway accepts requests.")
    limits: Limits = Field(Limits(), description="Bounds on what one client may cost.")
    store: str = Field(
        "sqlite:///./understudy.db",
        pattern=r"^sqlite:///.+",
        description="Where exchanges are kept: `sqlite:///PATH`, relative to the file.",
    )
    postgres: Postgres | None = Field(
        None, description="Where several gateways keep exchanges together; None: in `store` alone."
    )
    outbox: Outbox = Field(Outbox(), description="When the store cannot take an exchange.")
    cache: Path = Field(
        Path(".cache/encoders"), description="Folder for the quantised encoder, built once."
    )
    keys: list[Key] = Field([], description="Client keys; without any only loopback may be bound.")
    admin: Admin | None = Field(None, description="The admin key; without it there is no `/admin`.")
    telemetry: Telemetry | None = Field(
        None, description="Traces and logs to an OpenTelemetry collector; needs `understudy[otel]`."
    )
    default: Default | None = Field(None, description="Pass-through for unclaimed models.")
    passthrough_paths: list[Annotated[str, Field(pattern=r"^/v1/[a-z0-9_/-]+$")]] = Field(
        [], description="Other paths that are POSTed to the default upstream as they are."
    )
    tasks: list[Task] = Field(description="The tasks.", min_length=1)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Environment before file."""
        return env_settings, init_settings

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [task.name for task in self.tasks]
        for name in sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"task {name!r} is defined twice")
        principals = [key.name for key in self.keys]
        for name in sorted({n for n in principals if principals.count(n) > 1}):
            raise ValueError(f"key {name!r} is defined twice")
        if OPERATOR in principals:
            raise ValueError(f"key {OPERATOR!r}: the name is that of `understudy review`")
        digests = [digest for key in self.keys for digest in key.sha256]
        if len(set(digests)) != len(digests):
            raise ValueError("keys: a sha256 occurs twice; each principal needs its own")
        for key in self.keys:
            for unknown in sorted(set(key.tasks) - {"*", *names}):
                raise ValueError(f"key {key.name!r} names task {unknown!r}, which does not exist")
        if not self.keys and self.listen.host not in LOOPBACK:
            raise ValueError("without keys only a loopback address may be bound")
        self._check_claims(names, principals)
        if self.passthrough_paths and self.default is None:
            raise ValueError("passthrough_paths needs default.passthrough")
        for path in sorted(OWN_PATHS & set(self.passthrough_paths)):
            raise ValueError(f"passthrough_paths lists {path}, which the gateway serves itself")
        return self

    def _check_claims(self, names: list[str], principals: list[str]) -> None:
        for task in self.tasks:
            claimed = task.match.models if task.match else []
            for model in sorted(set(claimed) & set(names)):
                raise ValueError(f"task {task.name!r} claims {model!r}, which is a task itself")
            for name in sorted(set(task.match.keys if task.match else []) - set(principals)):
                raise ValueError(f"task {task.name!r} claims key {name!r}, which does not exist")
        if self.default and self.default.passthrough not in {"teacher", *names}:
            raise ValueError(
                f"default.passthrough {self.default.passthrough!r} is neither 'teacher' nor a task"
            )
