"""The fortnight as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill.plots import drawn


def write_page(path: Path, nights: Sequence[Mapping[str, Any]], broken: Sequence[str]) -> None:
    """Write it."""
    rows = "".join(_row(night) for night in nights)
    verdict = "Every promise was kept." if not broken else "Broken: " + "; ".join(broken)
    path.write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>A simulated fortnight</title>'
        "<style>body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto}"
        "td,th{border:1px solid #ddd;padding:.2rem .5rem;text-align:left;vertical-align:top}"
        "table{border-collapse:collapse}svg{max-width:100%}</style>"
        f"<h1>A simulated fortnight</h1><p>{escape(verdict)}</p>{_plot(nights)}"
        "<table><tr><th>day</th><th>what happens</th><th>student served</th><th>agreement</th>"
        "<th>new intents, served right</th><th>audit</th><th>night</th><th>why</th>"
        "<th>certificate</th><th>past failures</th><th>serves next day</th><th>USD</th>"
        f"<th>seconds</th></tr>{rows}</table></html>\n",
        encoding="utf-8",
    )


def _row(night: Mapping[str, Any]) -> str:
    audit = night["audit"] or {}
    bounds = "-"
    if audit:
        low, high = audit["risk_lower_bound"], audit["risk_upper_bound"]
        bounds = f"{audit['status']}, risk {low:.3f} to {high:.3f}"
    cells = (
        night["day"], "; ".join(night["notes"]), f"{night['served']:.1%}",
        _percent(night["agreement"]), _percent(night["new_intents_right"]), bounds,
        night["decision"], night["reason"], _certificate(night["certificate"]),
        _past(night["regression"]), f"{night['student']} ({night['kind']})",
        f"{night['cost_usd']:.4f}", night["run_seconds"],
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _certificate(found: Mapping[str, Any] | None) -> str:
    if found is None or found["status"] != "certified":
        return "-" if found is None else f"none: {found['reason']}"
    return (
        f"{found['k']} disagreements among {found['n']} served of {found['rows']} draws, "
        f"coverage {found['coverage']:.1%}, delta {found['delta']:.3g}"
    )


def _past(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['rows']} rows: {found['incumbent']:.1%} before, {found['candidate']:.1%} now"


def _plot(nights: Sequence[Mapping[str, Any]]) -> str:
    def draw(axes: Any) -> None:
        days = [night["day"] for night in nights]
        axes.plot(days, [n["served"] for n in nights], "o-", label="served by the student")
        axes.plot(
            days, [n["agreement"] for n in nights], "s--", label="agreement of what it served"
        )
        for night in nights:
            if night["decision"] == "promoted":
                axes.axvline(night["day"] + 0.5, color="#bbbbbb", linewidth=1)
        axes.set(xlabel="day (grey: a promotion in the night)", ylim=(0, 1.02))
        axes.legend(loc="lower right")

    return drawn(draw, 3.2)
