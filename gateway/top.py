"""``understudy top``: the split, the promise and the upstreams of running gateways, live."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated

import httpx
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from gateway.config_file import load_config
from gateway.errors import ConfigError
from gateway.terminal import ConfigFile, fail

ASK_S = 5.0
WIDTH = 180
app = typer.Typer(add_completion=False)
Labels = frozenset[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Look:
    """One scrape of every gateway: samples by name and labels; counters are summed, of gauges the
    largest counts."""

    at: float
    samples: dict[str, dict[Labels, float]] = field(default_factory=dict)

    def by(self, name: str, label: str, **only: str) -> dict[str, float]:
        """A metric's sums by one label."""
        found: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, {}).items():
            known = dict(labels)
            if all(known.get(key) == wanted for key, wanted in only.items()):
                found[known.get(label, "")] += value
        return dict(found)


@app.command()
def top(
    config: ConfigFile,
    url: Annotated[
        list[str] | None, typer.Option(help="A gateway; may be given again. The file's by default.")
    ] = None,
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Two looks, one table, and out.")] = False,
) -> None:
    """Show who answers, whether the promise holds, and how upstreams do, until Ctrl-C."""
    try:
        listen = load_config(config).listen
    except ConfigError as error:
        fail(*error.problems)
    host = "127.0.0.1" if listen.host in ("0.0.0.0", "::") else listen.host  # noqa: S104
    urls = url or [f"http://{host}:{listen.port}"]
    console = Console(width=None if Console().is_terminal else WIDTH)
    before = _looked(urls)
    if once:
        time.sleep(every)
        console.print(shown(before, _looked(urls)))
        return
    with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(every)
                now = _looked(urls)
                live.update(shown(before, now), refresh=True)
                before = now
        except KeyboardInterrupt:
            return


def shown(before: Look, now: Look) -> Group:
    """Tables of what changed between two looks, and of how things stand."""
    return Group(_tasks(before, now), _reasons(before, now), _upstreams(before, now))


def _tasks(before: Look, now: Look) -> Table:
    table = _table(
        "task", "req/s", "student", "certified", "risk", "alpha", "audit", "missing", "gate",
        "version", "canary", "USD/h", "avoided/h",
    )  # fmt: skip
    requests = _rates(before, now, "understudy_requests_total", "task")
    student = _rates(before, now, "understudy_requests_total", "task", served_by="student")
    spent = _rates(before, now, "understudy_cost_usd_total", "task")
    avoided = _rates(before, now, "understudy_cost_avoided_usd_total", "task")
    lower, upper, alpha, coverage, missing, open_, canary = (
        now.by(f"understudy_{name}", "task")
        for name in ("risk_lower_bound", "risk_upper_bound", "risk_alpha", "coverage_ratio",
                     "audit_labels_missing", "gate_open", "canary_share")
    )  # fmt: skip
    for task in sorted(now.by("understudy_requests_total", "task")):
        low, high, gate = lower.get(task), upper.get(task), open_.get(task)
        state = [s for s, on in now.by("understudy_audit_state", "state", task=task).items() if on]
        versions = [v for v, on in now.by("understudy_student_info", "student", task=task).items()
                    if on]  # fmt: skip
        rate = requests.get(task, 0.0)
        table.add_row(
            task,
            f"{rate:.1f}",
            f"{student.get(task, 0.0) / rate:.0%}" if rate else "-",
            _percent(coverage.get(task)),
            f"{low:.3f} to {high:.3f}" if low is not None and high is not None else "-",
            _percent(alpha.get(task)),
            _coloured(state[0]) if state else "-",
            _whole(missing.get(task)),
            "-" if gate is None else "[green]open[/]" if gate else "[red]closed[/]",
            ", ".join(versions) or "-",
            _percent(canary.get(task) or None),
            f"{3600 * spent.get(task, 0.0):.4f}",
            f"{3600 * avoided.get(task, 0.0):.4f}",
        )
    return table


def _reasons(before: Look, now: Look) -> Table:
    table = _table("reason", "req/s", "share")
    rates = _rates(before, now, "understudy_requests_total", "reason")
    total = sum(rates.values())
    for reason, rate in sorted(rates.items(), key=lambda item: -item[1]):
        if rate > 0:
            table.add_row(reason, f"{rate:.1f}", f"{rate / total:.0%}")
    return table


def _upstreams(before: Look, now: Look) -> Table:
    table = _table("upstream", "calls/s", "failing", "breaker")
    calls = _rates(before, now, "understudy_upstream_attempts_total", "upstream")
    good = _rates(before, now, "understudy_upstream_attempts_total", "upstream", outcome="ok")
    open_ = now.by("understudy_circuit_open", "upstream")
    for name in sorted({*calls, *open_}):
        rate = calls.get(name, 0.0)
        failing = f"{1 - good.get(name, 0.0) / rate:.0%}" if rate else "-"
        table.add_row(name, f"{rate:.1f}", failing, "[red]open[/]" if open_.get(name) else "closed")
    return table


def _rates(before: Look, now: Look, name: str, label: str, **only: str) -> dict[str, float]:
    """By second; a counter that began anew counts from 0."""
    seconds = max(now.at - before.at, 1e-9)
    old = before.by(name, label, **only)
    found = now.by(name, label, **only)
    return {
        key: (value - old.get(key, 0.0) if value >= old.get(key, 0.0) else value) / seconds
        for key, value in found.items()
    }


def _looked(urls: Sequence[str]) -> Look:
    look = Look(time.monotonic())
    for url in urls:
        for name, labels, value, counts in _scraped(url):
            known = look.samples.setdefault(name, {})
            if labels not in known:
                known[labels] = value
            elif counts:
                known[labels] += value
            else:
                known[labels] = max(known[labels], value)
    return look


def _scraped(url: str) -> Iterator[tuple[str, Labels, float, bool]]:
    """(name, labels, value, whether gateways add up); ends the command where there is none."""
    try:
        answer = httpx.get(f"{url.rstrip('/')}/metrics", timeout=ASK_S)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        fail(f"{url}: no metrics: {error or type(error).__name__}; is the gateway running?")
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            counts = family.type == "counter"
            yield sample.name, frozenset(sample.labels.items()), sample.value, counts


def _table(*heads: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        right = head not in ("task", "reason", "upstream", "version")
        table.add_column(head, justify="right" if right else "left", no_wrap=True)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.1%}"


def _whole(number: float | None) -> str:
    return "-" if number is None else "never" if number == float("inf") else f"{number:.0f}"


def _coloured(state: str) -> str:
    colour = {"confirmed": "green", "refuted": "red"}.get(state, "yellow")
    return f"[{colour}]{state}[/]"
