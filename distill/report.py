"""One HTML file per run: what was decided and why, with plots; and a model card per version."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from distill import plots
from distill.deciding import mcnemar
from distill.evaluating import BASE
from distill.html import money, page, percent, table
from distill.night import Night
from gateway.store.ledger import Stage
from gateway.store.students import Version

WORST = 20


def write_report(night: Night, state: str, reason: str) -> Path:
    """Write ``report.html`` into the run's folder, and the cards of its versions.

    Raises:
        OSError: it cannot be written.
    """
    parts = [_head(night, state, reason), _funnel(night)]
    evaluation = _evaluation(night)
    if evaluation is not None:
        parts += [
            _gate(night),
            _versions(night, evaluation),
            _slices(evaluation),
            _risk(night, evaluation),
        ]
    parts += [_certificate(night), _training(night), _cost(night)]
    if evaluation is not None:
        parts.append(_worst(night, evaluation))
    parts.append(_stages(night.ledger.stages(night.run.id)))
    path = night.path("report.html")
    path.write_text(page(f"{night.run.id}: {state}", parts), encoding="utf-8")
    for version in night.registry.versions(night.job.task.name):
        if version.run == night.run.id and version.sha256 is not None:
            _card(night, version, state, reason)
    return path


def _head(night: Night, state: str, reason: str) -> str:
    run, good = night.run, state == "promoted"
    when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(run.started_at))
    return (
        f"<h1>{escape(run.task)}, run {run.number}</h1>"
        f'<p class="{"yes" if good else "no"}"><b>{escape(state)}</b>: {escape(reason)}</p>'
        f"<p>Began {when} by {escape(run.trigger)}; code {escape(run.code)}.</p>"
    )


def _funnel(night: Night) -> str:
    collected = night.outputs.get("collect", {})
    split, curated = night.outputs.get("split", {}), night.outputs.get("curate", {})
    rows: list[tuple[object, object]] = [
        ("exchanges with the teacher's answer", collected.get("examples")),
        ("of these drawn", collected.get("drawn")),
        ("asked again of a changed teacher", collected.get("relabelled")),
        ("still labelled by the old teacher, unused", collected.get("stale")),
    ]
    rows += [(f"left out: {why}", n) for why, n in collected.get("left_out", {}).items()]
    rows += [(f"split: {name}", n) for name, n in split.items() if isinstance(n, int)]
    rows += [("training rows", curated.get("rows")), ("different answers", curated.get("answers"))]
    rows += [(f"not trained on: {why}", n) for why, n in curated.get("rejected", {}).items()]
    return "<h2>Rows</h2>" + table(("what", "how many"), [r for r in rows if r[1] is not None])


def _evaluation(night: Night) -> dict[str, Any] | None:
    if "evaluate" not in night.outputs:
        return None
    found: dict[str, Any] = night.read_json("evaluation.json")
    return found


def _gate(night: Night) -> str:
    text = "<h2>Gate</h2>"
    for name, decision in night.outputs.get("gate", {}).get("decisions", {}).items():
        verdict = "passed" if decision["passed"] else "refused"
        text += f"<h3>{escape(name)}: {verdict}</h3>"
        text += table(
            ("rule", "verdict", "what it saw"),
            [(c["name"], "ok" if c["passed"] else "no", c["says"]) for c in decision["checks"]],
        )
    why = night.outputs.get("gate", {}).get("why")
    return text + (f"<p>Chosen: {escape(str(why))}.</p>" if why else "")


def _versions(night: Night, found: Mapping[str, Any]) -> str:
    """Candidates, incumbent and base on the same prompts."""
    before, tokens = found["incumbent"], found["tokens"]
    speeds = night.outputs["evaluate"].get("speed") or {}
    everybody = [(name, name, said["agrees"]) for name, said in found["candidates"].items()]
    if before["name"] is not None:
        everybody.append((before["name"], f"{before['name']} (incumbent)", before["agrees"]))
    if found.get("base") is not None:
        everybody.append((BASE, "base, untrained", found["base"]))
    rows = []
    for name, caption, agrees in everybody:
        against: object = ""
        if before["name"] not in (None, name):
            # The base was asked about the first rows alone.
            lost, gained, p = mcnemar(list(zip(agrees, before["agrees"], strict=False)))
            against = f"{lost} lost, {gained} gained, p = {p:.2g}"
        alone = (speeds.get(name) or {}).get("alone_ms")
        share = f"{sum(agrees)} of {len(agrees)} ({percent(_mean(agrees, range(len(agrees))))})"
        rows.append((caption, share, against, tokens.get(name), alone))
    return "<h2>On the same test prompts</h2>" + table(
        ("who", "agrees with the teacher", "against the incumbent (exact McNemar)",
         "tokens an answer", "ms, alone"), rows
    )  # fmt: skip


def _slices(found: Mapping[str, Any]) -> str:
    rows, before = found["rows"], found["incumbent"]["agrees"]
    name, said = next(iter(found["candidates"].items()))
    groups: dict[str, list[int]] = {}
    for number, row in enumerate(rows[: len(said["agrees"])]):
        groups.setdefault(row["slice"], []).append(number)
    if not groups:
        return ""
    largest = sorted(groups.items(), key=lambda item: -len(item[1]))[:40]
    shares: dict[str, tuple[float, float | None]] = {
        f"{which} ({len(members)})": (
            _mean(said["agrees"], members), _mean(before, members) if before else None
        )
        for which, members in largest
    }  # fmt: skip
    return f"<h2>Agreement by slice, {escape(name)}</h2>" + plots.by_slice(shares)


def _risk(night: Night, found: Mapping[str, Any]) -> str:
    curves = {}
    for name, said in found["candidates"].items():
        if said["scores"] is not None:
            curves[name] = plots.curve_of(said["scores"], said["agrees"])
    before = found["incumbent"]
    if before["scores"] is not None:
        curves[f"{before['name']} (incumbent)"] = plots.curve_of(before["scores"], before["agrees"])
    if not curves:
        return ""
    plot = plots.risk_by_coverage(curves, night.job.task.risk.alpha)
    return "<h2>Risk and coverage on test rows</h2>" + plot


def _certificate(night: Night) -> str:
    facts = night.outputs.get("recalibrate", {}).get("certificate")
    if not facts:
        return ""
    names = ("status", "reason", "alpha", "delta", "promotion", "comparator", "tau", "n", "k",
             "p_value", "rows", "groups", "coverage", "bootstrap_upper", "mix")  # fmt: skip
    rows = [(name, facts[name]) for name in names if facts.get(name) is not None]
    return "<h2>Certificate</h2>" + table(("", ""), rows)


def _training(night: Night) -> str:
    text = "<h2>Training</h2>"
    for name in night.outputs.get("train", {}).get("candidates", []):
        metrics = dict(night.version(name).facts.get("metrics", {}))
        curve, tried = metrics.pop("loss_curve", None), metrics.pop("tried", None)
        epochs = metrics.pop("epochs", None)
        text += f"<h3>{escape(name)}</h3>" + table(("", ""), sorted(metrics.items()))
        if curve:
            text += plots.losses(curve)
        if epochs:
            text += plots.by_epoch(epochs)
        if tried:
            text += plots.searched(tried)
    for kind, why in night.outputs.get("train", {}).get("left_out", {}).items():
        text += f"<p>No {escape(kind)}: {escape(why)}.</p>"
    return text


def _cost(night: Night) -> str:
    teacher = night.outputs.get("collect", {}).get("teacher") or {}
    speeds = night.outputs.get("evaluate", {}).get("speed") or {}
    rows = [("teacher", teacher.get("usd_per_1000"), teacher.get("p50_ms"), "", "")]
    for name, speed in speeds.items():
        if speed is None:
            continue
        price = night.job.price_per_hour(night.version(name).kind)
        rows.append(
            (name, money(speed["usd_per_1000_at_full_load"]), speed["alone_ms"],
             speed["requests_per_s"], _break_even(teacher.get("usd_per_1000"), price))
        )  # fmt: skip
    spent = sum(stage.cost_usd for stage in night.ledger.stages(night.run.id))
    return (
        "<h2>Cost and latency, measured</h2>"
        + table(
            ("who", "USD per 1,000 answers (student: at full load)", "ms, alone",
             "answers/s at 8 at once", "served requests a day that pay the machine"), rows
        )
        + f"<p>The run itself spent {money(spent)} USD on the teacher.</p>"
    )  # fmt: skip


def _break_even(teacher_usd_per_1000: float | None, price_per_hour: float) -> str:
    """Requests a day from which the student's machine, idle share included, costs less than the
    teacher would."""
    if not teacher_usd_per_1000:
        return "-"
    return f"{24 * price_per_hour / (teacher_usd_per_1000 / 1000):.0f}"


def _worst(night: Night, found: Mapping[str, Any]) -> str:
    """The disagreements that the candidate was surest of."""
    name, said = next(iter(found["candidates"].items()))
    scores = said["scores"] or [0.0] * len(found["rows"])
    wrong = sorted((i for i, agrees in enumerate(said["agrees"]) if not agrees),
                   key=lambda i: scores[i])[:WORST]  # fmt: skip
    texts = {e.id: e.row.text for e in night.examples("examples.jsonl.gz")}
    before = found["incumbent"]["name"]
    rows, ids = [], []
    for i in wrong:
        row = found["rows"][i]
        old = row["answers"].get(before, "") if before else ""
        shown = f"{scores[i]:.4f}" if scores[i] <= 1 else "not served"
        rows.append(
            (texts.get(row["id"], "")[:300], row["teacher"], row["answers"][name], old, shown)
        )
        ids.append(row["id"])
    return f"<h2>Worst disagreements of {escape(name)}</h2>" + table(
        ("prompt", "teacher", "candidate", "incumbent", "P(disagree)"), rows, ids
    )


def _stages(stages: Iterable[Stage]) -> str:
    rows = [
        (s.name, s.state.value, s.tries, f"{(s.ended_at or s.started_at) - s.started_at:.1f} s",
         money(s.cost_usd), s.error or "")
        for s in stages
    ]  # fmt: skip
    return "<h2>Stages</h2>" + table(("stage", "state", "tries", "took", "USD", "error"), rows)


def _card(night: Night, version: Version, state: str, reason: str) -> None:
    """A model card (Mitchell et al., Model Cards for Model Reporting, 2019)."""
    task, curated = night.job.task, night.outputs.get("curate", {})
    evaluate = night.outputs.get("evaluate", {})
    agreement = evaluate.get("agreement", {}).get(version.name)
    asked, rows = evaluate.get("asked", {}).get(version.name), evaluate.get("test_rows")
    traffic = "all" if asked == rows else f"the first {asked} of {rows} rows of"
    certificate = night.outputs.get("recalibrate", {})
    certified = certificate.get("certificate") if certificate.get("student") == version.name else {}
    lines = [
        f"# {version.name}",
        "",
        f"- Kind: {version.kind.value}; sha256 of its manifest: {version.sha256}",
        f"- Made by run {version.run} from {version.parent or 'nothing'}; the run ended "
        f"{state}: {reason}",
        f"- Intended use: task `{task.name}`, behind a gateway that judges each request; not by "
        "itself",
        f"- Trained on {curated.get('rows')} answers of the teacher `{task.teacher.model}` and of "
        f"people, training set {version.data_sha256[:16]}; personal data replaced by surrogates "
        f"under the rules {night.job.config()['redact']}",
        f"- Agreement with the teacher on {traffic} test traffic: {percent(agreement)}",
        f"- Certificate: {_certified(certified or {})}",
        "- Limits: certified for traffic like its calibration draws; outside of it the gateway "
        "asks the teacher. An end user who is forgotten later stays in the weights until the next "
        "version.",
    ]
    path = night.job.folder / "cards" / f"v{version.number}.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _certified(facts: Mapping[str, Any]) -> str:
    if facts.get("status") != "certified":
        return "none"
    return (
        f"risk at most {facts['alpha']:g} with probability {1 - facts['delta']:.4g} under "
        f"{facts['comparator']}, on {facts['n']} served of {facts['rows']} draws with "
        f"{facts['k']} disagreements; coverage {facts['coverage']:.1%}"
    )


def _mean(values: Sequence[bool], members: Sequence[int]) -> float:
    return sum(values[i] for i in members) / len(members)
