"""Dashboards: as the code gives them, valid for Grafana, over metrics that exist."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
from jsonschema import Draft7Validator

from deploy.dashboards.__main__ import FOLDER, files
from tests.fakes.rig import ROOT
from tests.unit.test_alerts import known

SCHEMAS = ROOT / "tests/data/grafana"
KINDS = {"stat": "stat", "timeseries": "timeseries", "state-timeline": "statetimeline",
         "heatmap": "heatmap"}  # fmt: skip
BOARDS: dict[str, dict[str, Any]] = {
    path.name: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}


def schema(name: str, definition: str | None = None) -> Draft7Validator:
    found = json.loads((SCHEMAS / f"{name}.jsonschema.json").read_text())
    if definition is not None:
        found["$ref"] = f"#/definitions/{definition}"
    return Draft7Validator(found)


def units() -> set[str]:
    found = json.loads((SCHEMAS / "units.jsonschema.json").read_text())
    return {value["const"] for value in found["definitions"].values() if "const" in value}


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every panel but rows."""
    for panel in board["panels"]:
        yield from (p for p in (panel, *panel.get("panels", ())) if p["type"] != "row")


PANELS = [
    pytest.param(panel, id=f"{board['uid']}:{panel['title']}")
    for board in BOARDS.values()
    for panel in panels(board)
]


def plain(expr: str) -> str:
    """As Prometheus would get it."""
    return expr.replace("$__rate_interval", "1m").replace("$task", ".*")


def test_the_files_are_those_that_the_code_gives() -> None:
    made = dict(files())
    assert {path.name for path in made} == set(BOARDS)
    assert all(path.read_text() == text for path, text in made.items()), (
        "python -m deploy.dashboards"
    )


@pytest.mark.parametrize("name", BOARDS)
def test_a_dashboard_is_valid(name: str) -> None:
    board = BOARDS[name]
    assert list(schema("dashboard").iter_errors(board)) == []
    assert [v["name"] for v in board["templating"]["list"]] == ["datasource", "task"]
    for annotation in board["annotations"].get("list", ()):
        promql_parser.parse(plain(annotation["expr"]))
    titles = [panel["title"] for panel in panels(board)]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("name", BOARDS)
def test_no_two_panels_lie_on_each_other(name: str) -> None:
    places = [panel["gridPos"] for panel in panels(BOARDS[name])]
    assert all(p["x"] + p["w"] <= 24 for p in places)
    for a, b in itertools.combinations(places, 2):
        beside = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        below = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert beside or below, (a, b)


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_what_it_shows_of_what_exists(panel: dict[str, Any]) -> None:
    kind = KINDS[panel["type"]]
    assert list(schema(kind, "Options").iter_errors(panel["options"])) == []
    defaults = panel["fieldConfig"]["defaults"]
    if kind != "stat":
        assert list(schema(kind, "FieldConfig").iter_errors(defaults.get("custom", {}))) == []
    assert defaults["unit"] in units()
    assert panel["description"].endswith(".")
    assert panel["datasource"]["uid"] == "${datasource}"
    steps = [step["value"] for step in defaults.get("thresholds", {}).get("steps", [])]
    assert steps[1:] == sorted(steps[1:])
    assert not steps or steps[0] is None
    for target in panel["targets"]:
        assert list(schema("prometheus").iter_errors(target)) == []
        promql_parser.parse(plain(target["expr"]))
        names = set(re.findall(r"understudy_\w+", target["expr"]))
        assert names
        assert names <= known(), names - known()
        # A series is told from its neighbours by its legend.
        assert target["legendFormat"] != "__auto" or kind == "stat"


def test_every_metric_is_on_a_dashboard_or_in_an_alert() -> None:
    """What nobody looks at need not be counted."""
    said = " ".join(
        [*(t["expr"] for board in BOARDS.values() for p in panels(board) for t in p["targets"]),
         *(path.read_text() for path in Path(ROOT / "deploy/prometheus").glob("*.yaml"))]
    )  # fmt: skip
    unseen = {name for name in families() if name not in said}
    assert unseen == UNSEEN


def families() -> set[str]:
    from deploy.docs import tables

    return {family.name for family in tables.families()}


UNSEEN = {
    # For a question that comes up, not for a panel.
    "understudy_capture_dropped_bodies", "understudy_idempotent_replays",
    "understudy_key_spent_today_usd", "understudy_reloads", "understudy_retention_deleted",
    "understudy_threshold",
}  # fmt: skip
