"""One task's part of the configuration: who answers, under which promise, and what is kept."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

import jsonpath
from jsonpath.exceptions import JSONPathError
from pydantic import AfterValidator, Field, model_validator

from gateway.distill_settings import Distill
from gateway.section import BaseUrl, EnvName, NonNegative, Positive, Section, Share, TaskName
from router.comparator import parse as parse_comparator
from router.errors import FitError
from router.redact import DEFAULT, KINDS, Pattern, Redaction, Redactor


def _comparator(value: str) -> str:
    try:
        return parse_comparator(value).name
    except FitError as error:
        raise ValueError(str(error)) from error


ComparatorName = Annotated[str, AfterValidator(_comparator)]


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
    terms: Literal["open", "no_distillation"] = Field(
        "open",
        description="`no_distillation`: its terms forbid training on its answers; none of them "
        "reaches a training file.",
    )


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

    base_urls: list[BaseUrl] = Field([], description="vLLM replicas; each ends in /v1.")
    model: str | None = Field(
        None,
        description="Served name, `task@vN`, which stays; None: whichever version the registry of "
        "students promotes, its routing artefact with it.",
        min_length=1,
    )
    classifier_urls: list[BaseUrl] = Field(
        [], description="Replicas of `understudy student serve`, for classifier students."
    )
    price_per_hour: NonNegative = Field(0.0, description="USD per hour of all replicas together.")
    classifier_price_per_hour: NonNegative = Field(
        0.0, description="The same for the classifiers' replicas."
    )
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

    @model_validator(mode="after")
    def _somewhere(self) -> Self:
        if not self.base_urls and (self.model is not None or not self.classifier_urls):
            raise ValueError("base_urls: name at least one replica")
        return self

    @property
    def served_model(self) -> str:
        """The version's name; a task that waits for its first student has no such section."""
        assert self.model is not None
        return self.model


class Router(Section):
    """The judge of one task."""

    artefact: Path | None = Field(
        None,
        description="Artefact folder, relative to the configuration file; None: that of the "
        "version that the registry promotes.",
    )
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
    distill: Distill = Field(Distill(), description="How the student is made anew.")
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
        description="Student decodes with the certificate's profile (temperature 0) whatever the "
        "client asks for. Without it a request that names no temperature, which means 1, goes to "
        "the teacher as `unsupported_feature`. The teacher always gets what the client asked for.",
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

    @property
    def registered(self) -> bool:
        """Whether the registry says which student serves."""
        return self.student is not None and self.student.model is None

    @model_validator(mode="after")
    def _student_has_judge(self) -> Self:
        artefact = self.router.artefact if self.router is not None else None
        if self.student is not None and not self.registered and artefact is None:
            raise ValueError("a student needs router.artefact: nothing is served unjudged")
        if self.registered and artefact is not None:
            raise ValueError(
                "router.artefact: belongs to student.model; without one the registry names both"
            )
        if self.student is None and self.router is not None and artefact is None:
            raise ValueError("router.artefact: is required")
        return self
