"""How a task's student is made anew: the settings of the nightly loop."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from gateway.section import NonNegative, Positive, Section, Share


class SplitShares(Section):
    """Which share of draws goes where; what is left over is for training."""

    test: Share = Field(0.25, description="For the gate: candidate against incumbent.")
    calibrate: Share = Field(0.35, description="For the certificate, once each.")
    combine: Share = Field(0.25, description="For cut, combination and grid.")
    dev: Share = Field(
        0.05, description="Of draws and of all other rows: for early stopping and search."
    )

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.test + self.calibrate + self.combine + self.dev > 1:
            raise ValueError("the shares are more than 1 together")
        return self


class Distill(Section):
    """How the task's student is made anew."""

    folder: Path = Field(
        Path("students"),
        description="Versions, runs and reports; relative to the file. Replicas and gateways must "
        "see the same path.",
    )
    students: list[Literal["classifier", "lora"]] = Field(
        ["classifier"], description="Kinds to train, the cheapest first.", min_length=1
    )
    base: Path = Field(
        Path(".cache/base/smollm2-135m-instruct"), description="Base model of LoRA students."
    )
    python: Path | None = Field(
        None, description="Python with torch, TRL and PEFT; None: the one that runs."
    )
    window_days: Positive = Field(
        90.0, description="Exchanges older than this are neither learned from nor measured on."
    )
    executor: Literal["local", "ray"] = Field(
        "local",
        description="Where near-duplicates are looked for, students asked and trained: in the "
        "run's process, or on a Ray cluster whose machines see the same paths.",
    )
    ray_address: str | None = Field(
        None, description="The cluster's address; None starts Ray on this machine."
    )
    min_rows: int = Field(200, ge=1, description="Fewest training rows of a run.")
    max_rows: int = Field(5000, ge=1, description="Most training rows: replay and new together.")
    shares: SplitShares = Field(SplitShares(), description="What becomes of draws.")
    gate_margin: Share = Field(
        0.01, description="The lower bound of (candidate - incumbent) must be above minus this."
    )
    slice_margin: Share = Field(0.05, description="The same for slices of 50 test rows or more.")
    min_test_rows: int = Field(50, ge=1, description="Fewest test rows of a decision.")
    min_calibrate_rows: int = Field(
        100, ge=1, description="Fewest fresh calibration rows; a candidate waits for them."
    )
    max_combine_rows: int = Field(
        1500,
        ge=50,
        description="Most combine rows that a judge is fitted on, the newest; each costs an answer "
        "of the candidate.",
    )
    promise: Literal["every_version", "all_versions"] = Field(
        "all_versions",
        description="What risk.delta is for: each version by itself, or all that are ever promoted "
        "together (the k-th certificate takes 6 delta / (pi k)^2).",
    )
    epochs: float = Field(3.0, gt=0, description="Passes over the data of LoRA students.")
    rank: int = Field(8, ge=1, le=256, description="LoRA rank.")
    learning_rate: float = Field(8e-4, gt=0, description="LoRA's peak learning rate.")
    search_minutes: NonNegative | None = Field(
        None,
        description="Try further learning rates for LoRA students within this time; dev rows say "
        "which is the best.",
    )
    max_tokens: int = Field(64, ge=1, description="Longest answer when a student is measured.")
    schedule: str | None = Field(
        None,
        description="When `understudy distill watch` begins a run: a cron expression in local "
        "time, such as `0 2 * * *`.",
    )
    rows_trigger: int | None = Field(
        None, ge=1, description="Begin one after so many new answers of the teacher."
    )
    on_drift: bool = Field(False, description="Begin one when the traffic has drifted.")
    on_teacher_change: bool = Field(
        True, description="Begin one when the probe set shows another teacher."
    )
    cooldown_s: NonNegative = Field(
        3600.0, description="Seconds between the beginnings of two runs that nobody asked for."
    )
    failures: int = Field(
        3,
        ge=1,
        description="Failed runs in a row after which only an operator's run, or a day, lets the "
        "next one begin.",
    )
    relabel_usd: NonNegative = Field(
        5.0, description="Most that a run may spend on asking a changed teacher again."
    )
    usd_per_day: NonNegative = Field(
        20.0,
        description="Most that runs may spend on the teacher in a day (UTC); the batch of 32 calls "
        "that passes it is finished.",
    )
    canary_share: Share = Field(
        0.1, description="Share of traffic, by conversation, that a new version answers first."
    )
    canary_s: NonNegative = Field(
        0.0, description="Seconds of the canary; 0 promotes to all traffic at once."
    )
    seed: int = Field(20261124, description="Seed of splits, training and fitting.")

    @field_validator("schedule")
    @classmethod
    def _cron(cls, value: str | None) -> str | None:
        if value is not None and len(value.split()) != 5:
            raise ValueError("is no cron expression: five fields, such as '0 2 * * *'")
        return value
