"""Plots of a run's report, as inline SVG."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 7.0, 3.6


def drawn(draw: Callable[[Any], None], height: float = HEIGHT) -> str:
    """One pair of axes as SVG, always the same bytes for the same data."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasSVG(figure)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    out = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "understudy", "svg.fonttype": "none"}):
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def losses(curve: Sequence[Mapping[str, float]]) -> str:
    """Training loss by step."""

    def draw(axes: Any) -> None:
        axes.plot([p["step"] for p in curve], [p["loss"] for p in curve], color="#1f77b4")
        axes.set(xlabel="step", ylabel="training loss", ylim=(0, None))

    return drawn(draw, 2.6)


def by_epoch(curve: Sequence[Mapping[str, float]]) -> str:
    """Agreement on dev rows after each epoch."""

    def draw(axes: Any) -> None:
        axes.plot([p["epoch"] for p in curve], [p["dev_agreement"] for p in curve], "o-")
        axes.set(xlabel="epoch", ylabel="agreement on dev rows", ylim=(0, 1))

    return drawn(draw, 2.6)


def searched(tried: Sequence[Mapping[str, float]]) -> str:
    """Agreement on dev rows by penalty."""

    def draw(axes: Any) -> None:
        axes.semilogx(
            [t["c"] for t in tried], [t["dev_agreement"] for t in tried], "o-", color="#1f77b4"
        )
        axes.set(xlabel="inverse penalty, or learning rate", ylabel="agreement on dev rows")

    return drawn(draw, 2.6)


def by_slice(shares: Mapping[str, tuple[float, float | None]]) -> str:
    """Agreement of candidate and incumbent per slice."""

    def draw(axes: Any) -> None:
        places = range(len(shares))
        axes.barh([p + 0.2 for p in places], [c for c, _ in shares.values()], 0.4,
                  label="candidate", color="#1f77b4")  # fmt: skip
        before = [0.0 if i is None else i for _, i in shares.values()]
        axes.barh([p - 0.2 for p in places], before, 0.4, label="incumbent", color="#bbbbbb")
        axes.set_yticks(list(places), list(shares), fontsize=7)
        axes.set(xlim=(0, 1), xlabel="agreement with the teacher on test rows")
        axes.legend(loc="lower left")

    return drawn(draw, 1.0 + 0.22 * len(shares))


def risk_by_coverage(curves: Mapping[str, Sequence[tuple[float, float]]], alpha: float) -> str:
    """Risk over coverage on test rows, old and new."""

    def draw(axes: Any) -> None:
        for (name, points), colour in zip(curves.items(), ("#1f77b4", "#999999"), strict=False):
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, color=colour)
        axes.axhline(alpha, color="red", linewidth=1, label=f"alpha {alpha:g}")
        axes.set(xlabel="coverage", ylabel="risk", xlim=(0, 1), ylim=(0, max(0.2, 3 * alpha)))
        axes.legend(loc="upper left")

    return drawn(draw)


def curve_of(scores: Sequence[float], agrees: Sequence[bool]) -> list[tuple[float, float]]:
    """(coverage, risk) at every threshold, strict to loose; rows that an earlier rule sends to the
    teacher (scores above 1) are never covered."""
    order = sorted(range(len(scores)), key=lambda i: scores[i])
    points, wrong = [], 0
    for served, i in enumerate(order, start=1):
        if scores[i] > 1.0:
            break
        wrong += not agrees[i]
        points.append((served / len(scores), wrong / served))
    return points


def stacked_days(
    days: Sequence[str],
    student: Sequence[int],
    teacher: Sequence[int],
    agreement: Sequence[float | None],
    alpha: float,
) -> str:
    """Requests a day by who answered, and how much of the student's agreed with the teacher."""

    def draw(axes: Any) -> None:
        places = range(len(days))
        axes.bar(places, student, 0.8, label="student", color="#1f77b4")
        axes.bar(places, teacher, 0.8, bottom=student, label="teacher", color="#cccccc")
        step = max(1, len(days) // 12)
        axes.set_xticks(list(places)[::step], list(days)[::step])
        axes.set(ylabel="requests")
        right = axes.twinx()
        right.spines["top"].set_visible(False)
        known = [(p, a) for p, a in zip(places, agreement, strict=True) if a is not None]
        right.plot([p for p, _ in known], [a for _, a in known], "o-", color="#d62728",
                   label="agreement")  # fmt: skip
        right.axhline(1 - alpha, color="#d62728", linewidth=1, linestyle=":")
        right.set(ylim=(0, 1.02), ylabel="audited agreement (dotted: the budget)")
        handles = [*axes.get_legend_handles_labels()[0], *right.get_legend_handles_labels()[0]]
        axes.legend(handles, ["student", "teacher", "agreement"], loc="lower left", fontsize=8)

    return drawn(draw)
