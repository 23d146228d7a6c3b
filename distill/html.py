"""The little HTML that reports are made of: one file, no script, nothing fetched."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;"
    "color:#222}table{border-collapse:collapse;margin:1rem 0}td,th{border:1px solid #ddd;"
    "padding:.25rem .6rem;text-align:left;vertical-align:top}th{background:#f5f5f5}"
    "code{background:#f5f5f5}.no{color:#a00}.yes{color:#070}svg{max-width:100%;height:auto}"
)


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document."""
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n"
    )


def table(
    head: Sequence[str], rows: Iterable[Sequence[object]], ids: Sequence[str] | None = None
) -> str:
    """Rows with ``ids`` can be found by their exchange, and taken out when it is forgotten."""
    heads = "".join(f"<th>{escape(h)}</th>" for h in head) if any(head) else ""
    lines = "".join(
        (f'<tr data-exchange="{escape(ids[number])}">' if ids else "<tr>")
        + "".join(f"<td>{escape(cell(value))}</td>" for value in row)
        + "</tr>\n"
        for number, row in enumerate(rows)
    )
    return f"<table>{f'<tr>{heads}</tr>' if heads else ''}{lines}</table>"


def cell(value: object) -> str:
    """A value as text; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def money(usd: float) -> str:
    """USD, without trailing zeros."""
    return f"{usd:.6f}".rstrip("0").rstrip(".") or "0"


def percent(share: float | None) -> str:
    """A share of 1, as per cent."""
    return "not measured" if share is None else f"{share:.1%}"
