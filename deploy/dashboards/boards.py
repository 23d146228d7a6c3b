"""The four dashboards: who answers, how well, how fast, and what the nights bring."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from deploy.dashboards.panels import (
    BLUE,
    GREEN,
    RED,
    YELLOW,
    Panel,
    Query,
    board,
    densities,
    lines,
    number,
    states,
)

T = 'task=~"$task"'
RATE = "[$__rate_interval]"
REQUESTS = "understudy_requests_total"

NONE = " or on () vector(0)"
"""A zero where there is nothing, and only there: a task without nights, say."""


def _rate(metric: str, labels: str = T, by: str = "") -> str:
    by = f"by ({by}) " if by else ""
    return f"sum {by}(rate({metric}{{{labels}}}{RATE}))"


def _share(part: str, whole: str) -> str:
    """``part`` of ``whole``; of nothing it is 0."""
    return f"{part} / ({whole} > 0) or 0 * {whole}"


def _quantile(q: float, metric: str, labels: str, by: str) -> str:
    inner = f"sum by ({by}, le) (rate({metric}_bucket{{{labels}}}{RATE}))"
    return f"histogram_quantile({q}, {inner})"


def _both(metric: str, labels: str, by: str) -> list[Query]:
    return [
        Query(_quantile(0.5, metric, labels, by), f"{{{{{by}}}}} p50"),
        Query(_quantile(0.99, metric, labels, by), f"{{{{{by}}}}} p99"),
    ]


def _in_service(width: int = 12) -> Panel:
    return states(
        "Version in service",
        [Query(f"max by (task, student) (understudy_student_info{{{T}}})", "{{student}}")],
        "Green while a version answers.", ((None, "transparent"), (1, GREEN)), width,
    )  # fmt: skip


def traffic() -> Dashboard:
    """Who answers, why, and what it costs."""
    student = f'{T}, served_by="student"'
    share = _share(f"({_rate(REQUESTS, student)}{NONE})", _rate(REQUESTS))
    by_task = _share(_rate(REQUESTS, student, "task"), _rate(REQUESTS, T, "task"))
    spent = f"sum(increase(understudy_cost_usd_total{{{T}}}[24h]))"
    avoided = f"sum(increase(understudy_cost_avoided_usd_total{{{T}}}[24h]))"
    now: list[Panel] = [
        number("Requests", _rate(REQUESTS), "reqps", "Everything that was answered."),
        number("Served by the student", share, "percentunit", "Of everything answered.",
               ((None, YELLOW), (0.5, GREEN))),
        number("Certified coverage", f"min(understudy_coverage_ratio{{{T}}})", "percentunit",
               "What the certificate expects of traffic like its draws; the lowest task's."),
        number("Gates closed", f"sum(1 - understudy_gate_open{{{T}}}){NONE}", "short",
               "Tasks whose student may not serve.", ((None, GREEN), (1, RED))),
        number("Spent in 24 h", spent, "currencyUSD", "Teacher by token, student by machine time."),
        number("Avoided in 24 h", avoided, "currencyUSD",
               "What the teacher would have charged for what students answered.",
               ((None, GREEN),)),
    ]  # fmt: skip
    split: list[Panel] = [
        lines("Share by reason", [Query(_rate(REQUESTS, T, "reason"), "{{reason}}")], "reqps",
              "Why whoever answered did; reasons are in the HTTP reference.", stacked="percent"),
        lines("By task and side", [Query(_rate(REQUESTS, T, "task, served_by"),
                                         "{{task}} {{served_by}}")],
              "reqps", "Requests answered.", stacked="normal"),
        lines("Coverage against certified",
              [Query(by_task, "{{task}} served"),
               Query(f"max by (task) (understudy_coverage_ratio{{{T}}})", "{{task}} certified")],
              "percentunit", "Well below the certified coverage, traffic is not like the draws "
              "that certified it: see drift on Quality.", most=1),
        lines("Errors", [Query(_rate(REQUESTS, f'{T}, code_class!="2xx"', "code_class")
                               + NONE, "{{code_class}}")],
              "reqps", "Answers that were no success, by class of status."),
    ]  # fmt: skip
    versions: list[Panel] = [
        _in_service(),
        lines("Canary share",
              [Query(f"max by (task) (understudy_canary_share{{{T}}})", "{{task}}")],
              "percentunit", "Share of a task's conversations that a new version answers first.",
              most=1),
    ]  # fmt: skip
    money: list[Panel] = [
        lines("Cost", [Query(f"3600 * {_rate('understudy_cost_usd_total', T, 'served_by')}",
                             "{{served_by}} an hour"),
                       Query(f"3600 * {_rate('understudy_cost_avoided_usd_total')}",
                             "avoided an hour")],
              "currencyUSD", "At the present rate."),
        lines("Tokens", [Query(f"sum by (served_by, kind) (rate(understudy_tokens_total{RATE}))",
                               "{{served_by}} {{kind}}")],
              "short", "Tokens a second, served or not: cancelled students and draws count."),
    ]  # fmt: skip
    return board(
        "understudy-traffic", "Understudy: traffic split",
        "Who answers, why, and what it costs.",
        [("Now", now), ("Split", split), ("Versions", versions), ("Money", money)],
        _EVENTS,
    )  # fmt: skip


def _draws(outcomes: str) -> str:
    labels = f'{T}, outcome=~"{outcomes}"'
    return f"sum by (task, served_by) (increase(understudy_audit_draws_total{{{labels}}}[6h]))"


def quality() -> Dashboard:
    """Whether the promise is kept, and how that is known."""
    upper, lower = "understudy_risk_upper_bound", "understudy_risk_lower_bound"
    drift = ((None, GREEN), (0.1, YELLOW), (0.25, RED))
    now: list[Panel] = [
        number("Risk, upper bound over alpha",
               f"max(understudy_risk_upper_bound{{{T}}} / on (task) understudy_risk_alpha{{{T}}})",
               "percentunit", "100 % or less: the promise is confirmed. The worst task's.",
               ((None, GREEN), (1, YELLOW))),
        number("Refuted", f'sum(understudy_audit_state{{{T}, state="refuted"}}){NONE}',
               "short", "Tasks whose risk is above alpha with confidence.",
               ((None, GREEN), (1, RED))),
        number("Labels missing", f"max(understudy_audit_labels_missing{{{T}}})", "short",
               "Until the upper bound comes to alpha, if errors come as they do. The most of any "
               "task."),
        number("Drift", f"max(understudy_drift_score{{{T}}}){NONE}", "short",
               "Population stability index of P(out): from 0.1 a look, from 0.25 a shift. 0 until "
               "500 prompts were judged.", drift),
        number("Teacher's own noise", f"max(understudy_teacher_self_disagreement{{{T}}}){NONE}",
               "percentunit", "Share of the probe set on which the teacher contradicts itself: no "
               "risk below it can be shown. 0 until a probe set was asked twice."),
        number("Draws a day", f"86400 * {_rate('understudy_audit_draws_total')}", "short",
               "Answers of the other side asked for, at the present rate."),
    ]  # fmt: skip
    promise: list[Panel] = [
        lines("Risk against alpha",
              [Query(f"max by (task) ({upper}{{{T}}})", "{{task}} upper"),
               Query(f"max by (task) ({lower}{{{T}}})", "{{task}} lower"),
               Query(f"max by (task) (understudy_risk_alpha{{{T}}})", "{{task}} alpha")],
              "percentunit", "Anytime-valid bounds. Upper under alpha: confirmed. Lower over "
              "alpha: refuted, and the gate closes."),
        states("Audit",
               [Query(f'understudy_audit_state{{{T}, state="{state}"}}', f"{{{{task}}}} {state}")
                for state in ("confirmed", "unproven", "refuted")],
               "The audit's state.", ((None, "transparent"), (1, BLUE))),
        states("Gate", [Query(f"understudy_gate_open{{{T}}}", "{{task}}")],
               "Whether the student may serve.", ((None, RED), (1, GREEN))),
        lines("Change detector", [Query(f"understudy_audit_suspicion{{{T}}}", "{{task}}")], "short",
              "Reaches x by chance at most once in x labels."),
    ]  # fmt: skip
    labels: list[Panel] = [
        lines("Draws by outcome",
              [Query(f"3600 * {_rate('understudy_audit_draws_total', T, 'outcome')}",
                     "{{outcome}} an hour")],
              "short", "Second answers, and what they said."),
        lines("Disagreement of draws",
              [Query(_share(_draws("disagree"), _draws("agree|disagree")),
                     "{{task}} served by {{served_by}}")],
              "percentunit", "Of six hours' draws: what the student served, and what it would have "
              "said where the teacher answered.", most=1),
        lines("Agreement by slice, the lowest",
              [Query("bottomk(10, max by (task, slice) "
                     f"(understudy_distill_agreement_ratio{{{T}}})){NONE}",
                     "{{task}}: {{slice}}")],
              "percentunit", "Of the version that serves, on the test rows of the latest run that "
              "measured it; slices are the frequent answers of a closed set.", most=1),
        lines("Draw rate", [Query(f"understudy_draw_rate{{{T}}}", "{{task}}")], "percentunit",
              "Probability that a request is drawn."),
        lines("Feedback", [Query("sum by (kind, state) (rate(understudy_feedback_total"
                                 f"{{{T}}}{RATE})) * 3600{NONE}",
                                 "{{kind}} {{state}}")],
              "short", "Words of applications, an hour."),
    ]  # fmt: skip
    scores: list[Panel] = [
        densities("P(out of distribution)", "understudy_ood_score", T, "percentunit",
                  "Of judged prompts. Drift moves mass to the top."),
        densities("P(disagree)", "understudy_disagree_score", T, "percentunit",
                  "Of judged answers; the threshold cuts it."),
        lines("Drift of prompts", [Query(f"understudy_drift_score{{{T}}}{NONE}", "{{task}}")],
              "short",
              "Population stability index of P(out) against the calibration rows.", steps=drift),
        lines("Events",
              [Query(f"sum by (task, kind) (increase(understudy_events_total{{{T}}}[1h]))"
                     + NONE,
                     "{{task}} {{kind}}")],
              "short", "What `understudy` wrote into the events, by the hour."),
    ]  # fmt: skip
    return board(
        "understudy-quality", "Understudy: quality", "Whether the promise is kept.",
        [("Now", now), ("Promise", promise), ("Labels", labels), ("Scores", scores)], _EVENTS,
    )  # fmt: skip


def performance() -> Dashboard:
    """How fast, how full, and which upstream is in trouble."""
    slow = "understudy_request_duration_seconds"
    first = "understudy_time_to_first_token_seconds"
    now: list[Panel] = [
        number("In flight", "sum(understudy_requests_in_flight)", "short", "Requests under way."),
        number("Overhead, p99", _quantile(0.99, "understudy_overhead_seconds", "", "job"), "s",
               "What the gateway adds.", ((None, GREEN), (0.05, YELLOW), (0.25, RED))),
        number("Breakers open", f"sum(understudy_circuit_open){NONE}", "short",
               "Upstreams that are left alone.", ((None, GREEN), (1, RED))),
        number("Loop lag", "max(understudy_loop_lag_seconds)", "s",
               "How late the event loop wakes; over the limit requests are shed.",
               ((None, GREEN), (0.1, YELLOW), (1, RED))),
        number("Capture level", "max(understudy_capture_level)", "short",
               "0: all is stored. 1: bodies are left out. 2: nothing can be stored.",
               ((None, GREEN), (1, YELLOW), (2, RED))),
        number("Outbox", "sum(understudy_outbox_records)", "short",
               "Exchanges that Postgres does not have yet."),
    ]  # fmt: skip
    speed: list[Panel] = [
        lines("Overhead by stage", _both("understudy_overhead_seconds", "", "stage"), "s",
              "Time of the gateway's own."),
        lines("To the first token", _both(first, T, "served_by"), "s", "As the client waits."),
        lines("To the end", _both(slow, T, "served_by"), "s", "As the client waits."),
        lines("In flight and lag",
              [Query("sum by (instance) (understudy_requests_in_flight)", "{{instance}} in flight"),
               Query("sum by (instance) (understudy_fallback_queue_records)",
                     "{{instance}} waiting for their commit")],
              "short", "What is under way."),
    ]  # fmt: skip
    upstreams: list[Panel] = [
        lines("Calls by outcome",
              [Query(f"sum by (upstream, outcome) (rate(understudy_upstream_attempts_total{RATE}))",
                     "{{upstream}} {{outcome}}")],
              "reqps", "Calls to students and teachers.", stacked="normal"),
        states("Breakers", [Query("max by (upstream) (understudy_circuit_open)", "{{upstream}}")],
               "Red while open.", ((None, GREEN), (1, RED))),
        lines("Replicas ready",
              [Query(f"min by (task, student) (understudy_replicas_ready{{{T}}}){NONE}",
                     "{{student}}")],
              "short", "Replicas that list a registered version and answered a probe for it."),
        lines("Refused to keys",
              [Query(f"sum by (code) (rate(understudy_key_refusals_total{RATE})){NONE}",
                     "{{code}}")],
              "reqps", "By error code."),
    ]  # fmt: skip
    store: list[Panel] = [
        lines("Commits", [Query(_quantile(0.5, "understudy_capture_commit_seconds", "", "job"),
                                "p50"),
                          Query(_quantile(0.99, "understudy_capture_commit_seconds", "", "job"),
                                "p99")],
              "s", "One group commit."),
        lines("Exchanges by what became of them",
              [Query(f"sum by (state) (rate(understudy_fallback_records_total{RATE}))",
                     "{{state}}")],
              "reqps", "Late: stored after the answer went out marked. Lost: gone."),
        lines("Store", [Query("max by (instance) (understudy_store_bytes)", "{{instance}}")],
              "bytes", "What rows take in the store's file."),
        lines("Waiting exchanges",
              [Query("sum by (instance) (understudy_outbox_records)", "{{instance}}"),
               Query("sum by (instance) (understudy_capture_late_records)",
                     "{{instance}} late, in memory")],
              "short", "Exchanges that wait for Postgres, or for the disk."),
    ]  # fmt: skip
    return board(
        "understudy-performance", "Understudy: performance",
        "How fast, how full, and which upstream is in trouble.",
        [("Now", now), ("Speed", speed), ("Upstreams", upstreams), ("Store", store)],
    )  # fmt: skip


def distillation() -> Dashboard:
    """What the nights bring, and why not."""
    runs, last = (
        "understudy_distill_runs_total",
        "understudy_distill_last_success_timestamp_seconds",
    )
    day = 86_400.0
    now: list[Panel] = [
        number("Since the last decision", f"time() - max by (task) ({last}{{{T}}}){NONE}", "s",
               "A run that promoted, refused, waits or had nothing to learn. 0: none yet.",
               ((None, GREEN), (1.25 * day, YELLOW), (2 * day, RED)), 6),
        *(
            number(f"{outcome.capitalize()} in 7 days",
                   f'sum(max by (task) (increase({runs}{{{T}, outcome="{outcome}"}}[7d])))'
                   f"{NONE}", "short", means, steps, 6)
            for outcome, means, steps in (
                ("promoted", "New versions.", ((None, BLUE),)),
                ("refused", "Candidates that were no better, or not certified.", ((None, BLUE),)),
                ("failed", "Runs that ended in an error.", ((None, GREEN), (1, RED))),
            )
        ),
    ]  # fmt: skip
    nights: list[Panel] = [
        lines("Runs by outcome",
              [Query(f"max by (task, outcome) ({runs}{{{T}}}){NONE}", "{{task}} {{outcome}}")],
              "short", "As the ledger counts them."),
        lines("Examples by state",
              [Query(f"max by (task, state) (understudy_distill_examples{{{T}}}){NONE}",
                     "{{task}} {{state}}")],
              "short", "Of the latest run. Fresh calibration draws decide once.",
              stacked="normal"),
        _in_service(24),
        lines("Changes of versions",
              [Query(f"sum by (task, outcome) (increase(understudy_deployments_total{{{T}}}[1h]))"
                     + NONE,
                     "{{task}} {{outcome}}")],
              "short", "Followed by gateways, or failed to."),
        lines("Events of the nights",
              [Query("sum by (task, kind) (increase(understudy_events_total{"
                     f'{T}, kind=~"promoted|rolled_back|canary|teacher_changed|drift"}}[1h]))'
                     + NONE,
                     "{{task}} {{kind}}")],
              "short", "By the hour."),
    ]  # fmt: skip
    return board(
        "understudy-distillation", "Understudy: distillation",
        "What the nights bring; each run's report says why.",
        [("Now", now), ("Nights", nights)], _EVENTS,
    )  # fmt: skip


def _on(kind: str) -> str:
    return f'sum by (task) (increase(understudy_events_total{{{T}, kind="{kind}"}}[1m])) > 0'


_EVENTS = (
    ("Promoted", _on("promoted"), "green"),
    ("Rolled back", _on("rolled_back"), "orange"),
    ("Gate closed", _on("gate_closed"), "red"),
)
BOARDS = (traffic, quality, performance, distillation)
