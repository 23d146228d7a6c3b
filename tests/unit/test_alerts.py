"""Alert rules: PromQL that parses, metrics that exist, runbooks that are there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from deploy.docs import tables
from tests.fakes.rig import ROOT

FILES = sorted((ROOT / "deploy/prometheus").glob("*.rules.yaml"))
ALL = [
    rule
    for path in FILES
    for group in yaml.safe_load(path.read_text())["groups"]
    for rule in group["rules"]
]
RULES = [rule for rule in ALL if "alert" in rule]
RECORDED = {rule["record"] for rule in ALL if "record" in rule}
_SUFFIXES = ("_total", "_bucket", "_sum", "_count")


def known() -> set[str]:
    """Names of samples that the gateway can give."""
    names = {family.name for family in tables.families()}
    return names | {name + suffix for name in names for suffix in _SUFFIXES}


def anchors(page: Path) -> set[str]:
    """Headings of a page as links name them."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_a_rule_can_fire_and_leads_to_a_page(rule: dict[str, Any]) -> None:
    promql_parser.parse(rule["expr"])
    names = set(re.findall(r"understudy[_:][\w:]+", rule["expr"]))
    assert names <= known() | RECORDED, names - known() - RECORDED
    assert names or rule["expr"].startswith("up{")
    page, _, anchor = rule["annotations"]["runbook"].partition("#")
    assert anchor in anchors(ROOT / page)
    assert rule["labels"]["severity"] in {"page", "ticket"}
    assert rule["annotations"]["summary"]


@pytest.mark.parametrize("rule", [r for r in ALL if "record" in r], ids=lambda r: r["record"])
def test_what_is_recorded_comes_from_what_is_counted(rule: dict[str, Any]) -> None:
    promql_parser.parse(rule["expr"])
    assert set(re.findall(r"understudy_\w+", rule["expr"])) <= known()
    assert any(rule["record"] in other["expr"] for other in RULES) or rule["record"] in FOR_EYES


FOR_EYES = {"understudy:student_share:rate1h"}
"""Recorded for whoever looks, not for an alert."""


def test_every_step_of_giving_way_has_an_alert() -> None:
    said = " ".join(rule["expr"] for rule in RULES)
    steps = ("capture_level) >= 2", "capture_level) == 1", "lost", "set_aside", "outbox_records")
    for step in steps:
        assert step in said
