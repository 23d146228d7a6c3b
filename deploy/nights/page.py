"""The fortnight as one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill.html import page, table
from distill.plots import drawn


def write_page(path: Path, nights: Sequence[Mapping[str, Any]], broken: Sequence[str]) -> None:
    """Write it."""
    verdict = "Every promise was kept." if not broken else "Broken: " + "; ".join(broken)
    head = (
        "day", "what happens", "student served", "agreement", "new intents, served right", "audit",
        "night", "why", "certificate", "past failures", "serves next day", "USD", "seconds",
    )  # fmt: skip
    parts = [
        f"<h1>A simulated fortnight</h1><p>{escape(verdict)}</p>",
        _plot(nights),
        table(head, map(_row, nights)),
    ]
    path.write_text(page("A simulated fortnight", parts), encoding="utf-8")


def _row(night: Mapping[str, Any]) -> tuple[object, ...]:
    audit = night["audit"] or {}
    bounds = "-"
    if audit:
        low, high = audit["risk_lower_bound"], audit["risk_upper_bound"]
        bounds = f"{audit['status']}, risk {low:.3f} to {high:.3f}"
    return (
        night["day"], "; ".join(night["notes"]), f"{night['served']:.1%}",
        _percent(night["agreement"]), _percent(night["new_intents_right"]), bounds,
        night["decision"], night["reason"], _certificate(night["certificate"]),
        _past(night["regression"]), f"{night['student']} ({night['kind']})",
        f"{night['cost_usd']:.4f}", night["run_seconds"],
    )  # fmt: skip


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
