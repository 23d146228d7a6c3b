"""The few kinds of panel that the dashboards are made of, all over one Prometheus datasource."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    statetimeline,
    timeseries,
)
from grafana_foundation_sdk.models import common as models
from grafana_foundation_sdk.models.dashboard import (
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
GREEN, YELLOW, RED, BLUE = "green", "#EAB839", "red", "blue"
Steps = Sequence[tuple[float | None, str]]
"""Thresholds: a lower limit (None for the first) and the colour from there on."""
Panel = Any
"""A builder of the SDK; its classes share no base but the generic one."""


@dataclass(frozen=True, slots=True)
class Query:
    """PromQL and what its series are called."""

    expr: str
    legend: str = "__auto"


def number(
    title: str, expr: str, unit: str, means: str, steps: Steps = ((None, BLUE),), width: int = 4
) -> Panel:
    """The latest value, large; its colour follows ``steps``."""
    return (
        stat.Panel()
        .title(title)
        .description(means)
        .datasource(SOURCE)
        .unit(unit)
        .thresholds(_thresholds(steps))
        .color_mode(models.BigValueColorMode.VALUE)
        .graph_mode(models.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value("none yet")
        .with_target(_target(Query(expr), "A"))
        .span(width)
        .height(4)
    )


def lines(
    title: str,
    queries: Sequence[Query],
    unit: str,
    means: str,
    *,
    stacked: Literal["normal", "percent"] | None = None,
    steps: Steps | None = None,
    width: int = 12,
    most: float | None = None,
) -> Panel:
    """Series over time; ``steps`` are drawn as lines, ``most`` is the top of the axis."""
    panel = (
        timeseries.Panel()
        .title(title)
        .description(means)
        .datasource(SOURCE)
        .unit(unit)
        .min(0)
        .fill_opacity(60 if stacked else 8)
        .show_points(models.VisibilityMode.NEVER)
        .legend(
            common.VizLegendOptions()
            .display_mode(models.LegendDisplayMode.TABLE)
            .placement(models.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .tooltip(common.VizTooltipOptions().mode(models.TooltipDisplayMode.MULTI))
        .span(width)
        .height(8)
    )
    if most is not None:
        panel.max(most)
    if stacked is not None:
        panel.stacking(common.StackingConfig().mode(models.StackingMode(stacked)).group("A"))
    if steps is not None:
        panel.thresholds(_thresholds(steps)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(models.GraphThresholdsStyleMode.LINE)
        )
    for place, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + place)))
    return panel


def states(
    title: str, queries: Sequence[Query], means: str, steps: Steps, width: int = 12
) -> Panel:
    """Which state held when, one bar for each series."""
    panel = (
        statetimeline.Panel()
        .title(title)
        .description(means)
        .datasource(SOURCE)
        .unit("bool_on_off")
        .thresholds(_thresholds(steps))
        .show_value(models.VisibilityMode.NEVER)
        .merge_values(True)
        .legend(common.VizLegendOptions().show_legend(False))
        .span(width)
        .height(6)
    )
    for place, query in enumerate(queries):
        panel.with_target(_target(query, chr(ord("A") + place)))
    return panel


def densities(title: str, metric: str, by: str, unit: str, means: str, width: int = 12) -> Panel:
    """A histogram's buckets over time."""
    expr = f"sum by (le) (rate({metric}_bucket{{{by}}}[$__rate_interval]))"
    return (
        heatmap.Panel()
        .title(title)
        .description(means)
        .datasource(SOURCE)
        .calculate(False)
        .unit(unit)
        .with_target(
            prometheus.Dataquery()
            .expr(expr)
            .legend_format("{{le}}")
            .format(PromQueryFormat.HEATMAP)
            .ref_id("A")
            .range()
        )
        .span(width)
        .height(8)
    )


def board(
    uid: str, title: str, means: str, rows: Sequence[tuple[str, Sequence[Panel]]],
    annotations: Sequence[tuple[str, str, str]] = (),
) -> dashboard.Dashboard:  # fmt: skip
    """A dashboard: rows of panels, the variables ``datasource`` and ``task``, and annotations
    (name, PromQL, colour)."""
    found = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(means)
        .tags(["understudy"])
        .timezone("browser")
        .time("now-6h", "now")
        .refresh("30s")
        .readonly()
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Datasource").type("prometheus")
        )
        .with_variable(
            dashboard.QueryVariable("task")
            .label("Task")
            .datasource(SOURCE)
            .query("label_values(understudy_requests_total, task)")
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
            .include_all(True)
            .all_value(".*")
            .multi(True)
        )
        .link(
            dashboard.DashboardLink("Understudy")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["understudy"])
            .keep_time(True)
            .include_vars(True)
            .as_dropdown(True)
        )
    )
    for name, expr, colour in annotations:
        found.annotation(
            dashboard.AnnotationQuery().name(name).datasource(SOURCE).expr(expr).icon_color(colour)
            .enable(True).type("prometheus")
        )  # fmt: skip
    for name, panels in rows:
        found.with_row(dashboard.Row(name))
        for panel in panels:
            found.with_panel(panel)
    return found


def _target(query: Query, ref: str) -> prometheus.Dataquery:
    return prometheus.Dataquery().expr(query.expr).legend_format(query.legend).ref_id(ref).range()


def _thresholds(steps: Steps) -> dashboard.ThresholdsConfig:
    return (
        dashboard.ThresholdsConfig()
        .mode(ThresholdsMode.ABSOLUTE)
        .steps([Threshold(value=value, color=colour) for value, colour in steps])
    )
