"""The Helm chart: linted, rendered and validated by the tools that will read it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.config_file import load_config, named_secrets
from tests.fakes.rig import ROOT

CHART = ROOT / "deploy/helm/understudy"
HELM = ROOT / ".cache/helm/bin/helm"
VALIDATE = Path(sys.executable).parent / "kubernetes-validate"
CASES = {"defaults": None, **{p.name.removesuffix("-values.yaml"): p
                              for p in sorted((CHART / "ci").glob("*.yaml"))}}  # fmt: skip
CRDS = {"ServiceMonitor", "PrometheusRule"}
"""Kinds of the Prometheus operator: their schemas are not Kubernetes's own."""


def helm(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [HELM, *arguments], capture_output=True, text=True, check=False,
        env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"},
    )  # fmt: skip


def rendered(case: str, *more: str) -> list[dict[str, Any]]:
    values = CASES[case]
    given = ("-f", values) if values else ()
    done = helm("template", "r", CHART, "--namespace", "n", *given, *more)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def one(documents: list[dict[str, Any]], kind: str, name: str = "r-understudy") -> dict[str, Any]:
    (found,) = (d for d in documents if d["kind"] == kind and d["metadata"]["name"] == name)
    return found


@pytest.mark.parametrize("case", CASES)
def test_helm_lints_the_chart(case: str) -> None:
    values = CASES[case]
    done = helm("lint", "--strict", CHART, *(("-f", values) if values else ()))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_kubernetes_takes_what_it_renders(case: str, tmp_path: Path) -> None:
    documents = rendered(case)
    assert len(documents) > 3
    path = tmp_path / "all.yaml"
    path.write_text(yaml.safe_dump_all([d for d in documents if d["kind"] not in CRDS]))
    done = subprocess.run([VALIDATE, "--strict", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("case", CASES)
def test_the_gateway_takes_the_configuration(case: str, tmp_path: Path) -> None:
    """And what pods mount, ask for and select is there."""
    documents = rendered(case)
    path = tmp_path / "understudy.yaml"
    path.write_text(one(documents, "ConfigMap")["data"]["understudy.yaml"])
    config = load_config(path)
    assert config.listen.host == "0.0.0.0"
    assert "UNDERSTUDY_KEY" in {variable for _, variable in named_secrets(config)}
    services = {d["metadata"]["name"]: d["spec"] for d in documents if d["kind"] == "Service"}
    sets = {d["metadata"]["name"]: d for d in documents if d["kind"] == "StatefulSet"}
    student = config.tasks[0].student
    assert student is not None
    for url in (*student.base_urls, *student.classifier_urls):
        host = url.split("//")[1].split(":")[0]
        if "." in host:  # a pod of a server that the chart starts
            pod, service = host.split(".")
            owner, number = pod.rsplit("-", 1)
            assert int(number) < sets[owner]["spec"]["replicas"]
            assert sets[owner]["spec"]["serviceName"] == service
            assert f":{services[service]['ports'][0]['port']}/" in url
    for service in services.values():
        labels = [d["spec"]["template"]["metadata"]["labels"] for d in documents
                  if d["kind"] in {"StatefulSet", "Deployment"}]  # fmt: skip
        assert any(service["selector"].items() <= have.items() for have in labels)


def test_pods_are_locked_down_and_drain() -> None:
    for document in rendered("full"):
        if document["kind"] not in {"StatefulSet", "CronJob"}:
            continue
        spec = document["spec"]
        pod = (spec["jobTemplate"]["spec"] if "jobTemplate" in spec else spec)["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            if "vllm" not in container["name"]:
                assert security["readOnlyRootFilesystem"] is True
            assert container["resources"]["limits"]["memory"]
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            claims = {c["metadata"]["name"] for c in spec.get("volumeClaimTemplates", ())}
            assert mounts == {v["name"] for v in pod["volumes"]} | claims
    config = yaml.safe_load(one(rendered("full"), "ConfigMap")["data"]["understudy.yaml"])
    grace = one(rendered("full"), "StatefulSet")["spec"]["template"]["spec"]
    listen = config["listen"]
    assert grace["terminationGracePeriodSeconds"] > listen["drain_delay_s"] + listen["drain_s"]


def test_no_secret_s_value_is_in_the_chart() -> None:
    documents = rendered("full")
    assert not [d for d in documents if d["kind"] == "Secret"]
    pod = one(documents, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["containers"][0]["envFrom"] == [{"secretRef": {"name": "my-secrets"}}]


def test_rules_and_dashboards_are_those_of_the_other_folders() -> None:
    documents = rendered("full")
    rules = [d["spec"] for d in documents if d["kind"] == "PrometheusRule"]
    written = sorted((ROOT / "deploy/prometheus").glob("*.rules.yaml"))
    assert rules == [yaml.safe_load(path.read_text()) for path in written]
    for path in (ROOT / "deploy/grafana/dashboards").glob("*.json"):
        held = one(documents, "ConfigMap", f"r-understudy-{path.stem}")
        assert held["data"] == {path.name: path.read_text()}
        assert held["metadata"]["labels"]["grafana_dashboard"] == "1"


def test_a_change_of_the_configuration_rolls_the_pods() -> None:
    def mark(*more: str) -> str:
        pod = one(rendered("defaults", *more), "StatefulSet")["spec"]["template"]
        found: str = pod["metadata"]["annotations"]["checksum/config"]
        return found

    assert mark() == mark()
    assert mark() != mark("--set", "config.tasks[0].risk.alpha=0.1")


@pytest.mark.parametrize(("values", "says"), [
    ("gateway.replicas=0", "gateway/replicas"),
    ("gatway.replicas=2", "gatway"),
    ("config.listen.port=1", "config"),
    ("config.postgres=null", "several gateways share"),
    ("vllm.enabled=true", "vllm.baseModelClaim"),
    ("secrets.existing=", "secrets/existing"),
])  # fmt: skip
def test_a_mistake_is_named(values: str, says: str) -> None:
    done = helm("template", "r", CHART, "--set", values)
    assert done.returncode != 0
    assert says in done.stderr
