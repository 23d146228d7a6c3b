"""Every alert, firing and silent, by promtool; the file of cases is made from the table here."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.prometheus import promtool
from tests.unit.test_alerts import FILES, RULES

ALERTS = {rule["alert"]: rule for rule in RULES}
GROUPS = [group["name"] for path in FILES for group in yaml.safe_load(path.read_text())["groups"]]
GROUPS.sort(key=lambda name: name != "understudy-ratios")
TASK = '{task="t"}'
ON = {"task": "t"}


@dataclass(frozen=True)
class Case:
    """Series that make an alert fire ``at`` a time, with its labels and the value it tells; and
    series like them that do not."""

    fires: dict[str, str]
    silent: dict[str, str]
    at: str = "20m"
    labels: dict[str, str] = field(default_factory=lambda: dict(ON))
    value: str = ""


LONG = {"31h", "49h", "51h20m", "80h"}


def requests(share: str, served: str = "teacher") -> dict[str, str]:
    """100 answers a minute, of which ``share`` more are 5xx."""
    labels = f'task="t", served_by="{served}", reason="ood"'
    return {
        f'understudy_requests_total{{{labels}, code_class="2xx"}}': "0+100x10000",
        f'understudy_requests_total{{{labels}, code_class="5xx"}}': f"0+{share}x10000",
    }


def draws(disagree: str, agree: str = "1") -> dict[str, str]:
    """Draws of what the student served, a minute; the promise is 5 %."""
    labels = 'task="t", served_by="student"'
    return {
        f'understudy_audit_draws_total{{{labels}, outcome="agree"}}': f"0+{agree}x10000",
        f'understudy_audit_draws_total{{{labels}, outcome="disagree"}}': f"0+{disagree}x10000",
        f"understudy_risk_alpha{TASK}": "0.05x10000",
    }


def gauge(name: str, value: str, labels: str = TASK) -> dict[str, str]:
    return {f"{name}{labels}": f"{value}x10000"}


def state(which: str, value: str) -> dict[str, str]:
    return gauge("understudy_audit_state", value, f'{{task="t", state="{which}"}}')


def counted(name: str, labels: str, steps: str) -> dict[str, str]:
    return {f'{name}{{task="t", {labels}}}': steps}


def event(kind: str, steps: str) -> dict[str, str]:
    return counted("understudy_events_total", f'kind="{kind}"', steps)


def runs(outcome: str, steps: str) -> dict[str, str]:
    return counted("understudy_distill_runs_total", f'outcome="{outcome}"', steps)


def of_instance(name: str, value: str, more: str = "") -> dict[str, str]:
    return {f'{name}{{instance="g1"{more}}}': f"{value}x10000"}


G1 = {"instance": "g1"}
LATE = "understudy_distill_last_success_timestamp_seconds"
CASES = {
    "UnderstudyErrorsFast": Case(requests("2"), requests("1"), "70m", {}, "1.961%"),
    "UnderstudyErrorsSlow": Case(requests("1"), requests("0.5"), "7h", {}, "0.9901%"),
    "UnderstudyErrorsLong": Case(requests("0.2"), requests("0.05"), "80h", {}),
    "UnderstudyDown": Case(
        of_instance("up", "0", ', job="understudy"'), of_instance("up", "1", ', job="understudy"'),
        labels={"instance": "g1", "job": "understudy"},
    ),
    "UnderstudyTeacherBreakerOpen": Case(
        gauge("understudy_circuit_open", "1", '{upstream="t/teacher"}'),
        gauge("understudy_circuit_open", "1", '{upstream="t/student"}'),
        "5m", {"upstream": "t/teacher"},
    ),
    "UnderstudyStudentBreakerOpen": Case(
        gauge("understudy_circuit_open", "1", '{upstream="t/student"}'),
        gauge("understudy_circuit_open", "1", '{upstream="t/teacher"}'),
        labels={"upstream": "t/student"},
    ),
    "UnderstudyNoReplicaReady": Case(
        {**gauge("understudy_replicas_ready", "0", '{task="t", student="t@v1"}'),
         **gauge("understudy_student_info", "1", '{task="t", student="t@v1", router="v1"}')},
        {**gauge("understudy_replicas_ready", "0", '{task="t", student="t@v1"}'),
         **gauge("understudy_student_info", "1", '{task="t", student="t@v2", router="v2"}')},
        labels={"task": "t", "student": "t@v1"},
    ),
    "UnderstudyShedding": Case(
        of_instance("understudy_loop_lag_seconds", "2"),
        of_instance("understudy_loop_lag_seconds", "0.5"), labels=G1, value="2s",
    ),
    "UnderstudyRefuted": Case(state("refuted", "1"), state("unproven", "1")),
    "UnderstudyGateClosed": Case(
        gauge("understudy_gate_open", "0"), gauge("understudy_gate_open", "1"), "40m"
    ),
    "UnderstudyRiskFast": Case(draws("0.25"), draws("0.1"), "6h", value="20%"),
    "UnderstudyRiskSlow": Case(draws("0.1"), draws("0.04"), "80h", value="9.091%"),
    "UnderstudyUnproven": Case(state("unproven", "1"), state("confirmed", "1"), "49h"),
    "UnderstudyDraws": Case(
        {**draws("0"), **counted("understudy_audit_draws_total",
                                 'served_by="student", outcome="failed"', "0+1x10000")},
        {**draws("0"), **counted("understudy_audit_draws_total",
                                 'served_by="student", outcome="failed"', "0+0.1x10000")},
        "3h",
    ),
    "UnderstudyDrift": Case(
        gauge("understudy_drift_score", "0.3"), gauge("understudy_drift_score", "0.2"), "70m"
    ),
    "UnderstudyTeacherChanged": Case(
        event("teacher_changed", "0x5 1x1000"), event("drift", "0x5 1x1000")
    ),
    "UnderstudyTeacherNoisy": Case(
        {**gauge("understudy_teacher_self_disagreement", "0.06"), **draws("0")},
        {**gauge("understudy_teacher_self_disagreement", "0.04"), **draws("0")}, "70m",
    ),
    "UnderstudyNightLate": Case(
        gauge(LATE, "0"), gauge(LATE, "7200"), "31h", value="1d 7h 0m 0s"
    ),
    "UnderstudyNightFailed": Case(
        runs("failed", "0x5 1x1000"), runs("promoted", "0x5 1x1000")
    ),
    "UnderstudyRefusedThrice": Case(
        {**runs("refused", "0x100 1x100 2x100 3x1000"), **runs("promoted", "1x1400")},
        {**runs("refused", "0x100 1x100 2x100 3x1000"), **runs("promoted", "1x50 2x1300")},
        "8h",
    ),
    "UnderstudyRolledBack": Case(
        event("rolled_back", "0x5 1x1000"), event("promoted", "0x5 1x1000")
    ),
    "UnderstudyDeploymentFails": Case(
        {'understudy_deployments_total{task="t", instance="g1", outcome="failed"}': "0+1x1000"},
        {'understudy_deployments_total{task="t", instance="g1", outcome="taken"}': "0+1x1000"},
        labels={"task": "t", "instance": "g1"},
    ),
    "UnderstudySpendJumps": Case(
        {'understudy_cost_usd_total{task="t", served_by="teacher"}': "0+0.01x3000 30+0.2x200"},
        {'understudy_cost_usd_total{task="t", served_by="teacher"}': "0+0.01x3200"},
        "51h20m", {}, "12",
    ),
    "UnderstudyKeyOutOfMoney": Case(
        {'understudy_key_refusals_total{key="app", code="insufficient_quota"}': "0x5 1+1x1000"},
        {'understudy_key_refusals_total{key="app", code="rate_limit_exceeded"}': "0x5 1+1x1000"},
        labels={"key": "app"},
    ),
    "UnderstudyCaptureRefusing": Case(
        of_instance("understudy_capture_level", "2"), of_instance("understudy_capture_level", "1"),
        labels=G1,
    ),
    "UnderstudyCapturePartial": Case(
        of_instance("understudy_capture_level", "1"), of_instance("understudy_capture_level", "0"),
        labels=G1,
    ),
    "UnderstudyCapturesLost": Case(
        {'understudy_fallback_records_total{instance="g1", state="lost"}': "0x15 3x1000"},
        {'understudy_fallback_records_total{instance="g1", state="stored"}': "0x15 3x1000"},
        labels=G1,
    ),
    "UnderstudyStoreSetAside": Case(
        of_instance("understudy_store_set_aside", "1"),
        of_instance("understudy_store_set_aside", "0"), labels=G1,
    ),
    "UnderstudyOutboxNotShipping": Case(
        {**of_instance("understudy_outbox_records", "7"),
         'understudy_outbox_shipped_total{instance="g1"}': "5x1000"},
        {**of_instance("understudy_outbox_records", "7"),
         'understudy_outbox_shipped_total{instance="g1"}': "0+1x1000"},
        labels=G1,
    ),
    "UnderstudyCommitsSlow": Case(
        {f'understudy_capture_commit_seconds_bucket{{instance="g1", le="{le}"}}': f"0+{n}x1000"
         for le, n in (("0.1", 1), ("0.25", 9), ("+Inf", 10))},
        {f'understudy_capture_commit_seconds_bucket{{instance="g1", le="{le}"}}': f"0+{n}x1000"
         for le, n in (("0.1", 10), ("0.25", 10), ("+Inf", 10))},
        labels=G1,
    ),
}  # fmt: skip


def expected(name: str, case: Case) -> dict[str, Any]:
    """The alert as promtool is to see it."""
    rule = ALERTS[name]

    def told(text: str) -> str:
        text = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: case.labels[m[1]], text)
        return re.sub(r"{{ \$value[^}]*}}", case.value, text)

    return {
        "exp_labels": {**case.labels, **rule["labels"]},
        "exp_annotations": {key: told(text) for key, text in rule["annotations"].items()},
    }


def checked(name: str, case: Case) -> list[dict[str, Any]]:
    """It fires on one set of series and not on the other."""
    found = []
    for series, alerts in ((case.fires, [expected(name, case)]), (case.silent, [])):
        check: dict[str, Any] = {"eval_time": case.at, "alertname": name, "exp_alerts": alerts}
        found.append({
            "interval": "1m",
            "input_series": [{"series": s, "values": v} for s, v in series.items()],
            "alert_rule_test": [check],
        })  # fmt: skip
    return found


def test_promtool_takes_the_rules() -> None:
    command = [promtool(), "check", "rules", *map(str, FILES)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_its_case() -> None:
    assert set(CASES) == set(ALERTS)


@pytest.mark.parametrize("name", CASES)
def test_an_alert_fires_and_is_silent(name: str, tmp_path: Path) -> None:
    path = tmp_path / "tests.yaml"
    wanted = {
        "rule_files": [str(file) for file in FILES],
        # Evaluating three days each minute would take longer than it shows anything.
        "evaluation_interval": "10m" if CASES[name].at in LONG else "1m",
        # What is recorded at a time is there before alerts look at it.
        "group_eval_order": GROUPS,
        "tests": checked(name, CASES[name]),
    }
    path.write_text(yaml.safe_dump(wanted, sort_keys=False))
    command = [promtool(), "test", "rules", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
