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
        "<th>audit</th><th>night</th><th>why</th><th>serves next day</th><th>USD</th>"
        f"<th>seconds</th></tr>{rows}</table></html>\n",
        encoding="utf-8",
    )


def _row(night: Mapping[str, Any]) -> str:
    audit = night["audit"] or {}
    bounds = "-"
    if audit:
        low, high = audit["risk_lower_bound"], audit["risk_upper_bound"]
        bounds = f"{audit['status']}, risk {low:.3f} to {high:.3f}"
    agreement = "-" if night["agreement"] is None else f"{night['agreement']:.1%}"
    cells = (
        night["day"], "; ".join(night["notes"]), f"{night['served']:.1%}", agreement, bounds,
        night["decision"], night["reason"], f"{night['student']} ({night['kind']})",
        f"{night['cost_usd']:.4f}", night["run_seconds"],
    )  # fmt: skip
    return "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in cells) + "</tr>"


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
