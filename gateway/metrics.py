"""Prometheus metrics, in a registry of their own. Labels are bounded: task, reason, stage."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

from gateway.store_figures import StoreFigures
from gateway.tallies import (
    CounterTally,
    HistogramTally,
    Labelled,
    Lasting,
    Observing,
    Tally,
)
from gateway.totals import Series, Totals, taken_seeds
from gateway.verdict import Reason, ServedBy

_FAST = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
_SLOW = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SCORE = tuple(i / 20 for i in range(1, 20))


DRAW_OUTCOMES = {True: "agree", False: "disagree", None: "failed"}
"""By whether the answers agree; None is that it could not be told."""
METRICS_DIR = "PROMETHEUS_MULTIPROC_DIR"
"""prometheus_client's own variable: with it, processes add up in ``/metrics``."""
M = TypeVar("M", Counter, Histogram)
T = TypeVar("T", bound=Tally)


class Metrics:
    """Everything the gateway counts; names start with ``understudy_``."""

    def __init__(self) -> None:
        self.totals = Totals()
        self._of_totals: dict[str, Lasting] = {}
        self._tallies: list[Tally] = []
        self._shut: dict[str, bool] = {}
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.store_figures = StoreFigures()
        registry.register(self.store_figures)
        self.requests = self._lasting(
            "understudy_requests", "Requests answered.",
            "task", "served_by", "reason", "code_class",
        )  # fmt: skip
        self.duration = self._histogram(
            "understudy_request_duration_seconds", "From request to the end of the answer.", _SLOW,
            "task", "served_by",
        )  # fmt: skip
        self.first_token = self._histogram(
            "understudy_time_to_first_token_seconds", "From request to the first released chunk.",
            _SLOW, "task", "served_by",
        )  # fmt: skip
        self.overhead = self._histogram(
            "understudy_overhead_seconds", "Time the gateway itself adds, by stage.", _FAST,
            "stage",
        )  # fmt: skip
        self.ood_score = self._histogram(
            "understudy_ood_score", "P(out of distribution) of judged prompts.", _SCORE,
            "task",
        )  # fmt: skip
        self.disagree_score = self._histogram(
            "understudy_disagree_score", "P(disagree) of judged student answers.", _SCORE,
            "task",
        )  # fmt: skip
        self.threshold = Gauge(
            "understudy_threshold", "Certified threshold on P(disagree).", ["task"],
            multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.coverage = Gauge(
            "understudy_coverage_ratio", "Share of traffic like the certificate's draws that the "
            "student may serve.", ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.alpha = Gauge(
            "understudy_risk_alpha", "The promise: most that may disagree of what the student "
            "serves.", ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.gate_open = Gauge(
            "understudy_gate_open",
            "1 while the student may serve.",
            ["task"],
            multiprocess_mode="livemostrecent",
            registry=registry,
        )
        self.student_info = Gauge(
            "understudy_student_info", "1 for the version in service.",
            ["task", "student", "router"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        attempts = Counter(
            "understudy_upstream_attempts", "Calls to upstreams.", ["upstream", "outcome"],
            registry=registry,
        )  # fmt: skip
        self.attempts = Labelled(attempts, self._tallied(attempts, CounterTally))
        self.circuit_open = Gauge(
            "understudy_circuit_open", "1 while an upstream's breaker is open.", ["upstream"],
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.tokens = self._lasting(
            "understudy_tokens", "Tokens spent, served or not.", "served_by", "kind"
        )
        self.cost = self._lasting(
            "understudy_cost_usd", "Money spent: teacher by token, student by machine time.",
            "task", "served_by",
        )  # fmt: skip
        self.cost_avoided = self._lasting(
            "understudy_cost_avoided_usd",
            "What the teacher would have charged for student answers.", "task",
        )  # fmt: skip
        self.draws = Counter(
            "understudy_audit_draws", "Draws by outcome, and by who had answered the client.",
            ["task", "served_by", "outcome"], registry=registry,
        )  # fmt: skip
        self.risk_upper = Gauge(
            "understudy_risk_upper_bound", "Anytime-valid upper bound on the served risk.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.risk_lower = Gauge(
            "understudy_risk_lower_bound", "Anytime-valid lower bound on the served risk.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.audit_state = Gauge(
            "understudy_audit_state", "1 for the audit's state: confirmed, unproven or refuted.",
            ["task", "state"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.labels_missing = Gauge(
            "understudy_audit_labels_missing",
            "Labels until confirmed if errors come at the present rate; +Inf when never.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.suspicion = Gauge(
            "understudy_audit_suspicion",
            "Change detector: reaches x by chance at most once in x labels on average.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.draw_rate = Gauge(
            "understudy_draw_rate", "Probability that a request is drawn now.", ["task"],
            multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.drift = Gauge(
            "understudy_drift_score",
            "Population stability index of P(out) against the calibration rows.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.self_disagreement = Gauge(
            "understudy_teacher_self_disagreement",
            "Share of the probe set on which the teacher's first two runs disagree.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.events = Counter(
            "understudy_events", "Events of audit and gate.", ["task", "kind"], registry=registry
        )
        self.deployments = Counter(
            "understudy_deployments", "Changes of the registry followed here: taken or failed.",
            ["task", "outcome"], registry=registry,
        )  # fmt: skip
        self.canary_share = Gauge(
            "understudy_canary_share", "Share of the task's traffic that a new version answers.",
            ["task"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.replicas_ready = Gauge(
            "understudy_replicas_ready", "Replicas that list a student version and answered a "
            "probe for it.",
            ["task", "student"], multiprocess_mode="livemin", registry=registry,
        )  # fmt: skip
        self.reloads = Counter(
            "understudy_reloads", "Changed configurations by outcome: taken or refused.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.key_refusals = Counter(
            "understudy_key_refusals", "Requests refused to a key, by error code.",
            ["key", "code"], registry=registry,
        )  # fmt: skip
        self.key_spent = Gauge(
            "understudy_key_spent_today_usd", "Teacher money spent for a key this UTC day.",
            ["key"], multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "understudy_requests_in_flight",
            "Requests under way.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        self.replays = Counter(
            "understudy_idempotent_replays",
            "Requests whose Idempotency-Key had been answered: told again, not asked again.",
            registry=registry,
        )  # fmt: skip
        self.loop_lag = Gauge(
            "understudy_loop_lag_seconds", "How late the event loop wakes a sleeper.",
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self._of_the_store(registry)

    def _of_the_store(self, registry: CollectorRegistry) -> None:
        self.records = self._lasting(
            "understudy_fallback_records", "Exchanges by what became of them: stored; partial "
            "(without bodies); late (stored after the answer went out marked); lost; "
            "not_shippable (Postgres refuses it; it stays in the outbox).", "state",
            threads=True,
        )  # fmt: skip
        self.feedback = Counter(
            "understudy_feedback", "Feedback taken in: kind up, down or correction.",
            ["task", "kind", "state"], registry=registry,
        )  # fmt: skip
        self.retired = Counter(
            "understudy_retention_deleted", "Exchanges deleted by `retention_days`.",
            ["task"], registry=registry,
        )  # fmt: skip
        self.outbox = Gauge(
            "understudy_outbox_records", "Exchanges in the outbox that Postgres does not have yet.",
            multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.shipped = Counter(
            "understudy_outbox_shipped", "Exchanges that left the outbox for Postgres.",
            registry=registry,
        )  # fmt: skip
        self.late = Gauge(
            "understudy_capture_late_records", "Exchanges in memory that could not be stored yet.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.capture_level = Gauge(
            "understudy_capture_level", "0: all is stored; 1: bodies of student-served exchanges "
            "are left out; 2: nothing can be stored.",
            multiprocess_mode="livemax", registry=registry,
        )  # fmt: skip
        self.dropped_bodies = Counter(
            "understudy_capture_dropped_bodies", "Stored exchanges whose bodies were dropped to "
            "make room.", registry=registry,
        )  # fmt: skip
        self.store_bytes = Gauge(
            "understudy_store_bytes", "Bytes that rows take in the store's file.",
            multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.store_set_aside = Gauge(
            "understudy_store_set_aside", "Damaged store files beside the store, moved there at a "
            "start.", multiprocess_mode="livemostrecent", registry=registry,
        )  # fmt: skip
        self.queue = Gauge(
            "understudy_fallback_queue_records", "Exchanges that wait for their commit.",
            multiprocess_mode="livesum", registry=registry,
        )  # fmt: skip
        self.commit_seconds = Histogram(
            "understudy_capture_commit_seconds", "One group commit.", buckets=_FAST,
            registry=registry,
        )  # fmt: skip

    def _lasting(self, name: str, says: str, *labels: str, threads: bool = False) -> Lasting:
        """``threads``: others than the event loop's count too."""
        counter = Counter(name, says, labels, registry=self.registry)
        make = counter.labels if threads else self._tallied(counter, CounterTally)
        made = self._of_totals[name] = Lasting(counter, name, len(labels), self.totals, make)
        return made

    def _histogram(
        self, name: str, says: str, bounds: tuple[float, ...], *labels: str
    ) -> Labelled[Observing]:
        histogram = Histogram(name, says, labels, buckets=bounds, registry=self.registry)
        make = self._tallied(histogram, lambda series: HistogramTally(series, bounds))
        return Labelled(histogram, make)

    def _tallied(self, metric: M, tally: Callable[[M], T]) -> Callable[..., M | T]:
        """What makes a metric's series."""
        if _several_workers():  # any of them may be asked for the values of all, or be killed
            return metric.labels

        def make(*values: str) -> T:
            made = tally(metric.labels(*values))
            self._tallies.append(made)
            return made

        return make

    def settle(self) -> None:
        """Tell the library what was counted, before its values are read; in the event loop's
        thread."""
        for tally in self._tallies:
            tally.settle()

    def take_up(self, totals: Iterable[tuple[str, str, float]]) -> None:
        """Begin where the former processes over this store ended; of several workers one does,
        with what their supervisor left for it."""
        if _several_workers():
            totals = taken_seeds(Path(os.environ[METRICS_DIR]))
        for metric, labels, value in totals:
            counter = self._of_totals.get(metric)
            values = Series(metric, labels).values()
            # A counter that is no more, or has other labels than when this was counted, stays out.
            if counter is not None and len(values) == counter.arity and value > 0:
                counter.labels(*values).show(value)

    def breaker(self, upstream: str, shut: bool) -> None:
        """Show whether an upstream's breaker is open; told after every call, it seldom changes."""
        if self._shut.get(upstream) is not shut:
            self._shut[upstream] = shut
            self.circuit_open.labels(upstream).set(shut)

    def open_series(self, task: str) -> None:
        """Give a task's reasons and draws their series at 0, so that rates exist from the start."""
        for reason in Reason:
            served = (
                ServedBy.STUDENT
                if reason in {Reason.IN_DISTRIBUTION, Reason.TEACHER_DOWN}
                else ServedBy.TEACHER
            )
            self.requests.labels(task, served, reason, "2xx")
        for side in ServedBy:
            for outcome in DRAW_OUTCOMES.values():
                self.draws.labels(task, side, outcome)

    def forget_student(self, task: str, student: str, router: str) -> None:
        """A version that is no longer in service. Files that several workers share forget no
        series: theirs stay at 0."""
        self.student_info.labels(task, student, router).set(0)
        if not _several_workers():
            self.student_info.remove(task, student, router)

    def exposition(self) -> bytes:
        """The Prometheus text format, of all workers together."""
        self.settle()
        registry = self.registry
        if _several_workers():
            registry = CollectorRegistry()
            registry.register(self.store_figures)
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _several_workers() -> bool:
    """Whether the library keeps its values in files: it decides so when it is imported."""
    return METRICS_DIR in os.environ
