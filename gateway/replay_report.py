"""A replay's report as text and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def plain(found: Mapping[str, Any]) -> str:
    """A report as text for the terminal."""
    coverage, risk, cost = found["coverage"], found["risk"], found["cost"]
    lines = [
        f"{found['requests']} judged requests, {found['draws']} draws, router {found['router']}",
        f"threshold  {found['threshold']:.6g}",
        f"coverage   {_shown(coverage['coverage_estimate'])} by the draws; between "
        f"{_shown(coverage['coverage_at_least'])} and {_shown(coverage['coverage_at_most'])} "
        f"({coverage['open']} requests have no student answer)",
        f"risk       {_shown(risk['risk_estimate'])} ({risk['errors']} of {risk['served_draws']} "
        f"served draws disagree), at most {_shown(risk['risk_upper_bound'])} with probability "
        f"{1 - found['delta']:g}: alpha {found['alpha']:g} "
        + ("holds" if risk["holds"] else "is not shown"),
        f"cost       teacher {cost['teacher_usd_at_least']:.4f} to "
        f"{cost['teacher_usd_at_most']:.4f} USD; teacher only {cost['teacher_only_usd']:.4f}, "
        f"spent {cost['spent_usd']:.4f}",
    ]
    certificate = found["certificate"]
    if certificate is not None and certificate["status"] != "certified":
        lines.append(f"certificate none: {certificate['reason']}")
    lines.append(f"{'slice':42} requests  coverage        risk (errors/draws)")
    for name, part in found["slices"].items():
        lines.append(
            f"{name[:42]:42} {part['requests']:8}  {_shown(part['coverage_at_least'])}-"
            f"{_shown(part['coverage_at_most'])}  {_shown(part['risk_estimate'])} "
            f"({part['errors']}/{part['served_draws']})"
        )
    return "\n".join(lines)


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def plot_svg(found: Mapping[str, Any]) -> str:
    """The risk-coverage curve with its upper bound, as a small SVG: no plotting library is part of
    the gateway's environment."""
    width, height, pad = 640, 400, 50
    curve = found["curve"]
    top = max([found["alpha"] * 2, *(p["risk_estimate"] or 0.0 for p in curve)]) * 1.1

    def at(x: float, y: float) -> str:
        across = pad + x * (width - 2 * pad)
        return f"{across:.1f},{height - pad - min(y / top, 1.0) * (height - 2 * pad):.1f}"

    def line(name: str, colour: str, dash: str) -> str:
        points = " ".join(at(p["coverage"], p[name] or 0.0) for p in curve)
        return (
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2" '
            f'stroke-dasharray="{dash}"/>'
        )

    start, end = at(0, found["alpha"]), at(1, found["alpha"])
    ticks = "".join(
        f'<text x="{at(x / 4, 0).split(",")[0]}" y="{height - pad + 18}" '
        f'text-anchor="middle">{x / 4:g}</text>'
        for x in range(5)
    ) + "".join(
        f'<text x="{pad - 6}" y="{at(0, top * y / 4).split(",")[1]}" '
        f'text-anchor="end">{top * y / 4:.3f}</text>'
        for y in range(5)
    )
    mark = at(found["coverage"]["coverage_estimate"] or 0.0, found["risk"]["risk_estimate"] or 0.0)
    x, y = mark.split(",")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{width}" height="{height}" fill="white"/>'
        f'<text x="{pad}" y="24">risk over coverage, {found["draws"]} draws, '
        f'router {found["router"]}; dashed: upper bound; red: alpha</text>'
        f'<polyline points="{start} {end}" stroke="red" fill="none"/>'
        + (line("risk_estimate", "#1f77b4", "") + line("risk_upper_bound", "#1f77b4", "6 4")
           if curve else "")
        + f'<circle cx="{x}" cy="{y}" r="5" fill="black"/>{ticks}'
        f'<text x="{width / 2}" y="{height - 8}" text-anchor="middle">coverage</text></svg>\n'
    )  # fmt: skip
