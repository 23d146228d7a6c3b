"""The one configuration object: a YAML file plus environment, validated once at start.

Environment variables override single keys: ``UNDERSTUDY_LISTEN__PORT=9000``. Secrets are never in
the file: keys that end in ``_env`` name the environment variable that holds them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import jsonpath
from jsonpath.exceptions import JSONPathError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from gateway.store.feedback import OPERATOR
from router.comparator import parse as parse_comparator
from router.errors import FitError
from router.redact import DEFAULT, KINDS, Pattern, Redaction, Redactor

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
EnvName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
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


def _base_url(value: str) -> str:
    if not value.startswith(("http://", "https://")):
        raise ValueError("must start with http:// or https://")
    return value.rstrip("/")


def _comparator(value: str) -> str:
    try:
        return parse_comparator(value).name
    except FitError as error:
        raise ValueError(str(error)) from error


ComparatorName = Annotated[str, AfterValidator(_comparator)]
BaseUrl = Annotated[str, AfterValidator(_base_url)]


class Section(BaseModel):
    """A part of the file: unknown keys are mistakes, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)


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


class Price(Section):
    """USD per million tokens."""

    input: NonNegative = Field(description="USD per million prompt tokens.")
    output: NonNegative = Field(description="USD per million completion tokens.")

    def cost_usd(self, prompt_tokens: int, completion_tokens: int) -> float:
        """What a call of so many tokens costs."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


FREE = Price(input=0.0, output=0.0)


class TeacherPlace(Section):
    """Another OpenAI-compatible upstream for the same teacher."""

    base_url: BaseUrl = Field(description="Ends in /v1.")
    model: str = Field(description="The upstream's own model name.", min_length=1)
    api_key_env: EnvName | None = Field(None, description="Variable with the upstream's key.")
    price: Price = Field(FREE, description="What it charges.")


class Teacher(TeacherPlace):
    """An OpenAI-compatible upstream that answers what the student may not."""

    fallbacks: list[TeacherPlace] = Field(
        [],
        description="Further upstreams, asked in this order when the ones before fail; those of "
        "another model also when one refuses the request (4xx, content filters apart).",
    )
    connect_timeout_s: Positive = Field(5.0, description="Seconds to connect.")
    first_byte_timeout_s: Positive = Field(60.0, description="Seconds to the first byte.")
    idle_timeout_s: Positive = Field(30.0, description="Longest silence within a stream.")
    total_timeout_s: Positive = Field(300.0, description="Seconds for one whole answer.")
    retries: int = Field(
        2, ge=0, le=10, description="Further rounds over the upstreams while nothing was served."
    )
    retry_budget: Share = Field(
        0.1, description="Retries as a share of requests, beyond the first ten."
    )
    max_in_flight: int | None = Field(
        None,
        ge=1,
        description="Calls at once; live requests go before draws, draws before distillation.",
    )
    accept_client_key: bool = Field(
        False,
        description="Whether `x-understudy-teacher-key` may replace the first upstream's key.",
    )


class Student(Section):
    """Replicas that serve one immutable student version."""

    base_urls: list[BaseUrl] = Field(description="vLLM replicas; each ends in /v1.", min_length=1)
    model: str = Field(description="Served name, `task@vN`.", min_length=1)
    price_per_hour: NonNegative = Field(0.0, description="USD per hour of all replicas together.")
    timeout_s: Positive = Field(10.0, description="Seconds for the gated answer; then the teacher.")
    health_every_s: Positive = Field(
        15.0, description="Seconds after which an idle replica is asked for one token."
    )
    features: list[Literal["json_object", "json_schema", "responses"]] = Field(
        ["responses"],
        description="What it serves besides plain chat; anything else goes to the teacher as "
        "`unsupported_feature`. A JSON format needs training rows with that template; an answer "
        "that does not fit it is never served.",
    )
    context_tokens: int = Field(2048, ge=1, description="Context window; longer prompts go on.")


class Router(Section):
    """The judge of one task."""

    artefact: Path = Field(description="Artefact folder, relative to the configuration file.")
    gate_tokens: int | None = Field(
        None, ge=1, description="Must equal the artefact's if given: features cover this prefix."
    )
    hold: int | Literal["all"] = Field(
        "all", description="Tokens held back before release, or `all`."
    )
    remember: int = Field(
        4096,
        ge=0,
        description="Prompts whose embedding is kept in memory (2 KB each): a repeated prompt is "
        "judged in microseconds, with the same verdict. 0 keeps none.",
    )
    hedge_from: Share | None = Field(
        None, description="From this P(out) up to the cut, start the teacher alongside."
    )


class Risk(Section):
    """The operator's promise."""

    alpha: float = Field(0.05, gt=0, lt=1, description="Largest share of disagreeing answers.")
    delta: float = Field(0.05, gt=0, lt=1, description="Probability that the promise fails.")
    comparator: ComparatorName = Field(
        "label", description="When two answers agree: `KIND` or `KIND:option=value,...`; see below."
    )
    draw_rate: Share = Field(
        0.02,
        description="Share of requests that get both answers; the least that the audit lives on. "
        "0 switches the audit off.",
    )
    on_unproven: Literal["serve", "close", "raise_sampling"] = Field(
        "raise_sampling",
        description="Until the audit confirms a version: serve as usual, serve nothing, or serve "
        "and draw more. `close` draws more too.",
    )
    unproven_draw_rate: Share = Field(
        0.5, description="Share of requests that get both answers until the audit confirms."
    )
    audit_timeout_s: Positive = Field(
        21_600.0,
        description="Seconds after which a draw without its second answer counts as a "
        "disagreement.",
    )
    false_alarm_labels: int = Field(
        100_000,
        ge=1000,
        description="The change detector closes the gate by mistake at most once in so many "
        "labels on average.",
    )

    @model_validator(mode="after")
    def _close_can_end(self) -> Self:
        if self.on_unproven == "close" and self.draw_rate == 0:
            raise ValueError("on_unproven: close needs draw_rate above 0, or it never opens")
        return self


class Probe(Section):
    """A frozen set of prompts that shows the teacher's own noise, and when it changes."""

    file: Path = Field(
        description="Rows (JSON Lines), at least 100, in no other set; relative to the file."
    )
    every_s: Positive = Field(86_400.0, description="Seconds between runs.")


class RedactionPattern(Section):
    """A redaction rule of one's own."""

    name: str = Field(description="Lower-case letters, digits and `_`; no built-in kind.")
    pattern: str = Field(description="A regular expression without named groups.")


def _redaction(value: list[str | RedactionPattern]) -> list[str | RedactionPattern]:
    try:
        Redactor(redaction_rules(value))
    except FitError as error:
        raise ValueError(str(error)) from error
    return value


def redaction_rules(value: Sequence[str | RedactionPattern]) -> tuple[Redaction, ...]:
    """Rules as ``router.redact`` takes them."""
    return tuple(r if isinstance(r, str) else Pattern(r.name, r.pattern) for r in value)


def _json_paths(value: list[str]) -> list[str]:
    for path in value:
        try:
            jsonpath.compile(path)
        except JSONPathError as error:
            raise ValueError(f"{path!r} is no JSONPath: {error}") from error
    return value


class Match(Section):
    """Traffic that names another model and is claimed by a task; every given part must match."""

    models: list[str] = Field([], description="Model names that are claimed.")
    template: str | None = Field(None, description="Fingerprint of the fixed prompt part.")
    keys: list[str] = Field([], description="Names of keys whose traffic is claimed.")

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not (self.models or self.template or self.keys):
            raise ValueError("name at least one of models, template, keys")
        return self


class Task(Section):
    """One narrow job."""

    name: TaskName = Field(description="Public model name.")
    match: Match | None = Field(None, description="Traffic claimed from other model names.")
    teacher: Teacher = Field(description="Who answers what the student may not.")
    student: Student | None = Field(None, description="The distilled model, if there is one.")
    router: Router | None = Field(None, description="The judge; needed to serve a student.")
    risk: Risk = Field(Risk(), description="The risk budget.")
    probe: Probe | None = Field(None, description="The teacher's probe set.")
    redact: Annotated[list[str | RedactionPattern], AfterValidator(_redaction)] = Field(
        list(DEFAULT),
        description="What is replaced by surrogates of the same shape before judging and storing: "
        f"{', '.join(f'`{kind}`' for kind in KINDS)}, or a name and a pattern. Must be the rules "
        "that the artefact was fitted under. Upstreams get the request as it came.",
    )
    drop_fields: Annotated[list[str], AfterValidator(_json_paths)] = Field(
        [],
        description="JSONPaths (RFC 9535) of request fields that are not stored, such as "
        "`$.metadata.email`.",
    )
    retention_days: Positive | None = Field(
        None, description="Exchanges older than this are deleted; None keeps them."
    )
    capture: Literal["serve", "strict"] = Field(
        "serve",
        description="While exchanges cannot be stored: `serve` them, marked `captured: no`, or "
        "refuse with 503 `capture_unavailable` (`strict`).",
    )
    pin_sampling: bool = Field(
        False,
        description="Student decodes with the certificate's profile whatever the client asks for.",
    )
    on_student_down: Literal["teacher", "error"] = Field(
        "teacher",
        description="Whether the teacher answers what a failing student could not, or the client "
        "gets `student_unavailable`: an outage of the student is then no bill of the teacher's.",
    )
    on_teacher_down: Literal["error", "student"] = Field(
        "error", description="Whether the student may stand in for a dead teacher."
    )
    even_if_closed: bool = Field(
        False, description="Whether it may stand in under a closed gate too."
    )

    @model_validator(mode="after")
    def _student_has_judge(self) -> Self:
        if self.student is not None and self.router is None:
            raise ValueError("a student needs router.artefact: nothing is served unjudged")
        return self


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
